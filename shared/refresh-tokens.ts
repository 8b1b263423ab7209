import { randomUUID } from 'node:crypto'
import type { Sql } from './db.ts'
import { hashToken, newToken } from './tokens.ts'

/** A refresh token as it is handed out; only its hash is stored. */
export interface IssuedToken {
  token: string
  family: string
  profileId: string
}

export const refreshDays = 7

/**
 * Gives out the first token of a new family: one sign-in. Undefined when the password the person signed in with is no longer theirs:
 * whoever changes it ends all sign-ins, also one that is being made at that moment.
 */
export async function startFamily(
  sql: Sql,
  { id, passwordHash }: { id: string; passwordHash: string },
): Promise<IssuedToken | undefined> {
  const issued = { token: newToken(), family: randomUUID(), profileId: id }
  const [row] = await sql`
    insert into refresh_tokens (family, profile_id, token_hash, expires_at)
    select ${issued.family}, id, ${hashToken(issued.token)}, now() + ${refreshDays} * interval '1 day'
    from profiles where id = ${id} and password_hash = ${passwordHash} for share
    returning family`
  return row && issued
}

/** What became of a refresh token that was handed in. */
export interface Rotation {
  /** Its successor. */
  issued?: IssuedToken
  /** Whose token it was, when it had been used before: their sign-in has been ended. */
  reusedOf?: string
}

/**
 * Takes a token in and gives out its successor. Of any number of parallel uses exactly one succeeds. A token that was used before
 * ends its family, since one of its two users is not the owner. Neither when the token is not valid.
 */
export async function rotateToken(sql: Sql, token: string): Promise<Rotation> {
  const successor = newToken()
  // A family is dead when any of its tokens is revoked: so a successor inserted while the family is ended is dead as well.
  const [issued] = await sql<{ family: string; profileId: string }>`
    with used as (
      update refresh_tokens t set used_at = now()
      where token_hash = ${hashToken(token)} and used_at is null and expires_at > now()
        and not exists (select from refresh_tokens r where r.family = t.family and r.revoked_at is not null)
      returning family, profile_id
    )
    insert into refresh_tokens (family, profile_id, token_hash, expires_at)
    select family, profile_id, ${hashToken(successor)}, now() + ${refreshDays} * interval '1 day' from used
    returning family, profile_id`
  if (issued) return { issued: { token: successor, ...issued } }
  const [ended] = await sql<{ profileId: string }>`
    update refresh_tokens set revoked_at = now()
    where token_hash = ${hashToken(token)} and used_at is not null and revoked_at is null
    returning profile_id`
  return ended ? { reusedOf: ended.profileId } : {}
}

/** The family a token belongs to and its person, valid or not. */
export async function familyOf(
  sql: Sql,
  token: string,
): Promise<{ family: string; profileId: string } | undefined> {
  const [row] = await sql<{ family: string; profileId: string }>`
    select family, profile_id from refresh_tokens where token_hash = ${hashToken(token)}`
  return row
}

/** Ends a family: its refresh tokens, and the access tokens given out with them. */
export async function endFamily(sql: Sql, family: string): Promise<void> {
  await sql`
    update refresh_tokens set revoked_at = now() where family = ${family} and revoked_at is null`
}

/** Ends all sign-ins of a person, but for the one of `except`. */
export async function endFamilies(sql: Sql, profileId: string, except?: string): Promise<void> {
  await sql`
    update refresh_tokens set revoked_at = now()
    where profile_id = ${profileId} and revoked_at is null and family is distinct from ${except}::uuid`
}
