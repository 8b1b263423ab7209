import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import type { Sql } from './db.ts'
import { root } from './root.ts'

export interface Migration {
  version: number
  name: string
  sha256: string
  sql: string
}

export interface MigrationStatus {
  version: number
  name: string
  appliedAt: Date | null
}

/** Any number will do, as long as nobody else takes it: one runner at a time. */
const lockKey = 4_127_001
const folder = join(root, 'migrations')

/**
 * Brings the database up to date: applies, in order, each file of `migrations/` that is not yet recorded, in a transaction
 * of its own. Safe to run from several processes at once: the others wait, then find nothing to do.
 * Answers what was applied. Throws, having applied nothing further, when a file that was applied has changed or is gone, when a
 * number is doubled, or when a new file comes before one already applied.
 */
export async function migrate(
  url: string,
  { dryRun = false }: { dryRun?: boolean } = {},
): Promise<MigrationStatus[]> {
  const files = await readMigrations()
  return locked(url, async (client) => {
    const applied = await readApplied(client)
    const pending = pendingOf(files, applied)
    const done: MigrationStatus[] = []
    for (const migration of pending) {
      if (!dryRun) await apply(client, migration)
      done.push({
        version: migration.version,
        name: migration.name,
        appliedAt: dryRun ? null : new Date(),
      })
    }
    return done
  })
}

/** Every migration with the time it was applied, or null. Throws as migrate() does when files and records disagree. */
export async function migrationStatus(url: string): Promise<MigrationStatus[]> {
  const files = await readMigrations()
  const client = await open(url)
  try {
    const applied = await readApplied(client)
    pendingOf(files, applied)
    return files.map(({ version, name }) => ({
      version,
      name,
      appliedAt: applied.get(version)?.appliedAt ?? null,
    }))
  } finally {
    await client.end()
  }
}

/** The version of the newest file in `migrations/`. */
export async function newestMigration(): Promise<number> {
  return (await readMigrations()).at(-1)?.version ?? 0
}

/** The version of the newest migration that was applied to this database. */
export async function appliedVersion(sql: Sql): Promise<number> {
  const [row] = await sql<{ version: number | null }>`
    select max(version) as version from public.schema_migrations`
  return row?.version ?? 0
}

interface Applied {
  sha256: string
  name: string
  appliedAt: Date
}

export async function readMigrations(from = folder): Promise<Migration[]> {
  const migrations: Migration[] = []
  for (const file of (await readdir(from)).sort()) {
    const match = /^(\d{4})_([a-z0-9_]+)\.sql$/.exec(file)
    if (!match) throw new Error(`migrations/${file}: a migration is named NNNN_name.sql.`)
    const sql = (await readFile(join(from, file), 'utf8')).replaceAll('\r\n', '\n')
    const version = Number(match[1])
    if (migrations.at(-1)?.version === version) {
      throw new Error(`migrations/${file}: the number ${match[1]} is taken twice.`)
    }
    migrations.push({
      version,
      name: match[2]!,
      sha256: createHash('sha256').update(sql).digest('hex'),
      sql,
    })
  }
  return migrations
}

function pendingOf(files: Migration[], applied: Map<number, Applied>): Migration[] {
  const known = new Map(files.map((file) => [file.version, file]))
  for (const [version, { name, sha256 }] of applied) {
    const file = known.get(version)
    // A newer release ran here before: this one cannot know what the schema means now.
    if (!file) throw new Error(`Migration ${version} (${name}) is applied but not in migrations/.`)
    if (file.sha256 !== sha256) {
      throw new Error(`Migration ${version} (${name}) was changed after it had been applied.`)
    }
  }
  const newest = Math.max(0, ...applied.keys())
  const pending = files.filter(({ version }) => !applied.has(version))
  const late = pending.find(({ version }) => version < newest)
  if (late)
    throw new Error(
      `Migration ${late.version} (${late.name}) comes before ${newest}, which is applied.`,
    )
  return pending
}

async function locked<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = await open(url)
  try {
    await client.query('select pg_advisory_lock($1)', [lockKey])
    return await work(client)
  } finally {
    await client.end() // also gives the lock back
  }
}

async function open(url: string): Promise<pg.Client> {
  const client = new pg.Client({
    connectionString: url,
    application_name: 'awfar-migrate',
    connectionTimeoutMillis: 10_000,
  })
  client.on('error', () => {}) // a lost connection rejects the running query, which is where it is handled
  await client.connect()
  return client
}

async function readApplied(client: pg.Client): Promise<Map<number, Applied>> {
  const { rows: found } = await client.query<{ there: boolean }>(
    `select to_regclass('public.schema_migrations') is not null as there`,
  )
  if (!found[0]?.there) return new Map()
  const { rows } = await client.query<{
    version: number
    name: string
    sha256: string
    applied_at: Date
  }>('select version, name, sha256, applied_at from public.schema_migrations order by version')
  return new Map(
    rows.map(({ version, name, sha256, applied_at }) => [
      version,
      { name, sha256, appliedAt: applied_at },
    ]),
  )
}

async function apply(client: pg.Client, { version, name, sha256, sql }: Migration): Promise<void> {
  try {
    await client.query('begin')
    await client.query(`
      create table if not exists public.schema_migrations (
        version int primary key, name text not null, sha256 text not null,
        applied_at timestamptz not null default now()
      )`)
    await client.query('alter table public.schema_migrations enable row level security')
    await client.query(sql)
    await client.query(
      'insert into public.schema_migrations (version, name, sha256) values ($1, $2, $3)',
      [version, name, sha256],
    )
    await client.query('commit')
  } catch (error) {
    await client.query('rollback').catch(() => {}) // the first error is the one that tells
    throw new Error(
      `Migration ${version} (${name}) failed and left nothing behind: ${(error as Error).message}`,
      {
        cause: error,
      },
    )
  }
}
