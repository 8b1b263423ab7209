import type { Database } from '../../shared/embedded-postgres.ts'
import { dropCluster } from '../test-setup/drop-cluster.ts'

interface Server {
  database: Database
  folder: string
}

/** A bench that is broken off takes each Postgres it has started, and its folder, with it. */
export function endWhenBrokenOff(...servers: Server[]): void {
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(name, () => {
      void Promise.allSettled(servers.map(end)).then(() => process.exit(1))
    })
  }
}

async function end({ database, folder }: Server): Promise<void> {
  // Let go of first: whoever has it open brings it back when it dies.
  await database.release(0).catch(() => {}) // ended below
  await dropCluster(folder)
}
