import { randomUUID } from 'node:crypto'
import t from 'tap'
import { recordAck } from '../acks.ts'
import type { Sql } from '../db.ts'
import { appendEvents } from '../events.ts'
import { accept } from '../outbound.ts'
import { claim } from '../claims.ts'
import { assertFence, LeaseLost, renewLeases, takeLeases } from '../wa-session-leases.ts'
import { createSession } from '../wa-sessions.ts'
import { heartbeat } from '../workers.ts'
import { testDb } from './db.ts'
import { waitingForLock } from './locks.ts'
import { matchWhole } from './match.ts'
import { atOnce } from './outbox-rig.ts'
import { until } from './until.ts'

const next = { worker: 'next', ttlMs: 60_000, limit: 10 }

void t.test('a claim waits for a change of owner under way, and then claims nothing', async (t) => {
  const { sql } = await testDb(t)
  const session = await givenOwnedSession(sql)
  await queue(sql, session)
  const { waited, claiming } = await sql.begin(async (tx) => {
    await tx`update wa_sessions set owner = 'next', fence = fence + 1 where id = ${session.id}`
    const claiming = claim(sql, 'first', [session], atOnce)
    return { claiming, waited: await waitsForLock(sql, claiming) }
  })
  t.ok(waited, 'it does not trust the owner it saw')
  t.same(await claiming, [])
  const owned = { id: session.id, fence: session.fence + 1 }
  t.equal((await claim(sql, 'next', [owned], atOnce)).length, 1)
})

void t.test('the fence is asserted only once a change of owner under way is over', async (t) => {
  const { sql } = await testDb(t)
  const session = await givenOwnedSession(sql)
  const { waited, asserting } = await sql.begin(async (tx) => {
    await tx`update wa_sessions set owner = 'next', fence = fence + 1 where id = ${session.id}`
    const asserting = sql
      .begin((write) => assertFence(write, session))
      .catch((error: unknown) => error)
    return { asserting, waited: await waitsForLock(sql, asserting) }
  })
  t.ok(waited, 'it does not trust the fence it saw')
  t.type(await asserting, LeaseLost)
})

void t.test('nobody takes a session while its owner writes', async (t) => {
  const { sql } = await testDb(t)
  const session = await givenOwnedSession(sql)
  await sql`update wa_sessions set lease_until = now() - interval '1 s' where id = ${session.id}`
  await sql.begin(async (tx) => {
    await assertFence(tx, session)
    t.same(await takeLeases(sql, next), [], 'its lease has run out, its write has not ended')
  })
  matchWhole(t, await takeLeases(sql, next), [{ id: session.id, fence: session.fence + 1 }])
})

void t.test('claims lock sessions in one order, so that two cannot deadlock', async (t) => {
  const { sql } = await testDb(t)
  const sessions: { id: string; workspaceId: string; fence: number }[] = []
  for (let index = 0; index < 6; index++) sessions.push(await givenOwnedSession(sql))
  for (const session of sessions) await queue(sql, session)
  for (const { id } of sessions) {
    await sql`update outbox set state = 'q'`
    const { waiting, locked } = await sql.begin(async (tx) => {
      await tx`select from wa_sessions where id = ${id} for update`
      const waiting = claim(sql, 'first', sessions, atOnce)
      await waitsForLock(sql, waiting)
      const behind = await tx`select from wa_sessions where id > ${id}`
      const free = await tx`select from wa_sessions where id > ${id} for update skip locked`
      return { waiting, locked: behind.length - free.length }
    })
    t.equal(locked, 0, 'one that waits for a session has locked none behind it')
    t.equal((await waiting).length, sessions.length)
  }
})

void t.test(
  'a failed session is tried once more by whoever started since, by the database’s clock',
  async (t) => {
    const { sql } = await testDb(t)
    const { id } = await givenOwnedSession(sql)
    await sql`
    update wa_sessions set status = 'FAILED', since = now(), owner = null, lease_until = null where id = ${id}`
    const start = async (worker: string, startedAgo: string) => {
      await heartbeat(sql, { id: worker, host: 'h', pid: 1, capacity: 10 })
      await sql`update workers set started_at = now() - ${startedAgo}::interval where id = ${worker}`
      return { ...next, worker }
    }
    t.same(await takeLeases(sql, await start('earlier', '1 minute')), [])
    matchWhole(t, await takeLeases(sql, await start('later', '-1 second')), [{ id }])
  },
)

void t.test('one session somebody writes of costs no other its lease', async (t) => {
  const { sql } = await testDb(t)
  const [busy, idle] = [await givenOwnedSession(sql), await givenOwnedSession(sql)]
  const renew = () => renewLeases(sql, { worker: 'first', ttlMs: 60_000, expiryDays: 1 })
  const renewed = (leases: { id: string; renewed: boolean }[]) =>
    new Map(leases.map((lease) => [lease.id, lease.renewed]))
  const leases = await sql.begin(async (tx) => {
    await assertFence(tx, busy)
    return renew()
  })
  t.same(
    renewed(leases),
    new Map([
      [busy.id, false],
      [idle.id, true],
    ]),
  )
  t.same(
    renewed(await renew()),
    new Map([
      [busy.id, true],
      [idle.id, true],
    ]),
  )
})

void t.test(
  'a renewal does not wait for whoever else tells of a chat of the session',
  async (t) => {
    const { sql } = await testDb(t)
    const { id: sessionId, workspaceId } = await givenOwnedSession(sql)
    const waited = await sql.begin(async (tx) => {
      await appendEvents(tx, [{ workspaceId, sessionId, type: 'chat.updated', payload: {} }])
      const renewing = renewLeases(sql, { worker: 'first', ttlMs: 60_000, expiryDays: 1 })
      return waitsForLock(sql, renewing)
    })
    t.notOk(waited, 'they might wait for a session it holds')
  },
)

void t.test(
  'a claim that waits for an ack does not put aside the chat that this ack sets free',
  async (t) => {
    const { sql } = await testDb(t)
    const session = await givenOwnedSession(sql)
    await queue(sql, session)
    const [first] = await claim(sql, 'first', [session], atOnce)
    await queue(sql, session)
    await queue(sql, session, '12025550101@c.us')
    const { waited, claiming } = await sql.begin(async (tx) => {
      await recordAck(tx, session, { keyId: first!.keyId, ack: 1 })
      const claiming = claim(sql, 'first', [session], atOnce)
      return { claiming, waited: await waitsForLock(sql, claiming) }
    })
    t.ok(waited, 'it has seen the message on its way')
    t.same(await claiming, [], 'nor does it go on before it has seen that')
    t.same(await sql`select from outbox_lanes where due_at = 'infinity'`, [])
    matchWhole(t, await claim(sql, 'first', [session], atOnce), [{ waChatId: '12025550101@c.us' }])
    matchWhole(t, await claim(sql, 'first', [session], atOnce), [{ waChatId: ada }])
  },
)

const ada = '12025550100@c.us'

async function queue(
  sql: Sql,
  session: { id: string; workspaceId: string },
  waChatId = ada,
): Promise<void> {
  await accept(sql, {
    workspaceId: session.workspaceId,
    sessionId: session.id,
    sentBy: null,
    requestId: randomUUID(),
    messages: [{ waChatId, content: { type: 'text', body: 'hello' } }],
  })
}

/** Whether a statement came to wait for a lock; false when it was done without. */
async function waitsForLock(sql: Sql, statement: Promise<unknown>): Promise<boolean> {
  let done = false
  void statement.finally(() => (done = true))
  let waits = false
  await until('a lock, or the end of the statement', async () => {
    waits = (await waitingForLock(sql)) > 0
    return waits || done
  })
  return waits
}

async function givenOwnedSession(sql: Sql) {
  const [workspace] = await sql<{ id: string }>`
    insert into workspaces (name) values ('Bakery') returning id`
  const workspaceId = workspace!.id
  const { id } = await createSession(sql, {
    workspaceId,
    name: 'sales',
    engine: 'simulator',
    start: true,
    expiryDays: 30,
  })
  await sql`
    update wa_sessions set status = 'WORKING', owner = 'first', fence = 7, lease_until = now() + interval '1 minute'
    where id = ${id}`
  return { id, workspaceId, fence: 7 }
}
