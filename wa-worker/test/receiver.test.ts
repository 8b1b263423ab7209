import t from 'tap'
import type { Sql } from '../../shared/db.ts'
import { createLogger } from '../../shared/logger.ts'
import { testDb } from '../../shared/test/db.ts'
import { AckBook } from '../ack-book.ts'
import { plainMessage } from '../engine/plain-message.ts'
import { SimulatorEngine } from '../engine/simulator.ts'
import { Receiver } from '../receiver.ts'
import { Spool } from '../spool.ts'
import { givenSession } from './worker.ts'

const customer = '12025550100@c.us'

async function rig(t: Parameters<typeof testDb>[0] & { testdir(): string }) {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`update wa_sessions set fence = 1`
  const seen = { transactions: 0 }
  const watched = Object.assign((...args: Parameters<Sql>) => sql(...args), {
    begin: (work: Parameters<Sql['begin']>[0]) => {
      seen.transactions += 1
      return sql.begin(work)
    },
  }) as Sql
  const log = createLogger('test', { level: 'fatal', stdout: false })
  const spool = new Spool(t.testdir())
  const receiver = new Receiver(watched, log, () => {}, spool, new AckBook(watched))
  const engine = new SimulatorEngine({ sessionId, profileDir: async () => t.testdir(), scanMs: 0 })
  const session = { id: sessionId, workspaceId, fence: 1, worker: 'test' }
  receiver.attach(session, engine)
  const tell = (n: number, body = `${n}`) => {
    const key = { fromMe: false, chatId: customer, id: `3A${n}`, participant: '' }
    engine.emit('message', plainMessage(key, { type: 'text', body, timestamp: 1_700_000_000 }))
    return key
  }
  const bodies = async () => {
    const rows = await sql<{ body: string }>`select body from messages order by created_at, seq`
    return rows.map(({ body }) => body)
  }
  return { sql, seen, session, receiver, engine, tell, bodies }
}

const upTo = (n: number) => Array.from({ length: n }, (_, index) => `${index}`)

void t.test('messages that come together are written together, in order', async (t) => {
  const { seen, receiver, engine, tell, bodies } = await rig(t)
  for (let n = 0; n < 60; n++) tell(n)
  await receiver.settled(engine)
  t.strictSame(await bodies(), upTo(60))
  t.equal(seen.transactions, 1)
})

void t.test('a message that cannot be written takes no other with it', async (t) => {
  const { receiver, engine, tell, bodies } = await rig(t)
  for (let n = 0; n < 30; n++) tell(n, n === 17 ? 'no \0 text' : `${n}`)
  await receiver.settled(engine)
  t.strictSame(
    await bodies(),
    upTo(30).filter((body) => body !== '17'),
  )
})

void t.test('what changes a message waits for it, and what follows for the change', async (t) => {
  const { sql, seen, receiver, engine, tell, bodies } = await rig(t)
  tell(0)
  const key = tell(1)
  engine.emit('edit', { key, body: 'one', at: new Date() })
  engine.emit('reaction', {
    target: key,
    emoji: '👍',
    waId: customer,
    fromMe: false,
    at: new Date(),
  })
  tell(2)
  tell(3)
  await receiver.settled(engine)
  t.strictSame(await bodies(), ['0', 'one', '2', '3'])
  t.equal(seen.transactions, 4)
  const types = await sql<{ type: string }>`
    select type from events where type <> 'message.any' and type <> 'chat.updated' order by id`
  t.strictSame(
    types.map(({ type }) => type).filter((type) => type.startsWith('message')),
    ['message', 'message', 'message.edited', 'message.reaction', 'message', 'message'],
  )
})

void t.test('what was read is written some at a time, and what cannot be is counted', async (t) => {
  const { seen, receiver, session, bodies } = await rig(t)
  const read = Array.from({ length: 60 }, (_, n) => {
    const key = { fromMe: false, chatId: customer, id: `3A${n}`, participant: '' }
    const body = n === 17 ? 'no \0 text' : `${n}`
    return plainMessage(key, { type: 'text', body, timestamp: 1_700_000_000 + n })
  })
  const whole = read.filter(({ key }) => key.id !== '3A17')
  t.same(await receiver.storeRead(session, whole.slice(0, 40), 'backfill', () => true), {
    ...{ stored: 40, failed: 0 },
  })
  t.equal(seen.transactions, 1)
  t.same(await receiver.storeRead(session, read, 'backfill', () => true), { stored: 19, failed: 1 })
  t.strictSame(
    await bodies(),
    upTo(60).filter((body) => body !== '17'),
  )
  t.same(await receiver.storeRead(session, read, 'history', () => false), { stored: 0, failed: 0 })
})
