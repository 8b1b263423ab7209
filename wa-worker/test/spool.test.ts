import { existsSync, readFileSync, appendFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import type { Sql } from '../../shared/db.ts'
import { createLogger } from '../../shared/logger.ts'
import type { Logger } from '../../shared/logger.ts'
import { testDb } from '../../shared/test/db.ts'
import { AckBook } from '../ack-book.ts'
import { Backfill } from '../backfill.ts'
import { SimulatorEngine } from '../engine/simulator.ts'
import { Receiver } from '../receiver.ts'
import { Spool } from '../spool.ts'
import { until } from './waiting.ts'
import { givenSession } from './worker.ts'

const customer = '12025550100@c.us'
const log = createLogger('test', { level: 'fatal', stdout: false })

async function rig(t: Test, maxBytes?: number, maxWaiting?: number) {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`update wa_sessions set fence = 1`
  const dataDir = t.testdir()
  const network = { away: true }
  const gone = () =>
    Promise.reject(Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' }))
  const faulty = Object.assign(
    (...args: Parameters<Sql>) => (network.away ? gone() : sql(...args)),
    { begin: (work: Parameters<Sql['begin']>[0]) => (network.away ? gone() : sql.begin(work)) },
  ) as Sql
  const said: { message: string; fields: object }[] = []
  const listening = Object.assign(Object.create(log) as Logger, {
    error: (message: string, fields: object) => void said.push({ message, fields }),
  })
  const makeReceiver = () =>
    new Receiver(faulty, listening, () => {}, new Spool(dataDir, maxBytes), new AckBook(faulty), {
      maxWaiting,
    })
  const makeEngine = () =>
    new SimulatorEngine({ sessionId, profileDir: async () => dataDir, scanMs: Infinity })
  const session = { id: sessionId, workspaceId, fence: 1, worker: 'test' }
  const file = join(dataDir, 'spool', `${sessionId}.ndjson`)
  const lines = () => (existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n').length : 0)
  const bodies = async () => {
    const rows = await sql<{ body: string }>`select body from messages order by seq`
    return rows.map(({ body }) => body)
  }
  const started = async () => {
    const engine = makeEngine()
    await engine.start()
    t.teardown(() => engine.stop())
    return engine
  }
  return { sql, network, makeReceiver, started, session, file, lines, bodies, said, log: listening }
}

void t.test('what is reported while the database is away survives the process', async (t) => {
  const { network, sql, makeReceiver, started, session, file, lines, bodies } = await rig(t)
  const first = await started()
  const dead = makeReceiver()
  dead.attach({ ...session, fence: 0 }, first)
  const key = first.deliver(customer, 'one')
  first.deliver(customer, 'two')
  await until('they are on the disk', () => lines() === 2)
  first.emit('edit', { key, body: 'One', at: new Date() })
  first.deliver(customer, 'three')
  t.equal(lines(), 4, 'at once from here on')
  // It died here, in the middle of a line. (Its lease is lost: what it holds in memory is written by nobody.)
  appendFileSync(file, '{"kind":"message","ev')

  const receiver = makeReceiver()
  const second = await started()
  receiver.attach(session, second)
  second.deliver(customer, 'four')
  network.away = false
  await receiver.settled(second)
  t.same(await bodies(), ['One', 'two', 'three', 'four'])
  t.notOk(existsSync(file))
  const [edited] = await sql`select edited_at from messages where body = 'One'`
  t.ok(edited!['editedAt'])
  await dead.settled(first)
  t.same((await bodies()).length, 4)
})

void t.test('an outage that ends leaves no file, and one report is written once', async (t) => {
  const { network, makeReceiver, started, session, file, lines, bodies } = await rig(t)
  const engine = await started()
  const receiver = makeReceiver()
  receiver.attach(session, engine)
  engine.deliver(customer, 'one')
  await until('it is on the disk', () => lines() === 1)
  engine.deliver(customer, 'two')
  network.away = false
  await receiver.settled(engine)
  t.same(await bodies(), ['one', 'two'])
  t.notOk(existsSync(file))
})

void t.test('a worker that lost the session leaves the file to the next owner', async (t) => {
  const { sql, network, makeReceiver, started, session, lines, bodies } = await rig(t)
  const engine = await started()
  const receiver = makeReceiver()
  receiver.attach(session, engine)
  engine.deliver(customer, 'one')
  engine.deliver(customer, 'two')
  await until('they are on the disk', () => lines() === 2)
  await sql`update wa_sessions set fence = 2`
  network.away = false
  await receiver.settled(engine)
  t.same(await bodies(), [])
  t.equal(lines(), 2)
  const next = await started()
  receiver.attach({ ...session, fence: 2 }, next)
  await receiver.settled(next)
  t.same(await bodies(), ['one', 'two'])
  t.equal(lines(), 0)
})

void t.test('the file has an end; what it does not take is written all the same', async (t) => {
  const { network, makeReceiver, started, session, lines, bodies } = await rig(t, 1_500)
  const engine = await started()
  const receiver = makeReceiver()
  receiver.attach(session, engine)
  for (let n = 1; n <= 9; n++) engine.deliver(customer, `message ${n}`)
  await until('the file is begun', () => lines() > 0)
  t.ok(lines() < 9)
  network.away = false
  await receiver.settled(engine)
  t.same(
    await bodies(),
    Array.from({ length: 9 }, (_, n) => `message ${n + 1}`),
  )
  t.equal(lines(), 0)
})

void t.test('what memory does not hold is written from the disk, in order', async (t) => {
  const { network, makeReceiver, started, session, file, lines, bodies } = await rig(
    t,
    undefined,
    3,
  )
  const engine = await started()
  const receiver = makeReceiver()
  receiver.attach({ ...session, fence: 0 }, engine)
  const said = Array.from({ length: 20 }, (_, n) => `message ${n}`)
  for (const body of said.slice(0, 10)) engine.deliver(customer, body)
  await until('they are on the disk', () => lines() === 10)
  // The next owner on this machine holds no more of it in memory.
  const next = makeReceiver()
  const second = await started()
  next.attach(session, second)
  network.away = false
  for (const body of said.slice(10)) second.deliver(customer, body)
  await next.settled(second)
  await receiver.settled(engine)
  t.same(await bodies(), said)
  t.notOk(existsSync(file))
})

void t.test('so many at once lie on the disk, also while the database is there', async (t) => {
  const { network, makeReceiver, started, session, file, lines, bodies } = await rig(
    t,
    undefined,
    3,
  )
  network.away = false
  const engine = await started()
  const receiver = makeReceiver()
  receiver.attach(session, engine)
  for (let n = 0; n < 10; n++) engine.deliver(customer, `${n}`)
  t.equal(lines(), 10)
  await receiver.settled(engine)
  t.same(
    await bodies(),
    Array.from({ length: 10 }, (_, n) => `${n}`),
  )
  t.notOk(existsSync(file))
})

void t.test('what neither memory nor disk holds is named, and read again', async (t) => {
  const rigged = await rig(t, 1_500, 3)
  const { sql, network, makeReceiver, started, session, lines, bodies, said, log } = rigged
  const engine = await started()
  engine.scan()
  const receiver = makeReceiver()
  receiver.attach(session, engine)
  const before = new Date()
  const all = Array.from({ length: 20 }, (_, n) => `message ${n}`)
  for (const body of all) engine.deliver(customer, body)
  await until('the file is full', () => lines() > 0)
  t.match(said, [{ message: 'spool takes no more reports', fields: { sessionId: String } }])
  network.away = false
  await receiver.settled(engine)
  const kept = await bodies()
  t.same(kept, all.slice(0, kept.length))
  t.ok(kept.length < all.length)
  t.match(said[1], {
    message: 'reports left out, messages are read again',
    fields: { sessionId: session.id, reports: all.length - kept.length },
  })
  const [row] = await sql<{ backfillFrom: Date }>`select backfill_from from wa_sessions`
  t.ok(row!.backfillFrom >= before && row!.backfillFrom <= new Date())

  const backfill = new Backfill({ sql, log, receiver, afterMs: [], acksEveryMs: 50 })
  backfill.open(session, engine)
  t.teardown(() => backfill.close(session.id))
  await until('everything is there', async () => (await bodies()).length === all.length)
  t.same(
    (await sql`select body from messages order by created_at, seq`).map(({ body }) => body),
    all,
  )
})

void t.test('the end of the file counts bytes, not letters', (t) => {
  const spool = new Spool(t.testdir(), 200)
  t.ok(spool.append('s', { body: 'ж'.repeat(80) }))
  t.notOk(spool.append('s', { body: 'ж'.repeat(80) }))
  t.end()
})

void t.test('a line the process died over takes the next one not with it', (t) => {
  const dir = t.testdir()
  const before = new Spool(dir)
  before.append('s', { n: 1 })
  appendFileSync(join(dir, 'spool', 's.ndjson'), '{"n":')
  const after = new Spool(dir)
  after.append('s', { n: 2 })
  after.append('s', { n: 3 })
  const page = after.page('s', 0)
  t.strictSame(page?.reports, [{ n: 1 }, { n: 2 }, { n: 3 }])
  t.equal(after.page('s', page!.end), undefined)
  t.end()
})
