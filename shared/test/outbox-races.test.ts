import { randomUUID } from 'node:crypto'
import t from 'tap'
import { recordAck, recordAcks } from '../acks.ts'
import { acceptBatch, cancelBatch } from '../batches.ts'
import { claim, giveUp, putBack } from '../claims.ts'
import { readEvents } from '../events.ts'
import { cancel, retry } from '../waiting-messages.ts'
import { cancelQueued, endOutbox, releaseScheduled } from '../outbox.ts'
import { lockReachOut } from '../new-conversations.ts'
import { LeaseLost } from '../wa-session-leases.ts'
import { deleteSession } from '../wa-sessions.ts'
import { untilLocked } from './locks.ts'
import { until } from './until.ts'
import { ada, atOnce, bob, rig, stranger, strangers, text, worker } from './outbox-rig.ts'

type Rig = Awaited<ReturnType<typeof rig>>

const mail = ({ sql, workspaceId, sessionId }: Rig, to: string[], sendAt?: Date) =>
  acceptBatch(
    sql,
    {
      ...{ workspaceId, sessionId, sentBy: null, requestId: randomUUID() },
      messages: to.map((waChatId, i) => text(waChatId, `n ${i}`, { sendAt })),
    },
    to.map((_, i) => i),
    [],
  )

const why = { code: 'ACCOUNT_CHANGED', message: 'Another number.' }

const waysOut: Record<string, (rig: Rig, batchId: string) => Promise<unknown>> = {
  'its batch is cancelled': ({ sql, workspaceId }, batchId) =>
    cancelBatch(sql, workspaceId, batchId),
  'its session is deleted': ({ sql, sessionId }) => cancelQueued(sql, sessionId),
  'its session has another number': ({ sql, lane }) => endOutbox(sql, lane, why),
}
for (const [what, takeOut] of Object.entries(waysOut))
  void t.test(`${what} in the moment in which a mailing becomes due`, async (t) => {
    const rigged = await rig(t)
    const { sql } = rigged
    const { batchId } = await mail(rigged, strangers(3), new Date(Date.now() + 60_000))
    await sql`update outbox set send_at = now()`
    let taking: Promise<unknown> | undefined
    await sql.begin(async (tx) => {
      t.equal(await releaseScheduled(tx), 3)
      taking = takeOut(rigged, batchId)
      await untilLocked(sql)
    })
    await taking
    t.strictSame(await sql`select from outbox`, [])
    t.strictSame(await sql`select waiting from outbox_lanes where waiting <> 0`, [])
  })

void t.test('a batch and its session are taken back at once, in one order', async (t) => {
  const rigged = await rig(t)
  const { sql, lane, workspaceId, sessionId, next } = rigged
  const { batchId } = await mail(rigged, strangers(300))
  // As in a database that is in use, where other messages lie beside these: it decides how the rows are found.
  await sql`
    insert into messages (workspace_id, session_id, chat_id, direction, source, type, status)
    select workspace_id, session_id, chat_id, 'outbound', 'phone', 'text', 'sent' from messages, generate_series(1, 100)`
  await sql`analyze`
  // The first was tried, and waits again: it lies behind the others in the table now.
  await putBack(sql, lane, (await next())!, { delayMs: 0 })
  let both: Promise<unknown>[] = []
  await sql.begin(async (tx) => {
    await tx`select from outbox order by id offset 1 limit 1 for update`
    both = [cancelQueued(sql, sessionId)]
    await untilLocked(sql, 1)
    both.push(cancelBatch(sql, workspaceId, batchId))
    await untilLocked(sql, 2)
  })
  await Promise.all(both)
  t.strictSame(await sql`select from outbox`, [])
})

void t.test('a session with a long backlog', async (t) => {
  const rigged = await rig(t)
  const { sql, lane, workspaceId, sessionId } = rigged
  const left = async () =>
    (await sql<{ n: number }>`select count(*)::int as n from outbox`).map(({ n }) => n)
  for (let n = 0; n < 2; n++) await mail(rigged, strangers(600))

  await t.test('its deletion is answered before all of it is cancelled', async (t) => {
    t.equal(await deleteSession(sql, workspaceId, sessionId), true)
    t.strictSame(await left(), [200], 'the worker cancels the rest')
  })
  await t.test('the rest of it ends in transactions of a slice each', async (t) => {
    await sql`update wa_sessions set deleted_at = null`
    for (let n = 0; n < 2; n++) await mail(rigged, strangers(600))
    t.equal(await endOutbox(sql, lane, why), 1_400)
    t.strictSame(await left(), [0])
    const transactions = await sql`
      select count(*) from events e join messages m on m.id = (e.payload->>'id')::uuid
      where e.type = 'message.ack' and m.status = 'failed' group by e.tx`
    t.ok(transactions.length >= 3, 'one for every 500 at the most')
  })
  await t.test('not by a worker that has lost the session', async (t) => {
    await mail(rigged, [ada])
    await t.rejects(endOutbox(sql, { ...lane, fence: 0 }, why), LeaseLost)
    t.strictSame(await left(), [1])
  })
})

void t.test('an ack that comes in the moment of a retry ends it', async (t) => {
  const { sql, lane, workspaceId, queue, next, read } = await rig(t)
  const [message] = await queue(text(ada, 'one'))
  const claimed = (await next())!
  await giveUp(sql, lane, claimed, { status: 'unknown', code: 'OUTCOME_UNKNOWN', message: 'x' })
  let acking: Promise<unknown> | undefined
  await sql.begin(async (tx) => {
    await retry(tx, workspaceId, message!.id)
    acking = recordAck(sql, lane, { keyId: claimed.keyId, ack: 3 })
    await untilLocked(sql)
  })
  t.equal(await acking, message!.id)
  t.match(await read(message!.id), { status: 'read', ack: 3 })
  t.strictSame(await sql`select from outbox`, [], 'it is not sent again')
  t.strictSame(await sql`select waiting from outbox_lanes`, [{ waiting: 0 }])
})

void t.test('a late ack of a first message opens its conversation', async (t) => {
  const { sql, lane, sessionId, queue, next, body } = await rig(t)
  const somebody = stranger()
  await queue(text(somebody, 'first'))
  const claimed = (await next())!
  t.equal(claimed.cold, true)
  await putBack(sql, lane, claimed, { delayMs: 0, doubted: true })
  await recordAck(sql, lane, { keyId: claimed.keyId, ack: 2 })
  await lockReachOut(sql, sessionId, null)
  const [second] = await queue(text(somebody, 'second'))
  t.equal(second!.heldBy, null)
  t.equal(body(await next()), 'second', 'a lock holds new conversations only')
})

void t.test('who quotes a message and who retries it do not wait for each other', async (t) => {
  const { sql, lane, workspaceId, queue, next } = await rig(t)
  const [message] = await queue(text(ada, 'one'))
  const ending = { status: 'unknown', code: 'OUTCOME_UNKNOWN', message: 'x' } as const
  await giveUp(sql, lane, (await next())!, ending)
  let both: Promise<unknown>[] = []
  await sql.begin(async (tx) => {
    await tx`select from outbox_lanes for update`
    both = [queue(text(ada, 'two', { quotedMessageId: message!.id }))]
    await untilLocked(sql, 1)
    both.push(retry(sql, workspaceId, message!.id))
    await untilLocked(sql, 2)
  })
  await Promise.all(both)
  t.strictSame(await sql`select waiting from outbox_lanes`, [{ waiting: 2 }])
})

void t.test('what was changed last is told last, whoever began first', async (t) => {
  const { sql, lane, workspaceId, queue, next, read } = await rig(t)
  // Sessions are locked in the order of their ids: this one behind the other.
  const other = 'ffffffff-ffff-4fff-bfff-ffffffffffff'
  await sql`
    insert into wa_sessions (id, workspace_id, name, engine, desired_state, owner, fence)
    values (${other}, ${workspaceId}, 'other', 'simulator', 'running', ${worker}, 1)`
  const [message] = await queue(text(ada, 'one'))
  const claimed = (await next())!
  await putBack(sql, lane, claimed, { delayMs: 60_000, doubted: true })
  let acking: Promise<unknown> | undefined
  await sql.begin(async (tx) => {
    // The acks have begun to write, and wait here, while a person takes the message back.
    await tx`select from wa_sessions where id = ${other} for update`
    acking = recordAcks(sql, [
      { session: lane, ack: { keyId: claimed.keyId, ack: 1 } },
      { session: { ...lane, id: other }, ack: { keyId: 'none', ack: 1 } },
    ])
    await untilLocked(sql)
    await cancel(sql, workspaceId, message!.id)
  })
  await acking
  t.match(await read(message!.id), { status: 'sent' })
  // All that is older than every transaction of this server: those of other tests, too.
  const told = await until('both are told of', async () => {
    const [page] = await readEvents(sql, [{ workspaceId, position: { tx: 0, id: 0 } }], 100)
    const acks = page!.events.filter(({ type }) => type === 'message.ack')
    return acks.length >= 2 && acks
  })
  t.strictSame(
    told.map(({ payload }) => (JSON.parse(payload) as { status: string }).status),
    ['cancelled', 'sent'],
  )
})

void t.test(
  'the pace counts from when a message is claimed, not from when its claim began to wait',
  async (t) => {
    const { sql, lane, sessionId, queue, pace } = await rig(t)
    await pace({ minGapMs: 1_000, jitterMs: 0, perMinute: 0 })
    await queue(text(ada, 'one'), text(bob, 'two'))
    let claiming: ReturnType<typeof claim> | undefined
    const [letGo] = await sql.begin(async (tx) => {
      await tx`select from wa_sessions where id = ${sessionId} for update`
      claiming = claim(sql, worker, [lane], atOnce)
      await untilLocked(sql)
      const seen = Date.now()
      await until('a gap has passed since', () => Date.now() > seen + 1_100)
      return tx<{ at: Date }>`select clock_timestamp() as at`
    })
    const [claimed] = (await claiming)!
    t.equal(claimed!.waitMs, 1_000)
    const [state] = await sql<{ nextSendAt: Date }>`select next_send_at from wa_session_pacing`
    t.ok(state!.nextSendAt.getTime() >= letGo!.at.getTime() + 1_000)
  },
)
