import type { Readable } from 'node:stream'

/**
 * Where files live that are too big for the database. Objects never change: each is put once, read, and removed. Keys are made of ids by
 * us, never of what a person typed.
 */
export interface ObjectStore {
  /** Makes the bucket, readable by us only, if it is not there. Call it before the first use of a bucket. */
  ensureBucket(bucket: string): Promise<void>
  /**
   * Stores what the stream gives. The object is there as a whole, durably, when this resolves, and not at all when it rejects or the
   * process dies. With `size` a stream of another length is refused. Throws ObjectExists rather than replace anything.
   */
  put(bucket: string, key: string, source: Readable, options?: PutOptions): Promise<void>
  /** The object's bytes, or those of a range in it; the stream fails when they cannot all be had. Throws ObjectNotFound. */
  get(bucket: string, key: string, range?: ByteRange): Promise<Readable>
  /** What is known of an object; undefined when there is none. */
  stat(bucket: string, key: string): Promise<ObjectInfo | undefined>
  /** Removes objects; those that are not there are passed over. */
  remove(bucket: string, keys: string[]): Promise<void>
  /** What lies directly in a folder, or in the bucket itself: objects, and folders that have some. */
  list(bucket: string, folder?: string): AsyncIterable<Listed>
  /** How others may read and put single objects without us; a store that has no such way has none of these. */
  readonly urls?: StoreUrls
}

export interface StoreUrls {
  /**
   * Where an object may be read for so many seconds, by whoever has the URL. With `download` a browser keeps it under that name
   * instead of showing it. Throws ObjectNotFound.
   */
  read(bucket: string, key: string, options: ReadUrlOptions): Promise<string>
  /** Where one object may be put, once, by whoever has the URL. Nothing is replaced. */
  put(bucket: string, key: string, contentType: string): Promise<PutUrl>
}

export interface ReadUrlOptions {
  seconds: number
  download?: string | undefined
}

export interface PutUrl {
  url: string
  headers: Record<string, string>
  expiresAt: Date
  /** The same upload in pieces, by the TUS protocol. */
  resumable: Resumable
}

/** What a TUS client is to be given. */
export interface Resumable {
  endpoint: string
  headers: Record<string, string>
  metadata: Record<string, string>
  /** The size of each piece but the last. */
  chunkSize: number
}

/** The first and the last byte, counted from 0. */
export interface ByteRange {
  start: number
  end: number
}

export interface ObjectInfo {
  size: number
  /** What whoever put it said it was; undefined when the store keeps no such thing. */
  contentType: string | undefined
}

export interface Listed {
  /** The whole key; that of a folder is the beginning of those in it, without the slash. */
  key: string
  folder: boolean
  /** When an object was put. */
  at: Date | undefined
}

export interface PutOptions {
  size?: number
  /** What those who read it by a URL of the store are told it is. */
  contentType?: string
  signal?: AbortSignal | undefined
}

export class ObjectNotFound extends Error {
  constructor(bucket: string, key: string) {
    super(`There is no object ${key} in bucket ${bucket}.`)
    this.name = 'ObjectNotFound'
  }
}

export class ObjectExists extends Error {
  constructor(bucket: string, key: string) {
    super(`There is an object ${key} in bucket ${bucket} already.`)
    this.name = 'ObjectExists'
  }
}

/** The store is away, overloaded or too slow: the same call may work later. */
export class StoreUnavailable extends Error {
  constructor(what: string, options?: ErrorOptions) {
    super(`The object store is unavailable: ${what}`, options)
    this.name = 'StoreUnavailable'
  }
}

/** The store does not take the call, and will not take it later either: a wrong key, a missing bucket, an object too large. */
export class StoreRefused extends Error {
  readonly statusCode: number

  constructor(statusCode: number, what: string, options?: ErrorOptions) {
    super(`The object store refused (${statusCode}): ${what}`, options)
    this.name = 'StoreRefused'
    this.statusCode = statusCode
  }
}

/** Guards against what a path could do elsewhere: every part begins with a letter or digit, so there is no `..` and nothing hidden. */
export function checkKey(bucket: string, key: string): void {
  if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(bucket)) throw new StoreRefused(400, 'Invalid bucket name')
  if (key.length > 512 || !/^[A-Za-z0-9][\w.-]*(\/[A-Za-z0-9][\w.-]*)*$/.test(key)) {
    throw new StoreRefused(400, 'Invalid key')
  }
}
