import { randomBytes } from 'node:crypto'
import type { Sql } from './db.ts'
import { isSealFault } from './key-ring.ts'
import type { KeyRing, Sealed } from './key-ring.ts'
import { hashToken } from './tokens.ts'

/** Binds a sealed seed to its person: it opens for nobody else. */
const context = (profileId: string) => `totp\n${profileId}`

const base32 = 'abcdefghijklmnopqrstuvwxyz234567'

/** Keeps a new seed, which counts once it is confirmed. False when the person has a confirmed one. */
export async function enroll(
  sql: Sql,
  keys: KeyRing,
  { id, workspaceId }: { id: string; workspaceId: string },
  seed: Buffer,
): Promise<boolean> {
  const { keyId, box } = keys.seal(seed, context(id))
  const rows = await sql`
    insert into two_factor as f (profile_id, workspace_id, key_id, box)
    values (${id}, ${workspaceId}, ${keyId}, ${box})
    on conflict (profile_id) do update
      set key_id = excluded.key_id, box = excluded.box, last_step = null, created_at = now()
      where f.confirmed_at is null
    returning profile_id`
  return rows.length === 1
}

/** The seed of a person and whether it is confirmed; undefined without one. */
export async function seedOf(
  sql: Sql,
  keys: KeyRing,
  profileId: string,
): Promise<{ seed: Buffer; confirmed: boolean } | undefined> {
  const [row] = await sql<Sealed & { confirmed: boolean }>`
    select key_id, box, confirmed_at is not null as confirmed from two_factor where profile_id = ${profileId}`
  return row && { seed: keys.open(row, context(profileId)), confirmed: row.confirmed }
}

/** Uses the code of a step up. Of any number of parallel uses exactly one gets true; older steps are over, too. */
export async function useStep(sql: Sql, profileId: string, step: number): Promise<boolean> {
  const rows = await sql`
    update two_factor set last_step = ${step}
    where profile_id = ${profileId} and (last_step is null or last_step < ${step})
    returning profile_id`
  return rows.length === 1
}

/** Makes the seed count. False when it did already. */
export async function confirm(sql: Sql, profileId: string): Promise<boolean> {
  const rows = await sql`
    update two_factor set confirmed_at = now()
    where profile_id = ${profileId} and confirmed_at is null returning profile_id`
  return rows.length === 1
}

/** Takes the second factor of a person away, with the backup codes. False when there was none. */
export async function removeTwoFactor(sql: Sql, profileId: string): Promise<boolean> {
  const [removed] = await sql<{ confirmed: boolean }>`
    with codes as (delete from backup_codes where profile_id = ${profileId})
    delete from two_factor where profile_id = ${profileId}
    returning confirmed_at is not null as confirmed`
  return removed?.confirmed ?? false
}

/** Ten new backup codes in place of the old ones. To be shown once. */
export async function renewBackupCodes(
  sql: Sql,
  { id, workspaceId }: { id: string; workspaceId: string },
): Promise<string[]> {
  const codes = Array.from({ length: 10 }, newBackupCode)
  // One after the other: two renewals at once must not leave twenty codes.
  await sql`select profile_id from two_factor where profile_id = ${id} for update`
  await sql`delete from backup_codes where profile_id = ${id}`
  await sql`
    insert into backup_codes (profile_id, workspace_id, code_hash)
    select ${id}, ${workspaceId}, code from unnest(${codes.map((code) => backupHash(id, code))}::bytea[]) code`
  return codes
}

/** Uses a backup code up, however it is written. Of any number of parallel uses exactly one gets true. */
export async function useBackupCode(sql: Sql, profileId: string, code: string): Promise<boolean> {
  const rows = await sql`
    update backup_codes set used_at = now()
    where profile_id = ${profileId} and code_hash = ${backupHash(profileId, code)} and used_at is null
    returning profile_id`
  return rows.length === 1
}

/** Seeds sealed with another key than the current one are sealed with it. Answers how many, and whose did not open. */
export async function resealSeeds(
  sql: Sql,
  keys: KeyRing,
): Promise<{ resealed: number; failed: string[] }> {
  const rows = await sql<Sealed & { profileId: string }>`
    select profile_id, key_id, box from two_factor where key_id <> ${keys.current}`
  const failed: string[] = []
  let resealed = 0
  for (const { profileId, keyId, box } of rows) {
    try {
      const opened = keys.open({ keyId, box }, context(profileId))
      const sealed = keys.seal(opened, context(profileId))
      const changed = await sql`
        update two_factor set key_id = ${sealed.keyId}, box = ${sealed.box}
        where profile_id = ${profileId} and box = ${box} returning profile_id`
      resealed += changed.length
    } catch (error) {
      if (!isSealFault(error)) throw error
      failed.push(profileId)
    }
  }
  return { resealed, failed }
}

/** 80 random bits as `xxxx-xxxx-xxxx-xxxx`: a plain hash keeps them. */
function newBackupCode(): string {
  const letters = [...randomBytes(16)].map((byte) => base32[byte % 32]).join('')
  return letters.match(/.{4}/g)!.join('-')
}

/** Bound to the person, so that equal codes of two people are not equal in the table. */
const backupHash = (profileId: string, code: string) =>
  hashToken(`${profileId}\n${code.toLowerCase().replaceAll(/[^a-z0-9]/g, '')}`)
