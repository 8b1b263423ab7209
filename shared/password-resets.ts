import type { Sql } from './db.ts'
import { hashToken, newToken } from './tokens.ts'

const lifeMinutes = 60
/** So many open tokens a person: more requests make no more, and send no more e-mail. */
const maxOpen = 3

/**
 * A token to set a new password with, for the person with this address. Undefined when there is none or they have enough open ones; the
 * database does the same work in each case.
 */
export async function startReset(
  sql: Sql,
  email: string,
): Promise<{ token: string; profileId: string; workspaceId: string; email: string } | undefined> {
  const token = newToken()
  const row = await sql.begin(async (tx) => {
    // One at a time for a person. A statement of its own: one that locks and counts would count what was there before it had the lock.
    await tx`select from profiles where lower(email) = lower(${email}) for no key update`
    const [row] = await tx<{ profileId: string; workspaceId: string; email: string }>`
      with person as (select id, workspace_id, email from profiles where lower(email) = lower(${email})),
      made as (
        insert into password_resets (token_hash, workspace_id, profile_id, expires_at)
        select ${hashToken(token)}, workspace_id, id, now() + ${lifeMinutes} * interval '1 minute' from person
        where (select count(*) from password_resets r where r.profile_id = person.id and r.expires_at > now()) < ${maxOpen}
        returning profile_id, workspace_id)
      select made.profile_id, made.workspace_id, person.email from made join person on person.id = made.profile_id`
    return row
  })
  return row && { token, ...row }
}

/** Whether the token is good: asked before the costly work is done. */
export async function isResetOpen(sql: Sql, token: string): Promise<boolean> {
  const rows = await sql`
    select profile_id from password_resets
    where token_hash = ${hashToken(token)} and expires_at > now()`
  return rows.length === 1
}

/** Uses a token up, and with it all others of the person. Of any number of parallel uses exactly one gets their id. */
export async function takeReset(sql: Sql, token: string): Promise<string | undefined> {
  const [row] = await sql<{ profileId: string }>`
    delete from password_resets where token_hash = ${hashToken(token)} and expires_at > now()
    returning profile_id`
  if (!row) return undefined
  await sql`delete from password_resets where profile_id = ${row.profileId}`
  return row.profileId
}
