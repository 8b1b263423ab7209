import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Test } from 'tap'
import { recordAck } from '../acks.ts'
import { removeExpired } from '../jobs.ts'
import { recordEdit, recordReaction } from '../message-changes.ts'
import { findMessage, messageResource } from '../messages.ts'
import { accept } from '../outbound.ts'
import { claim } from '../claims.ts'
import { actionDone, actionFailed, askAction, dueActions, expireActions } from '../wa-actions.ts'
import type { ActionWish } from '../wa-actions.ts'
import { keyIdOf } from '../wa-id.ts'
import { createSession, deleteSession } from '../wa-sessions.ts'
import { testDb } from './db.ts'
import { matchWhole } from './match.ts'
import { atOnce } from './outbox-rig.ts'

const ada = '12025550101@c.us'
const refusal = { code: 'NOT_EDITABLE', message: 'WhatsApp does not let it be edited.' }

/** A session that works, and a message of it. */
async function rig(t: Test) {
  const { sql } = await testDb(t)
  const [workspace] = await sql<{ id: string }>`
    insert into workspaces (name) values ('Bakery') returning id`
  const workspaceId = workspace!.id
  const { id: sessionId } = await createSession(sql, {
    workspaceId,
    name: 'sales',
    engine: 'simulator',
    start: true,
    expiryDays: 30,
  })
  await sql`
    update wa_sessions set owner = 'test', fence = 1, lease_until = now() + interval '1 hour', status = 'WORKING', linked_at = now()`
  const lane = { id: sessionId, workspaceId, fence: 1 }
  const [outcome] = await accept(sql, {
    workspaceId,
    sessionId,
    sentBy: null,
    requestId: randomUUID(),
    messages: [{ waChatId: ada, content: { type: 'text', body: 'Helo' } }],
  })
  if (!outcome || 'refusal' in outcome) throw new Error('not accepted')
  const { id, chatId } = outcome.message
  const ask = (wish: ActionWish) => askAction(sql, { workspaceId, sessionId, chatId }, wish)
  const edit = (body: string) => ask({ kind: 'edit', messageId: id, payload: { body } })
  const react = (emoji: string) => ask({ kind: 'react', messageId: id, payload: { emoji } })
  const due = async () => (await dueActions(sql, 'test', [lane]))[0]
  const read = async () => messageResource((await findMessage(sql, workspaceId, id))!)
  const send = async () => {
    await claim(sql, 'test', [lane], atOnce)
    await recordAck(sql, lane, { keyId: keyIdOf(id), ack: 1 })
  }
  const events = async () =>
    (
      await sql<{ type: string }>`
        select type from events where type not in ('message.any', 'message.ack') order by id`
    ).map(({ type }) => type)
  return { sql, workspaceId, sessionId, lane, id, ask, edit, react, due, read, send, events }
}

void t.test('what is asked for is shown until it is made', async (t) => {
  const { sql, lane, edit, react, due, read, send, events } = await rig(t)
  await send()
  t.strictSame((await read()).actions, [])
  await edit('Hello')
  await react('👍')
  matchWhole(t, (await read()).actions, [
    { kind: 'edit', value: 'Hello', status: 'pending', error: null },
    { kind: 'reaction', value: '👍', status: 'pending', error: null },
  ])
  await actionDone(sql, lane, (await due())!)
  matchWhole(t, (await read()).actions, [{ kind: 'reaction', status: 'pending' }])
  await actionDone(sql, lane, (await due())!)
  const made = await read()
  t.equal(made.body, 'Hello')
  t.strictSame(made.actions, [])
  matchWhole(t, made.reactions, [{ emoji: '👍', at: /T\d\d:\d\d:\d\d\.\d{3}Z$/ }])
  t.strictSame(await events(), ['message.edited', 'message.reaction'])
})

void t.test('what WhatsApp refuses is told, and is no fault of the message', async (t) => {
  const { sql, lane, edit, due, read, send, events } = await rig(t)
  await send()
  await edit('Hello')
  await actionFailed(sql, lane, (await due())!, refusal)
  const refused = await read()
  t.match(refused, { status: 'sent', body: 'Helo', error: null, editedAt: null })
  matchWhole(t, refused.actions, [
    { kind: 'edit', value: 'Hello', status: 'failed', error: refusal },
  ])
  t.strictSame(await events(), ['message.action'])
  const [told] = await sql<{ payload: object }>`
    select payload from events where type = 'message.action'`
  matchWhole(t, told!.payload, { body: 'Helo', actions: [{ status: 'failed', error: refusal }] })

  await edit('Hello!')
  matchWhole(t, (await read()).actions, [
    { status: 'failed' },
    { status: 'pending', value: 'Hello!' },
  ])
  await actionDone(sql, lane, (await due())!)
  t.strictSame((await read()).actions, [], 'the later one was made: nothing is owed any more')
})

void t.test('what nobody made in its time is told, too', async (t) => {
  const { sql, ask, edit, read, send, events, id } = await rig(t)
  await send()
  await edit('Hello')
  await ask({ kind: 'revoke', messageId: id, payload: {} })
  await ask({ kind: 'typing', payload: { on: true } })
  t.equal(await expireActions(sql), 0)
  await sql`update wa_actions set expires_at = now() - interval '1 second'`
  t.equal(await expireActions(sql), 3)
  t.equal(await expireActions(sql), 0)
  matchWhole(t, (await read()).actions, [
    { kind: 'edit', status: 'failed', error: { code: 'EXPIRED' } },
    { kind: 'deletion', value: null, status: 'failed', error: { code: 'EXPIRED' } },
  ])
  t.strictSame(await events(), ['message.action'], 'once a message')
})

void t.test('what was made after all counts', async (t) => {
  const { sql, lane, edit, due, read, send } = await rig(t)
  await send()
  await edit('Hello')
  const slow = (await due())!
  await sql`update wa_actions set expires_at = now() - interval '1 second'`
  await expireActions(sql)
  await actionDone(sql, lane, slow)
  const { body, actions } = await read()
  t.strictSame({ body, actions }, { body: 'Hello', actions: [] })
})

void t.test('nothing expires while its message waits, nor as soon as that is sent', async (t) => {
  const { sql, edit, due, read, send } = await rig(t)
  await edit('Hello')
  await sql`
    update wa_actions set created_at = now() - interval '9 days', expires_at = created_at - interval '9 days' + interval '30 minutes'`
  t.equal(await expireActions(sql), 0)
  await removeExpired(sql)
  t.equal(await due(), undefined)
  await send()
  t.match(await due(), { kind: 'edit' })
  await sql`update messages set sent_at = now() - interval '31 minutes'`
  t.equal(await due(), undefined)
  t.equal(await expireActions(sql), 1)
  matchWhole(t, (await read()).actions, [{ status: 'failed' }])
})

void t.test(
  'of one message the earlier change is made first, also when it is tried again',
  async (t) => {
    const { sql, lane, edit, react, due, send } = await rig(t)
    await send()
    await edit('first')
    await edit('second')
    await react('👍')
    const first = (await due())!
    await actionFailed(sql, lane, first, { code: 'ACTION_FAILED', message: 'It threw.' }, 60_000)
    t.match(await due(), { kind: 'react' }, 'other changes pass')
    await actionDone(sql, lane, (await due())!)
    t.equal(await due(), undefined)
    await sql`update wa_actions set due_at = now()`
    t.match(await due(), { payload: { body: 'first' } })
  },
)

void t.test('a session that is deleted makes no more changes', async (t) => {
  const { sql, workspaceId, sessionId, edit, read, send } = await rig(t)
  await send()
  await edit('Hello')
  await deleteSession(sql, workspaceId, sessionId)
  t.equal(await expireActions(sql), 1)
  matchWhole(t, (await read()).actions, [{ status: 'failed', error: { code: 'SESSION_DELETED' } }])
})

void t.test('a change of ours that is heard of first is told once', async (t) => {
  const { sql, lane, id, edit, react, due, send, events } = await rig(t)
  await send()
  const key = { fromMe: true, chatId: ada, id: keyIdOf(id), participant: '' }
  await edit('Hello')
  await react('👍')
  await recordEdit(sql, lane, { key, body: 'Hello', at: new Date() })
  const heard = { target: key, emoji: '👍', waId: ada, fromMe: true, at: new Date() }
  await recordReaction(sql, lane, heard)
  await actionDone(sql, lane, (await due())!)
  await actionDone(sql, lane, (await due())!)
  t.strictSame(await events(), ['message.edited', 'message.reaction'])
})

void t.test('a reaction that was taken back is not brought back by an old report', async (t) => {
  const { sql, lane, id, react, due, read, send } = await rig(t)
  await send()
  const target = { fromMe: true, chatId: ada, id: keyIdOf(id), participant: '' }
  const then = new Date()
  await react('👍')
  await actionDone(sql, lane, (await due())!)
  await react('')
  await actionDone(sql, lane, (await due())!)
  await recordReaction(sql, lane, { target, emoji: '👍', waId: ada, fromMe: true, at: then })
  t.strictSame((await read()).reactions, [])
})

void t.test('what came of a change is known for a week', async (t) => {
  const { sql, lane, edit, due, read, send } = await rig(t)
  await send()
  await edit('Hello')
  await actionFailed(sql, lane, (await due())!, refusal)
  await sql`update wa_actions set created_at = now() - interval '9 days', done_at = now() - interval '6 days'`
  await removeExpired(sql)
  t.equal((await read()).actions.length, 1)
  await sql`update wa_actions set done_at = now() - interval '8 days'`
  await removeExpired(sql)
  t.equal((await read()).actions.length, 0)
})
