import { randomUUID } from 'node:crypto'
import t from 'tap'
import { acceptBatch, cancelBatch, findBatch } from '../batches.ts'
import { putBack } from '../claims.ts'
import { retry } from '../waiting-messages.ts'
import { untilLocked } from './locks.ts'
import { matchWhole } from './match.ts'
import { ada, lanesAreRight, rig, stranger, text } from './outbox-rig.ts'

void t.test('a batch is accepted as a whole, watched and cancelled', async (t) => {
  const { sql, workspaceId, sessionId, next, confirm } = await rig(t)
  const people = Array.from({ length: 5 }, stranger)
  const accepted = await acceptBatch(
    sql,
    {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: 'r',
      messages: [
        ...people.map((to) => text(to, 'offer')),
        text(people[0]!, 'quoting', { quotedMessageId: randomUUID() }),
      ],
    },
    [0, 1, 2, 4, 5, 6],
    [{ index: 3, code: 'VALIDATION_FAILED', message: 'no' }],
  )
  matchWhole(t, accepted, {
    accepted: 5,
    rejected: [
      { index: 3, code: 'VALIDATION_FAILED' },
      { index: 6, code: 'QUOTED_NOT_FOUND' },
    ],
  })
  const { batchId } = accepted
  const first = (await next())!
  t.match(await findBatch(sql, workspaceId, batchId), { statuses: { queued: 4, sending: 1 } })
  await confirm(first)
  const cancelled = await cancelBatch(sql, workspaceId, batchId)
  t.match(cancelled, { statuses: { sent: 1, cancelled: 4 } })
  t.ok(cancelled!.cancelledAt)
  t.equal(await cancelBatch(sql, randomUUID(), batchId), undefined)
  await lanesAreRight(t, sql)
})

void t.test('what was in hand when its batch was cancelled is not tried again', async (t) => {
  const { sql, workspaceId, sessionId, lane, next, read } = await rig(t)
  const submission = { workspaceId, sessionId, sentBy: null, requestId: 'r' }
  const { batchId } = await acceptBatch(
    sql,
    { ...submission, messages: [text(ada, 'offer')] },
    [0],
    [],
  )
  const claimed = (await next())!
  const { messageId } = claimed
  let putting!: Promise<void>
  await sql.begin(async (tx) => {
    await cancelBatch(tx, workspaceId, batchId)
    putting = putBack(sql, lane, claimed, { delayMs: 0 })
    await untilLocked(sql)
  })
  await putting
  t.match(await read(messageId), { status: 'cancelled', error: null })
  t.equal(await next(), undefined)

  await retry(sql, workspaceId, messageId)
  await putBack(sql, lane, (await next())!, { delayMs: 0 })
  t.match(await read(messageId), { status: 'queued' }, 'a person has asked for that since')
  await lanesAreRight(t, sql)
})

void t.test(
  'batches are accepted and taken back at once without locking each other out',
  async (t) => {
    const { sql, workspaceId, sessionId } = await rig(t)
    const people = Array.from({ length: 60 }, stranger)
    const messages = people.map((to) => text(to, 'offer'))
    const indexes = people.map((_, i) => i)
    const submission = { workspaceId, sessionId, sentBy: null, requestId: 'r', messages }
    const submit = () => acceptBatch(sql, submission, indexes, [])
    const batches = [await submit(), await submit(), await submit(), await submit(), await submit()]
    await Promise.all(
      batches.flatMap(({ batchId }) => [submit(), cancelBatch(sql, workspaceId, batchId)]),
    )
    const [counted] = await sql`select count(*)::int as n from outbox`
    t.strictSame(counted, { n: 300 })
    await lanesAreRight(t, sql)
  },
)

void t.test(
  'two batches to the same people at the same time do not lock each other out',
  async (t) => {
    const { sql, workspaceId, sessionId } = await rig(t)
    const people = Array.from({ length: 30 }, stranger)
    const submit = (order: string[]) =>
      acceptBatch(
        sql,
        {
          workspaceId,
          sessionId,
          sentBy: null,
          requestId: 'r',
          messages: order.map((to) => text(to, 'offer')),
        },
        order.map((_, i) => i),
        [],
      )
    await Promise.all(
      Array.from({ length: 6 }, (_, i) => submit(i % 2 ? people : [...people].reverse())),
    )
    const [counted] = await sql`select count(*)::int as n from outbox`
    t.strictSame(counted, { n: 180 })
    await lanesAreRight(t, sql)
  },
)
