import t from 'tap'
import type { Sql } from '../../shared/db.ts'
import { testDb } from '../../shared/test/db.ts'
import {
  createSession,
  deleteSession,
  findSession,
  request,
  wantRunning,
  wantStopped,
} from '../../shared/wa-sessions.ts'
import { failAlways } from './failing-rows.ts'
import { until } from './waiting.ts'
import { givenSession, startWorker, untilStatus } from './worker.ts'

/** A session that was linked and is stopped, and a worker that has room for one and runs another. */
async function givenFullWorker(
  t: Parameters<typeof startWorker>[0],
  sql: Sql,
  more: Omit<Parameters<typeof startWorker>[2], 'dataDir'> = {},
) {
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir(), capacity: 1, ...more })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await wantStopped(sql, workspaceId, sessionId)
  await untilStatus(sql, workspaceId, sessionId, 'STOPPED')
  const running = await anotherSession(sql, workspaceId, 'support', true)
  await untilStatus(sql, workspaceId, running, 'WORKING')
  return { workspaceId, sessionId, running, worker }
}

async function anotherSession(sql: Sql, workspaceId: string, name: string, start: boolean) {
  const session = { workspaceId, name, engine: 'simulator' as const, start, expiryDays: 30 }
  return (await createSession(sql, session)).id
}

const openWishes = (sql: Sql) => sql`select 1 from wa_session_requests where done_at is null`

void t.test('a full worker logs out and deletes sessions that are stopped', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId, running, worker } = await givenFullWorker(t, sql)
  await request(sql, workspaceId, sessionId, 'logout', 30)
  await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
  await deleteSession(sql, workspaceId, sessionId)
  await until('the deletion', async () => (await openWishes(sql)).length === 0)
  t.same(await sql`select 1 from wa_snapshots where session_id = ${sessionId}`, [])
  t.match(await findSession(sql, workspaceId, running), { status: 'WORKING' })
  t.equal(worker.engines.length, 3, 'one of them to unlink the device')
})

void t.test('a full worker runs none beyond what it has room for', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId, running, worker } = await givenFullWorker(t, sql)
  const engines = worker.engines.length
  await wantRunning(sql, workspaceId, sessionId, 30)
  const other = await anotherSession(sql, workspaceId, 'other', false)
  await request(sql, workspaceId, other, 'logout', 30)
  await untilStatus(sql, workspaceId, other, 'LOGGED_OUT')
  t.match(await findSession(sql, workspaceId, sessionId), { status: 'STOPPED' })
  t.equal(worker.engines.length, engines)

  await wantStopped(sql, workspaceId, running)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
})

void t.test('one that is wanted while it is logged out waits for room', async (t) => {
  const { sql } = await testDb(t)
  let release = () => {}
  const unlinked = new Promise<void>((resolve) => (release = resolve))
  t.teardown(() => release())
  let unlinking = 0
  const { workspaceId, sessionId, running, worker } = await givenFullWorker(t, sql, {
    changeEngine: (engine) => {
      const logout = engine.logout.bind(engine)
      return Object.assign(engine, {
        logout: async () => {
          unlinking += 1
          await unlinked
          return logout()
        },
      })
    },
  })
  await request(sql, workspaceId, sessionId, 'logout', 30)
  await until('it is being unlinked', () => unlinking === 1)
  const engines = worker.engines.length
  const second = await anotherSession(sql, workspaceId, 'second', false)
  await request(sql, workspaceId, second, 'logout', 30)
  await wantRunning(sql, workspaceId, sessionId, 30)
  release()
  await untilStatus(sql, workspaceId, second, 'LOGGED_OUT')
  t.match(await findSession(sql, workspaceId, sessionId), { status: 'LOGGED_OUT' })
  t.equal(worker.engines.length, engines)

  await wantStopped(sql, workspaceId, running)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
})

void t.test('errands that fail again and again do not keep others waiting', async (t) => {
  const { url, sql } = await testDb(t)
  const { workspaceId, sessionId, running } = await givenFullWorker(t, sql, { backoff: () => 300 })
  const second = await anotherSession(sql, workspaceId, 'second', false)
  const third = await anotherSession(sql, workspaceId, 'third', false)
  await failAlways(
    url,
    'wa_session_history',
    `new.to_status = 'LOGGED_OUT' and new.session_id <> '${third}'`,
  )
  for (const id of [sessionId, second, third]) await request(sql, workspaceId, id, 'logout', 30)
  await untilStatus(sql, workspaceId, third, 'LOGGED_OUT')
  t.match(await findSession(sql, workspaceId, running), { status: 'WORKING' })
})
