import cron from 'node-cron'
import type { Sql } from '../shared/db.ts'
import { removeExpiredKeys } from '../shared/idempotency.ts'
import { askToExpire, removeExpired, runOnce } from '../shared/jobs.ts'
import type { Logger } from '../shared/logger.ts'
import type { Vault } from './vault.ts'

export interface Jobs {
  stop(): Promise<void>
}

/** Schedules the clean-ups. Every worker has them; whichever is first does them. */
export function startJobs({
  sql,
  vault,
  worker,
  log,
}: {
  sql: Sql
  vault: Vault
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
  const idempotency = cron.schedule('41 */6 * * *', async () => {
    try {
      const job = { name: 'idempotency', owner: worker, everyMs: 5 * 3_600_000 }
      await runOnce(sql, job, async () => {
        const keys = await removeExpiredKeys(sql)
        if (keys > 0) log.info('expired idempotency keys removed', { keys })
      })
    } catch (error) {
      log.error('idempotency keys not cleaned up', { error })
    }
  })
  return {
    async stop() {
      await housekeeping.destroy()
      await idempotency.destroy()
    },
  }
}
