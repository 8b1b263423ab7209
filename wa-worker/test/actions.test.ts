import t from 'tap'
import { createLogger } from '../../shared/logger.ts'
import { testDb } from '../../shared/test/db.ts'
import { Actions } from '../actions.ts'
import { SimulatorEngine } from '../engine/simulator.ts'
import { givenSession } from './worker.ts'

void t.test('a stop waits for what is under way, also of a session that was closed', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`update wa_sessions set fence = 1, owner = 'test', lease_until = now() + interval '1 hour', status = 'WORKING'`
  await sql`
    insert into wa_actions (workspace_id, session_id, kind, payload, expires_at)
    values (${workspaceId}, ${sessionId}, 'check_number', ${{ phone: '12025550100' }}, now() + interval '1 hour')`
  const engine = new SimulatorEngine({ sessionId, profileDir: async () => t.testdir(), scanMs: 0 })
  let answer = () => {}
  const asked = new Promise<void>((resolve) => {
    engine.checkNumber = () => {
      resolve()
      return new Promise((found) => (answer = () => found({ exists: false, waId: null })))
    }
  })
  const log = createLogger('test', { level: 'error', stdout: false })
  const actions = new Actions({ sql, worker: 'test', log, pollMs: 10 })
  actions.open({ id: sessionId, workspaceId, fence: 1, worker: 'test' }, engine)
  let ended = false
  const running = actions.run().then(() => (ended = true))
  await asked
  actions.close(sessionId)
  actions.stop()
  await new Promise(setImmediate)
  t.equal(ended, false)
  answer()
  await running
  t.match(await sql`select result, done_at from wa_actions`, [
    { result: { exists: false }, doneAt: Date },
  ])
})
