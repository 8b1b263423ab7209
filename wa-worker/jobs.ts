import cron from 'node-cron'
import { expireAudit } from '../shared/audit-log.ts'
import type { Sql } from '../shared/db.ts'
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
  auditDays,
  log,
}: {
  sql: Sql
  vault: Vault
  worker: string
  /** How long entries of the audit log are kept. */
  auditDays: number
  log: Logger
}): Jobs {
  const housekeeping = cron.schedule('17 * * * *', async () => {
    try {
      // Somewhat less than the hour between two runs, or every second one would find the lease of the last.
      const job = { name: 'housekeeping', owner: worker, everyMs: 50 * 60_000 }
      await runOnce(sql, job, async () => {
        log.info('expired rows removed', { ...(await removeExpired(sql)) })
        const entries = await expireAudit(sql, auditDays)
        if (entries > 0) log.info('old audit entries removed', { entries })
        const objects = await vault.collectOrphans()
        if (objects > 0) log.info('orphaned snapshots removed', { objects })
        const sessions = await askToExpire(sql)
        if (sessions > 0) log.info('sessions are to expire', { sessions })
      })
    } catch (error) {
      log.error('housekeeping failed', { error })
    }
  })
  return {
    async stop() {
      await housekeeping.destroy()
    },
  }
}
