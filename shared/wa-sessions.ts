import { fragment } from './db.ts'
import { violated } from './db-errors.ts'
import type { Sql } from './db.ts'
import { AppError, notFound } from './errors.ts'
import { cancelQueued } from './outbox.ts'
import { highestFirst, newestFirst, newestPage, numberedPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'
import { orphaned, statusOf } from './wa-session-leases.ts'

export type SessionStatus =
  | 'STOPPED'
  | 'STARTING'
  | 'SCAN_QR_CODE'
  | 'WORKING'
  | 'RECONNECTING'
  | 'LOGGED_OUT'
  | 'PASSKEY_REQUIRED'
  | 'EXPIRED'
  | 'FAILED'

export type EngineKind = 'webjs' | 'simulator'
export type DesiredState = 'running' | 'stopped'
export type SessionRequest = 'restart' | 'logout' | 'delete' | 'expire' | 'pairing_code'

export interface SessionRow {
  id: string
  workspaceId: string
  name: string
  engine: EngineKind
  desiredState: DesiredState
  status: SessionStatus
  reason: string | null
  since: Date
  waId: string | null
  lid: string | null
  phone: string | null
  pushName: string | null
  qr: string | null
  qrAttempt: number | null
  qrExpiresAt: Date | null
  fence: number
  connectedAt: Date | null
  lastSeenAt: Date | null
  expiresAt: Date | null
  createdAt: Date
}

/** A session as the API answers it. */
export interface Session {
  id: string
  name: string
  status: SessionStatus
  reason: string | null
  since: Date
  desiredState: DesiredState
  active: boolean
  phone: string | null
  pushName: string | null
  engine: EngineKind
  connectedAt: Date | null
  expiresAt: Date | null
  lastSeenAt: Date | null
  createdAt: Date
}

export interface HistoryEntry {
  from: SessionStatus
  to: SessionStatus
  reason: string | null
  detail: string | null
  worker: string | null
  at: Date
}

export function sessionResource(row: SessionRow): Session {
  return {
    id: row.id,
    name: row.name,
    status: row.status,
    reason: row.reason,
    since: row.since,
    desiredState: row.desiredState,
    active: row.status === 'WORKING' || row.status === 'RECONNECTING',
    phone: row.phone,
    pushName: row.pushName,
    engine: row.engine,
    connectedAt: row.connectedAt,
    expiresAt: row.expiresAt,
    lastSeenAt: row.lastSeenAt,
    createdAt: row.createdAt,
  }
}

/** Everything a SessionRow has; `s` is the wa_sessions row. */
const columns = fragment`
  s.id, s.workspace_id, s.name, s.engine, s.desired_state, ${statusOf} as status,
  case when s.status in ('WORKING', 'SCAN_QR_CODE', 'PASSKEY_REQUIRED') and ${orphaned}
         -- Given back, it says itself why.
         or s.status in ('STARTING', 'RECONNECTING') and s.lease_until < clock_timestamp() then 'WORKER_LOST' else s.reason end as reason,
  case when s.status in ('WORKING', 'SCAN_QR_CODE', 'PASSKEY_REQUIRED') and ${orphaned} then coalesce(s.lease_until, s.since) else s.since end as since,
  s.wa_id, s.lid, s.phone, s.push_name, s.qr, s.qr_attempt, s.qr_expires_at, s.fence, s.connected_at,
  s.last_seen_at, s.expires_at, s.created_at`

/** Creates a session. Throws 409 NAME_TAKEN when the workspace has one of that name. */
export async function createSession(
  sql: Sql,
  session: {
    workspaceId: string
    name: string
    engine: EngineKind
    start: boolean
    expiryDays: number
    importHistoryDays?: number | undefined
  },
): Promise<SessionRow> {
  try {
    const [row] = await sql<SessionRow>`
      with s as (
        insert into wa_sessions (workspace_id, name, engine, desired_state, import_history_days, expires_at)
        values (${session.workspaceId}, ${session.name}, ${session.engine}, ${session.start ? 'running' : 'stopped'}, ${session.importHistoryDays}::int,
          now() + ${session.expiryDays} * interval '1 day')
        returning *
      ), pacing as (
        insert into wa_session_pacing (session_id, workspace_id) select id, workspace_id from s
      )
      select ${columns} from s`
    return row!
  } catch (error) {
    if (violated(error) !== 'wa_sessions_name') throw error
    throw new AppError(409, 'NAME_TAKEN', `A session named "${session.name}" exists already.`)
  }
}

/** A session of this workspace that is not deleted. Undefined if there is no such session. */
export async function findSession(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<SessionRow | undefined> {
  const [row] = await sql<SessionRow>`
    select ${columns} from wa_sessions s
    where s.workspace_id = ${workspaceId} and s.id = ${id} and s.deleted_at is null`
  return row
}

/** As findSession, but throws 404 when there is none. */
export async function existingSession(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<SessionRow> {
  const row = await findSession(sql, workspaceId, id)
  if (!row) throw notFound('Session')
  return row
}

/** The sessions of a workspace that are not deleted, newest first. */
export async function listSessions(
  sql: Sql,
  workspaceId: string,
  page: PageWish,
): Promise<Page<Session>> {
  const rows = await sql<SessionRow & { position: string }>`
    select ${columns}, s.created_at::text as position from wa_sessions s
    where workspace_id = ${workspaceId} and deleted_at is null ${newestFirst(page)}`
  return newestPage(rows, page, sessionResource)
}

/** At most two of a workspace's sessions: enough to know whether there is none, one or several. */
async function someSessions(sql: Sql, workspaceId: string): Promise<{ id: string }[]> {
  return sql<{ id: string }>`
    select id from wa_sessions where workspace_id = ${workspaceId} and deleted_at is null limit 2`
}

/** The session that sends: the one named, else the only one of the workspace. Throws 404, 422 NO_SESSION and 422 SESSION_REQUIRED. */
export async function sessionToSend(
  sql: Sql,
  workspaceId: string,
  named?: string,
): Promise<string> {
  if (named !== undefined) {
    if (!(await findSession(sql, workspaceId, named))) throw notFound('Session')
    return named
  }
  const [only, another] = await someSessions(sql, workspaceId)
  if (!only) throw new AppError(422, 'NO_SESSION', 'There is no session to send with; create one.')
  if (another) {
    throw new AppError(
      422,
      'SESSION_REQUIRED',
      'There are several sessions: name one in "sessionId".',
    )
  }
  return only.id
}

/**
 * Says that the session should run. A failed one is also asked to restart, since it would wait otherwise.
 * Undefined when there is no such session.
 */
export async function wantRunning(
  sql: Sql,
  workspaceId: string,
  id: string,
  expiryDays: number,
): Promise<SessionRow | undefined> {
  const [row] = await sql<SessionRow>`
    with wanted as (
      update wa_sessions set desired_state = 'running',
        expires_at = greatest(expires_at, now() + ${expiryDays} * interval '1 day')
      where workspace_id = ${workspaceId} and id = ${id} and deleted_at is null
      returning *
    ), asked as (
      insert into wa_session_requests (workspace_id, session_id, kind)
      select workspace_id, id, 'restart' from wanted where status = 'FAILED'
      on conflict do nothing
    )
    select ${columns} from wanted s`
  return row
}

/** Says that the session should be stopped; its login is kept. */
export async function wantStopped(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<SessionRow | undefined> {
  const [row] = await sql<SessionRow>`
    update wa_sessions s set desired_state = 'stopped'
    where s.workspace_id = ${workspaceId} and s.id = ${id} and s.deleted_at is null
    returning ${columns}`
  return row
}

/**
 * Asks the worker for a restart (which also wants the session running, and gives it new time before it expires) or a logout (after which it is to stay
 * stopped, unless somebody starts it meanwhile). The same wish twice is one wish.
 */
export async function request(
  sql: Sql,
  workspaceId: string,
  id: string,
  kind: 'restart' | 'logout',
  expiryDays: number,
): Promise<SessionRow | undefined> {
  const wanted =
    kind === 'restart'
      ? fragment`desired_state = 'running', expires_at = greatest(expires_at, now() + ${expiryDays} * interval '1 day')`
      : fragment`desired_state = 'stopped'`
  const [row] = await sql<SessionRow>`
    with session as (
      update wa_sessions set ${wanted}
      where workspace_id = ${workspaceId} and id = ${id} and deleted_at is null
      returning *
    ), asked as (
      insert into wa_session_requests (workspace_id, session_id, kind)
      select workspace_id, id, ${kind} from session
      on conflict do nothing
    )
    select ${columns} from session s`
  return row
}

/** Messages that are cancelled before the answer to a deletion: more would let whoever asks wait. */
const cancelledAtOnce = 1_000

/**
 * Hides the session, cancels what it has not begun to send, and asks the worker to unlink the device and remove the login.
 * Chats and messages stay readable. False when there is no such session.
 */
export async function deleteSession(sql: Sql, workspaceId: string, id: string): Promise<boolean> {
  const deleted = await sql.begin(async (tx) => {
    // Stronger than what follows needs: it waits for whoever is putting a message into the outbox, and who comes after finds the session deleted.
    const [row] = await tx`
      select from wa_sessions where workspace_id = ${workspaceId} and id = ${id} and deleted_at is null for update`
    if (!row) return false
    await tx`update wa_sessions set deleted_at = now(), desired_state = 'stopped' where id = ${id}`
    await tx`
      insert into wa_session_requests (workspace_id, session_id, kind)
      values (${workspaceId}, ${id}, 'delete') on conflict do nothing`
    return true
  })
  // With the session let go, which whoever has locked a message may want. A large backlog is left to the worker, as is all of it should it not come to this.
  if (deleted) await cancelQueued(sql, id, cancelledAtOnce)
  return deleted
}

export async function sessionHistory(
  sql: Sql,
  workspaceId: string,
  id: string,
  page: PageWish,
): Promise<Page<HistoryEntry>> {
  const rows = await sql<HistoryRow>`
    select id, from_status, to_status, reason, detail, worker, at from wa_session_history
    where workspace_id = ${workspaceId} and session_id = ${id} ${highestFirst(page, fragment`id`)}`
  return numberedPage(
    rows,
    page,
    (row) => row.id,
    (row) => ({
      from: row.fromStatus,
      to: row.toStatus,
      reason: row.reason,
      detail: row.detail,
      worker: row.worker,
      at: row.at,
    }),
  )
}

/** Asks the worker for a pairing code; a wish for another number that is still open ends, and says so. Answers the wish's id. */
export async function askPairingCode(
  sql: Sql,
  workspaceId: string,
  id: string,
  phone: string,
): Promise<number> {
  return sql.begin(async (tx) => {
    // One at a time: of two that come at once, the later one ends the earlier one.
    await tx`select from wa_sessions where workspace_id = ${workspaceId} and id = ${id} for no key update`
    await tx`
      update wa_session_requests set done_at = now(), error = 'A code for another number was asked for meanwhile.'
      where session_id = ${id} and kind = 'pairing_code' and done_at is null and payload->>'phone' <> ${phone}`
    const [row] = await tx<{ id: number }>`
      insert into wa_session_requests as r (workspace_id, session_id, kind, payload)
      values (${workspaceId}, ${id}, 'pairing_code', ${{ phone }})
      on conflict (session_id, kind) where done_at is null do update set payload = excluded.payload
      returning r.id`
    return row!.id
  })
}

/** The answer to a wish for a pairing code, once: it is taken out. Undefined while there is none. */
export async function takePairingCode(
  sql: Sql,
  requestId: number,
): Promise<
  { result: { code: string; expiresAt: string } | null; error: string | null } | undefined
> {
  const [row] = await sql<{
    result: { code: string; expiresAt: string } | null
    error: string | null
  }>`
    with answered as (
      select id, result, error from wa_session_requests where id = ${requestId} and done_at is not null
    ), taken as (
      update wa_session_requests r set result = null from answered where r.id = answered.id
    )
    select result, error from answered`
  return row
}

interface HistoryRow {
  id: number
  fromStatus: SessionStatus
  toStatus: SessionStatus
  reason: string | null
  detail: string | null
  worker: string | null
  at: Date
}

/** Those of these sessions that were deleted, and of which nothing is left to do. */
export async function deletedAmong(sql: Sql, ids: string[]): Promise<string[]> {
  const rows = await sql<{ id: string }>`
    select s.id from wa_sessions s
    where s.id = any(${ids}::uuid[]) and s.deleted_at is not null and coalesce(s.lease_until < clock_timestamp(), true)
      and not exists (select from wa_session_requests r where r.session_id = s.id and r.done_at is null)`
  return rows.map(({ id }) => id)
}
