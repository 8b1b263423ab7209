import { constants } from 'node:fs'
import { copyFile, lstat, mkdir, readdir, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/**
 * What of a browser's profile makes up a login, measured: with these two, in a profile otherwise new, a session is WORKING again without a
 * code; with one of them only, or none, it is not. Everything else (caches, preferences, Local State) is made anew.
 */
const chromiumParts = ['Default/IndexedDB', 'Default/Local Storage']

/** Locks and logs of a running browser: worthless in a copy, and always changing. */
const ofNoUse = /^(LOCK|LOG|LOG\.old|Singleton(Lock|Cookie|Socket))$/

/** There is no login in this folder: a snapshot of it would take the place of one that is worth something. */
export class NothingToSnapshot extends Error {
  constructor(part: string) {
    super(`There is nothing to take a snapshot of: ${part} is missing or empty.`)
    this.name = 'NothingToSnapshot'
  }
}

/** The profile changed under every attempt to copy it. */
export class ProfileRestless extends Error {
  constructor(attempts: number) {
    super(`The profile changed during each of ${attempts} attempts to copy it.`)
    this.name = 'ProfileRestless'
  }
}

interface Found {
  folder: boolean
  ino: bigint
  size: bigint
  mtime: bigint
}

/**
 * Copies the parts of a profile that a browser may be writing to, as they were at one moment. LevelDB replaces its tables and its list of
 * tables, and only appends to its journal: when nothing but journals has grown while the copy was made, the copy is a state the
 * database was in. Otherwise what has changed is copied again.
 */
export async function copyProfile(
  profile: string,
  target: string,
  {
    parts,
    attempts = 40,
    pauseMs = 50,
    signal,
  }: {
    parts?: string[] | undefined
    attempts?: number
    pauseMs?: number
    signal?: AbortSignal | undefined
  } = {},
): Promise<void> {
  const chosen = parts ?? ((await isFolder(join(profile, 'Default'))) ? chromiumParts : ['.'])
  const copied = new Map<string, Found | undefined>()
  await mkdir(target, { recursive: true, mode: 0o700 })
  for (let attempt = 1; attempt <= attempts; attempt++) {
    signal?.throwIfAborted()
    if (await copyOnce(profile, target, chosen, copied)) return
    await sleep(pauseMs, null, { signal })
  }
  await rm(target, { recursive: true, force: true })
  throw new ProfileRestless(attempts)
}

async function copyOnce(
  profile: string,
  target: string,
  parts: string[],
  copied: Map<string, Found | undefined>,
): Promise<boolean> {
  try {
    const before = await survey(profile, parts)
    for (const path of copied.keys()) {
      if (before.has(path)) continue
      await rm(join(target, path), { force: true })
      copied.delete(path)
    }
    for (const [path, found] of before) {
      const to = join(target, path)
      await mkdir(found.folder ? to : dirname(to), { recursive: true, mode: 0o700 })
      if (found.folder || isEqual(copied.get(path), found)) continue
      copied.set(path, undefined) // begun: if it vanishes now, what there is of it must go as well
      // A copy that shares its blocks with the original, where the file system can do that.
      await copyFile(join(profile, path), to, constants.COPYFILE_FICLONE)
      if (BigInt((await stat(to)).size) < found.size) return false
      copied.set(path, found)
    }
    return isSame(before, await survey(profile, parts))
  } catch (error) {
    // Taken away between being listed and being copied.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw error
  }
}

async function survey(profile: string, parts: string[]): Promise<Map<string, Found>> {
  const found = new Map<string, Found>()
  for (const part of parts) {
    const before = found.size
    if (await isFolder(join(profile, part))) await list(profile, part, found)
    const files = [...found.values()].slice(before).filter(({ folder }) => !folder)
    if (files.length === 0) throw new NothingToSnapshot(part)
  }
  return found
}

async function list(profile: string, path: string, found: Map<string, Found>): Promise<void> {
  for (const entry of await readdir(join(profile, path), { withFileTypes: true })) {
    if (ofNoUse.test(entry.name) || !(entry.isFile() || entry.isDirectory())) continue
    const name = join(path, entry.name)
    const { ino, size, mtimeNs } = await lstat(join(profile, name), { bigint: true })
    const folder = entry.isDirectory()
    found.set(
      name,
      folder ? { folder, ino, size: 0n, mtime: 0n } : { folder, ino, size, mtime: mtimeNs },
    )
    if (folder) await list(profile, name, found)
  }
}

function isSame(before: Map<string, Found>, after: Map<string, Found>): boolean {
  if (before.size !== after.size) return false
  for (const [path, was] of before) {
    const is = after.get(path)
    if (is === undefined) return false
    const journal = path.endsWith('.log') && before.has(join(dirname(path), 'CURRENT'))
    if (journal ? is.ino !== was.ino || is.size < was.size : !isEqual(is, was)) return false
  }
  return true
}

const isEqual = (a: Found | undefined, b: Found) =>
  a !== undefined && a.ino === b.ino && a.size === b.size && a.mtime === b.mtime

async function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  )
}
