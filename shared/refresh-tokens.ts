import { createHash, randomBytes, randomUUID } from 'node:crypto'
import type { Sql } from './db.ts'

/** A refresh token as it is handed out; only its hash is stored. */
export interface IssuedToken {
  token: string
  family: string
  profileId: string
}

const lifeDays = 7

// 32 random bytes cannot be guessed, so a plain hash keeps them.
const newToken = () => randomBytes(32).toString('base64url')
const hash = (token: string) => createHash('sha256').update(token).digest()

/** Gives out the first token of a new family: one sign-in. */
export async function startFamily(sql: Sql, profileId: string): Promise<IssuedToken> {
  const issued = { token: newToken(), family: randomUUID(), profileId }
  await sql`
    insert into refresh_tokens (family, profile_id, token_hash, expires_at)
    values (${issued.family}, ${profileId}, ${hash(issued.token)}, now() + ${lifeDays} * interval '1 day')`
  return issued
}

/**
 * Takes a token in and gives out its successor. Of any number of parallel uses exactly one succeeds. A token that was used before
 * ends its family, since one of its two users is not the owner. Undefined when the token is not valid.
 */
export async function rotateToken(sql: Sql, token: string): Promise<IssuedToken | undefined> {
  const successor = newToken()
  // A family is dead when any of its tokens is revoked: so a successor inserted while the family is ended is dead as well.
  const [issued] = await sql<{ family: string; profileId: string }>`
    with used as (
      update refresh_tokens t set used_at = now()
      where token_hash = ${hash(token)} and used_at is null and expires_at > now()
        and not exists (select from refresh_tokens r where r.family = t.family and r.revoked_at is not null)
      returning family, profile_id
    )
    insert into refresh_tokens (family, profile_id, token_hash, expires_at)
    select family, profile_id, ${hash(successor)}, now() + ${lifeDays} * interval '1 day' from used
    returning family, profile_id`
  if (issued) return { token: successor, ...issued }
  await sql`
    update refresh_tokens set revoked_at = now()
    where token_hash = ${hash(token)} and used_at is not null and revoked_at is null`
  return undefined
}

/** Ends the family a token belongs to, if it belongs to one. */
export async function endFamilyOf(sql: Sql, token: string): Promise<void> {
  await sql`
    update refresh_tokens set revoked_at = now()
    where token_hash = ${hash(token)} and revoked_at is null`
}

/** Ends a family: its refresh tokens, and the access tokens given out with them. */
export async function endFamily(sql: Sql, family: string): Promise<void> {
  await sql`
    update refresh_tokens set revoked_at = now() where family = ${family} and revoked_at is null`
}
