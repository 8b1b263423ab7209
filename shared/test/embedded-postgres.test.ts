import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { appendFile, chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import t from 'tap'
import type { Test } from 'tap'
import { openDatabase } from '../embedded-postgres.ts'
import type { Database } from '../embedded-postgres.ts'
import { createLogger } from '../logger.ts'

const log = createLogger('test', { level: 'fatal', stdout: false })
const openFixture = join(import.meta.dirname, 'fixtures', 'open-database.ts')

await t.test('a given address is used as it is, and nothing is started', async (t) => {
  const dataDir = join(await folder(t), 'data')
  const database = await openDatabase({ databaseUrl: 'postgres://db.example/x', dataDir }, log)
  t.match(database, { url: 'postgres://db.example/x', embedded: false })
  await database.release()
  t.notOk(existsSync(dataDir))
})

await t.test(
  'a new data folder gets a private UTF-8 database, and keeps its port and rows',
  async (t) => {
    const dataDir = await folder(t)
    const cold = performance.now()
    const first = await open(t, dataDir)
    await query(first.url, 'select 1')
    t.comment(`cold start to first query: ${Math.round(performance.now() - cold)} ms`)

    const [facts] = await query(
      first.url,
      `select current_database() as database, current_user as "user", lower('ÉÄ') as lower,
       current_setting('server_encoding') as encoding, current_setting('fsync') as fsync,
       current_setting('max_connections') as connections, current_setting('listen_addresses') as addresses,
       current_setting('unix_socket_directories') as sockets`,
    )
    t.same(facts, {
      database: 'awfar',
      user: 'awfar',
      lower: 'éä',
      encoding: 'UTF8',
      fsync: 'on',
      connections: '200',
      addresses: '127.0.0.1',
      sockets: '',
    })
    t.equal(statSync(join(dataDir, 'postgres.password')).mode & 0o777, 0o600)
    await t.rejects(query(first.url.replace(/:[^:@]+@/, ':wrong@'), 'select 1'), { code: '28P01' })

    await query(first.url, 'create table kept as select 7 as n')
    await first.release()
    t.notOk(existsSync(join(dataDir, 'postgres/postmaster.pid')), 'stopped')

    const warm = performance.now()
    const second = await open(t, dataDir)
    t.same(await query(second.url, 'select n from kept'), [{ n: 7 }])
    t.comment(`warm start to first query: ${Math.round(performance.now() - warm)} ms`)
    t.equal(second.url, first.url)
  },
)

await t.test('the database runs until its last user lets go', async (t) => {
  const dataDir = await folder(t)
  const one = await open(t, dataDir)
  const two = await open(t, dataDir)
  t.equal(one.url, two.url)
  await one.release()
  await query(two.url, 'select 1')

  const stranger = await client(two.url)
  await two.release(1_000)
  t.same((await stranger.query('select 1 as n')).rows, [{ n: 1 }], 'a client of any kind counts')
  await stranger.end()

  const three = await open(t, dataDir)
  await three.release()
  t.notOk(existsSync(join(dataDir, 'postgres/postmaster.pid')))
})

await t.test('the database outlives a killed process and is adopted by the next', async (t) => {
  const dataDir = await folder(t)
  const owner = await openElsewhere(t, dataDir)
  const pid = postmaster(dataDir)
  await query(owner.url, 'create table kept as select 7 as n')
  await end(owner.child, 'SIGKILL')
  t.same(await query(owner.url, 'select n from kept'), [{ n: 7 }])

  const next = await open(t, dataDir)
  t.equal(postmaster(dataDir), pid)
  t.equal(next.url, owner.url)
  await next.release()
  t.notOk(isAlive(pid))
})

await t.test('a killed server is brought back on its port by whoever uses it', async (t) => {
  const dataDir = await folder(t)
  const users = [await open(t, dataDir), await open(t, dataDir)]
  const { url } = users[0]!
  const pid = postmaster(dataDir)
  process.kill(pid, 'SIGKILL')
  await eventually(() => query(url, 'select 1'))
  t.not(postmaster(dataDir), pid)
  await Promise.all(users.map((user) => user.release()))
  t.notOk(existsSync(join(dataDir, 'postgres/postmaster.pid')))
})

await t.test('a killed server with nobody around is replaced at the next start', async (t) => {
  const dataDir = await folder(t)
  const owner = await openElsewhere(t, dataDir)
  await end(owner.child, 'SIGKILL')
  process.kill(postmaster(dataDir), 'SIGKILL')
  const next = await open(t, dataDir) // at once: the old server's processes are still there
  await query(next.url, 'select 1')
})

await t.test(
  'processes that start at once share one server, and those that end at once stop it',
  async (t) => {
    for (const round of [1, 2, 3]) {
      const dataDir = join(t.testdirName, String(round))
      await mkdir(dataDir, { recursive: true })
      t.teardown(() => stopLeftOver(dataDir))
      const users = await Promise.all([1, 2, 3].map(() => openElsewhere(t, dataDir)))
      t.equal(new Set(users.map((user) => user.url)).size, 1)
      await Promise.all(users.map((user) => query(user.url, 'select 1')))
      const pid = postmaster(dataDir)
      await Promise.all(users.map((user) => end(user.child, 'SIGTERM')))
      t.notOk(isAlive(pid), 'stopped')
    }
  },
)

await t.test('a pid file that names some other live process is not believed', async (t) => {
  const dataDir = await folder(t)
  await (await open(t, dataDir)).release()
  const cluster = join(dataDir, 'postgres')
  const lines = [process.pid, cluster, 0, 5432, '', '127.0.0.1', '  1  1', 'ready   ']
  writeFileSync(join(cluster, 'postmaster.pid'), lines.join('\n') + '\n')
  const database = await open(t, dataDir)
  await query(database.url, 'select 1')
})

await t.test('a taken port is left to its owner', async (t) => {
  const dataDir = await folder(t)
  await (await open(t, dataDir)).release()
  const other = await open(t, await folder(t))
  writeFileSync(join(dataDir, 'postgres.port'), new URL(other.url).port)
  const second = await open(t, dataDir)
  t.not(new URL(second.url).port, new URL(other.url).port)
  await query(second.url, 'select 1')
})

await t.test('a server that cannot start says why', async (t) => {
  const dataDir = await folder(t)
  await (await open(t, dataDir)).release()
  await appendFile(join(dataDir, 'postgres/postgresql.conf'), '\nwork_mem = plenty\n')
  await t.rejects(
    open(t, dataDir),
    /^The embedded Postgres does not start:\n[^]*invalid value for parameter "work_mem": "plenty"/,
  )
  await writeFile(join(dataDir, 'postgres/PG_VERSION'), '16\n')
  await t.rejects(open(t, dataDir), /was made by Postgres 16, and this release brings Postgres 17/)
})

await t.test('a folder that holds something else is left alone', async (t) => {
  const dataDir = await folder(t)
  await mkdir(join(dataDir, 'postgres'))
  await writeFile(join(dataDir, 'postgres/notes.txt'), 'mine')
  await t.rejects(open(t, dataDir), /holds something else than a Postgres cluster/)
  t.equal(readFileSync(join(dataDir, 'postgres/notes.txt'), 'utf8'), 'mine')
})

/** A new folder; when the test ends, its server is stopped and then the folder goes. */
async function folder(t: Test): Promise<string> {
  const dataDir = await mkdtemp(join(tmpdir(), 'awfar-postgres-'))
  await chmod(dataDir, 0o755) // the account Postgres runs as must pass
  t.teardown(async () => {
    await stopLeftOver(dataDir)
    await rm(dataDir, { recursive: true, force: true })
  })
  return dataDir
}

/** Opens the database in this process; it is gone when the test ends. */
async function open(t: Test, dataDir: string): Promise<Database> {
  const database = await openDatabase({ dataDir }, log)
  t.teardown(() => database.release())
  return database
}

/** Opens the database in a process of its own. */
async function openElsewhere(t: Test, dataDir: string) {
  const child = spawn(process.execPath, ['--import=tsx', openFixture, dataDir], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, NODE_OPTIONS: '' },
  })
  t.teardown(() => end(child, 'SIGKILL'))
  const [url] = (await once(child.stdout, 'data')) as [Buffer]
  return { child, url: url.toString().trim() }
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const gone = once(child, 'exit')
  child.kill(signal)
  await gone
}

async function stopLeftOver(dataDir: string): Promise<void> {
  if (!existsSync(join(dataDir, 'postgres/postmaster.pid'))) return
  const pid = postmaster(dataDir)
  if (pid !== process.pid && isAlive(pid)) process.kill(pid, 'SIGINT')
  await eventually(async () => {
    if (pid !== process.pid && isAlive(pid)) throw new Error(`Postgres ${pid} still runs`)
  })
}

function postmaster(dataDir: string): number {
  return Number(readFileSync(join(dataDir, 'postgres/postmaster.pid'), 'utf8').split('\n')[0])
}

/** Dead processes that nobody has waited for yet count as dead. */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
  } catch {
    return false
  }
  const stat = `/proc/${pid}/stat`
  return !existsSync(stat) || !/\) Z /.test(readFileSync(stat, 'utf8'))
}

async function client(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url, application_name: 'test' })
  client.on('error', () => {})
  await client.connect()
  return client
}

async function query(url: string, text: string): Promise<object[]> {
  const connection = await client(url)
  try {
    return (await connection.query<object>(text)).rows
  } finally {
    await connection.end()
  }
}

/** Tries again until it works; the last failure is thrown after 20 s. */
async function eventually(attempt: () => Promise<unknown>): Promise<void> {
  const deadline = Date.now() + 20_000
  for (;;) {
    try {
      await attempt()
      return
    } catch (error) {
      if (Date.now() > deadline) throw error
      await sleep(20)
    }
  }
}
