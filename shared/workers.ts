import type { Sql } from './db.ts'

export interface Worker {
  id: string
  host: string
  pid: number
  capacity: number
}

/** A worker that has not been heard of for this long counts as dead. */
export const deadAfterSeconds = 60

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
