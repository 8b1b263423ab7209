/** Starts the database of this test run, once, before the first test file: see shared/test/db.ts. */
import { chmod, mkdir, rm, writeFile } from 'node:fs/promises'
import pg from 'pg'
import { openDatabase } from '../../shared/embedded-postgres.ts'
import { createLogger } from '../../shared/logger.ts'
import { migrate } from '../../shared/migrations.ts'
import { deadRunFolders, runFolder, urlFile } from '../../shared/test/cluster.ts'
import { dropCluster } from './drop-cluster.ts'

await Promise.all(deadRunFolders().map(dropCluster))
await rm(runFolder, { recursive: true, force: true })
await mkdir(runFolder)
await chmod(runFolder, 0o755) // Postgres may run as another account and has to pass

// Not released: the server outlives this process, and after.ts stops it.
const { url } = await openDatabase(
  { dataDir: runFolder },
  createLogger('test-setup', { level: 'warn' }),
)
const client = new pg.Client({ connectionString: url })
await client.connect()
// Nothing in here has to survive a power failure.
await client.query('alter system set fsync = off')
await client.query('select pg_reload_conf()')
// The roles of Supabase that migrations and tests of row level security speak about.
await client.query('create role anon nologin')
await client.query('create role authenticated nologin')
await client.query('create database awfar_template')
await client.end()

const template = new URL(url)
template.pathname = 'awfar_template'
await migrate(template.href)
await writeFile(urlFile, url, { mode: 0o600 })
