import type { ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import * as fs from 'node:fs'
import { chown, link, mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { isDatabaseAway, pgCode } from './db-errors.ts'
import type { Logger } from './logger.ts'
import { accountFor, findPostgres, run } from './postgres-binaries.ts'

export interface Database {
  /** Where to connect to. Stays the same for as long as the database is open. */
  url: string
  embedded: boolean
  /**
   * Gives the database back; close your own connections first. The embedded one is stopped when nobody else uses it,
   * within `withinMs` (10 s by default), and left running otherwise. Calling it twice is harmless.
   */
  release(withinMs?: number): Promise<void>
}

type Log = Pick<Logger, 'info' | 'warn' | 'error'>

/** An embedded Postgres: what is in the data folder, whether it runs or not. */
interface Cluster {
  data: string
  portFile: string
  logFile: string
  password: string
}

/** A connection that, as long as it lives, tells everybody that this process uses the database. */
interface Hold {
  client: pg.Client & { ref(): void; unref(): void }
  port: number
}

const host = '127.0.0.1'
const user = 'awfar'
const database = 'awfar'
const major = '17'
const holder = `awfar-embedded-${process.pid}`
/** Users of the cluster hold this lock shared; whoever wants to stop it needs it alone. Any number will do. */
const usersLock = 4_127_002

const startTimeoutMs = 60_000
/** After a kill -9 the old postmaster's processes linger for about a second and keep the new one out. */
const conflictTimeoutMs = 15_000

const settings = {
  listen_addresses: host,
  unix_socket_directories: '',
  max_connections: '200',
  shared_buffers: '64MB',
  timezone: 'UTC',
  // A statement whose client was killed ends by itself, so that the cluster counts as unused.
  client_connection_check_interval: '1s',
}

/**
 * Opens the database: the one at `databaseUrl`, or else a real Postgres that lives in `dataDir`. That one is shared: the first
 * process starts it, the others adopt it, the last one to release it stops it. It survives a SIGKILL of the process that
 * started it, and each process that has it open restarts it, on the same port, when it dies.
 * Throws an Error with one sentence and the last log lines of Postgres when it cannot be started.
 */
export async function openDatabase(
  { databaseUrl, dataDir }: { databaseUrl?: string | undefined; dataDir: string },
  log: Log,
): Promise<Database> {
  if (databaseUrl !== undefined) {
    return { url: databaseUrl, embedded: false, release: async () => {} }
  }
  const cluster = await createCluster(dataDir)
  const started = performance.now()
  const hold = await ensureRunning(cluster, { log })
  log.info('embedded postgres opened', {
    port: hold.port,
    dataDir,
    ms: Math.round(performance.now() - started),
  })
  const keeper = keep(cluster, hold, log)
  return { url: urlOf(cluster, hold.port), embedded: true, release: keeper.release }
}

/** Holds the cluster, brings it back when it dies, lets go of it at last. */
function keep(cluster: Cluster, first: Hold, log: Log) {
  const closing = new AbortController()
  const { port } = first
  let hold: Hold | undefined = first
  let recovery: Promise<void> | undefined
  let released: Promise<void> | undefined

  const watch = ({ client }: Hold) => {
    client.unref()
    client.once('end', () => {
      if (!closing.signal.aborted) recovery = recover()
    })
  }

  const recover = async () => {
    hold = undefined
    log.warn('embedded postgres went away', { port })
    for (let pauseMs = 250; !closing.signal.aborted; pauseMs = Math.min(pauseMs * 2, 10_000)) {
      try {
        hold = await ensureRunning(cluster, { log, port, signal: closing.signal })
        log.info('embedded postgres is back', { port })
        if (!closing.signal.aborted) watch(hold)
        return
      } catch (error) {
        if (closing.signal.aborted) return
        log.error('embedded postgres does not start', { error, port })
        await sleep(pauseMs, undefined, { signal: closing.signal }).catch(() => {})
      }
    }
  }

  const release = async (withinMs: number) => {
    closing.abort()
    await recovery
    hold?.client.ref()
    hold ??= await connectHold(cluster, port).catch(() => undefined)
    if (!hold) return // it is down already
    try {
      if (!(await isLastUser(hold, Math.min(withinMs / 3, 3_000)))) {
        log.info('embedded postgres left running for its other users', { port })
        return
      }
      await stop(cluster, withinMs * 0.6)
      log.info('embedded postgres stopped', { port })
    } finally {
      await hold.client.end().catch(() => {})
    }
  }

  watch(first)
  return { release: (withinMs = 10_000) => (released ??= release(withinMs)) }
}

/**
 * Whether nobody else uses the cluster. When true the caller alone has the lock, so that nobody can begin to use it either:
 * of several processes that let go at the same time, the last one to give up its shared lock gets it.
 */
async function isLastUser({ client }: Hold, patienceMs: number): Promise<boolean> {
  try {
    await client.query('select pg_advisory_unlock_shared($1)', [usersLock])
    // A process killed a moment ago, and connections just closed, take a moment to vanish.
    const free = async () => (await takeUsersLock(client)) || (await hasLivingUser(client))
    if (!(await holdsWithin(patienceMs, free)) || (await hasLivingUser(client))) return false
    return await holdsWithin(patienceMs, async () => (await countOthers(client)) === 0)
  } catch (error) {
    if (isDatabaseAway(error)) return false // stopped under our hands: nothing left to do
    throw error
  }
}

async function takeUsersLock(client: pg.Client): Promise<boolean> {
  const { rows } = await client.query<{ alone: boolean }>(
    'select pg_try_advisory_lock($1) as alone',
    [usersLock],
  )
  return rows[0]?.alone ?? false
}

/** Whether a process that holds the cluster still runs; one that was killed leaves its lock behind for a moment. */
async function hasLivingUser(client: pg.Client): Promise<boolean> {
  const { rows } = await client.query<{ pid: number }>(
    `select substring(a.application_name from '\\d+$')::int as pid
     from pg_locks l join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and l.objid = $1 and l.granted and a.pid <> pg_backend_pid()
       and a.application_name like 'awfar-embedded-%'`,
    [usersLock],
  )
  return rows.some(({ pid }) => isAlive(pid))
}

/** Whether `ask` comes to answer true before the time is over. */
async function holdsWithin(ms: number, ask: () => Promise<boolean>): Promise<boolean> {
  const deadline = performance.now() + ms
  while (!(await ask())) {
    if (performance.now() > deadline) return false
    await sleep(20)
  }
  return true
}

async function countOthers(client: pg.Client): Promise<number> {
  const { rows } = await client.query<{ others: number }>(
    `select count(*)::int as others from pg_stat_activity
     where backend_type = 'client backend' and application_name not like 'awfar-embedded-%'`,
  )
  return rows[0]?.others ?? 0
}

/** Makes the cluster if it is not there yet. Two processes may do so at once: one cluster comes out of it. */
async function createCluster(dataDir: string): Promise<Cluster> {
  await mkdir(dataDir, { recursive: true })
  const home = fs.realpathSync(dataDir) // one spelling, whatever links lead here
  const data = join(home, 'postgres')
  const passwordFile = join(home, 'postgres.password')
  const isNew = !fs.existsSync(join(data, 'PG_VERSION'))
  const password = isNew ? await makePassword(passwordFile) : readPassword(passwordFile)
  if (isNew) await initialise(data, password)
  const version = fs.readFileSync(join(data, 'PG_VERSION'), 'utf8').trim()
  if (version !== major) {
    throw new Error(
      `${data} was made by Postgres ${version}, and this release brings Postgres ${major}: ` +
        'move that folder away, or set DATABASE_URL to a Postgres that serves it.',
    )
  }
  return {
    data,
    password,
    portFile: join(home, 'postgres.port'),
    logFile: join(home, 'postgres.log'),
  }
}

async function makePassword(file: string): Promise<string> {
  const draft = `${file}.${process.pid}-${randomBytes(4).toString('hex')}`
  await writeFile(draft, randomBytes(24).toString('base64url'), { mode: 0o600 })
  try {
    // Of two processes the first one wins, and neither ever reads half a password.
    await link(draft, file).catch(unlessCode('EEXIST'))
  } finally {
    await rm(draft, { force: true })
  }
  return readPassword(file)
}

function readPassword(file: string): string {
  try {
    return fs.readFileSync(file, 'utf8').trim()
  } catch (cause) {
    throw new Error(
      `The password of the embedded Postgres cannot be read (${(cause as Error).message}): ` +
        'restore the file, run as its owner, or set DATABASE_URL to a Postgres of your own.',
      { cause },
    )
  }
}

async function initialise(data: string, password: string): Promise<void> {
  const { initdb } = findPostgres()
  const account = accountFor(data)
  await reapDrafts(data)
  const draft = await mkdtemp(`${data}.new-${process.pid}-`)
  const passwordFile = `${draft}.password`
  try {
    await writeFile(passwordFile, password, { mode: 0o600, flag: 'wx' })
    if (account) {
      await chown(draft, account.uid, account.gid)
      await chown(passwordFile, account.uid, account.gid)
    }
    const args = [
      ...['-D', draft, '--username', user, '--pwfile', passwordFile, '--no-instructions'],
      // Without an encoding, an unset LANG makes an SQL_ASCII database. The built-in provider sorts as C does, on every
      // machine alike, but knows the upper and lower case of all letters.
      ...['--encoding', 'UTF8', '--locale', 'C'],
      ...['--locale-provider', 'builtin', '--builtin-locale', 'C.UTF-8'],
      ...['--auth', 'scram-sha-256'],
    ]
    const stdio = ['ignore', 'pipe', 'pipe'] as const
    await finish(run(initdb, args, { account, reaches: [draft], stdio: [...stdio] }))
    await rename(draft, data).catch(unlessCode('ENOTEMPTY', 'EEXIST'))
    if (!fs.existsSync(join(data, 'PG_VERSION'))) {
      throw new Error(`${data} holds something else than a Postgres cluster: move it away.`)
    }
  } finally {
    await rm(draft, { recursive: true, force: true }) // there only if another process was faster, or initdb failed
    await rm(passwordFile, { force: true })
  }
}

/** Drafts of processes that were killed in the middle of initdb. */
async function reapDrafts(data: string): Promise<void> {
  const home = join(data, '..')
  for (const name of await readdir(home)) {
    const pid = /^postgres\.new-(\d+)-/.exec(name)?.[1]
    if (pid === undefined || isAlive(Number(pid))) continue
    await rm(join(home, name), { recursive: true, force: true })
  }
}

async function finish(child: ChildProcess): Promise<void> {
  let output = ''
  child.stdout?.on('data', (chunk) => (output += chunk))
  child.stderr?.on('data', (chunk) => (output += chunk))
  const failure = await Promise.race([
    once(child, 'error').then(([error]) => (error as Error).message),
    once(child, 'close').then(([code, signal]) => (code === 0 ? undefined : `${code ?? signal}`)),
  ])
  if (failure === undefined) return
  throw new Error(`The embedded Postgres cannot be created (${failure}):\n${lastLines(output)}`)
}

interface RunningOptions {
  log: Log
  /** The port it has to have; else the one it had last, if that is free. */
  port?: number
  signal?: AbortSignal
}

/** Adopts the running cluster, or starts it. Resolves once a query was answered. */
async function ensureRunning(cluster: Cluster, options: RunningOptions): Promise<Hold> {
  const begin = performance.now()
  let avoidPort: number | undefined
  for (;;) {
    options.signal?.throwIfAborted()
    const elapsed = performance.now() - begin
    const postmaster = readPostmaster(cluster)
    if (postmaster) {
      const hold = postmaster.ready && (await tryHold(cluster, postmaster.port))
      if (hold) {
        if (options.port === undefined || options.port === hold.port) return hold
        // Started by a process that found the port taken: ours is promised to connections already made.
        await hold.client.end()
        throw new Error(`Postgres runs on port ${hold.port}, no longer on ${options.port}.`)
      }
      if (elapsed > startTimeoutMs) {
        throw new Error(
          `Postgres (pid ${postmaster.pid}) runs but does not answer:\n${logTail(cluster)}`,
        )
      }
      await sleep(10)
      continue
    }
    const port = options.port ?? (await choosePort(cluster, avoidPort))
    const attempt = await start(cluster, port)
    if (attempt === 'ready') continue
    if (/Address already in use|could not create any TCP/.test(attempt)) avoidPort = port
    else if (readPostmaster(cluster))
      continue // another process was faster
    else if (!/lock file|shared memory block/.test(attempt)) {
      throw new Error(`The embedded Postgres does not start:\n${attempt}`)
    }
    if (elapsed > conflictTimeoutMs) {
      throw new Error(
        `The embedded Postgres does not start for ${conflictTimeoutMs / 1000} s:\n${attempt}`,
      )
    }
    await sleep(100)
  }
}

/** Starts the server. Resolves to 'ready', or to the last lines it logged before it gave up. */
async function start(cluster: Cluster, port: number): Promise<string> {
  const { data, logFile } = cluster
  const { postgres } = findPostgres()
  dropStalePidFile(cluster)
  if (fileSize(logFile) > 10 * 1_048_576) fs.renameSync(logFile, `${logFile}.1`)
  const from = fileSize(logFile)
  const output = fs.openSync(logFile, 'a', 0o600)
  const args = ['-D', data, '-p', String(port)]
  for (const [name, value] of Object.entries(settings)) args.push('-c', `${name}=${value}`)
  // A session of its own, and no pipe to us: neither Ctrl-C nor our death takes it down.
  const child = run(postgres, args, {
    account: accountFor(data),
    reaches: [data],
    stdio: ['ignore', output, output],
    detached: true,
  })
  fs.closeSync(output)
  child.unref()
  let ended: string | undefined
  child.once('error', (error) => (ended = error.message))
  child.once('exit', (code, signal) => (ended ??= `it ended with ${code ?? signal}`))

  const deadline = performance.now() + startTimeoutMs
  while (ended === undefined && performance.now() < deadline) {
    const postmaster = readPostmaster(cluster)
    if (postmaster?.ready && postmaster.pid === child.pid) {
      fs.writeFileSync(cluster.portFile, String(port), { mode: 0o600 })
      return 'ready'
    }
    await sleep(5)
  }
  return `${ended ?? 'it is not ready in time'}\n${logTail(cluster, from)}`
}

/**
 * Stops the server: clients are cut off, what is committed is on disk. When that takes too long it is stopped without a
 * checkpoint, which costs the next start a moment and nothing else.
 */
async function stop(cluster: Cluster, withinMs: number): Promise<void> {
  const pid = readPostmaster(cluster)?.pid
  if (pid === undefined) return
  const begin = performance.now()
  for (const [signal, deadline] of [
    ['SIGINT', withinMs / 2],
    ['SIGQUIT', withinMs],
  ] as const) {
    if (isAlive(pid)) process.kill(pid, signal)
    while (readPostmaster(cluster)?.pid === pid) {
      if (performance.now() - begin > deadline) break
      await sleep(5)
    }
  }
  if (readPostmaster(cluster)?.pid === pid) {
    throw new Error(`The embedded Postgres (pid ${pid}) does not stop:\n${logTail(cluster)}`)
  }
  // Its pid file goes a moment before the process does.
  await holdsWithin(withinMs, async () => !isAlive(pid))
}

/** The server of this cluster, if one runs. `ready`: it takes connections. */
function readPostmaster(
  cluster: Cluster,
): { pid: number; port: number; ready: boolean } | undefined {
  const lines = readPidFile(cluster)?.split('\n')
  const pid = Number(lines?.[0])
  if (!lines || !Number.isInteger(pid) || pid <= 0 || !isServerOf(pid, cluster)) return undefined
  return { pid, port: Number(lines[3]), ready: lines[7]?.startsWith('ready') ?? false }
}

const readPidFile = (cluster: Cluster) => readIfThere(join(cluster.data, 'postmaster.pid'))

/** A pid alone proves nothing: it may be taken by another program, or belong to a process that is dead and not yet buried. */
function isServerOf(pid: number, { data }: Cluster): boolean {
  if (!isAlive(pid)) return false
  if (process.platform !== 'linux') return true // believed until it does not answer
  return readIfThere(`/proc/${pid}/cmdline`)?.split('\0').includes(data) ?? false
}

/**
 * Postgres itself clears away the file of a pid that is gone, but not when the pid lives on as something else, as is usual
 * after the restart of a container. Whether the old server's processes still use the data it checks once more by itself.
 */
function dropStalePidFile(cluster: Cluster): void {
  const content = readPidFile(cluster)
  const pid = Number(content?.split('\n')[0])
  if (content === undefined || !(pid > 0) || !isAlive(pid) || isServerOf(pid, cluster)) return
  if (readPidFile(cluster) === content) {
    fs.rmSync(join(cluster.data, 'postmaster.pid'), { force: true })
  }
}

/** A hold on the server at this port, or undefined when it is not ready to give one. */
async function tryHold(cluster: Cluster, port: number): Promise<Hold | undefined> {
  try {
    return await connectHold(cluster, port)
  } catch (error) {
    if (isDatabaseAway(error)) return undefined
    throw error
  }
}

async function connectHold(cluster: Cluster, port: number): Promise<Hold> {
  const client = (await connect(cluster, port, database).catch(async (error: unknown) => {
    if (pgCode(error) !== '3D000') throw error
    await createDatabase(cluster, port)
    return connect(cluster, port, database)
  })) as Hold['client']
  try {
    // Waits while another process decides whether to stop the server; fails if it did.
    const { rows } = await client.query<{ folder: string }>(
      `select current_setting('data_directory') as folder, pg_advisory_lock_shared($1)`,
      [usersLock],
    )
    if (rows[0]?.folder !== cluster.data) {
      throw new Error(`Port ${port} is served by another cluster, ${rows[0]?.folder}.`)
    }
    return { client, port }
  } catch (error) {
    await client.end().catch(() => {})
    throw error
  }
}

async function connect(cluster: Cluster, port: number, name: string): Promise<pg.Client> {
  const client = new pg.Client({
    connectionString: urlOf(cluster, port, name),
    application_name: holder,
    connectionTimeoutMillis: 5_000,
    keepAlive: true,
  })
  client.on('error', () => {}) // 'end' follows, and a running query rejects
  await client.connect()
  return client
}

async function createDatabase(cluster: Cluster, port: number): Promise<void> {
  const client = await connect(cluster, port, 'postgres')
  try {
    await client.query(`create database ${database}`)
  } catch (error) {
    // Another process is creating it, or has just done so.
    if (!['42P04', '23505', '55006'].includes(pgCode(error) ?? '')) throw error
  } finally {
    await client.end()
  }
}

function urlOf({ password }: Cluster, port: number, name = database): string {
  // sslmode, lest a PGSSLMODE in the environment ask for what this server does not offer.
  return `postgres://${user}:${password}@${host}:${port}/${name}?sslmode=disable`
}

/** The port of the last run, so that tools stay connected across restarts, or any free one. */
async function choosePort({ portFile }: Cluster, avoid: number | undefined): Promise<number> {
  const last = Number(readIfThere(portFile))
  const usable = Number.isInteger(last) && last > 0 && last < 65_536 && last !== avoid
  return (usable ? await freePort(last) : undefined) ?? (await freePort(0))!
}

async function freePort(port: number): Promise<number | undefined> {
  const server = createServer()
  try {
    server.listen(port, host)
    await once(server, 'listening')
    return (server.address() as AddressInfo).port
  } catch {
    return undefined
  } finally {
    server.close()
  }
}

/** Whether a process runs. One that has ended and that nobody has waited for yet does not. */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false
  }
  return !/\) Z /.test(readIfThere(`/proc/${pid}/stat`) ?? '')
}

function readIfThere(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ESRCH') return undefined
    throw error
  }
}

const fileSize = (file: string) => fs.statSync(file, { throwIfNoEntry: false })?.size ?? 0

const logTail = ({ logFile }: Cluster, from = 0) =>
  lastLines(fs.readFileSync(logFile).subarray(from).toString())

const lastLines = (text: string) => text.trimEnd().split('\n').slice(-15).join('\n')

const unlessCode =
  (...codes: string[]) =>
  (error: NodeJS.ErrnoException) => {
    if (!codes.includes(error.code ?? '')) throw error
  }
