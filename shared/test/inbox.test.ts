import fc from 'fast-check'
import t from 'tap'
import type { Sql } from '../db.ts'
import { storeAllReceived, storeReceived } from '../inbox.ts'
import { removeExpired } from '../jobs.ts'
import { recordReaction } from '../message-changes.ts'
import type { Received } from '../received.ts'
import { createSession } from '../wa-sessions.ts'
import { createWorkspace } from '../workspaces.ts'
import { testDb } from './db.ts'
import { until } from './until.ts'

const { sql } = await testDb(t)

async function rig() {
  const workspaceId = await createWorkspace(sql, 'Bakery')
  const { id } = await createSession(sql, {
    ...{ workspaceId, name: 'sales', engine: 'simulator', start: true, expiryDays: 30 },
  })
  return { id, workspaceId, fence: 0 }
}

const group = '120363041234567890@g.us'
const people = ['12025550101@c.us', '12025550102@c.us', '88001@lid'] as const

/** What WhatsApp tells of message number `n`; of the same number it is the same message. */
function received(n: number, more: Partial<Received> = {}): Received {
  const fromMe = n % 5 === 4
  const inGroup = n % 3 === 2
  const waChatId = inGroup ? group : people[n % people.length]!
  return {
    ...{ fromMe, waChatId, keyId: `3A${n}`, waMessageId: `${fromMe}_${waChatId}_3A${n}` },
    participant: inGroup && !fromMe ? people[n % 2]! : '',
    ...{ type: 'text', body: `number ${n}`, timestamp: 1_700_000_000 + (n >> 2), ack: 1 },
    senderName: n % 4 === 3 ? null : `Name ${n % 6}`,
    chatName: inGroup && n % 2 === 0 ? `Group ${n % 4}` : null,
    ...more,
  }
}

const placeholder = (n: number) => received(n, { type: 'unknown', body: null, pending: true })
const answer = (n: number) =>
  received(n, { quoted: { fromMe: (n - 1) % 5 === 4, id: `3A${n - 1}` } })
const word = (n: number) => received(n, { body: n % 2 ? 'Stop.' : 'start' })
const old = (n: number) => received(n, { source: 'history' })

/** What can be seen of a workspace, without what is different in each. */
async function stateOf({ workspaceId }: { workspaceId: string }) {
  return {
    messages: await sql`
      select m.wa_key_id, c.wa_chat_id, m.type, m.body, m.source, m.direction, m.status, m.ack, m.author_wa_id, m.author_name, q.wa_key_id as quoted
      from messages m join chats c on c.id = m.chat_id left join messages q on q.id = m.quoted_message_id
      where m.workspace_id = ${workspaceId} order by m.created_at, m.seq`,
    chats: await sql`
      select c.wa_chat_id, c.name, c.unread_count, c.last_message_at, m.wa_key_id as last, c.last_inbound_at, c.contacted_at, k.wa_id
      from chats c left join messages m on m.id = c.last_message_id left join contacts k on k.id = c.contact_id
      where c.workspace_id = ${workspaceId} order by c.wa_chat_id`,
    contacts: await sql`
      select wa_id, push_name, push_name_at, opted_out from contacts where workspace_id = ${workspaceId} order by wa_id`,
    told: await sql`
      select type, payload->>'waMessageId' as message from events
      where workspace_id = ${workspaceId} and type like 'message%' order by message, id`,
  }
}

void t.test('messages stored together are as if stored one by one', async () => {
  const report = fc
    .tuple(fc.constantFrom(received, received, placeholder, answer, word, old), fc.nat(20))
    .map(([make, n]) => make(n))
  await fc.assert(
    fc.asyncProperty(fc.array(report, { minLength: 1, maxLength: 40 }), async (reports) => {
      const [together, apart] = [await rig(), await rig()]
      const ids = await storeAllReceived(sql, together, reports)
      const single: (string | undefined)[] = []
      for (const one of reports) single.push(await storeReceived(sql, apart, one))
      t.same(await stateOf(together), await stateOf(apart))
      t.same(
        ids.map((id) => id !== undefined),
        single.map((id) => id !== undefined),
      )
    }),
    { numRuns: 30, endOnFailure: true },
  )
})

void t.test('many messages cost hardly more statements than one', async (t) => {
  const count = async (messages: Received[]) => {
    let statements = 0
    const counted = (inner: Sql): Sql =>
      Object.assign(
        (...args: Parameters<Sql>) => {
          statements += 1
          return inner(...args)
        },
        {
          begin: (work: Parameters<Sql['begin']>[0]) =>
            inner.begin((tx) =>
              work(Object.assign(counted(tx), { ahead: tx.ahead, final: tx.final })),
            ),
          nudge: (channel: Parameters<Sql['nudge']>[0]) => inner.nudge(channel),
          last: inner.last,
        },
      ) as Sql
    await storeAllReceived(counted(sql), await rig(), messages)
    return statements
  }
  const one = await count([received(0)])
  t.ok(one < 20, `${one}`)
  t.equal(await count(Array.from({ length: 100 }, (_, n) => received(n))), one)
})

void t.test(
  'sessions of one workspace that hear the same people at once do not wait for ever',
  async (t) => {
    const first = await rig()
    const sessions = [first]
    for (const name of ['b', 'c', 'd']) {
      const { workspaceId } = first
      const { id } = await createSession(sql, {
        ...{ workspaceId, name, engine: 'simulator', start: true, expiryDays: 30 },
      })
      sessions.push({ ...first, id })
    }
    const many = Array.from({ length: 40 }, (_, n) => received(n))
    await Promise.all(
      sessions.flatMap((session, n) =>
        [0, 1, 2].map((part) => {
          const own = many.filter((_, index) => index % 3 === part)
          return storeAllReceived(sql, session, n % 2 ? own : own.toReversed())
        }),
      ),
    )
    const rows = await sql`select from messages where workspace_id = ${first.workspaceId}`
    t.equal(rows.length, 4 * 40)
  },
)

const reactionTo = (n: number) => {
  const { fromMe, waChatId: chatId, keyId: id, participant } = received(n)
  const target = { fromMe, chatId, id, participant }
  return { target, emoji: '👍', waId: chatId, fromMe: false, at: new Date() }
}

void t.test('a change that is told while its message is being stored is made', async (t) => {
  const session = await rig()
  let change: Promise<string | undefined> | undefined
  const id = await sql.begin(async (tx) => {
    const stored = await storeReceived(tx, session, received(1))
    change = recordReaction(sql, session, reactionTo(1))
    await until('it waits for the message', async () => {
      const waiting = await sql`select from pg_locks where locktype = 'advisory' and not granted`
      return waiting.length === 1
    })
    return stored
  })
  t.equal(await change, id)
  t.same(await sql`select from early_changes where session_id = ${session.id}`, [])
})

void t.test('a change no message comes for is kept once, and for a week', async (t) => {
  const session = await rig()
  const kept = () => sql`select from early_changes where session_id = ${session.id}`
  for (let n = 0; n < 3; n++) t.equal(await recordReaction(sql, session, reactionTo(1)), undefined)
  await removeExpired(sql)
  t.equal((await kept()).length, 1)
  await sql`update early_changes set created_at = now() - interval '8 days'`
  await removeExpired(sql)
  t.equal((await kept()).length, 0)
})

void t.test('acks beyond those that are told of are stored as what they come to', async (t) => {
  const session = await rig()
  const acks = [-7, -1, 0, 4, 5]
  for (const [n, ack] of acks.entries()) {
    const more = { fromMe: true, keyId: `3AACK${n}`, participant: '', ack }
    await storeReceived(sql, session, received(n, more))
  }
  t.strictSame(
    await sql`select ack, status from messages where workspace_id = ${session.workspaceId} order by wa_key_id`,
    [
      { ack: -1, status: 'failed' },
      { ack: -1, status: 'failed' },
      { ack: 0, status: 'sending' },
      { ack: 4, status: 'played' },
      { ack: 1, status: 'sent' },
    ],
  )
})
