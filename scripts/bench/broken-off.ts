import type { Database } from '../../shared/embedded-postgres.ts'
import { dropCluster } from '../test-setup/drop-cluster.ts'

/** A bench that is broken off takes its Postgres and its folder with it. */
export function endWhenBrokenOff(database: Database, folder: string): void {
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(name, () => {
      // Let go of first: whoever has it open brings it back when it dies.
      void database
        .release(0)
        .catch(() => {}) // ended below
        .then(() => dropCluster(folder))
        .finally(() => process.exit(1))
    })
  }
}
