import type { Sql } from './db.ts'
import { fragment } from './db.ts'
import { findMessages, messageResource, statusOfMessage } from './messages.ts'
import type { Message, MessageStatus } from './messages.ts'
import { accept } from './outbound.ts'
import type { Submission } from './outbound.ts'
import { takeBack } from './outbox.ts'
import { decodeCursor, numberedPage, numberKey } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'
import { refusals } from './refusals.ts'

export interface RejectedRow {
  index: number
  code: string
  message: string
}

/** A batch as the API answers it. */
export interface Batch {
  id: string
  sessionId: string
  accepted: number
  rejected: RejectedRow[]
  /** How many of its messages have which status now. */
  statuses: Partial<Record<MessageStatus, number>>
  createdAt: Date
  cancelledAt: Date | null
}

/**
 * Accepts many messages at once. `indexes[i]` is where messages[i] stood in what was handed in, `rejected` what was refused before. Either the batch and all of
 * its messages are durable when this resolves, or nothing is. Throws 404 when the session is gone.
 */
export async function acceptBatch(
  sql: Sql,
  submission: Omit<Submission, 'batchId'>,
  indexes: number[],
  rejectedBefore: RejectedRow[],
): Promise<{ batchId: string; accepted: number; rejected: RejectedRow[] }> {
  return sql.begin(async (tx) => {
    const [batch] = await tx<{ id: string }>`
      insert into batches (workspace_id, session_id, created_by, accepted)
      values (${submission.workspaceId}, ${submission.sessionId}, ${submission.sentBy}, 0) returning id`
    const batchId = batch!.id
    const outcomes =
      submission.messages.length === 0 ? [] : await accept(tx, { ...submission, batchId })
    const refused = outcomes.flatMap((outcome, i) =>
      'refusal' in outcome
        ? [
            {
              index: indexes[i]!,
              code: outcome.refusal,
              message: refusals[outcome.refusal].message,
            },
          ]
        : [],
    )
    const accepted = outcomes.length - refused.length
    const rejected = [...rejectedBefore, ...refused].sort((a, b) => a.index - b.index)
    await tx`update batches set accepted = ${accepted}, rejected = ${JSON.stringify(rejected)} where id = ${batchId}`
    return { batchId, accepted, rejected }
  })
}

export async function findBatch(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<Batch | undefined> {
  const [batch] = await sql<Batch>`
    select b.id, b.session_id, b.accepted, b.rejected, b.created_at, b.cancelled_at, (
        select coalesce(jsonb_object_agg(status, n), '{}') from (
          select ${statusOfMessage} as status, count(*)::int as n
          from messages m left join outbox o on o.message_id = m.id where m.batch_id = b.id group by 1) counted) as statuses
    from batches b where b.workspace_id = ${workspaceId} and b.id = ${id}`
  return batch
}

/** A message of a batch, and its place in what was handed in. */
export interface BatchMessage extends Message {
  index: number
}

/** What was accepted of a batch, in the order it was handed in. Undefined when there is no such batch. */
export async function listBatchMessages(
  sql: Sql,
  workspaceId: string,
  id: string,
  { limit, cursor, status }: PageWish & { status?: MessageStatus | undefined },
): Promise<Page<BatchMessage> | undefined> {
  const after = cursor === undefined ? 0 : Number(decodeCursor(cursor, numberKey).key)
  const [batch] = await sql<Pick<Batch, 'accepted' | 'rejected'>>`
    select accepted, rejected from batches where workspace_id = ${workspaceId} and id = ${id}`
  if (!batch) return undefined
  const places = await sql<{ id: string; nth: number }>`
    select id, nth from (
      select m.id, row_number() over (order by m.seq)::int as nth, ${statusOfMessage} as status
      from messages m left join outbox o on o.message_id = m.id where m.batch_id = ${id}) m
    where nth > ${after}::bigint ${status === undefined ? fragment`` : fragment`and status = ${status}`}
    order by nth limit ${limit + 1}`
  const rows = await findMessages(
    sql,
    workspaceId,
    places.map((place) => place.id),
  )
  const messages = new Map(rows.map((row) => [row.id, messageResource(row)]))
  const rejected = new Set(batch.rejected.map(({ index }) => index))
  const all = Array.from({ length: batch.accepted + rejected.size }, (_, index) => index)
  const accepted = all.filter((index) => !rejected.has(index))
  const found = places.filter((place) => messages.has(place.id))
  return numberedPage(
    found,
    { limit },
    ({ nth }) => nth,
    (place) => ({ index: accepted[place.nth - 1]!, ...messages.get(place.id)! }),
  )
}

/** Takes back what nobody has begun to send of a batch. Undefined when there is no such batch. */
export async function cancelBatch(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<Batch | undefined> {
  return sql.begin(async (tx) => {
    const [batch] = await tx`
      update batches set cancelled_at = coalesce(cancelled_at, now()) where workspace_id = ${workspaceId} and id = ${id} returning id`
    if (!batch) return undefined
    await takeBack(
      tx,
      fragment`o.message_id in (select m.id from messages m where m.batch_id = ${id})`,
    )
    return findBatch(tx, workspaceId, id)
  })
}
