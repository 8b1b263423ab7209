import Joi from 'joi'
import { mediaBucket, openBucket } from '../../shared/media-store.ts'
import { appliedVersion, newestMigration } from '../../shared/migrations.ts'
import { backlog } from '../../shared/outbox.ts'
import { countAlive } from '../../shared/workers.ts'
import type { Routes } from '../plugins/joi.ts'

interface Check {
  status: 'ok' | 'fail'
  [detail: string]: unknown
}

interface Readiness {
  status: 'ok' | 'fail'
  timestamp: Date
  checks: Record<string, Check>
}

const health = Joi.object<{ status: string; timestamp: Date; environment: string }, true>({
  status: Joi.string().valid('ok').required(),
  timestamp: Joi.date().required(),
  environment: Joi.string().required(),
})

const check = Joi.object({ status: Joi.string().valid('ok', 'fail').required() }).unknown()
const readiness = Joi.object<Readiness>({
  status: Joi.string().valid('ok', 'fail').required(),
  timestamp: Joi.date().required(),
  checks: Joi.object({
    database: check.required(),
    migrations: check.required(),
    mediaStore: check.required(),
    workers: check.required(),
    outbox: check.required(),
  }).required(),
})

/** A database that is away must not make the question hang. */
const deadlineMs = 2_000
/**
 * The outbox fails when so many messages wait and the oldest has for so long: the senders are far behind. Fewer may wait for days
 * without any fault, since a stopped session keeps its messages until somebody starts it.
 */
const jam = { queued: 10_000, oldestSeconds: 3_600 }

const config = { access: 'public', limit: 'none' } as const
const tags = ['health']

/** For load balancers and monitors: not limited, and never in need of a sign-in. */
export const healthRoutes: Routes = async (app) => {
  const { sql, config: settings } = app
  const newest = await newestMigration()
  const environment = settings.NODE_ENV
  const alive = () => ({ status: 'ok', timestamp: new Date(), environment })

  const checks = {
    database: async () => {
      await sql`select 1`
      return { ok: true }
    },
    migrations: async () => {
      const applied = await appliedVersion(sql)
      return { ok: applied === newest, applied, newest }
    },
    mediaStore: async () => {
      await openBucket(app.media.store)
      await app.media.store.stat(mediaBucket, 'none')
      return { ok: true }
    },
    workers: async () => {
      const workers = await countAlive(sql)
      return { ok: workers > 0, alive: workers }
    },
    outbox: async () => {
      const waiting = await backlog(sql, jam.queued)
      const jammed = waiting.queued >= jam.queued && waiting.oldestSeconds > jam.oldestSeconds
      return { ok: !jammed, ...waiting }
    },
  }

  app.get(
    '/health',
    { config, schema: { summary: 'Whether the API runs', tags, response: { 200: health } } },
    async () => alive(),
  )

  app.get(
    '/health/live',
    {
      config,
      schema: { summary: 'Whether the process is alive', tags, response: { 200: health } },
    },
    async () => alive(),
  )

  app.get(
    '/health/ready',
    {
      config,
      schema: {
        summary: 'Whether everything the API needs is there',
        tags,
        response: { 200: readiness, 503: readiness },
      },
    },
    async (_request, reply) => {
      const results: Record<string, Check> = {}
      await Promise.all(
        Object.entries(checks).map(async ([name, run]) => {
          results[name] = await within(deadlineMs, run())
        }),
      )
      const status = Object.values(results).every((result) => result.status === 'ok')
        ? 'ok'
        : 'fail'
      const ordered = Object.fromEntries(Object.keys(checks).map((name) => [name, results[name]!]))
      return reply
        .code(status === 'ok' ? 200 : 503)
        .send({ status, timestamp: new Date(), checks: ordered })
    },
  )
}

/** The outcome of a check; one that fails or takes too long says no more than that: anybody may ask. */
async function within(ms: number, check: Promise<{ ok: boolean }>): Promise<Check> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('late')), ms)
  })
  try {
    const { ok, ...detail } = await Promise.race([check, late])
    return { status: ok ? 'ok' : 'fail', ...detail }
  } catch {
    return { status: 'fail' }
  } finally {
    clearTimeout(timer)
  }
}
