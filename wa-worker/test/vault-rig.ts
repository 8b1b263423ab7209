import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { Test } from 'tap'
import type { Db } from '../../shared/db.ts'
import { KeyRing } from '../../shared/key-ring.ts'
import { createLogger } from '../../shared/logger.ts'
import { LocalObjectStore } from '../../shared/object-store-local.ts'
import { testDb } from '../../shared/test/db.ts'
import { FaultyStore } from '../../shared/test/faulty-store.ts'
import type { OwnedSession } from '../../shared/wa-session-transitions.ts'
import { Vault } from '../vault.ts'
import type { Restored, VaultOptions } from '../vault.ts'

export const bucket = 'sessions'
export const key = (id: string) => `${id}:${createHash('sha256').update(id).digest('base64')}`

export interface Rig {
  sql: Db
  url: string
  folder: string
  store: FaultyStore
  session: OwnedSession
  profile: string
  vault: Vault
  newVault(options?: Partial<VaultOptions>): Vault
  /** Everything the store holds. */
  objects(): string[]
  objectFile(generation: number): string
  /** Another worker takes the session over. */
  takeOver(worker?: string): Promise<OwnedSession>
}

export const log = createLogger('test', { level: 'error', stdout: false })

/** A database, a store, a session that this process owns, and a vault over them. */
export async function vaultRig(t: Test, options: Partial<VaultOptions> = {}): Promise<Rig> {
  const { sql, url } = await testDb(t)
  const folder = await mkdtemp(join(tmpdir(), 'awfar-vault-'))
  t.teardown(() => rm(folder, { recursive: true, force: true, maxRetries: 5 }))
  const store = new FaultyStore(new LocalObjectStore(join(folder, 'objects')))
  const session = await givenOwnedSession(sql)
  const newVault = (more: Partial<VaultOptions> = {}) =>
    new Vault({ sql, store, keys: KeyRing.parse(key('k1')), log, retryMs: 1, ...options, ...more })
  const objects = () =>
    readdirSync(join(folder, 'objects'), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map(({ parentPath, name }) => join(parentPath, name))
  return {
    ...{ sql, url, folder, store, session },
    profile: join(folder, 'profiles', session.id),
    vault: newVault(),
    newVault,
    objects,
    objectFile: (generation) => {
      const found = objects().find((path) => path.includes(`/${session.id}/${generation}-`))
      if (found === undefined) throw new Error(`No object of generation ${generation}.`)
      return found
    },
    takeOver: (worker = 'other-worker') => own(sql, session, worker),
  }
}

/** What a restore brought back, and which newer ones it could not use. */
export async function broughtBack(
  restoring: Promise<Restored>,
): Promise<Pick<Restored, 'generation' | 'refused'>> {
  const { generation, refused } = await restoring
  return { generation, refused }
}

export async function givenOwnedSession(sql: Db): Promise<OwnedSession> {
  const [workspace] = await sql<{
    id: string
  }>`insert into workspaces (name) values ('Bakery') returning id`
  const workspaceId = workspace!.id
  const [session] = await sql<{ id: string }>`
    insert into wa_sessions (workspace_id, name, engine) values (${workspaceId}, 'a', 'webjs') returning id`
  const id = session!.id
  return own(sql, { id, workspaceId }, 'this-worker')
}

async function own(
  sql: Db,
  { id, workspaceId }: { id: string; workspaceId: string },
  worker: string,
): Promise<OwnedSession> {
  const [row] = await sql<{ fence: number }>`
    update wa_sessions
    set owner = ${worker}, fence = fence + 1, lease_until = now() + interval '1 minute'
    where id = ${id} returning fence`
  return { id, workspaceId, fence: row!.fence, worker }
}

/** Writes a profile that looks like a browser's, with `mark` in it; answers what a snapshot of it must hold. */
export function givenProfile(profile: string, mark: string, bytes = 20_000): Map<string, string> {
  const database = 'Default/IndexedDB/https_web.whatsapp.com_0.indexeddb.leveldb'
  const noise = (length: number) => randomBytes(length / 2).toString('latin1')
  const needed = {
    [`${database}/000003.log`]: mark,
    [`${database}/000004.ldb`]: noise(bytes),
    [`${database}/CURRENT`]: 'MANIFEST-000001\n',
    [`${database}/MANIFEST-000001`]: `${mark} tables`,
    'Default/Local Storage/leveldb/000003.log': `${mark} keys ñ`,
    'Default/Local Storage/leveldb/CURRENT': 'MANIFEST-000001\n',
  }
  const extra = {
    'Local State': '{}',
    'Default/Cache/data_0': noise(50_000),
    [`${database}/LOCK`]: '',
    [`${database}/LOG`]: 'opened',
  }
  rmSync(profile, { recursive: true, force: true })
  for (const [path, text] of Object.entries({ ...needed, ...extra })) {
    mkdirSync(dirname(join(profile, path)), { recursive: true })
    writeFileSync(join(profile, path), text)
  }
  return new Map(Object.entries(needed).sort())
}

/** All files below a folder with their text, as givenProfile answers them. */
export function filesOf(folder: string): Map<string, string> {
  return new Map(
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map(({ parentPath, name }): [string, string] => [
        join(parentPath, name).slice(folder.length + 1),
        readFileSync(join(parentPath, name), 'utf8'),
      ])
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  )
}

/** Names beside the profile: nothing may be left there but the profile itself. */
export const besideProfile = (profile: string) => readdirSync(dirname(profile)).sort()

/** Changes one bit of a file; the function it answers changes it back. */
export function flipBit(file: string, at: number): () => void {
  const flip = () => {
    const bytes = readFileSync(file)
    bytes[at]! ^= 1 << (at % 8)
    writeFileSync(file, bytes)
  }
  flip()
  return flip
}
