import { randomBytes } from 'node:crypto'
import type { Sql } from './db.ts'
import { isSealFault, KeyRing } from './key-ring.ts'
import type { Sealed } from './key-ring.ts'

/** What is known of a credential without opening it. */
export interface Credential {
  id: string
  name: string
  createdAt: Date
  updatedAt: Date
}

// The name of the data key inside its own ring of one.
const dataKeyId = 'data'
const context = (workspaceId: string, name: string) => `credential\n${workspaceId}\n${name}`

/** Keeps a secret of another service for a workspace, in place of an earlier one of this name. */
export async function putCredential(
  sql: Sql,
  keys: KeyRing,
  workspaceId: string,
  name: string,
  secret: string,
): Promise<Credential> {
  const dataKey = randomBytes(32)
  const bound = context(workspaceId, name)
  const wrapped = keys.seal(dataKey, bound)
  const { box } = ringOf(dataKey).seal(Buffer.from(secret), bound)
  const [row] = await sql<Credential>`
    insert into credentials (workspace_id, name, key_id, wrapped_key, box)
    values (${workspaceId}, ${name}, ${wrapped.keyId}, ${wrapped.box}, ${box})
    on conflict (workspace_id, name) do update set
      key_id = excluded.key_id, wrapped_key = excluded.wrapped_key, box = excluded.box, updated_at = now()
    returning id, name, created_at, updated_at`
  return row!
}

/** The secret of this name; undefined without one. Throws UnknownKey or SealBroken. */
export async function readCredential(
  sql: Sql,
  keys: KeyRing,
  workspaceId: string,
  name: string,
): Promise<string | undefined> {
  const [row] = await sql<{ keyId: string; wrappedKey: string; box: string }>`
    select key_id, wrapped_key, box from credentials where workspace_id = ${workspaceId} and name = ${name}`
  if (!row) return undefined
  const bound = context(workspaceId, name)
  const dataKey = keys.open({ keyId: row.keyId, box: row.wrappedKey }, bound)
  return ringOf(dataKey).open({ keyId: dataKeyId, box: row.box }, bound).toString('utf8')
}

/** Forgets a secret. False when there was none of this name. */
export async function deleteCredential(
  sql: Sql,
  workspaceId: string,
  name: string,
): Promise<boolean> {
  const rows = await sql`
    delete from credentials where workspace_id = ${workspaceId} and name = ${name} returning id`
  return rows.length === 1
}

/** Data keys sealed with another key than the current one are sealed with it. Answers how many, and which did not open. */
export async function resealCredentials(
  sql: Sql,
  keys: KeyRing,
): Promise<{ resealed: number; failed: string[] }> {
  const rows = await sql<Sealed & { id: string; workspaceId: string; name: string }>`
    select id, workspace_id, name, key_id, wrapped_key as box from credentials where key_id <> ${keys.current}`
  const failed: string[] = []
  let resealed = 0
  for (const { id, workspaceId, name, keyId, box } of rows) {
    const bound = context(workspaceId, name)
    try {
      const sealed = keys.seal(keys.open({ keyId, box }, bound), bound)
      const changed = await sql`
        update credentials set key_id = ${sealed.keyId}, wrapped_key = ${sealed.box}
        where id = ${id} and wrapped_key = ${box} returning id`
      resealed += changed.length
    } catch (error) {
      if (!isSealFault(error)) throw error
      failed.push(id)
    }
  }
  return { resealed, failed }
}

const ringOf = (key: Buffer) => KeyRing.parse(`${dataKeyId}:${key.toString('base64')}`)
