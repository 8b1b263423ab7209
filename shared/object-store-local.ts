import { randomUUID } from 'node:crypto'
import { link, mkdir, open, readdir, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { checkKey, ObjectExists, ObjectNotFound, StoreRefused } from './object-store.ts'
import type { ByteRange, Listed, ObjectInfo, ObjectStore, PutOptions } from './object-store.ts'

/** What nobody can still be writing. */
const abandonedMs = 3_600_000

/** Objects as files of a folder on this machine: for development, and for one machine whose disk is backed up. */
export class LocalObjectStore implements ObjectStore {
  readonly #folder: string

  constructor(folder: string) {
    this.#folder = folder
  }

  async ensureBucket(bucket: string): Promise<void> {
    checkKey(bucket, 'any')
    const drafts = this.#drafts(bucket)
    await mkdir(drafts, { recursive: true, mode: 0o700 })
    for (const name of await readdir(drafts)) {
      const draft = join(drafts, name)
      const { mtimeMs } = await stat(draft).catch(() => ({ mtimeMs: Infinity })) // finished meanwhile
      if (Date.now() - mtimeMs > abandonedMs) await rm(draft, { force: true })
    }
  }

  async put(
    bucket: string,
    key: string,
    source: Readable,
    { size, signal }: PutOptions = {},
  ): Promise<void> {
    const path = this.#path(bucket, key)
    const draft = join(this.#drafts(bucket), randomUUID())
    const onAbort = () => source.destroy(signal?.reason as Error)
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      signal?.throwIfAborted()
      const file = await open(draft, 'wx', 0o600).catch(refuseBucket)
      try {
        let written = 0
        for await (const chunk of source as AsyncIterable<Buffer | string>) {
          const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : chunk
          await file.writeFile(bytes)
          written += bytes.length
        }
        if (size !== undefined && written !== size) {
          throw new Error(`The object has ${written} bytes, not ${size}.`)
        }
        await file.sync()
      } finally {
        await file.close()
      }
      await mkdir(dirname(path), { recursive: true, mode: 0o700 })
      // A link, unlike a rename, never replaces what is there.
      await link(draft, path).catch((error: NodeJS.ErrnoException) => {
        throw error.code === 'EEXIST' ? new ObjectExists(bucket, key) : error
      })
      await this.#syncFolders(bucket, path)
    } catch (error) {
      source.destroy()
      throw error
    } finally {
      signal?.removeEventListener('abort', onAbort)
      await rm(draft, { force: true })
    }
  }

  async get(bucket: string, key: string, range?: ByteRange): Promise<Readable> {
    const path = this.#path(bucket, key)
    const file = await open(path, 'r').catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error
      await this.#checkBucket(bucket)
      throw new ObjectNotFound(bucket, key)
    })
    return file.createReadStream(range)
  }

  async stat(bucket: string, key: string): Promise<ObjectInfo | undefined> {
    const found = await stat(this.#path(bucket, key)).catch(orNothing)
    if (found?.isFile()) return { size: found.size, contentType: undefined }
    await this.#checkBucket(bucket)
    return undefined
  }

  async *list(bucket: string, folder?: string): AsyncGenerator<Listed> {
    const path = folder === undefined ? join(this.#folder, bucket) : this.#path(bucket, folder)
    await this.#checkBucket(bucket)
    const entries = await readdir(path, { withFileTypes: true }).catch(orNothing)
    for (const entry of entries ?? []) {
      if (entry.name.startsWith('.')) continue
      const key = folder === undefined ? entry.name : `${folder}/${entry.name}`
      const found = await stat(join(path, entry.name)).catch(orNothing)
      if (found)
        yield { key, folder: found.isDirectory(), at: found.isFile() ? found.mtime : undefined }
    }
  }

  async remove(bucket: string, keys: string[]): Promise<void> {
    for (const key of keys) await rm(this.#path(bucket, key), { force: true })
  }

  /** A disk that is not mounted must not look like a store that lost its objects. */
  async #checkBucket(bucket: string): Promise<void> {
    checkKey(bucket, 'any')
    await stat(this.#drafts(bucket)).catch(refuseBucket)
  }

  /** Without this a power cut could take away a file that was written. */
  async #syncFolders(bucket: string, path: string): Promise<void> {
    for (let folder = dirname(path); folder.length >= join(this.#folder, bucket).length;) {
      const handle = await open(folder, 'r')
      await handle.sync().finally(() => handle.close())
      folder = dirname(folder)
    }
  }

  /** No key begins with a dot: drafts and objects never meet. */
  #drafts(bucket: string): string {
    return join(this.#folder, bucket, '.drafts')
  }

  #path(bucket: string, key: string): string {
    checkKey(bucket, key)
    return join(this.#folder, bucket, key)
  }
}

function refuseBucket(error: NodeJS.ErrnoException): never {
  throw error.code === 'ENOENT' ? new StoreRefused(404, 'Bucket not found') : error
}

function orNothing(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw error
}
