import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'

/** Whether both halves of an emulated login, in localStorage and in IndexedDB, have reached the disk. */
export async function loginIsOnDisk(profile: string): Promise<boolean> {
  const folder = join(profile, 'Default', 'Local Storage', 'leveldb')
  const names = await readdir(folder).catch(() => [])
  const files = names.filter((name) => /\.(log|ldb)$/.test(name))
  const contents = await Promise.all(
    files.map((name) => readFile(join(folder, name)).catch(() => Buffer.alloc(0))),
  )
  return contents.some((content) => content.includes('WANoiseInfo'))
}
