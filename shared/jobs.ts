import type { Sql } from './db.ts'

/**
 * Does a scheduled job unless another process is doing it, or has done it within `everyMs`. False when it was not this one's turn.
 * A process that dies in the middle loses its turn after `everyMs`: a job must be harmless to repeat.
 */
export async function runOnce(
  sql: Sql,
  { name, owner, everyMs }: { name: string; owner: string; everyMs: number },
  work: () => Promise<void>,
): Promise<boolean> {
  const [mine] = await sql`
    insert into jobs (name, owner, lease_until)
    values (${name}, ${owner}, now() + ${everyMs} * interval '1 ms')
    on conflict (name) do update set owner = excluded.owner, lease_until = excluded.lease_until
    where jobs.lease_until < now()
    returning name`
  if (!mine) return false
  await work()
  await sql`update jobs set ran_at = now() where name = ${name} and owner = ${owner}`
  return true
}

/** What housekeeping removed, by table. */
export interface Removed {
  refreshTokens: number
  rateLimits: number
  sessionRequests: number
  actions: number
}

/** Removes what has served its time: expired tokens, invitations and counters, changes no message came for, fulfilled wishes of more than a week ago. */
export async function removeExpired(sql: Sql): Promise<Removed> {
  const [removed] = await sql<Removed>`
    with tokens as (
        delete from refresh_tokens t
        where expires_at < now()
          -- It tells that the family has ended: as long as another token of it would be good.
          and (revoked_at is null
            or not exists (select from refresh_tokens r where r.family = t.family and r.expires_at >= now()))
        returning 1),
      resets as (delete from password_resets where expires_at < now()),
      invited as (delete from invitations where expires_at < now() - interval '30 days'),
      early as (delete from early_changes where created_at < now() - interval '7 days'),
      counters as (delete from rate_limits where resets_at < now() returning 1),
      wishes as (delete from wa_session_requests where done_at < now() - interval '7 days' returning 1),
      old_actions as (delete from wa_actions where done_at < now() - interval '7 days' returning 1)
    select (select count(*)::int from tokens) as refresh_tokens, (select count(*)::int from counters) as rate_limits,
      (select count(*)::int from wishes) as session_requests,
      (select count(*)::int from old_actions) as actions`
  return removed!
}

/** Asks the workers to end the sessions whose time has run out. Answers how many. */
export async function askToExpire(sql: Sql): Promise<number> {
  const asked = await sql`
    insert into wa_session_requests (workspace_id, session_id, kind)
    select workspace_id, id, 'expire' from wa_sessions
    where expires_at < now() and status not in ('EXPIRED', 'WORKING') and deleted_at is null
    on conflict do nothing
    returning id`
  return asked.length
}
