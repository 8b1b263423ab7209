import t from 'tap'
import { listContacts } from '../../shared/contacts.ts'
import { listParticipants } from '../../shared/chats.ts'
import type { Sql } from '../../shared/db.ts'
import { findImport } from '../../shared/history-imports.ts'
import { accept } from '../../shared/outbound.ts'
import { testDb } from '../../shared/test/db.ts'
import { keyIdOf } from '../../shared/wa-id.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import type { IncomingMessage, RecentChat } from '../engine/engine.ts'
import { EngineError } from '../engine/engine.ts'
import { plainMessage } from '../engine/plain-message.ts'
import { until } from './waiting.ts'
import { givenSession, startWorker } from './worker.ts'

const customer = '12025550100@c.us'
const lid = '8812025550100@lid'
const silent = '12025550006@c.us'

const working = (sql: Sql) =>
  until('the session works', async () => {
    const rows = await sql`select from wa_sessions where status = 'WORKING'`
    return rows.length === 1
  })

void t.test('who a lid is, and who is in a group, is found out', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await working(sql)
  const group = '120363000000000001@g.us'
  worker.engine().deliver(lid, 'from the lid')
  worker.engine().deliver(customer, 'in a group', undefined, { group })
  const contacts = async () => (await listContacts(sql, workspaceId, { limit: 10 })).data
  await until('both addresses are known', async () => {
    const [first] = await contacts()
    return (
      first?.phone &&
      first.lid &&
      (await sql`select from contacts where merged_into is null and ask_at < now()`).length === 0
    )
  })
  t.match(await contacts(), [
    {
      waId: customer,
      phone: '+12025550100',
      lid,
      addresses: [customer, lid],
      pushName: 'Customer 0100',
    },
  ])
  const chat = await until('the group is known', async () => {
    const [row] = await sql<{ id: string; name: string | null }>`
      select id, name from chats where is_group`
    return row?.name ? row : undefined
  })
  t.equal(chat.name, 'Group 0001')
  const members = await until('its members are known', async () => {
    const { data: known } = await listParticipants(sql, workspaceId, chat.id, { limit: 50 })
    return known.length >= 2 && known
  })
  t.match(members, [
    { isAdmin: true, contactId: null },
    { waId: customer, isAdmin: false, contactId: (await contacts())[0]!.id, name: 'Customer 0100' },
  ])
})

void t.test('a WhatsApp Web that does not answer is asked again later', async (t) => {
  const { sql } = await testDb(t)
  await givenSession(sql)
  let asked = 0
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      engine.people = async () => {
        asked += 1
        throw new EngineError('unknown', 'READ_TIMEOUT', 'too slow')
      }
      return engine
    },
  })
  await working(sql)
  worker.engine().deliver(lid, 'hello')
  await until('it is put off', async () => {
    const [row] = await sql<{
      off: boolean
    }>`select ask_at > now() + interval '9 minutes' as off from contacts`
    return row?.off
  })
  t.equal(asked, 1)
})

void t.test('acks that are never told are asked for, round by round', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    reading: { afterMs: [], acksEveryMs: 50, maxAcks: 2 },
  })
  await working(sql)
  const messages = Array.from({ length: 5 }, (_, n) => ({
    waChatId: silent,
    content: { type: 'text' as const, body: `${n}` },
  }))
  const outcomes = await accept(sql, {
    workspaceId,
    sessionId,
    sentBy: null,
    requestId: 'x',
    messages,
  })
  worker.sender.nudge()
  const delivered = (ack: number) =>
    until(`all have ack ${ack}`, async () => {
      const rows = await sql<{ ack: number }>`select ack from messages where ack = ${ack}`
      return rows.length === messages.length
    })
  await delivered(2)
  for (const outcome of outcomes) {
    if ('refusal' in outcome) throw new Error('not accepted')
    worker.engine().arrived(keyIdOf(outcome.message.id))!.ack = 3
  }
  await delivered(3)
})

const days = (many: number) => Math.floor(Date.now() / 1_000) - many * 86_400

function said(body: string, timestamp: number, key: Partial<MessageKey>): IncomingMessage {
  return plainMessage(
    { fromMe: false, chatId: customer, id: `3A${body}`, participant: '', ...key },
    { type: 'text', body, timestamp, ack: key.fromMe ? 3 : 1 },
  )
}

void t.test('history is imported once after the first link, and on after a break', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const chats = Array.from({ length: 4 }, (_, n) => `1202555020${n}@c.us`)
  const asked: number[] = []
  const read: string[] = []
  let broken = true
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    historyDays: 30,
    reading: { afterMs: [] },
    changeEngine: (engine) => {
      engine.chatsSince = async (since) => {
        asked.push(since)
        return chats.map((chatId) => ({ chatId, name: null, isGroup: false }))
      }
      engine.history = async (chatId): Promise<RecentChat> => {
        // The browser goes away in the middle of it.
        if (chatId === chats[2] && broken) {
          broken = false
          engine.crash()
          throw new EngineError('transient', 'SESSION_NOT_READY', 'gone')
        }
        if (chatId === chats[3]) throw new EngineError('unknown', 'READ_TIMEOUT', 'too slow')
        read.push(chatId)
        const key = (id: string, fromMe = false) => ({
          fromMe,
          chatId,
          id: `${chatId}${id}`,
          participant: '',
        })
        const messages = [
          said('old', days(20), key('1')),
          said('ours', days(10), key('2', true)),
          said('after the link', days(-1), key('3')),
        ]
        return { chatId, name: null, isGroup: false, messages, complete: true }
      }
      return engine
    },
  })
  await working(sql)
  worker.engine().deliver(customer, 'live')
  const done = await until('it is done', async () => {
    const state = await findImport(sql, workspaceId, sessionId)
    return state.status === 'done' && state
  })
  t.match(done, { done: 4, total: 4, messages: 6, incomplete: 1 })
  t.equal(done.to!.getTime() - done.from!.getTime(), 30 * 86_400_000)
  t.strictSame(asked, [Math.floor(done.from!.getTime() / 1_000)])
  t.strictSame(read, chats.slice(0, 3), 'no chat is read again')
  t.strictSame(
    await sql`select source, body, count(*)::int as n from messages where source <> 'live' group by 1, 2 order by 2`,
    [
      { source: 'history', body: 'old', n: 3 },
      { source: 'history', body: 'ours', n: 3 },
    ],
  )
  t.match(await sql`select sum(unread_count)::int as n from chats`, [{ n: 1 }])
  t.match(await sql`select payload from events where type = 'message'`, [
    { payload: { body: 'live' } },
  ])

  await working(sql)
  worker.engine().crash()
  await until('it works again', () => worker.engines.length === 3)
  await working(sql)
  t.equal(asked.length, 1, 'once is enough')
})

void t.test('a message that cannot be stored holds up no history', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    historyDays: 30,
    reading: { afterMs: [] },
    changeEngine: (engine) => {
      engine.chatsSince = async () => [
        { chatId: customer, name: null, isGroup: false },
        { chatId: silent, name: null, isGroup: false },
      ]
      engine.history = async (chatId): Promise<RecentChat> => ({
        ...{ chatId, name: null, isGroup: false, complete: true },
        messages: ['before', 'not\0storable', 'after'].map((body) =>
          said(body, days(20), { chatId, id: `${chatId}${body.slice(0, 3)}` }),
        ),
      })
      return engine
    },
  })
  await working(sql)
  const done = await until('it is done', async () => {
    const state = await findImport(sql, workspaceId, sessionId)
    return state.status === 'done' && state
  })
  t.match(done, { done: 2, total: 2, messages: 4, incomplete: 2 })
  t.equal(worker.engines.length, 1)
})

void t.test('no history where none is wished', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql, false)
  await sql`update wa_sessions set import_history_days = 0, desired_state = 'running'`
  let asked = 0
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    historyDays: 30,
    changeEngine: (engine) => {
      engine.chatsSince = async () => {
        asked += 1
        return []
      }
      return engine
    },
  })
  await working(sql)
  worker.engine().deliver(customer, 'live')
  await until('it is stored', async () => (await sql`select from messages`).length === 1)
  await worker.stop()
  t.equal(asked, 0)
  t.match(await findImport(sql, workspaceId, sessionId), { status: 'none', done: 0, total: 0 })
})
