import type { Sql } from '../db.ts'
import { until } from './until.ts'

/** Waits until so many statements of this database wait for a lock. */
export async function untilLocked(sql: Sql, count = 1): Promise<void> {
  await until(`${count} waiting for a lock`, async () => (await waitingForLock(sql)) >= count)
}

/** How many statements of this database wait for a lock now. */
export async function waitingForLock(sql: Sql): Promise<number> {
  const waiting = await sql`
    select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`
  return waiting.length
}
