import { Readable } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'
import { createClient } from '@supabase/supabase-js'
import { errorText } from './errors.ts'
import {
  checkKey,
  ObjectExists,
  ObjectNotFound,
  StoreRefused,
  StoreUnavailable,
} from './object-store.ts'
import type {
  ByteRange,
  Listed,
  ObjectInfo,
  ObjectStore,
  PutOptions,
  PutUrl,
  ReadUrlOptions,
  StoreUrls,
} from './object-store.ts'

export interface SupabaseStoreOptions {
  url: string
  serviceRoleKey: string
  /** How long the store may take to answer, or stand still in the middle of a transfer. */
  patienceMs?: number
}

/** The one call of the client this store makes: enough of its types for both a bucket's and an object's answer. */
interface Answer<T> {
  data: T | null
  error: (Error & { status?: number | undefined; statusCode?: string | undefined }) | null
}

const listedAtOnce = 1_000
/** How long the server takes uploads by a signed URL. */
const putUrlMs = 2 * 3_600_000

/** The client demands a WebSocket to be constructed at all; nothing here listens to the database over one. */
const noRealtime = {
  transport: class {
    constructor() {
      throw new Error('realtime is off')
    }
  } as never,
}

/** Objects in Supabase Storage, in private buckets, by means of the service role. */
export class SupabaseObjectStore implements ObjectStore {
  readonly #storage: ReturnType<typeof createClient>['storage']
  readonly #url: string
  readonly #secret: string
  readonly #patienceMs: number
  /** Ends the call that sends this body: the client has no way to hand one on. */
  readonly #ends = new WeakMap<object, AbortController>()

  constructor({ url, serviceRoleKey, patienceMs = 30_000 }: SupabaseStoreOptions) {
    this.#url = url.replace(/\/+$/, '')
    this.#secret = serviceRoleKey
    this.#patienceMs = patienceMs
    this.#storage = createClient(url, serviceRoleKey, {
      auth: { persistSession: false, autoRefreshToken: false, detectSessionInUrl: false },
      realtime: noRealtime,
      global: { fetch: (input, init) => this.#fetch(input as string, init as RequestInit) },
    }).storage
  }

  async ensureBucket(bucket: string): Promise<void> {
    checkKey(bucket, 'any')
    const found = await this.#storage.getBucket(bucket)
    if (found.data?.public) {
      throw new StoreRefused(403, `Bucket ${bucket} is public; it must be private`)
    }
    if (!found.error) return
    if (codeOf(found.error) !== 404) throw this.#failure(found.error)
    const made = await this.#storage.createBucket(bucket, { public: false })
    // Another process was faster.
    if (made.error && codeOf(made.error) !== 409) throw this.#failure(made.error)
  }

  async put(
    bucket: string,
    key: string,
    source: Readable,
    { size, signal, contentType = 'application/octet-stream' }: PutOptions = {},
  ): Promise<void> {
    checkKey(bucket, key)
    const end = new AbortController()
    const sending = { failure: undefined as Error | undefined }
    const body = Readable.from(this.#send(source, end, sending, size), { objectMode: false })
    this.#ends.set(body, end)
    const onAbort = () => end.abort(signal?.reason)
    signal?.addEventListener('abort', onAbort, { once: true })
    if (signal?.aborted) onAbort()
    try {
      const { error } = await this.#storage.from(bucket).upload(key, body, {
        contentType,
        upsert: false,
      })
      signal?.throwIfAborted()
      if (sending.failure) throw sending.failure
      if (!error) return
      throw codeOf(error) === 409 ? new ObjectExists(bucket, key) : this.#failure(error)
    } finally {
      signal?.removeEventListener('abort', onAbort)
      end.abort()
      source.destroy()
    }
  }

  async get(bucket: string, key: string, range?: ByteRange): Promise<Readable> {
    checkKey(bucket, key)
    const objects = this.#storage.from(bucket)
    if (range) objects.setHeader('range', `bytes=${range.start}-${range.end}`)
    const { data, error } = await objects.download(key).asStream()
    if (error) throw isAbsent(error) ? new ObjectNotFound(bucket, key) : this.#failure(error)
    return Readable.from(this.#receive(data as ReadableStream<Uint8Array>), { objectMode: false })
  }

  async stat(bucket: string, key: string): Promise<ObjectInfo | undefined> {
    checkKey(bucket, key)
    const { data, error } = await this.#storage.from(bucket).info(key)
    if (!error) return { size: data.size!, contentType: data.contentType }
    if (!isAbsent(error)) throw this.#failure(error)
    return undefined
  }

  async *list(bucket: string, folder?: string): AsyncGenerator<Listed> {
    checkKey(bucket, folder ?? 'any')
    for (let offset = 0; ; offset += listedAtOnce) {
      const { data, error } = await this.#storage
        .from(bucket)
        .list(folder, { limit: listedAtOnce, offset, sortBy: { column: 'name', order: 'asc' } })
      if (error) throw this.#failure(error)
      for (const { name, id, created_at: at } of data) {
        const key = folder === undefined ? name : `${folder}/${name}`
        // Folders have no id.
        yield { key, folder: id === null, at: at ? new Date(at) : undefined }
      }
      if (data.length < listedAtOnce) return
    }
  }

  readonly urls: StoreUrls = {
    read: async (bucket: string, key: string, { seconds, download }: ReadUrlOptions) => {
      checkKey(bucket, key)
      const { data, error } = await this.#storage.from(bucket).createSignedUrl(key, seconds)
      if (error) throw isAbsent(error) ? new ObjectNotFound(bucket, key) : this.#failure(error)
      const url = new URL(data.signedUrl)
      // The client would encode the name twice.
      if (download !== undefined) url.searchParams.set('download', download)
      return url.href
    },

    put: async (bucket: string, key: string, contentType: string): Promise<PutUrl> => {
      checkKey(bucket, key)
      const { data, error } = await this.#storage.from(bucket).createSignedUploadUrl(key)
      if (error) throw this.#failure(error)
      return {
        url: data.signedUrl,
        headers: { 'content-type': contentType },
        expiresAt: new Date(Date.now() + putUrlMs),
        resumable: {
          endpoint: `${this.#url}/storage/v1/upload/resumable/sign`,
          headers: { 'x-signature': data.token },
          metadata: { bucketName: bucket, objectName: key, contentType },
          chunkSize: 6 * 1_048_576,
        },
      }
    },
  }

  async remove(bucket: string, keys: string[]): Promise<void> {
    for (const key of keys) checkKey(bucket, key)
    // A thousand is what one call takes.
    for (let from = 0; from < keys.length; from += 1_000) {
      const { error } = await this.#storage.from(bucket).remove(keys.slice(from, from + 1_000))
      if (error) throw this.#failure(error)
    }
  }

  /** Each call has a deadline: a transfer's own one moves on with every chunk, the others end as a whole. */
  async #fetch(input: string, init: RequestInit = {}): Promise<Response> {
    const end =
      (typeof init.body === 'object' && init.body && this.#ends.get(init.body)) || undefined
    if (end) return fetch(input, { ...init, signal: end.signal })
    const late = new AbortController()
    const timer = setTimeout(() => late.abort(this.#late()), this.#patienceMs)
    try {
      return await fetch(input, { ...init, signal: late.signal })
    } finally {
      clearTimeout(timer)
    }
  }

  /** Hands on what is to be sent, and ends the call when nobody takes the next chunk, or nobody answers after the last. */
  async *#send(
    source: Readable,
    end: AbortController,
    sending: { failure: Error | undefined },
    size: number | undefined,
  ): AsyncGenerator<Buffer> {
    let sent = 0
    let timer: NodeJS.Timeout | undefined
    const wait = () => (timer = setTimeout(() => end.abort(this.#late()), this.#patienceMs))
    end.signal.addEventListener('abort', () => clearTimeout(timer), { once: true })
    try {
      for await (const chunk of source as AsyncIterable<Buffer>) {
        sent += chunk.length
        wait()
        yield chunk
        clearTimeout(timer)
      }
      if (size !== undefined && sent !== size) {
        throw new Error(`The object has ${sent} bytes, not ${size}.`)
      }
      wait()
    } catch (error) {
      sending.failure = error as Error
      clearTimeout(timer)
      end.abort(error)
      throw error
    }
  }

  async *#receive(body: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
    const reader = body.getReader()
    try {
      for (;;) {
        let timer: NodeJS.Timeout | undefined
        const late = new Promise<never>((_, reject) => {
          timer = setTimeout(() => reject(this.#late()), this.#patienceMs)
        })
        const { done, value } = await Promise.race([reader.read(), late])
          .catch((error: unknown) => {
            throw error instanceof StoreUnavailable ? error : this.#failure(error)
          })
          .finally(() => clearTimeout(timer))
        if (done) return
        yield value
      }
    } finally {
      await reader.cancel().catch(() => {})
    }
  }

  #late(): StoreUnavailable {
    return new StoreUnavailable(`no progress within ${this.#patienceMs} ms`)
  }

  #failure(error: unknown): Error {
    const { originalError } = error as { originalError?: unknown }
    if (originalError instanceof StoreUnavailable) return originalError
    const cause = originalError instanceof Error ? (originalError.cause ?? originalError) : error
    // A header that cannot be sent is quoted in the error: it could be the key.
    const what = errorText(cause).replaceAll(this.#secret, '[key]')
    const code = codeOf(error as Answer<never>['error'])
    if (code === undefined || code === 429 || code === 408 || code >= 500) {
      return new StoreUnavailable(code === undefined ? what : `${what} (${code})`)
    }
    return new StoreRefused(code, code === 413 ? `${what}; raise the bucket's size limit` : what)
  }
}

/** The server answers every refusal with 400 and puts the true code into the body. */
function codeOf(error: Answer<never>['error']): number | undefined {
  const code = Number(error?.statusCode)
  return Number.isInteger(code) && code > 0 ? code : error?.status
}

/** The object is not there; a bucket that is not there is something else. */
const isAbsent = (error: NonNullable<Answer<never>['error']>) =>
  codeOf(error) === 404 && !/bucket/i.test(error.message)
