import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto'
import type { CipherGCM, DecipherGCM, Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, open, readdir, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { Transform } from 'node:stream'
import type { Readable, TransformCallback } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGunzip, createGzip } from 'node:zlib'
import tar from 'tar-stream'
import type { Extract, Pack } from 'tar-stream'

/** How much is in a snapshot. */
export interface Totals {
  files: number
  bytes: number
}

/** A snapshot is not what was stored: altered, cut short, of another session, or not made by us. */
export class SnapshotBroken extends Error {
  constructor(why: string, options?: ErrorOptions) {
    super(why, options)
    this.name = 'SnapshotBroken'
  }
}

const algorithm = 'aes-256-gcm'
const magic = Buffer.from('AWFSNAP1')
const nonceLength = 12
const headLength = magic.length + nonceLength
const tagLength = 16
/** LevelDB compresses its tables already: level 9 gains one percent over level 1 and takes twice as long. */
const gzipLevel = 1

/** A folder as a compressed tar; `totals` counts on while it is read. */
export function packFolder(folder: string): { stream: Readable; totals: Totals } {
  const totals = { files: 0, bytes: 0 }
  const archive = tar.pack()
  addAll(archive, folder, '', totals).then(
    () => archive.finalize(),
    (error: unknown) => archive.destroy(error as Error),
  )
  const gzip = createGzip({ level: gzipLevel })
  // What goes wrong here reaches the reader: the pipeline destroys gzip with it.
  pipeline(archive as unknown as Readable, gzip).catch(() => {})
  return { stream: gzip, totals }
}

async function addAll(archive: Pack, root: string, path: string, totals: Totals): Promise<void> {
  const entries = await readdir(join(root, path), { withFileTypes: true })
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const name = path === '' ? entry.name : `${path}/${entry.name}`
    if (entry.isDirectory()) {
      await addEntry(archive, { name, type: 'directory', mode: 0o700, mtime: new Date(0) })
      await addAll(archive, root, name, totals)
    } else if (entry.isFile()) {
      const { size } = await stat(join(root, name))
      const source = createReadStream(join(root, name))
      await addEntry(archive, { name, size, mode: 0o600, mtime: new Date(0) }, source)
      totals.files += 1
      totals.bytes += size
    }
  }
}

function addEntry(
  archive: Pack,
  header: Parameters<Pack['entry']>[0],
  source?: Readable,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const sink = archive.entry(header, (error) => (error ? reject(error) : resolve()))
    // The reader went away, or the file is not as long as it was: the callback above may never come.
    if (source) pipeline(source, sink).catch(reject)
  })
}

/**
 * Reads a compressed tar to its end, into `folder`, or only to see that it can be done. Everything in it must be a plain file or folder
 * below `folder`. Throws SnapshotBroken for whatever is wrong with the archive itself.
 */
export async function unpack(
  source: Readable,
  { folder, limit, signal }: { folder?: string; limit?: Totals; signal?: AbortSignal | undefined },
): Promise<Totals> {
  const totals = { files: 0, bytes: 0 }
  const extract = tar.extract()
  const streams = [source, createGunzip(), extract as unknown as Transform] as const
  const feeding = pipeline(...streams, { signal: signal as AbortSignal })
  feeding.catch(() => {}) // awaited below, after what the entries said
  let failure: unknown
  try {
    await takeEntries(extract, folder, limit, totals)
  } catch (error) {
    failure = error
    extract.destroy()
  }
  try {
    await feeding
  } catch (error) {
    // The end of the feeding is the cause, unless it was us who ended it.
    if (!(failure instanceof SnapshotBroken) && !isSystemError(failure)) failure = error
  }
  if (failure === undefined) return totals
  throw explain(failure)
}

async function takeEntries(
  extract: Extract,
  folder: string | undefined,
  limit: Totals | undefined,
  totals: Totals,
): Promise<void> {
  for await (const entry of extract) {
    const { name, type, size = 0 } = entry.header
    if (type !== 'file' && type !== 'directory') {
      throw new SnapshotBroken(
        `it holds a ${type ?? 'nameless thing'}, and only files and folders are taken`,
      )
    }
    const parts = name.replace(/\/$/, '').split('/')
    if (parts.some((part) => part === '' || part === '.' || part === '..' || /[\\\0]/.test(part))) {
      throw new SnapshotBroken('it holds a path that leads elsewhere')
    }
    totals.files += type === 'file' ? 1 : 0
    totals.bytes += type === 'file' ? size : 0
    if (limit && (totals.files > limit.files || totals.bytes > limit.bytes)) {
      throw new SnapshotBroken('it holds more than was stored')
    }
    if (folder === undefined) entry.resume()
    else if (type === 'directory') await makeFolder(join(folder, ...parts))
    else await writeEntry(entry as AsyncIterable<Buffer>, join(folder, ...parts))
    if (folder !== undefined && type === 'directory') entry.resume()
  }
}

const makeFolder = (path: string) => mkdir(path, { recursive: true, mode: 0o700 })

async function writeEntry(entry: AsyncIterable<Buffer>, path: string): Promise<void> {
  await makeFolder(dirname(path))
  const file = await open(path, 'wx', 0o600)
  try {
    for await (const chunk of entry) await file.writeFile(chunk)
    await file.sync()
  } finally {
    await file.close()
  }
}

function explain(error: unknown): Error {
  if (error instanceof SnapshotBroken || isSystemError(error) || !(error instanceof Error)) {
    return error as Error
  }
  const { code = '' } = error as NodeJS.ErrnoException
  // zlib's and tar's own complaints; what a stream before them said stays as it is.
  const ours = code.startsWith('Z_') || /tar|end of data|checksum|format/i.test(error.message)
  return ours ? new SnapshotBroken(`it does not unpack: ${error.message}`, { cause: error }) : error
}

/** Of the operating system: the disk is full, a folder is gone. Nothing is wrong with the snapshot then. */
const isSystemError = (error: unknown) => error instanceof Error && 'syscall' in error

/** Encrypts: a mark, a random nonce, the ciphertext, the tag. `context` is what the object belongs to. */
export class Encrypt extends Transform {
  readonly #cipher: CipherGCM

  constructor(key: Buffer, context: string) {
    super()
    const nonce = randomBytes(nonceLength)
    this.#cipher = createCipheriv(algorithm, key, nonce)
    this.#cipher.setAAD(bind(context))
    this.push(Buffer.concat([magic, nonce]))
  }

  override _transform(chunk: Buffer, _: BufferEncoding, done: TransformCallback): void {
    done(null, this.#cipher.update(chunk))
  }

  override _flush(done: TransformCallback): void {
    done(null, Buffer.concat([this.#cipher.final(), this.#cipher.getAuthTag()]))
  }
}

/** Decrypts what Encrypt wrote. What it gives is proven only once it has ended without an error. */
export class Decrypt extends Transform {
  readonly #key: Buffer
  readonly #context: string
  #decipher: DecipherGCM | undefined
  /** The beginning while it is incomplete; later the last bytes so far, which may be the tag. */
  #held: Buffer = Buffer.alloc(0)

  constructor(key: Buffer, context: string) {
    super()
    this.#key = key
    this.#context = context
  }

  override _transform(chunk: Buffer, _: BufferEncoding, done: TransformCallback): void {
    this.#held = Buffer.concat([this.#held, chunk])
    if (!this.#decipher) {
      if (this.#held.length < headLength) return done()
      if (!this.#held.subarray(0, magic.length).equals(magic)) {
        return done(new SnapshotBroken('it does not begin as a snapshot does'))
      }
      const nonce = this.#held.subarray(magic.length, headLength)
      this.#decipher = createDecipheriv(algorithm, this.#key, nonce, { authTagLength: tagLength })
      this.#decipher.setAAD(bind(this.#context))
      this.#held = this.#held.subarray(headLength)
    }
    const sure = Math.max(0, this.#held.length - tagLength)
    const plain = this.#decipher.update(this.#held.subarray(0, sure))
    this.#held = this.#held.subarray(sure)
    done(null, plain)
  }

  override _flush(done: TransformCallback): void {
    if (!this.#decipher || this.#held.length !== tagLength) {
      return done(new SnapshotBroken('it is cut short'))
    }
    try {
      this.#decipher.setAuthTag(this.#held)
      done(null, this.#decipher.final())
    } catch (cause) {
      done(new SnapshotBroken('it was altered, or belongs to something else', { cause }))
    }
  }
}

/** Counts and hashes what passes. */
export class Meter extends Transform {
  readonly #hash: Hash = createHash('sha256')
  size = 0

  override _transform(chunk: Buffer, _: BufferEncoding, done: TransformCallback): void {
    this.size += chunk.length
    this.#hash.update(chunk)
    done(null, chunk)
  }

  /** Ends the counting. */
  get sha256(): string {
    return this.#hash.copy().digest('hex')
  }
}

const bind = (context: string) => Buffer.concat([magic, Buffer.from(context)])
