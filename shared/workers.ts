import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { decodeCursor, nameKey, toPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'
import type { SessionStatus } from './wa-sessions.ts'

export interface Worker {
  id: string
  host: string
  pid: number
  capacity: number
}

/** A worker that has not been heard of for this long counts as dead. */
const deadAfterSeconds = 60

/** Says that this worker is alive; the first call registers it. */
export async function heartbeat(sql: Sql, { id, host, pid, capacity }: Worker): Promise<void> {
  await sql`
    insert into workers (id, host, pid, capacity) values (${id}, ${host}, ${pid}, ${capacity})
    on conflict (id) do update set heartbeat_at = now()`
}

/** Takes a stopping worker off the list, and with it those that have been dead for a day. */
export async function signOff(sql: Sql, id: string): Promise<void> {
  await sql`delete from workers where id = ${id} or heartbeat_at < now() - interval '1 day'`
}

/** How many workers have been alive within the last minute. */
export async function countAlive(sql: Sql): Promise<number> {
  const [row] = await sql<{ alive: number }>`
    select count(*)::int as alive from workers
    where heartbeat_at > now() - ${deadAfterSeconds} * interval '1 second'`
  return row?.alive ?? 0
}

/** A worker as the API answers it: what it owns of the asker's workspace by name, the rest as a number. */
export interface WorkerReport {
  id: string
  host: string
  pid: number
  alive: boolean
  capacity: number
  owned: number
  sessions: { id: string; name: string; status: SessionStatus; memoryBytes: number | null }[]
  startedAt: Date
  heartbeatAt: Date
}

/** The workers that are known, the longest-running first. */
export async function listWorkers(
  sql: Sql,
  workspaceId: string,
  { limit, cursor }: PageWish,
): Promise<Page<WorkerReport>> {
  const after = cursor === undefined ? undefined : decodeCursor(cursor, nameKey)
  const rows = await sql<WorkerReport & { position: string }>`
    select w.id, w.host, w.pid, w.capacity, w.started_at, w.heartbeat_at,
      w.heartbeat_at > now() - ${deadAfterSeconds} * interval '1 second' as alive,
      (select count(*)::int from wa_sessions s where s.owner = w.id and s.lease_until > now()) as owned,
      coalesce((
        select json_agg(json_build_object('id', s.id, 'name', s.name, 'status', s.status, 'memoryBytes', s.memory_bytes) order by s.name)
        from wa_sessions s
        where s.owner = w.id and s.lease_until > now() and s.workspace_id = ${workspaceId} and s.deleted_at is null
      ), '[]') as sessions, w.started_at::text as position
    from workers w
    ${after ? fragment`where (w.started_at, w.id) > (${after.at}::timestamptz, ${after.key}::text)` : fragment``}
    order by w.started_at, w.id limit ${limit + 1}`
  return toPage(
    rows,
    limit,
    ({ position, id }) => ({ at: position, key: id }),
    ({ position: _, ...worker }) => worker,
  )
}
