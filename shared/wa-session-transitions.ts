import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import { beginWarmUp } from './new-conversations.ts'
import { LeaseLost } from './wa-session-leases.ts'
import type { SessionLease } from './wa-session-leases.ts'
import { sessionResource } from './wa-sessions.ts'
import type { SessionRequest, SessionRow, SessionStatus } from './wa-sessions.ts'

/** A session as its owner knows it. */
export interface OwnedSession extends SessionLease {
  worker: string
}

export interface Account {
  waId: string
  lid: string | null
  phone: string | null
  pushName: string | null
}

export interface Transition {
  from: SessionStatus
  to: SessionStatus
  reason: string | null
  /** For a person: what the reason's code leaves out. */
  detail?: string | undefined
  /** The session shall not run until somebody starts it again; a wish for a restart that is still open says so already. */
  stops?: boolean
  account?: Account | undefined
  /** The code that waits to be scanned in the new state. */
  qr?: QrCode | undefined
}

export interface QrCode {
  value: string
  attempt: number
  expiresAt: Date
}

/**
 * Writes a change of state to the row, its history and the event stream in one transaction, under the fence. This is the only
 * place where a status is written. Throws LeaseLost.
 */
export async function writeTransition(
  sql: Sql,
  session: OwnedSession,
  { from, to, reason, detail, stops = false, account, qr }: Transition,
): Promise<void> {
  await sql.begin(async (tx) => {
    // What the API wishes, it writes with this row held: the statement below must see it all.
    if (stops) await tx`select from wa_sessions where id = ${session.id} for no key update`
    const [row] = await tx<SessionRow & { waIdBefore: string | null }>`
      update wa_sessions
      set status = ${to}, reason = ${reason}, since = now(),
          desired_state = case when ${stops} and not exists (
            select from wa_session_requests r where r.session_id = wa_sessions.id and r.kind = 'restart' and r.done_at is null
          ) then 'stopped' else desired_state end,
          qr = ${qr?.value}, qr_attempt = ${qr?.attempt}, qr_expires_at = ${qr?.expiresAt}
          ${to === 'WORKING' ? fragment`, connected_at = now(), last_seen_at = now(), backfill_from = ${missedSince(account)}, backfill_notes = backfill_notes + 1` : fragment``}
          ${account ? accountColumns(account) : fragment``}
          ${linking.includes(to) ? fragment`, ${nextLogin}` : fragment``}
      where id = ${session.id} and fence = ${session.fence}
      returning *, (select b.wa_id from wa_sessions b where b.id = wa_sessions.id) as wa_id_before`
    if (!row) throw new LeaseLost(session.id)
    if (row.waIdBefore !== null && row.waIdBefore !== row.waId) await beginWarmUp(tx, session.id)
    await tx`
      insert into wa_session_history (workspace_id, session_id, from_status, to_status, reason, detail, worker)
      values (${session.workspaceId}, ${session.id}, ${from}, ${to}, ${reason}, ${detail}, ${session.worker})`
    await appendEvents(tx, qr ? [statusEvent(row), qrEvent(row)] : [statusEvent(row)])
  })
}

/** Writes a further code for a session that waits for a scan. Throws LeaseLost. */
export async function writeQr(sql: Sql, session: OwnedSession, qr: QrCode): Promise<void> {
  await sql.begin(async (tx) => {
    const [row] = await tx<SessionRow>`
      update wa_sessions set qr = ${qr.value}, qr_attempt = ${qr.attempt}, qr_expires_at = ${qr.expiresAt}
      where id = ${session.id} and fence = ${session.fence}
      returning *`
    if (!row) throw new LeaseLost(session.id)
    await appendEvents(tx, [qrEvent(row)])
  })
}

/** The wish for a pairing code, if there is one, and the number it is for. */
export async function pairingWish(
  sql: Sql,
  session: OwnedSession,
): Promise<{ id: number; phone: string } | undefined> {
  const [row] = await sql<{ id: number; phone: string }>`
    select id, payload->>'phone' as phone from wa_session_requests
    where session_id = ${session.id} and kind = 'pairing_code' and done_at is null`
  return row
}

/** Whether the time of a session has run out, and nobody has asked for it since. */
export async function isUnused(sql: Sql, session: OwnedSession): Promise<boolean> {
  const [row] = await sql`
    select from wa_sessions where id = ${session.id} and expires_at < now() and status <> 'WORKING'`
  return row !== undefined
}

/** Writes what the session's engine uses of the memory. */
export async function writeMemory(sql: Sql, session: OwnedSession, bytes: number): Promise<void> {
  await sql`update wa_sessions set memory_bytes = ${bytes} where id = ${session.id} and fence = ${session.fence}`
}

/** The login on disk was replaced by a snapshot. One that a phone links is told apart by its transition. */
export async function newLogin(sql: Sql, session: OwnedSession): Promise<void> {
  await sql`update wa_sessions set ${nextLogin} where id = ${session.id} and fence = ${session.fence}`
}

/** Marks a wish as fulfilled, or as tried and failed with the reason; with `id` that wish only, not one of its kind that came later. */
export async function closeRequest(
  sql: Sql,
  session: OwnedSession,
  kind: SessionRequest,
  {
    error,
    result,
    id,
  }: { error?: string | undefined; result?: object | undefined; id?: number | undefined } = {},
): Promise<void> {
  await sql`
    update wa_session_requests r set done_at = now(), error = ${error}, result = ${result}
    from wa_sessions s
    where s.id = ${session.id} and s.fence = ${session.fence}
      and r.session_id = s.id and r.kind = ${kind} and r.done_at is null
      ${id === undefined ? fragment`` : fragment`and r.id = ${id}`}`
}

/** Ends wishes that something else has overtaken; one to restart only if the session is to be stopped, since otherwise it came later. */
export async function dismissRequests(
  sql: Sql,
  session: OwnedSession,
  kinds: SessionRequest[],
): Promise<void> {
  await sql`
    update wa_session_requests r set done_at = now(), error = 'Something else was wished for.'
    from wa_sessions s
    where s.id = ${session.id} and s.fence = ${session.fence}
      and r.session_id = s.id and r.kind = any(${kinds}) and r.done_at is null
      and (r.kind <> 'restart' or s.desired_state = 'stopped')`
}

/** No device is linked but through one of these. */
const linking: SessionStatus[] = ['SCAN_QR_CODE', 'PASSKEY_REQUIRED']

/** From here on the login is another than before: it cannot say what was sent under that one. */
const nextLogin = fragment`login_epoch = login_epoch + 1`

/** Another number has missed nothing: what it said before it was linked here is its history. */
const missedSince = (account: Account | undefined) =>
  account
    ? fragment`case when wa_id is distinct from ${account.waId} then now() else coalesce(backfill_from, last_seen_at, now()) end`
    : fragment`coalesce(backfill_from, last_seen_at, now())`

const accountColumns = (account: Account) => fragment`
  , linked_at = case when wa_id is distinct from ${account.waId} then now() else coalesce(linked_at, now()) end
  , wa_id = ${account.waId}, lid = ${account.lid}, phone = ${account.phone}, push_name = ${account.pushName}`

const statusEvent = (row: SessionRow) => ({
  workspaceId: row.workspaceId,
  sessionId: row.id,
  type: 'session.status' as const,
  payload: sessionResource(row),
})

const qrEvent = (row: SessionRow) => ({ ...statusEvent(row), type: 'session.qr' as const })
