import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import type { DesiredState, EngineKind, SessionRequest, SessionStatus } from './wa-sessions.ts'

/** A session as its owner proves it: only the owner of the moment has its fence. */
export interface Lease {
  id: string
  fence: number
}

/** With the workspace it is in. */
export interface SessionLease extends Lease {
  workspaceId: string
}

/** A session a worker owns for now, and what is wished of it. */
export interface LeasedSession extends SessionLease {
  name: string
  engine: EngineKind
  status: SessionStatus
  desiredState: DesiredState
  /** The account it was linked to last. */
  waId: string | null
  /** Open one-shot wishes. */
  requests: SessionRequest[]
}

/**
 * What is true of session `s` while nobody owns it, whatever its last owner wrote: it does not work, and neither its code nor an answer to a passkey
 * leads anywhere.
 */
export const orphaned = fragment`coalesce(s.lease_until < clock_timestamp(), true)`
export const statusOf = fragment`
  case when s.status = 'WORKING' and ${orphaned} then 'RECONNECTING'
       when s.status in ('SCAN_QR_CODE', 'PASSKEY_REQUIRED') and ${orphaned} then 'STARTING' else s.status end`

/** Everything a LeasedSession has; `s` is the wa_sessions row. */
const leased = fragment`
  s.id, s.workspace_id, s.name, s.engine, s.status, s.desired_state, s.fence, s.wa_id,
  array(select r.kind from wa_session_requests r where r.session_id = s.id and r.done_at is null order by r.id) as requests`

/** A write of a worker found that its session has another owner by now. Whoever catches it kills the engine and writes nothing. */
export class LeaseLost extends Error {
  constructor(sessionId: string) {
    super(`The lease on session ${sessionId} is lost.`)
    this.name = 'LeaseLost'
  }
}

/**
 * Takes up to `limit` sessions that should run, or that have an open wish, and have no live owner. Each change of owner raises the
 * fence. Workers that ask at the same time get different sessions. A failed session waits for a wish, or for a worker that
 * started after it failed: that one tries once more. `errands` are what ends by itself and leaves nothing running: logouts, deletions, and whatever there is to
 * do for sessions that are to be stopped.
 */
export async function takeLeases(
  sql: Sql,
  {
    worker,
    ttlMs,
    limit,
    only,
  }: { worker: string; ttlMs: number; limit: number; only?: 'errands' },
): Promise<LeasedSession[]> {
  return sql<LeasedSession>`
    update wa_sessions s
    set owner = ${worker}, fence = s.fence + 1, lease_until = clock_timestamp() + ${ttlMs} * interval '1 ms'
    where s.id in (
      select c.id from wa_sessions c where ${takeable(worker)} ${only === 'errands' ? fragment`and ${isErrand}` : fragment``}
      -- Of errands one is taken at a time: one that always fails must not always be it.
      order by ${only === 'errands' ? fragment`random()` : fragment`c.lease_until nulls first, c.created_at`}
      limit ${limit}
      for update skip locked
    )
    returning ${leased}`
}

const isErrand = fragment`
  (c.desired_state = 'stopped' or exists (
    select from wa_session_requests r where r.session_id = c.id and r.kind in ('logout', 'delete') and r.done_at is null))`

/** `c`: nobody owns it, and there is something to do for it. */
const takeable = (worker: string) => fragment`
  (c.lease_until is null or c.lease_until < clock_timestamp())
  and ((c.desired_state = 'running' and c.deleted_at is null
        and (c.status <> 'FAILED' or c.since < (select w.started_at from workers w where w.id = ${worker})))
    or exists (select from wa_session_requests r where r.session_id = c.id and r.done_at is null)
    -- Wanted stopped while its owner died: somebody must say that it is.
    or (c.desired_state = 'stopped' and c.status in ('STARTING', 'SCAN_QR_CODE', 'WORKING', 'RECONNECTING', 'PASSKEY_REQUIRED')))`

/** How the sessions are spread: how many nobody owns, how many there are to run in all, and how many workers are alive to do it. */
export async function census(
  sql: Sql,
  { worker, ttlMs }: { worker: string; ttlMs: number },
): Promise<{ waiting: number; total: number; workers: number }> {
  const [row] = await sql<{ waiting: number; total: number; workers: number }>`
    select count(*) filter (where ${takeable(worker)})::int as waiting,
      count(*) filter (where c.lease_until >= clock_timestamp() or ${takeable(worker)})::int as total,
      (select count(*)::int from workers where heartbeat_at > now() - ${ttlMs} * interval '1 ms') as workers
    from wa_sessions c`
  return row!
}

/** A lease of a worker, and whether it was renewed. */
export interface Renewal extends LeasedSession {
  renewed: boolean
}

/**
 * Renews every lease of the worker that has not run out, and answers those sessions; what is missing is lost. A session somebody writes of just now is not waited
 * for: it is answered as it is, to be asked for again, so that one write that hangs costs no other session its lease.
 */
export async function renewLeases(
  sql: Sql,
  { worker, ttlMs, expiryDays }: { worker: string; ttlMs: number; expiryDays: number },
): Promise<Renewal[]> {
  return sql<Renewal>`
    with free as (
      select c.id from wa_sessions c where c.owner = ${worker} and c.lease_until > clock_timestamp()
      -- Whoever writes of a session beside its owner (an event of its chats) does not wait for this, nor this for them.
      for no key update skip locked
    ), renewed as (
      update wa_sessions s
      set lease_until = clock_timestamp() + ${ttlMs} * interval '1 ms',
          last_seen_at = case when s.status = 'WORKING' then now() else s.last_seen_at end,
          expires_at = case when s.status = 'WORKING' then now() + ${expiryDays} * interval '1 day' else s.expires_at end
      from free where s.id = free.id
      returning s.id
    )
    select ${leased}, s.id in (select id from renewed) as renewed
    from wa_sessions s where s.owner = ${worker} and s.lease_until > clock_timestamp()`
}

/** What is wished of the sessions a worker owns; reads only. */
export async function ownedSessions(sql: Sql, worker: string): Promise<LeasedSession[]> {
  return sql<LeasedSession>`
    select ${leased} from wa_sessions s where s.owner = ${worker} and s.lease_until > clock_timestamp()`
}

/** What is wished of one session now. Undefined when the caller does not own it any more. */
export async function wishesOf(sql: Sql, { id, fence }: Lease): Promise<LeasedSession | undefined> {
  const [row] = await sql<LeasedSession>`
    select ${leased} from wa_sessions s where s.id = ${id} and s.fence = ${fence}`
  return row
}

/** Gives a session back, so that another worker may take it at once. Harmless when the lease is lost already. */
export async function releaseLease(sql: Sql, { id, fence }: Lease): Promise<void> {
  await sql`update wa_sessions set owner = null, lease_until = null where id = ${id} and fence = ${fence}`
}

/**
 * Holds the session's row against a change of owner until the transaction ends. Throws LeaseLost when the fence has moved on:
 * call it first in every transaction of a worker.
 */
export async function assertFence(tx: Sql, { id, fence }: Lease): Promise<void> {
  const [row] = await tx`select from wa_sessions where id = ${id} and fence = ${fence} for share`
  if (!row) throw new LeaseLost(id)
}
