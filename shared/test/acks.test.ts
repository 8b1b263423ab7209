import { randomUUID } from 'node:crypto'
import t from 'tap'
import { recordAcks } from '../acks.ts'
import type { Db } from '../db.ts'
import { findMessage, messageResource } from '../messages.ts'
import { accept } from '../outbound.ts'
import { claim, giveUp } from '../claims.ts'
import { LeaseLost } from '../wa-session-leases.ts'
import { createSession } from '../wa-sessions.ts'
import { createWorkspace } from '../workspaces.ts'
import { testDb } from './db.ts'
import { ada, atOnce, rig, text } from './outbox-rig.ts'

/** A session that works and has just claimed a message. */
async function givenClaimed(sql: Db, workspaceId: string, name: string) {
  const { id } = await createSession(sql, {
    workspaceId,
    name,
    engine: 'simulator',
    start: true,
    expiryDays: 30,
  })
  await sql`
    update wa_sessions set owner = 'test', fence = 1, lease_until = now() + interval '1 hour', status = 'WORKING' where id = ${id}`
  await accept(sql, {
    workspaceId,
    sessionId: id,
    sentBy: null,
    requestId: randomUUID(),
    messages: [{ waChatId: '12025550101@c.us', content: { type: 'text', body: name } }],
  })
  const [claimed] = await claim(sql, 'test', [{ id, fence: 1 }], atOnce)
  return { session: { id, workspaceId, fence: 1 }, ...claimed! }
}

void t.test('acks of many sessions are recorded together, each for itself', async (t) => {
  const { sql } = await testDb(t)
  const workspaceId = await createWorkspace(sql, 'Bakery')
  const names = ['sent', 'lost', 'refused', 'taken', 'foreign', 'expired', 'peer']
  const [sent, lost, refused, taken, foreign, expired, peer] = await Promise.all(
    names.map((name) => givenClaimed(sql, workspaceId, name)),
  )
  await sql`update wa_sessions set fence = 2 where id = ${lost!.session.id}`
  const outcomes = await recordAcks(sql, [
    { session: foreign!.session, ack: { keyId: 'of the phone', ack: 1 } },
    { session: sent!.session, ack: { keyId: sent!.keyId, ack: 1, waMessageId: 'x' } },
    { session: lost!.session, ack: { keyId: lost!.keyId, ack: 1 } },
    { session: refused!.session, ack: { keyId: refused!.keyId, ack: -1 } },
    { session: taken!.session, ack: { keyId: taken!.keyId, ack: 0 } },
    { session: expired!.session, ack: { keyId: expired!.keyId, ack: -3 } },
    { session: peer!.session, ack: { keyId: peer!.keyId, ack: 5 } },
  ])
  t.type(outcomes[2], LeaseLost)
  t.strictSame(outcomes.toSpliced(2, 1), [
    undefined,
    sent!.messageId,
    refused!.messageId,
    taken!.messageId,
    expired!.messageId,
    peer!.messageId,
  ])
  const read = async ({ messageId }: { messageId: string }) =>
    messageResource((await findMessage(sql, workspaceId, messageId))!)
  t.match(await read(sent!), { status: 'sent', ack: 1, waMessageId: 'x', attempts: 1 })
  t.match(await read(lost!), { status: 'sending', ack: null })
  t.match(await read(refused!), { status: 'failed', error: { code: 'REFUSED_BY_WHATSAPP' } })
  t.match(await read(expired!), { status: 'failed', ack: -1 }, 'a refusal of another kind')
  t.match(await read(peer!), { status: 'sent', ack: 1 })
  t.match(await read(taken!), { status: 'sending', ack: 0 })
  const left = await sql<{ messageId: string }>`select message_id from outbox order by id`
  t.same(
    new Set(left.map(({ messageId }) => messageId)),
    new Set([lost, taken, foreign].map((one) => one!.messageId)),
  )
  const events = await sql<{ payload: { id: string } }>`
    select payload from events where type = 'message.ack' order by id`
  t.strictSame(
    events.map(({ payload }) => payload),
    JSON.parse(
      JSON.stringify([
        await read(sent!),
        await read(refused!),
        await read(taken!),
        await read(expired!),
        await read(peer!),
      ]),
    ),
    'each event tells what the API would answer',
  )
})

void t.test('that the page has a message takes no error from it', async (t) => {
  const { sql, lane, queue, next, read, confirm } = await rig(t)
  const [sent] = await queue(text(ada, 'Hello'))
  const claimed = (await next())!
  const unknown = { code: 'OUTCOME_UNKNOWN', message: 'Nobody knows.' }
  await giveUp(sql, lane, claimed, { status: 'unknown', ...unknown })
  await confirm(claimed, 0)
  t.match(await read(sent!.id), { status: 'unknown', ack: 0, error: unknown })
  await confirm(claimed)
  t.match(await read(sent!.id), { status: 'sent', error: null })
})

void t.test('a refusal that was none has opened the conversation', async (t) => {
  const { queue, next, confirm } = await rig(t)
  await queue(text(ada, 'Hello'))
  const refused = (await next())!
  await confirm(refused, -1)
  await confirm(refused, 2)
  await queue(text(ada, 'Are you there?'))
  t.match(await next(), { cold: false })
})
