import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import Joi from 'joi'
import type { Sql } from '../../shared/db.ts'
import { AppError } from '../../shared/errors.ts'
import {
  bodyOf,
  claimKey,
  dropClaim,
  findAnswer,
  sealAnswer,
  settleClaim,
  storeAnswer,
  takeKey,
} from '../../shared/idempotency.ts'
import type { KeyedRequest, StoredAnswer } from '../../shared/idempotency.ts'

/** What work under an Idempotency-Key answers. */
export interface Answer {
  statusCode: number
  /** Null: nothing but the status. */
  body: object | null
}

declare module 'fastify' {
  interface FastifyInstance {
    /**
     * Sends what `work` answers. With an Idempotency-Key it is done once: `work` and the storing of its answer are one transaction,
     * so that whoever repeats the request, however the first one ended, gets the stored answer or does the work himself. `work` must use
     * the connection it is given, and what it throws undoes all of it; so does the entry of the audit log that the route declares. Without a key it is run as it is, on a connection of the pool. With
     * `secret` the answer holds one: it is stored sealed, and nothing between here and the caller is to keep it.
     * Throws 422 IDEMPOTENCY_KEY_REUSED, and 409 IDEMPOTENCY_IN_PROGRESS when another request with the key takes long.
     */
    answerOnce(
      request: FastifyRequest,
      reply: FastifyReply,
      work: (sql: Sql) => Promise<Answer>,
      options?: { secret?: boolean },
    ): Promise<void>
    /**
     * The same for work that waits for others and fits into no transaction: it has `longWorkSeconds`. A process that dies in
     * the middle leaves the key taken until then; after that the work is done anew. The answer is kept until `keepUntil` when that comes
     * before IDEMPOTENCY_TTL_HOURS are over.
     */
    answerLongWorkOnce(
      request: FastifyRequest,
      reply: FastifyReply,
      work: () => Promise<Answer & { keepUntil?: Date }>,
      /** What was asked besides the parsed request, as the hash of a file is. */
      content?: string,
    ): Promise<void>
  }
}

interface IdempotencyHeaders {
  'idempotency-key'?: string
  'x-idempotency-key'?: string
}

const key = Joi.string()
  .max(255)
  .pattern(/^[\x21-\x7e]+$/, 'visible ASCII characters')

/** The headers of a route that answers through answerOnce() or answerLongWorkOnce(). */
export const idempotent = Joi.object<IdempotencyHeaders, true>({
  'idempotency-key': key.description(
    'Makes repeating the request harmless: it is done once, and its answer told again with `Idempotency-Replayed: true`',
  ),
  'x-idempotency-key': key.description('The same under its older name'),
}).custom((headers: IdempotencyHeaders) => {
  const [one, other] = [headers['idempotency-key'], headers['x-idempotency-key']]
  if (one === undefined || other === undefined || one === other) return headers
  throw new Error('must not carry an Idempotency-Key and another X-Idempotency-Key')
})

/** How long a request waits for another one with its key. */
const patienceMs = 3_000
const pollMs = 50
/** How long work may take that fits into no transaction. */
const longWorkSeconds = 60

type Outcome = StoredAnswer & { replayed: boolean }
type Attempt = (request: KeyedRequest) => Promise<Outcome | 'taken'>

/** Answers requests with an Idempotency-Key once: see `answerOnce` and `answerLongWorkOnce`. */
export default fp(
  async function idempotency(app) {
    const { sql, log, keys } = app
    const ttlHours = app.config.IDEMPOTENCY_TTL_HOURS
    /** The attempts of this process, by workspace and key. They never reject. */
    const running = new Map<string, Promise<unknown>>()

    app.decorate('answerOnce', async (request, reply, work, { secret = false } = {}) => {
      if (secret) reply.header('cache-control', 'no-store')
      const keyed = keyedRequest(request)
      const worked = async (on: Sql) => {
        const answer = await work(on)
        await app.auditDeclared(request, answer.body, on)
        return stored(answer)
      }
      if (!keyed) return send(reply, await worked(sql))
      await sendOnce(reply, keyed, () =>
        sql.begin(async (tx) => {
          const earlier = await takeKey(tx, keyed)
          if (earlier === 'taken') return earlier
          if (earlier) return { ...earlier, replayed: true }
          const answer = await worked(tx)
          const kept = secret ? sealAnswer(keys, keyed, answer) : answer
          await storeAnswer(tx.last, keyed, kept, ttlHours)
          return { ...answer, replayed: false }
        }),
      )
    })

    app.decorate('answerLongWorkOnce', async (request, reply, work, content) => {
      const keyed = keyedRequest(request, content)
      if (!keyed) return send(reply, stored(await work()))
      await sendOnce(reply, keyed, async () => {
        const begun = await sql.begin(
          async (tx) =>
            (await takeKey(tx, keyed)) ?? { claim: await claimKey(tx, keyed, longWorkSeconds) },
        )
        if (begun === 'taken') return begun
        if ('body' in begun) return { ...begun, replayed: true }
        try {
          const { keepUntil, ...answer } = await work()
          const settled = { ttlHours, keepUntil }
          if (!(await settleClaim(sql, keyed, begun.claim, stored(answer), settled))) {
            log.warn({ requestId: request.id }, 'answer not stored: the work took too long')
          }
          return { ...stored(answer), replayed: false }
        } catch (error) {
          await dropClaim(sql, keyed, begun.claim).catch((dropError: unknown) =>
            log.warn({ error: dropError, requestId: request.id }, 'key stays taken for a while'),
          )
          throw error
        }
      })
    })

    async function sendOnce(reply: FastifyReply, request: KeyedRequest, attempt: Attempt) {
      const outcome = await inTurn(request, attempt)
      if (outcome === 'taken') {
        reply.header('retry-after', '1')
        throw new AppError(
          409,
          'IDEMPOTENCY_IN_PROGRESS',
          'Another request with this Idempotency-Key is still running; try again.',
        )
      }
      if (!outcome.replayed) return send(reply, outcome)
      reply.header('idempotency-replayed', 'true')
      send(reply, { ...outcome, body: bodyOf(keys, request, outcome) })
    }

    /** One attempt at a time in this process; who waits for it holds no connection. Against other processes the attempt itself is safe. */
    async function inTurn(request: KeyedRequest, attempt: Attempt): Promise<Outcome | 'taken'> {
      const id = `${request.workspaceId} ${request.key}`
      const deadline = performance.now() + patienceMs
      for (let ahead; (ahead = running.get(id));) {
        const inTime = await settles(ahead, deadline - performance.now())
        const earlier = await findAnswer(sql, request)
        if (earlier && earlier !== 'taken') return { ...earlier, replayed: true }
        if (!inTime) return 'taken'
      }
      const trying = retried(() => attempt(request), deadline)
      running.set(
        id,
        trying.catch(() => {}),
      )
      try {
        return await trying
      } finally {
        running.delete(id)
      }
    }
  },
  { name: 'idempotency', dependencies: ['auth', 'audit'] },
)

/** Tries until the key is free, or the deadline has passed. */
async function retried(attempt: () => Promise<Outcome | 'taken'>, deadline: number) {
  for (;;) {
    const outcome = await attempt()
    if (outcome !== 'taken' || performance.now() >= deadline) return outcome
    await sleep(pollMs)
  }
}

/** Whether the promise settles in time. */
async function settles(promise: Promise<unknown>, ms: number): Promise<boolean> {
  const settled = new AbortController()
  const { signal } = settled
  try {
    return await Promise.race([
      promise.then(() => true),
      sleep(Math.max(0, ms), false, { signal }).catch(() => false),
    ])
  } finally {
    settled.abort()
  }
}

/** Sent as text: Fastify adds nothing to it, and the first answer is the same, to the byte, as those told again. */
function send(reply: FastifyReply, { statusCode, body }: Omit<StoredAnswer, 'sealedWith'>): void {
  if (body === '') return void reply.code(statusCode).send()
  void reply.code(statusCode).type('application/json; charset=utf-8').send(body)
}

const stored = ({ statusCode, body }: Answer): StoredAnswer => ({
  statusCode,
  body: body === null ? '' : JSON.stringify(body),
  sealedWith: null,
})

/** Undefined when the request carries no key. */
function keyedRequest(request: FastifyRequest, content?: string): KeyedRequest | undefined {
  const headers = request.headers as IdempotencyHeaders
  const key = headers['idempotency-key'] ?? headers['x-idempotency-key']
  return key === undefined
    ? undefined
    : { workspaceId: request.user.workspaceId, key, fingerprint: fingerprintOf(request, content) }
}

/** Of what was asked, not of how it was written: order of keys, blanks and what validation evens out make no difference. */
function fingerprintOf(
  { method, routeOptions, params, query, body }: FastifyRequest,
  content?: string,
): Buffer {
  const asked = JSON.stringify([method, routeOptions.url, params, query, content ?? body], sorted)
  return createHash('sha256').update(asked).digest()
}

const sorted = (_name: string, value: unknown) =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1)))
    : value
