import { Redis } from 'ioredis'
import type { Hit } from '../shared/rate-limits.ts'

/** Counts in Redis, for all API processes together. */
export interface RedisCounter {
  /** Counts one more use of a key; its window begins with the first use. Throws, soon, while Redis is away. */
  count: (key: string, windowMs: number) => Promise<Hit>
  close(): void
}

/** Connects in the background, and anew whenever the connection breaks: `onError` is told. */
export function connectRedis(url: string, onError: (error: Error) => void): RedisCounter {
  const redis = new Redis(url, {
    keyPrefix: 'awfar:limit:',
    // A request must not wait for a Redis that is away or does not answer.
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    connectTimeout: 2_000,
    commandTimeout: 500,
    retryStrategy: (attempt) => Math.min(attempt * 200, 5_000),
  })
  redis.on('error', onError)
  return {
    async count(key, windowMs) {
      // As one transaction: a key without an end would count for ever.
      const replies = await redis
        .multi()
        .set(key, 0, 'PX', windowMs, 'NX')
        .incr(key)
        .pttl(key)
        .exec()
      const [, [hitsError, hits] = [], [ttlError, ttlMs] = []] = replies ?? []
      const error = hitsError ?? ttlError
      if (error) throw error
      if (typeof hits !== 'number' || typeof ttlMs !== 'number')
        throw new Error('Redis did not count.')
      return { hits, ttlMs }
    },
    close: () => redis.disconnect(),
  }
}
