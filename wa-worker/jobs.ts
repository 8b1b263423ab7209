import cron from 'node-cron'
import type { Sql } from '../shared/db.ts'
import { askToExpire, removeExpired, runOnce } from '../shared/jobs.ts'
import type { Logger } from '../shared/logger.ts'
import { cleanMedia, sweepMedia } from '../shared/media-cleanup.ts'
import type { MediaParts } from '../shared/media-store.ts'
import type { Vault } from './vault.ts'

export interface Jobs {
  stop(): Promise<void>
}

/** Schedules the clean-ups. Every worker has them; whichever is first does them. */
export function startJobs({
  sql,
  vault,
  media,
  retentionDays,
  worker,
  log,
}: {
  sql: Sql
  vault: Vault
  media: Omit<MediaParts, 'quota'>
  /** Files older than this lose their bytes; none do when undefined. */
  retentionDays: number | undefined
  worker: string
  log: Logger
}): Jobs {
  const housekeeping = cron.schedule('17 * * * *', async () => {
    try {
      // Somewhat less than the hour between two runs, or every second one would find the lease of the last.
      const job = { name: 'housekeeping', owner: worker, everyMs: 50 * 60_000 }
      await runOnce(sql, job, async () => {
        log.info('expired rows removed', { ...(await removeExpired(sql)) })
        const objects = await vault.collectOrphans()
        if (objects > 0) log.info('orphaned snapshots removed', { objects })
        const sessions = await askToExpire(sql)
        if (sessions > 0) log.info('sessions are to expire', { sessions })
      })
    } catch (error) {
      log.error('housekeeping failed', { error })
    }
  })
  const mediaCleanup = cron.schedule('27 * * * *', async () => {
    try {
      await runOnce(sql, { name: 'media', owner: worker, everyMs: 50 * 60_000 }, async () => {
        const cleaned = await cleanMedia(media, retentionDays)
        if (Object.values(cleaned).some((count) => count > 0))
          log.info('media removed', { ...cleaned })
      })
    } catch (error) {
      log.error('media not cleaned up', { error })
    }
  })
  const mediaSweep = cron.schedule('37 3 * * *', async () => {
    try {
      const job = { name: 'media-sweep', owner: worker, everyMs: 23 * 3_600_000 }
      await runOnce(sql, job, async () => {
        const swept = await sweepMedia(media)
        log[swept.lost > 0 ? 'error' : 'info']('media store compared', { ...swept })
      })
    } catch (error) {
      log.error('media store not compared', { error })
    }
  })
  return {
    async stop() {
      await housekeeping.destroy()
      await mediaCleanup.destroy()
      await mediaSweep.destroy()
    },
  }
}
