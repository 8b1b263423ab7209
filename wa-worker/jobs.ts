import cron from 'node-cron'
import { expireAudit } from '../shared/audit-log.ts'
import type { Sql } from '../shared/db.ts'
import { removeOldEvents } from '../shared/events.ts'
import { removeExpiredKeys } from '../shared/idempotency.ts'
import { askToExpire, removeExpired, runOnce } from '../shared/jobs.ts'
import type { Logger } from '../shared/logger.ts'
import { cleanMedia, sweepMedia } from '../shared/media-cleanup.ts'
import type { MediaParts } from '../shared/media-store.ts'
import type { Logins } from './logins.ts'
import type { Vault } from './vault.ts'

export interface Jobs {
  stop(): Promise<void>
}

interface Job {
  name: string
  schedule: string
  /** Somewhat less than the time between two runs, or every second one would find the lease of the last. */
  everyMs: number
  work: () => Promise<void>
}

/** The same for what each worker has to do on its own machine. */
type OwnJob = Omit<Job, 'everyMs'>

const minute = 60_000
const hour = 60 * minute

/** Schedules the clean-ups. Every worker has them; whichever is first does them, but for what is on its own disk. */
export function startJobs({
  sql,
  vault,
  logins,
  media,
  retentionDays,
  worker,
  auditDays,
  log,
}: {
  sql: Sql
  vault: Vault
  logins: Logins
  media: Omit<MediaParts, 'quota'>
  /** Undefined keeps media for ever. */
  retentionDays: number | undefined
  worker: string
  /** How long entries of the audit log are kept. */
  auditDays: number
  log: Logger
}): Jobs {
  const jobs: Job[] = [
    {
      name: 'housekeeping',
      schedule: '17 * * * *',
      everyMs: 50 * minute,
      work: async () => {
        log.info('expired rows removed', { ...(await removeExpired(sql)) })
        const events = await removeOldEvents(sql)
        if (events > 0) log.info('old events removed', { events })
        const entries = await expireAudit(sql, auditDays)
        if (entries > 0) log.info('old audit entries removed', { entries })
        const objects = await vault.collectOrphans()
        if (objects > 0) log.info('orphaned snapshots removed', { objects })
        const sessions = await askToExpire(sql)
        if (sessions > 0) log.info('sessions are to expire', { sessions })
      },
    },
    {
      name: 'idempotency',
      schedule: '41 */6 * * *',
      everyMs: 5 * hour,
      work: async () => {
        const keys = await removeExpiredKeys(sql)
        if (keys > 0) log.info('expired idempotency keys removed', { keys })
      },
    },
    {
      name: 'media',
      schedule: '27 * * * *',
      everyMs: 50 * minute,
      work: async () => {
        const cleaned = await cleanMedia(media, retentionDays)
        if (Object.values(cleaned).some((count) => count > 0)) {
          log.info('media removed', { ...cleaned })
        }
      },
    },
    {
      name: 'media-sweep',
      schedule: '37 3 * * *',
      everyMs: 23 * hour,
      work: async () => {
        const swept = await sweepMedia(media)
        log[swept.lost > 0 ? 'error' : 'info']('media store compared', { ...swept })
      },
    },
  ]
  const ownJobs: OwnJob[] = [
    {
      name: 'logins',
      schedule: '47 * * * *',
      work: async () => {
        const removed = await logins.removeDeleted()
        if (removed > 0) log.info('logins of deleted sessions removed', { sessions: removed })
      },
    },
  ]
  const schedule = (job: OwnJob, run: () => Promise<unknown>) =>
    cron.schedule(job.schedule, async () => {
      try {
        await run()
      } catch (error) {
        log.error('job failed', { job: job.name, error })
      }
    })
  const scheduled = [
    ...jobs.map((job) =>
      schedule(job, () =>
        runOnce(sql, { name: job.name, owner: worker, everyMs: job.everyMs }, job.work),
      ),
    ),
    ...ownJobs.map((job) => schedule(job, job.work)),
  ]
  return {
    async stop() {
      for (const job of scheduled) await job.destroy()
    },
  }
}
