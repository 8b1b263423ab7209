import { createHash, randomUUID } from 'node:crypto'
import { mkdir, open, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { AppError } from './errors.ts'
import { headBytes, limitFor, tooLarge } from './media-types.ts'

/** A file that was received and is not yet anywhere else; whoever has it removes it. */
export interface TempFile {
  path: string
  size: number
  sha256: string
}

/** Where files lie while they are received or looked at. */
export const tempDir = (dataDir: string) => join(dataDir, 'tmp', 'media')

/** What nobody can still be using. */
const abandonedMs = 3_600_000

/**
 * Writes what the stream gives into a file in `dir` and hashes it on the way. Nothing is kept when this rejects: with 413 as soon as the stream
 * has more bytes than a file that begins like it may have, with 415 as soon as it cannot become anything that is taken, with 400 when it is empty.
 */
export async function receiveMedia(source: Readable, dir: string): Promise<TempFile> {
  let head: Buffer[] | undefined = []
  let limit: Awaited<ReturnType<typeof limitFor>> | undefined
  const judge = async (size: number, end: boolean) => {
    if (head && (size >= headBytes || end)) {
      limit = await limitFor(Buffer.concat(head).subarray(0, headBytes))
      head = undefined
    }
    if (limit && size > limit.bytes) throw tooLarge(limit.kind)
  }
  return receive(source, dir, {
    onChunk: async (chunk, size) => {
      head?.push(chunk)
      await judge(size, false)
    },
    onEnd: async (size) => {
      if (size === 0) throw emptyFile()
      await judge(size, true)
    },
  })
}

/** The same for a file that may be of any type, up to `maxBytes`. */
export async function receiveAny(
  source: Readable,
  dir: string,
  maxBytes: number,
): Promise<TempFile> {
  return receive(source, dir, {
    onChunk: async (_chunk, size) => {
      if (size > maxBytes) {
        throw new AppError(413, 'FILE_TOO_LARGE', `The file has more than ${maxBytes} bytes.`)
      }
    },
    onEnd: async (size) => {
      if (size === 0) throw emptyFile()
    },
  })
}

const emptyFile = () => {
  const message = 'The file is empty.'
  return new AppError(400, 'VALIDATION_FAILED', message, [{ path: 'body.file', message }])
}

async function receive(
  source: Readable,
  dir: string,
  {
    onChunk,
    onEnd,
  }: {
    onChunk: (chunk: Buffer, size: number) => Promise<void>
    onEnd: (size: number) => Promise<void>
  },
): Promise<TempFile> {
  await mkdir(dir, { recursive: true, mode: 0o700 })
  const path = join(dir, randomUUID())
  const hash = createHash('sha256')
  let size = 0
  try {
    const file = await open(path, 'wx', 0o600)
    try {
      for await (const chunk of source as AsyncIterable<Buffer>) {
        size += chunk.length
        await onChunk(chunk, size)
        hash.update(chunk)
        await file.writeFile(chunk)
      }
      await onEnd(size)
    } finally {
      await file.close()
    }
    return { path, size, sha256: hash.digest('hex') }
  } catch (error) {
    source.destroy()
    await rm(path, { force: true })
    throw error
  }
}

/** Removes what processes that died have left in `dir`. Answers how many files. */
export async function removeAbandoned(dir: string): Promise<number> {
  const names = await readdir(dir).catch(() => [])
  let removed = 0
  for (const name of names) {
    const path = join(dir, name)
    const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Infinity })) // finished meanwhile
    if (Date.now() - mtimeMs <= abandonedMs) continue
    await rm(path, { recursive: true, force: true })
    removed += 1
  }
  return removed
}
