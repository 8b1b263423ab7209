import rateLimit, { normalizeIP } from '@fastify/rate-limit'
import type { FastifyRateLimitStore, RateLimitOptions } from '@fastify/rate-limit'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { AppError } from '../../shared/errors.ts'
import { countHit } from '../../shared/rate-limits.ts'
import type { Hit } from '../../shared/rate-limits.ts'
import { connectRedis } from '../redis-counter.ts'

/** What is counted together: all sign-ins and their like, all sends, all uploads; everything else is general. */
export type LimitClass = 'auth' | 'messages' | 'uploads'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The class whose limit replaces the general one, or `none`. */
    limit?: LimitClass | 'none'
  }
}

/**
 * Limits each person, or each address of those who are not signed in. With REDIS_URL all limits are counted in Redis. Without, the classes
 * are counted in Postgres, so that they hold over all processes and restarts, and the general limit in memory, since it only guards this process.
 * While the store is away this process counts by itself: limits loosen, by as many processes as there are, and never fall away.
 */
export default fp(
  async function limits(app) {
    const { config, sql, log } = app
    const classes = {
      auth: config.RATE_LIMIT_AUTH,
      messages: config.RATE_LIMIT_MESSAGES,
      uploads: config.RATE_LIMIT_UPLOADS,
    }
    const general = config.RATE_LIMIT_GENERAL
    const inMemory = memoryCounter()
    const redis =
      config.REDIS_URL === undefined
        ? undefined
        : connectRedis(config.REDIS_URL, (error) => log.warn({ error }, 'redis connection failed'))
    if (redis) app.addHook('onClose', async () => redis.close())
    const inPostgres = (key: string, windowMs: number) => countHit(sql, key, windowMs)

    const shared = (store: typeof inPostgres) => async (key: string, windowMs: number) => {
      try {
        return await store(key, windowMs)
      } catch (error) {
        log.warn({ error }, 'rate limit not counted in its store')
        return inMemory(key, windowMs)
      }
    }

    class Counters implements FastifyRateLimitStore {
      readonly #count: (key: string, windowMs: number) => Hit | Promise<Hit>

      constructor({ groupId }: RateLimitOptions) {
        if (redis) this.#count = shared(redis.count)
        else this.#count = groupId === undefined ? inMemory : shared(inPostgres)
      }

      incr: FastifyRateLimitStore['incr'] = (key, callback, windowMs) => {
        const count = async () => this.#count(key, windowMs)
        count().then(({ hits, ttlMs }) => callback(null, { current: hits, ttl: ttlMs }), callback)
      }

      child(options: object): Counters {
        return new Counters(options)
      }
    }

    app.addHook('onRoute', (route) => {
      const name = route.config?.limit
      if (name === undefined) return
      const limit = name === 'none' ? 'off' : classes[name]
      const rule = limit !== 'off' && { max: limit.max, timeWindow: limit.windowMs, groupId: name }
      route.config = { ...route.config, rateLimit: rule }
    })
    await app.register(rateLimit, {
      global: general !== 'off',
      ...(general !== 'off' && { max: general.max, timeWindow: general.windowMs }),
      store: Counters,
      enableDraftSpec: true,
      keyGenerator,
      errorResponseBuilder: (_request, { after }) =>
        new AppError(429, 'RATE_LIMITED', `Too many requests; try again in ${after}.`),
    })

    if (general !== 'off') {
      // Paths nobody serves count too: else the API could be searched for some at any speed.
      const limitUnknown = app.rateLimit()
      app.addHook('onRequest', async function (request, reply) {
        if (request.is404) await limitUnknown.call(this, request, reply)
      })
    }
  },
  { name: 'rate-limit', dependencies: ['auth'] },
)

/** One key a person or API key, else one an address; IPv6 networks of one customer (/64) are one address. */
const keyGenerator = (request: FastifyRequest) => `${callerKey(request)}:`

function callerKey({ user, ip }: FastifyRequest): string {
  if (!(user as unknown)) return `ip:${normalizeIP(ip)}`
  return user.apiKey ? `key:${user.apiKey.id}` : `user:${user.id}`
}

/** Counts up to so many keys; past that the oldest windows are forgotten. */
function memoryCounter(maxKeys = 50_000): (key: string, windowMs: number) => Hit {
  const windows = new Map<string, { hits: number; resetsAt: number }>()
  return (key, windowMs) => {
    const now = Date.now()
    let window = windows.get(key)
    if (!window || window.resetsAt <= now) {
      windows.delete(key)
      if (windows.size >= maxKeys) windows.delete(windows.keys().next().value!)
      window = { hits: 0, resetsAt: now + windowMs }
      windows.set(key, window)
    }
    window.hits += 1
    return { hits: window.hits, ttlMs: window.resetsAt - now }
  }
}
