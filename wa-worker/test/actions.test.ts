import t from 'tap'
import { createLogger } from '../../shared/logger.ts'
import { accept } from '../../shared/outbound.ts'
import { testDb } from '../../shared/test/db.ts'
import { matchWhole } from '../../shared/test/match.ts'
import { askAction } from '../../shared/wa-actions.ts'
import { keyIdOf } from '../../shared/wa-id.ts'
import { Actions } from '../actions.ts'
import { SimulatorEngine } from '../engine/simulator.ts'
import { until } from './waiting.ts'
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
  matchWhole(t, await sql`select result, done_at from wa_actions`, [
    { result: { exists: false }, doneAt: Date },
  ])
})

void t.test('nothing new is said to whoever has opted out since it was asked for', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`update wa_sessions set fence = 1, owner = 'test', lease_until = now() + interval '1 hour', status = 'WORKING'`
  const by = { type: 'person', id: null, name: null, ip: null, userAgent: null, requestId: null }
  const text = { type: 'text', body: 'Hello' } as const
  const to = { waChatId: '12025550100@c.us', content: text }
  const outcomes = await accept(sql, {
    ...{ workspaceId, sessionId, sentBy: null, requestId: 'test', by: { ...by, type: 'person' } },
    messages: [to, { ...to, optOutOverride: 'owed by law' }],
  })
  const [plain, overridden] = outcomes.map((outcome) => 'message' in outcome && outcome.message)
  if (!plain || !overridden) throw new Error('They are accepted.')
  await sql`delete from outbox`
  const key = { workspaceId, sessionId, chatId: plain.chatId }
  for (const messageId of [plain.id, overridden.id]) {
    await askAction(sql, key, { kind: 'edit', messageId, payload: { body: 'Half price!' } })
    await askAction(sql, key, { kind: 'react', messageId, payload: { emoji: '👍' } })
    await askAction(sql, key, { kind: 'revoke', messageId, payload: {} })
  }
  await askAction(sql, key, { kind: 'typing', payload: { on: true } })
  await sql`update contacts set opted_out = true`

  const engine = new SimulatorEngine({ sessionId, profileDir: async () => t.testdir(), scanMs: 0 })
  const done: string[] = []
  engine.edit = async ({ target }) => void done.push(`edit ${target.id}`)
  engine.react = async ({ target }) => void done.push(`react ${target.id}`)
  engine.revoke = async ({ target }) => void done.push(`revoke ${target.id}`)
  engine.typing = async () => void done.push('typing')
  const log = createLogger('test', { level: 'silent', stdout: false })
  const actions = new Actions({ sql, worker: 'test', log, pollMs: 10 })
  actions.open({ id: sessionId, workspaceId, fence: 1, worker: 'test' }, engine)
  const running = actions.run()
  await until('all of it is over', async () => {
    const open = await sql`select from wa_actions where done_at is null`
    return open.length === 0
  })
  actions.stop()
  await running
  const [first, second] = [keyIdOf(plain.id), keyIdOf(overridden.id)]
  t.strictSame(
    done.toSorted(),
    [`edit ${second}`, `react ${second}`, `revoke ${first}`, `revoke ${second}`].toSorted(),
  )
  t.match(
    await sql`select kind, attempts, error_code from wa_actions where error_code is not null order by id`,
    ['edit', 'react', 'typing'].map((kind) => ({
      kind,
      attempts: 1,
      errorCode: 'RECIPIENT_OPTED_OUT',
    })),
  )
  const [told] = await sql`
    select payload -> 'actions' as actions from events where type = 'message.action' order by tx desc, id desc limit 1`
  t.match(told, { actions: [{ kind: 'edit', status: 'failed' }, { status: 'failed' }] })
})
