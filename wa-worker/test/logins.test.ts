import { readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { testDb } from '../../shared/test/db.ts'
import { keyIdOf } from '../../shared/wa-id.ts'
import { deleteSession, request, sessionHistory, wantRunning } from '../../shared/wa-sessions.ts'
import type { SimulatorEngine } from '../engine/simulator.ts'
import { until } from './waiting.ts'
import { accept, customer, givenSession, startWorker, untilMessage, untilStatus } from './worker.ts'

void t.test('a login survives the loss of the disk, and of the newest snapshot', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const folder = t.testdir({ objects: {}, one: {}, two: {}, three: {} })
  const on = (machine: string) =>
    startWorker(t, sql, { dataDir: join(folder, machine), objectsDir: join(folder, 'objects') })
  const snapshots = () =>
    sql<{ objectKey: string; reason: string }>`
      select object_key, reason from wa_snapshots where state = 'verified' order by generation desc`

  const one = on('one')
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await until('a first snapshot', async () => (await snapshots()).length === 1)
  await one.stop()
  t.match(await snapshots(), [{ reason: 'STOPPED' }, { reason: 'SETTLED' }])

  const two = on('two')
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await two.stop()
  const [newest] = await snapshots()
  const file = join(folder, 'objects', 'sessions', newest!.objectKey)
  const bytes = await readFile(file)
  bytes[bytes.length >> 1]! ^= 1
  await writeFile(file, bytes)

  on('three')
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const codes = await sql`select 1 from wa_session_history where to_status = 'SCAN_QR_CODE'`
  t.equal(codes.length, 1, 'one code in all')
})

void t.test('a logout and a deletion reach the logins of other machines', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const folder = t.testdir({ objects: {}, one: {}, two: {} })
  const on = (machine: string, scanMs = 20) =>
    startWorker(t, sql, {
      dataDir: join(folder, machine),
      objectsDir: join(folder, 'objects'),
      scanMs,
    })
  const one = on('one')
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await one.stop()
  const two = on('two')
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await request(sql, workspaceId, sessionId, 'logout', 30)
  await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
  await two.stop()

  const again = on('one', 60_000)
  await wantRunning(sql, workspaceId, sessionId, 30)
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  again.engine().scan()
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await again.stop()
  const third = on('one', 60_000)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await third.stop()

  const other = on('two')
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  t.equal(await other.logins.removeDeleted(), 0)
  await deleteSession(sql, workspaceId, sessionId)
  await until('it is deleted', async () => {
    const open = await sql`select from wa_session_requests where done_at is null`
    return open.length === 0
  })
  await other.stop()
  const here = on('one')
  t.not((await readdir(join(folder, 'one', 'profiles'))).length, 0)
  await until('the lease is given back', async () => (await here.logins.removeDeleted()) === 1)
  t.same(await readdir(join(folder, 'one', 'profiles')), [])
})

void t.test('a worker whose login is older than the vault’s takes the vault’s', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const folder = t.testdir({ objects: {}, one: {}, two: {} })
  const on = (machine: string) =>
    startWorker(t, sql, { dataDir: join(folder, machine), objectsDir: join(folder, 'objects') })
  const sentFrom = async (machine: string, body: string) => {
    const worker = on(machine)
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    const { id } = await accept(sql, workspaceId, sessionId, body)
    await untilMessage(sql, workspaceId, id, ({ status }) => status === 'read')
    await worker.stop()
    return id
  }
  await sentFrom('one', 'first')
  const second = await sentFrom('two', 'second')
  const worker = on('one')
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const found = await worker.engine().find({ chatId: customer, keyId: keyIdOf(second) })
  t.ok(found, 'it remembers what was sent from the other machine')
})

void t.test('a login that turns out to be worth nothing is replaced by its snapshot', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const first = startWorker(t, sql, { dataDir })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await first.stop()
  await writeFile(join(dataDir, 'profiles', sessionId, 'simulated-phone.json'), 'null')

  startWorker(t, sql, { dataDir })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const { data } = await sessionHistory(sql, workspaceId, sessionId, { limit: 20 })
  t.ok(data.some(({ reason }) => reason === 'LOGIN_LOST'))
  t.equal(
    data.filter(({ to }) => to === 'SCAN_QR_CODE').length,
    1,
    'nobody was asked to scan again',
  )
})

void t.test(
  'a login that is logged out as soon as it starts gets a try with its snapshots',
  async (t) => {
    const { sql } = await testDb(t)
    const { workspaceId, sessionId } = await givenSession(sql)
    const dataDir = t.testdir()
    const first = startWorker(t, sql, { dataDir })
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    await first.stop()
    const steps = async () => {
      const { data } = await sessionHistory(sql, workspaceId, sessionId, { limit: 50 })
      return data.filter(({ to, reason }) => to === 'LOGGED_OUT' || reason === 'LOGIN_LOST')
    }
    let refused = 0
    const refuse = (engine: SimulatorEngine, times: number) => {
      if (refused === times) return engine
      refused += 1
      return Object.assign(engine, { start: async () => void engine.emit('loggedOut') })
    }

    const second = startWorker(t, sql, { dataDir, changeEngine: (engine) => refuse(engine, 1) })
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    t.match(await steps(), [
      { to: 'RECONNECTING', reason: 'LOGIN_LOST', detail: /unlinked. Restored snapshot/ },
    ])
    await second.stop()

    refused = 0
    startWorker(t, sql, { dataDir, changeEngine: (engine) => refuse(engine, Infinity) })
    t.match(await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT'), {
      reason: 'LOGGED_OUT_ON_PHONE',
      desiredState: 'stopped',
    })
    const snapshots = await sql`select 1 from wa_snapshots where state = 'archived'`
    t.equal(refused, 1 + snapshots.length, 'what was on the disk, and each snapshot once')
  },
)

void t.test('a snapshot without a login in it is passed over, and not asked twice', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const profile = join(dataDir, 'profiles', sessionId)
  let worker = startWorker(t, sql, { dataDir })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  /** A profile that was logged out, behind our back: what it says is written, read back and sound. */
  const snapshotOfNothing = async () => {
    await writeFile(join(profile, 'simulated-phone.json'), 'null')
    const [row] = await sql<{ fence: number }>`select fence from wa_sessions`
    const owned = { id: sessionId, workspaceId, fence: row!.fence, worker: 'test' }
    await worker.vault.take(owned, profile, { reason: 'PERIODIC' })
  }
  await worker.stop()
  await snapshotOfNothing()
  await rm(profile, { recursive: true })

  worker = startWorker(t, sql, { dataDir })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const steps = async () =>
    (await sessionHistory(sql, workspaceId, sessionId, { limit: 50 })).data.filter(
      ({ to, reason }) => to === 'SCAN_QR_CODE' || reason === 'LOGIN_LOST',
    )
  t.match(
    await steps(),
    [
      { reason: 'LOGIN_LOST', detail: /^WhatsApp asks for a scan. Restored snapshot \d.$/ },
      { to: 'SCAN_QR_CODE' },
    ],
    'no second code',
  )

  await worker.stop()
  for (let count = 0; count < 3; count++) await snapshotOfNothing()
  worker = startWorker(t, sql, { dataDir, scanMs: 60_000 })
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  const lost = (await steps()).filter(({ reason }) => reason === 'LOGIN_LOST')
  t.equal(lost.length, 1 + 3, 'each of the three once, then a person is needed')
})

void t.test('a logout puts the login away, a deletion destroys it', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const worker = startWorker(t, sql, { dataDir })
  const states = () =>
    sql<{ state: string }>`select distinct state from wa_snapshots order by state`
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await until('a snapshot', async () => (await states()).some(({ state }) => state === 'verified'))
  worker.engine().logoutFromPhone()
  await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
  t.same(await states(), [{ state: 'archived' }])

  await deleteSession(sql, workspaceId, sessionId)
  await until('nothing is left', async () => (await states()).length === 0)
  await until('the profile is gone', async () => {
    return (await readdir(join(dataDir, 'profiles'))).length === 0
  })
})
