import { mkdir, readdir, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { connect } from '../../shared/db.ts'
import type { Db } from '../../shared/db.ts'
import type { Session } from '../../shared/wa-sessions.ts'
import { AgentClient } from '../e2e/client.ts'
import type { Json } from '../e2e/client.ts'
import { startEmulatedWhatsApp } from '../e2e/emulated-page/server.ts'
import type { EmulatedWhatsApp, EmulatedWhatsAppOptions } from '../e2e/emulated-page/server.ts'
import { freePort } from '../e2e/processes.ts'
import { watchWrites } from './audit.ts'
import type { BrowserKind } from './browsers.ts'
import type { Lab } from './lab.ts'
import { browserOn, familyOf, listProcesses, signal, stillRunning } from './proc.ts'
import type { Browser, Listed } from './proc.ts'
import { childEnv, Program } from './program.ts'
import { loginIsOnDisk } from './profile.ts'
import { eventually, inParallel } from './waiting.ts'

export interface WorldOptions {
  engine?: 'webjs' | 'simulator'
  /** The headless shell, unless the fault is one of the browser's own machinery. */
  browser?: BrowserKind
  settings?: Record<string, string>
  whatsapp?: EmulatedWhatsAppOptions
}

export interface WorkerOptions {
  /** Workers of one machine share the disk; another name is another machine's. */
  disk?: string
  /** With the probe: measure() answers. */
  measured?: boolean
  settings?: Record<string, string>
}

/** A session of the product, and the number behind it. */
export interface Subject {
  id: string
  account: string
}

export interface HistoryRow {
  id: number
  fromStatus: string
  toStatus: string
  reason: string | null
  detail: string | null
  worker: string
  /** Milliseconds since 1970. */
  at: number
}

/** Before the faults begin nothing is in a hurry, however busy the machine is. */
const slowMs = 180_000

/** One product with its own database, folders and WhatsApp: what is broken in one world does not reach into another. */
export class World {
  readonly folder: string
  readonly sql: Db
  readonly whatsapp: EmulatedWhatsApp
  readonly agent: AgentClient
  readonly workers: Program[] = []
  readonly #lab: Lab
  readonly #settings: Record<string, string>
  readonly #api: Program
  #accounts = 0
  #numbers = 0
  #messages = 0

  private constructor(
    lab: Lab,
    parts: Pick<World, 'folder' | 'sql' | 'whatsapp' | 'agent'> & {
      settings: Record<string, string>
      api: Program
    },
  ) {
    this.#lab = lab
    this.folder = parts.folder
    this.sql = parts.sql
    this.whatsapp = parts.whatsapp
    this.agent = parts.agent
    this.#settings = parts.settings
    this.#api = parts.api
  }

  static async open(lab: Lab, name: string, options: WorldOptions = {}): Promise<World> {
    lab.signal.throwIfAborted()
    const { engine = 'webjs', browser = 'shell' } = options
    if (engine === 'webjs') lab.used.add(browser)
    const folder = join(lab.folder, name)
    for (const inner of ['', 'tmp']) await mkdir(join(folder, inner), { recursive: true })
    const url = await lab.createDatabase()
    const sql = connect(url, { applicationName: 'faults', max: 4 })
    const whatsapp = await startEmulatedWhatsApp({ everyoneRegistered: true, ...options.whatsapp })
    const port = String(await freePort())
    const settings: Record<string, string> = {
      ...childEnv(url, folder),
      TMPDIR: join(folder, 'tmp'),
      PORT: port,
      SESSION_ENCRYPTION_KEY: Buffer.alloc(32, 'fault suite').toString('base64'),
      WA_ENGINE: engine,
      PUPPETEER_EXECUTABLE_PATH: lab.browsers[browser].path,
      WA_SIMULATOR_SCAN_MS: '50',
      WA_BROWSER_ARGS: whatsapp.browserArgs.join(' '),
      WA_MAX_SESSIONS: '50',
      WA_RECONNECT_DELAY_MS: '500',
      ...options.settings,
    }
    const api = await Program.start(lab.root, 'api/server.js', settings).catch(
      async (error: unknown) => {
        await whatsapp.close()
        await sql.close()
        throw error
      },
    )
    const agent = new AgentClient(`http://127.0.0.1:${port}`)
    const world = new World(lab, { folder, sql, whatsapp, agent, settings, api })
    lab.worlds.add(world)
    await watchWrites(sql)
    await agent.register()
    return world
  }

  /** Starts a worker; its writes are known by its name. */
  async startWorker(name: string, options: WorkerOptions = {}): Promise<Program> {
    this.#lab.signal.throwIfAborted()
    const { disk = 'data', measured = false, settings = {} } = options
    await this.#shareObjects(disk)
    const url = new URL(this.#settings['DATABASE_URL']!)
    url.searchParams.set('application_name', name)
    const probe = ['--expose-gc', '--import', join(import.meta.dirname, 'probe.mjs')]
    const worker = await Program.start(
      this.#lab.root,
      'wa-worker/main.js',
      {
        ...this.#settings,
        DATA_DIR: join(this.folder, disk),
        DATABASE_URL: url.href,
        ...settings,
      },
      measured ? probe : [],
    )
    this.workers.push(worker)
    return worker
  }

  /** A machine's own disk holds profiles; snapshots are in a store that all machines reach. */
  async #shareObjects(disk: string): Promise<void> {
    const [store, link] = ['data', disk].map((name) => join(this.folder, name, 'objects'))
    await mkdir(store!, { recursive: true, mode: 0o700 })
    if (disk === 'data') return
    await mkdir(join(this.folder, disk), { recursive: true })
    await symlink(store!, link!).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error
    })
  }

  /** The objects of a session's snapshots that can be used, as far as is known, the newest first. */
  async snapshots(id: string): Promise<string[]> {
    const rows = await this.sql<{ objectKey: string }>`
      select object_key from wa_snapshots
      where session_id = ${id} and state = 'verified' and refused_at is null order by generation desc`
    return rows.map(({ objectKey }) => join(this.folder, 'data', 'objects', 'sessions', objectKey))
  }

  /** A login is kept in the vault some seconds after it was linked. */
  async loginsInVault(subjects: Subject[], least = 1): Promise<void> {
    for (const { id } of subjects) {
      const enough = async () => (await this.snapshots(id)).length >= least
      await eventually('a snapshot', enough, slowMs)
    }
  }

  /** Makes sessions and links each to a number of its own. */
  async link(count: number): Promise<Subject[]> {
    const subjects: Subject[] = []
    // Two at a time: the two cores have enough to do with two browsers that start.
    await inParallel(Array.from({ length: count }), 2, async () => {
      subjects.push(await this.#linkOne())
    })
    return subjects
  }

  /** A session that waits for its code to be scanned. */
  async create(): Promise<string> {
    const name = `session ${++this.#accounts}`
    const { status, body } = await this.agent.call<Json<Session>>(
      'POST',
      '/api/whatsapp/sessions',
      { name },
    )
    if (status !== 201) throw new Error(`session: ${status} ${JSON.stringify(body)}`)
    return body.id
  }

  async #linkOne(): Promise<Subject> {
    // Before anything is waited for: two of them never get the same number.
    const account = String(12_025_550_100 + ++this.#numbers)
    const id = await this.create()
    if (this.#settings['WA_ENGINE'] === 'webjs') {
      // On a busy machine a code may run out before it is scanned; then the next one is.
      await eventually(
        'a code was scanned',
        async () => {
          const [row] = await this.sql<{ qr: string | null }>`
            select qr from wa_sessions where id = ${id}`
          if (!row?.qr) return false
          const phone = { number: account, pushName: 'Bakery' }
          return this.whatsapp.scan(row.qr, phone).then(
            () => true,
            () => false,
          )
        },
        slowMs,
      )
    }
    await eventually('WORKING', async () => (await this.status(id)) === 'WORKING', slowMs)
    return { id, account }
  }

  /** Chromium writes a new login to the disk some seconds late: until then a killed browser has lost it, whatever the product does. */
  async loginsOnDisk(subjects: Subject[], disk = 'data'): Promise<void> {
    for (const { id } of subjects) {
      const profile = this.profile(id, disk)
      await eventually('the login is on the disk', () => loginIsOnDisk(profile), slowMs)
    }
  }

  profile(id: string, disk = 'data'): string {
    return join(this.folder, disk, 'profiles', id)
  }

  browser(id: string, disk = 'data'): Browser | undefined {
    return browserOn(this.profile(id, disk))
  }

  async status(id: string): Promise<string> {
    const [row] = await this.sql<{ status: string }>`
      select status from wa_sessions where id = ${id}`
    return row!.status
  }

  async mark(id: string): Promise<number> {
    const [row] = await this.sql<{ last: number }>`
      select coalesce(max(id), 0)::bigint as last from wa_session_history where session_id = ${id}`
    return row!.last
  }

  /** What happened to a session since a mark, oldest first. */
  async history(id: string, mark: number): Promise<HistoryRow[]> {
    return this.sql<HistoryRow>`
      select id, from_status, to_status, reason, detail, worker,
        (extract(epoch from at) * 1000)::float8 as at
      from wa_session_history where session_id = ${id} and id > ${mark} order by id`
  }

  /** The row that says that a session no longer works. */
  async broken(id: string, mark: number, timeoutMs: number): Promise<HistoryRow> {
    return eventually(
      'noticed',
      async () => (await this.history(id, mark)).find(({ fromStatus }) => fromStatus === 'WORKING'),
      timeoutMs,
    )
  }

  /** The row that says that it works again; rejects when a code was shown on the way. */
  async working(id: string, mark: number, timeoutMs = 90_000): Promise<HistoryRow> {
    let rows: HistoryRow[] = []
    try {
      return await eventually(
        'WORKING again',
        async () => {
          rows = await this.history(id, mark)
          if (rows.some(({ toStatus }) => toStatus === 'SCAN_QR_CODE')) {
            throw new Error('a code had to be scanned')
          }
          const last = rows.at(-1)
          return last?.toStatus === 'WORKING' && last
        },
        timeoutMs,
      )
    } catch (error) {
      const steps = rows.map(({ toStatus, reason }) => `${toStatus} ${reason ?? ''}`.trim())
      throw new Error(`${(error as Error).message} (${steps.join(', ') || 'nothing happened'})`, {
        cause: error,
      })
    }
  }

  /** A text nobody sent before, and a customer nobody wrote to before. */
  unique(): { customer: string; body: string } {
    const number = ++this.#messages
    return { customer: String(12_125_000_000 + number), body: `message ${number}` }
  }

  async send({ id }: Subject, customer: string, body: string): Promise<string> {
    const { status, body: answer } = await this.agent.call<{ id: string }>(
      'POST',
      '/api/whatsapp/send',
      { sessionId: id, to: customer, message: body },
    )
    if (status !== 202) throw new Error(`send: ${status} ${JSON.stringify(answer)}`)
    return answer.id
  }

  /** Resolves when the message is confirmed; rejects when it was given up, or nothing became of it. */
  async confirmed(messageId: string, timeoutMs = 60_000): Promise<void> {
    let status = ''
    await eventually(
      'the message is confirmed',
      async () => {
        const [row] = await this.sql<{ status: string }>`
          select status from messages where id = ${messageId}`
        status = row!.status
        if (status === 'failed') throw new Error('the message was given up')
        return ['sent', 'delivered', 'read'].includes(status)
      },
      timeoutMs,
    ).catch((error: Error) => {
      throw new Error(`${error.message}: ${status}`)
    })
  }

  /** How often the recipient has this text, and how often it was transmitted. */
  seenBy(customer: string, body: string): { seen: number; transmitted: number } {
    const same = (other: { body: string }) => other.body === body
    return {
      seen: this.whatsapp.received(customer).filter(same).length,
      transmitted: this.whatsapp.stanzas
        .filter(same)
        .filter(({ recipient }) => recipient === customer).length,
    }
  }

  /** A customer writes; answers what. */
  write({ account }: Subject): string {
    const { customer, body } = this.unique()
    this.whatsapp.deliver({ to: account, from: customer, body })
    return body
  }

  /** A customer writes; resolves when it is stored. Rejects when it is not, or more than once. */
  async hears(subject: Subject, timeoutMs = 20_000): Promise<void> {
    const body = this.write(subject)
    await eventually('an inbound message is stored', () => this.isStored(subject, body), timeoutMs)
  }

  /** Rejects when it is stored more than once. */
  async isStored({ id }: Subject, body: string): Promise<boolean> {
    const rows = await this.sql`
      select from messages where session_id = ${id} and direction = 'inbound' and body = ${body}`
    if (rows.length > 1) throw new Error(`an inbound message is stored ${rows.length} times`)
    return rows.length === 1
  }

  /** Ends everything, and names what is left then: processes, and files that a running browser has. What is left is ended, too. */
  async close(): Promise<string[]> {
    this.#lab.worlds.delete(this)
    const before = this.#processes()
    for (const worker of this.workers) worker.kill('SIGCONT')
    await Promise.all(
      this.workers.map(async (worker) => worker.ended ?? (await worker.end('SIGTERM'))),
    )
    await (this.#api.ended ?? this.#api.end('SIGTERM'))
    await this.whatsapp.close()
    await this.sql.close()
    // A browser's helpers outlive it by a moment.
    const gone = () => stillRunning(before).length === 0
    await eventually('the processes are gone', gone, 5_000).catch(() => {})
    const left = stillRunning([...before, ...this.#processes()])
    for (const { pid } of left) signal(pid, 'SIGKILL')
    return [...left.map(({ pid, command }) => `${pid} ${command}`), ...(await this.#files())]
  }

  /** Ours, and whatever they started, even if those that started it are gone. */
  #processes(): Listed[] {
    const all = listProcesses()
    const roots = [
      ...[...this.workers, this.#api].filter(({ ended }) => !ended).map(({ pid }) => pid),
      ...all.filter(({ command }) => command.includes(`${this.folder}/`)).map(({ pid }) => pid),
    ]
    const found = roots.flatMap((pid) => familyOf(pid, all))
    return [...new Map(found.map((process) => [process.pid, process])).values()]
  }

  /** Locks, which would keep a browser out of its profile, and temporary files. */
  async #files(): Promise<string[]> {
    const list = (path: string) => readdir(join(this.folder, path)).catch((): string[] => [])
    const locks: string[] = []
    for (const disk of await list('.')) {
      for (const profile of await list(join(disk, 'profiles'))) {
        const path = join(disk, 'profiles', profile)
        if ((await list(path)).includes('SingletonLock')) locks.push(join(path, 'SingletonLock'))
      }
    }
    return [...locks, ...(await list('tmp')).map((name) => join('tmp', name))]
  }

  /** At once, whatever state it is in: the run is being broken off. */
  async abort(): Promise<void> {
    const all = this.#processes()
    for (const program of [...this.workers, this.#api]) program.kill('SIGKILL')
    for (const { pid } of stillRunning(all)) signal(pid, 'SIGKILL')
    await this.whatsapp.close()
    await this.sql.close()
  }
}
