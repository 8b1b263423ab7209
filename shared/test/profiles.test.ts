import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Test } from 'tap'
import { recordAcks } from '../acks.ts'
import { acceptBatch } from '../batches.ts'
import { claim } from '../claims.ts'
import { findMessage, messageResource } from '../messages.ts'
import { accept } from '../outbound.ts'
import { createProfile, removeMember } from '../profiles.ts'
import { untilLocked } from './locks.ts'
import { ada, atOnce, rig, text, worker } from './outbox-rig.ts'

/** A workspace with an owner, and somebody who sends. */
async function team(t: Test) {
  const it = await rig(t)
  const { sql, workspaceId, sessionId } = it
  const join = (email: string, role: 'owner' | 'agent') =>
    createProfile(sql, { workspaceId, email, fullName: email, role, passwordHash: 'x' })
  const owner = await join('owner@example.com', 'owner')
  const leaver = await join('leaver@example.com', 'agent')
  const submission = (bodies: string[]) => ({
    workspaceId,
    sessionId,
    sentBy: leaver.id,
    requestId: randomUUID(),
    messages: bodies.map((body) => text(ada, body)),
  })
  const send = async (body: string) => {
    const [outcome] = await accept(sql, submission([body]))
    if ('refusal' in outcome!) throw new Error(outcome.refusal)
    return outcome!.message
  }
  const remove = (on = sql) => removeMember(on, owner, leaver.id, async () => {})
  return { ...it, owner, leaver, submission, send, remove }
}

/** `ok`, or the code of what went wrong. */
const outcome = (work: Promise<unknown>) =>
  work.then(
    () => 'ok',
    (error: Error & { code?: string }) => error.code ?? error.message,
  )

void t.test(
  'who is removed stays the sender of their messages, of which none is touched',
  async (t) => {
    const { sql, workspaceId, leaver, send, remove } = await team(t)
    const message = await send('Hello')
    t.strictSame(message.sentBy, { id: leaver.id, fullName: 'leaver@example.com' })
    const written = () => sql`select xmin::text, ctid::text from messages`
    const before = await written()
    await remove()
    t.strictSame(await written(), before)
    const now = messageResource((await findMessage(sql, workspaceId, message.id))!)
    t.strictSame(now.sentBy, message.sentBy)
    const [left] = await sql`
    select count(*)::int as n from profiles where id = ${leaver.id} or email = ${leaver.email}`
    t.strictSame(left, { n: 0 })
  },
)

void t.test('a removal waits for nobody who waits for it', async (t) => {
  const { sql, lane, leaver, send, submission, remove } = await team(t)
  const { chatId } = await send('one')
  await sql`update chats set assignee_id = ${leaver.id} where id = ${chatId}`
  const [claimed] = await claim(sql, worker, [lane], atOnce)
  let all!: Promise<string>[]
  await sql.begin(async (tx) => {
    await tx`select from outbox_lanes for update`
    // Has the chat, and waits for the lane.
    all = [outcome(send('two'))]
    await untilLocked(sql, 1)
    // Has the message, and waits for the lane.
    const ack = { keyId: claimed!.keyId, ack: 1 }
    all.push(outcome(recordAcks(sql, [{ session: lane, ack }])))
    await untilLocked(sql, 2)
    // Waits for the chat, and has the person.
    all.push(outcome(remove()))
    await untilLocked(sql, 3)
    all.push(outcome(acceptBatch(sql, submission(['three']), [0], [])))
    await untilLocked(sql, 4)
  })
  t.strictSame(await Promise.all(all), ['ok', 'ok', 'ok', 'ok'])
})

void t.test('many chats are taken off somebody in several transactions', async (t) => {
  const { sql, workspaceId, sessionId, leaver, remove } = await team(t)
  await sql`
    insert into chats (workspace_id, session_id, wa_chat_id, assignee_id)
    select ${workspaceId}, ${sessionId}, '12025' || n || '@c.us', ${leaver.id} from generate_series(100000, 100450) n`
  await remove()
  const [told] = await sql`select count(*)::int as n from events where type = 'chat.updated'`
  t.strictSame(told, { n: 451 })
  const [written] = await sql`select count(distinct xmin::text)::int as n from chats`
  t.strictSame(written, { n: 3 })
  const [left] = await sql`select count(*)::int as n from chats where assignee_id is not null`
  t.strictSame(left, { n: 0 })
})

void t.test('a removal that is not recorded has not happened', async (t) => {
  const { sql, owner, leaver } = await team(t)
  await t.rejects(
    removeMember(sql, owner, leaver.id, () => Promise.reject(new Error('no log'))),
    /no log/,
  )
  const [person] = await sql`select id from profiles where id = ${leaver.id}`
  t.strictSame(person, { id: leaver.id })
  const [former] = await sql`select count(*)::int as n from former_members`
  t.strictSame(former, { n: 0 })
})
