import { statfsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { connect } from '../../../shared/db.ts'
import type { Db } from '../../../shared/db.ts'
import { openDatabase } from '../../../shared/embedded-postgres.ts'
import type { Database } from '../../../shared/embedded-postgres.ts'
import { createLogger } from '../../../shared/logger.ts'
import { migrate } from '../../../shared/migrations.ts'

/** A Postgres of the bench's own, with the schema of Awfar. */
export interface Server {
  folder: string
  database: Database
  url: string
  sql: Db
}

/** Starts one whose files are below `home`. */
export async function openServer(home: string): Promise<Server> {
  const folder = await mkdtemp(join(home, 'awfar-bench-'))
  const log = createLogger('bench', { level: 'error' })
  const database = await openDatabase({ dataDir: folder }, log)
  const { url } = database
  await migrate(url)
  return { folder, database, url, sql: connect(url, { applicationName: 'bench' }) }
}

export async function closeServer({ folder, database, sql }: Server): Promise<void> {
  await sql.close()
  await database.release()
  await rm(folder, { recursive: true, force: true })
}

/** Where files lie in memory; undefined where there is no room for a small database, as in containers with the usual 64 MB. */
export function memoryFolder(): string | undefined {
  const folder = '/dev/shm'
  try {
    const { bavail, bsize } = statfsSync(folder)
    return bavail * bsize >= 2 ** 30 ? folder : undefined
  } catch {
    return undefined
  }
}
