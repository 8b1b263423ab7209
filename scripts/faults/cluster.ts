import { readdirSync } from 'node:fs'
import { chmod, mkdir, rm } from 'node:fs/promises'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import { openDatabase } from '../../shared/embedded-postgres.ts'
import type { Database } from '../../shared/embedded-postgres.ts'
import { createLogger } from '../../shared/logger.ts'
import { migrate } from '../../shared/migrations.ts'
import { dropCluster } from '../test-setup/drop-cluster.ts'

/** A Postgres of this run's own, where each world has a database. */
export class Cluster {
  /** Everything a run leaves on the disk lies in here. */
  readonly folder: string
  readonly #database: Database
  #databases = 0

  private constructor(folder: string, database: Database) {
    this.folder = folder
    this.#database = database
  }

  static async start(): Promise<Cluster> {
    await Promise.all(foldersOfDeadRuns().map(dropCluster))
    const folder = folderOf(process.pid)
    await rm(folder, { recursive: true, force: true })
    await mkdir(folder)
    await chmod(folder, 0o755) // Postgres may run as another account and has to pass
    try {
      const log = createLogger('faults', { level: 'warn' })
      const cluster = new Cluster(folder, await openDatabase({ dataDir: folder }, log))
      // Nothing in here has to survive a power failure.
      await cluster.#admin('alter system set fsync = off')
      await cluster.#admin('select pg_reload_conf()')
      await cluster.#admin('create role anon nologin')
      await cluster.#admin('create role authenticated nologin')
      await cluster.#admin('create database faults_template')
      await migrate(cluster.#urlOf('faults_template'))
      return cluster
    } catch (error) {
      await dropCluster(folder)
      throw error
    }
  }

  async createDatabase(): Promise<string> {
    const name = `faults_${++this.#databases}`
    await this.#admin(`create database ${name} template faults_template`)
    return this.#urlOf(name)
  }

  /** Ends the server; everything stays on the disk when `keep` says so. */
  async stop(keep: boolean): Promise<void> {
    await this.#database.release()
    if (!keep) await dropCluster(this.folder)
  }

  #urlOf(database: string): string {
    const url = new URL(this.#database.url)
    url.pathname = database
    return url.href
  }

  async #admin(text: string): Promise<void> {
    const client = new pg.Client({
      connectionString: this.#database.url,
      application_name: 'faults',
    })
    await client.connect()
    try {
      await client.query(text)
    } finally {
      await client.end()
    }
  }
}

const prefix = () => `awfar-faults-${userInfo().uid}-`
const folderOf = (pid: number) => join(tmpdir(), `${prefix()}${pid}`)

/** Of runs that were killed before they could clean up. */
function foldersOfDeadRuns(): string[] {
  return readdirSync(tmpdir())
    .filter((name) => name.startsWith(prefix()) && !isAlive(Number(name.slice(prefix().length))))
    .map((name) => join(tmpdir(), name))
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
