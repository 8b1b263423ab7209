import type { Sql } from './db.ts'

export interface Hit {
  /** How many times the key was counted in its window, this time included. */
  hits: number
  /** Milliseconds until the window ends. */
  ttlMs: number
}

/** Counts one more use of a key; its window begins with the first use. Exact under any number of processes. */
export async function countHit(sql: Sql, key: string, windowMs: number): Promise<Hit> {
  const [row] = await sql<Hit>`
    insert into rate_limits as r (key, hits, resets_at)
    values (${key}, 1, now() + ${windowMs} * interval '1 ms')
    on conflict (key) do update set
      hits = case when r.resets_at <= now() then 1 else r.hits + 1 end,
      resets_at = case when r.resets_at <= now() then excluded.resets_at else r.resets_at end
    returning hits, ceil(extract(epoch from resets_at - now()) * 1000)::bigint as ttl_ms`
  return row!
}
