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
  /** The object's bytes; the stream fails when they cannot all be had. Throws ObjectNotFound. */
  get(bucket: string, key: string): Promise<Readable>
  /** Removes objects; those that are not there are passed over. */
  remove(bucket: string, keys: string[]): Promise<void>
}

export interface PutOptions {
  size?: number
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
