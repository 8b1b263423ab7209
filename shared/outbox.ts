import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import { findMessage, messageResource } from './messages.ts'
import { assertFence } from './wa-session-leases.ts'

/** A session whose messages a worker may send now. */
export interface Lane {
  id: string
  fence: number
}

/** A message a worker has claimed: it is `sending` from here on, and must be looked up before it is ever sent again. */
export interface Claimed {
  outboxId: number
  messageId: string
  sessionId: string
  workspaceId: string
  chatId: string
  waChatId: string
  keyId: string
  body: string
  attempts: number
  requestId: string | null
}

/**
 * Claims the oldest due message of each of these idle lanes, in one round trip. Only lanes whose fence still holds and whose
 * session is WORKING give one, so a worker that lost a session claims nothing of it.
 */
export async function claim(sql: Sql, worker: string, lanes: Lane[]): Promise<Claimed[]> {
  return sql<Claimed>`
    with claimed as (
      update outbox o set state = 's', claimed_by = ${worker}, claimed_at = now(), attempts = o.attempts + 1
      from (
        select h.id from unnest(${lanes.map((lane) => lane.id)}::uuid[], ${lanes.map((lane) => lane.fence)}::bigint[]) u(id, fence)
        join wa_sessions s on s.id = u.id and s.fence = u.fence and s.owner = ${worker} and s.status = 'WORKING'
        cross join lateral (
          select id, retry_at from outbox where session_id = s.id and state = 'q' order by id limit 1) h
        -- Outside the limit: a head that waits for its retry keeps its place, and the ones behind it theirs.
        where h.retry_at is null or h.retry_at <= now()
        for share of s
        offset 0
      ) head
      where o.id = head.id and o.state = 'q'
      returning o.*
    )
    update messages m set status = 'sending', attempts = claimed.attempts
    from claimed join chats c on c.id = claimed.chat_id
    where m.id = claimed.message_id
    returning claimed.id as outbox_id, m.id as message_id, m.session_id, m.workspace_id, m.chat_id, c.wa_chat_id,
      m.wa_key_id as key_id, m.body, m.attempts, m.request_id`
}

/** What is left claimed: by a worker that died, or handed to WhatsApp and not yet confirmed for `olderThanSeconds`. */
export async function unconfirmed(
  sql: Sql,
  lane: Lane,
  olderThanSeconds: number,
): Promise<Claimed[]> {
  return sql<Claimed>`
    select o.id as outbox_id, m.id as message_id, m.session_id, m.workspace_id, m.chat_id, c.wa_chat_id,
      m.wa_key_id as key_id, m.body, m.attempts, m.request_id
    from outbox o join messages m on m.id = o.message_id join chats c on c.id = o.chat_id
    where o.session_id = ${lane.id} and o.state = 's'
      and o.claimed_at <= now() - ${olderThanSeconds} * interval '1 second'
    order by o.id`
}

/** Puts a message that certainly did not go out back at the head of its lane, due after `delayMs`. Throws LeaseLost. */
export async function putBack(
  sql: Sql,
  lane: Lane,
  { outboxId, messageId }: Claimed,
  delayMs: number,
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, lane)
    const [row] = await tx`
      update outbox set state = 'q', claimed_by = null, claimed_at = null,
        retry_at = case when ${delayMs}::int > 0 then now() + ${delayMs}::int * interval '1 ms' end
      where id = ${outboxId} and state = 's' returning id`
    // Gone meanwhile: it was confirmed after all.
    if (row)
      await tx`update messages set status = 'queued' where id = ${messageId} and status = 'sending'`
  })
}

/** Gives a message up with a code; it leaves the outbox. Throws LeaseLost. */
export async function giveUp(
  sql: Sql,
  lane: Lane,
  { workspaceId, messageId }: Claimed,
  error: { code: string; message: string },
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, lane)
    const [left] = await tx`delete from outbox where message_id = ${messageId} returning id`
    if (!left) return
    await tx`
      update messages set status = 'failed', error_code = ${error.code}, error_message = ${error.message}
      where id = ${messageId}`
    const row = await findMessage(tx, workspaceId, messageId)
    if (!row) return
    await appendEvents(tx, [
      { workspaceId, sessionId: lane.id, type: 'message.ack', payload: messageResource(row) },
    ])
  })
}

/** Cancels everything of a session that nobody has begun to send. */
export async function cancelQueued(sql: Sql, sessionId: string): Promise<void> {
  await sql`
    with taken_back as (delete from outbox where session_id = ${sessionId} and state = 'q' returning message_id)
    update messages m set status = 'cancelled' from taken_back where m.id = taken_back.message_id`
}

/**
 * Ends all sending from a number that is no longer this session's: what waits has failed, and of what was on its way nobody will ever know.
 * Throws LeaseLost.
 */
export async function endOutbox(
  sql: Sql,
  session: Lane,
  why: { code: string; message: string },
): Promise<number> {
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    const ended = await tx`
      with taken as (delete from outbox where session_id = ${session.id} returning message_id, state)
      update messages m
      set status = case taken.state when 'q' then 'failed' else 'unknown' end,
          error_code = case taken.state when 'q' then ${why.code} else 'OUTCOME_UNKNOWN' end,
          error_message = ${why.message}
      from taken where m.id = taken.message_id
      returning m.id`
    return ended.length
  })
}

/** How many messages wait, at most `cap`, and for how long the oldest one has: for health checks, cheap whatever the backlog. */
export async function backlog(
  sql: Sql,
  cap = 10_000,
): Promise<{ queued: number; oldestSeconds: number }> {
  const [row] = await sql<{ queued: number; oldestSeconds: number }>`
    select (select count(*)::int from (select from outbox where state = 'q' limit ${cap}) capped) as queued,
      coalesce(extract(epoch from now() - (select created_at from outbox where state = 'q' order by id limit 1))::int, 0) as oldest_seconds`
  return row!
}
