import t from 'tap'
import { findChat, markRead } from '../chats.ts'
import { appendEvents } from '../events.ts'
import { storeReceived } from '../inbox.ts'
import { listen } from '../listener.ts'
import { createLogger } from '../logger.ts'
import { findMessage, messageResource } from '../messages.ts'
import { accept } from '../outbound.ts'
import type { NewMessage } from '../outbound.ts'
import { retry } from '../waiting-messages.ts'
import { cancelQueued } from '../outbox.ts'
import { createSession } from '../wa-sessions.ts'
import { createWorkspace } from '../workspaces.ts'
import { testDb } from './db.ts'
import { until } from './until.ts'

const { sql, url } = await testDb(t)
const log = createLogger('test', { level: 'fatal', stdout: false })

async function given() {
  const workspaceId = await createWorkspace(sql, 'Test')
  const session = { workspaceId, name: 'Sales', engine: 'simulator' as const, start: false }
  const { id: sessionId } = await createSession(sql, { ...session, expiryDays: 30 })
  const told = () => sql<{ type: string; payload: Record<string, unknown> }>`
    select type, payload from events where workspace_id = ${workspaceId} order by tx, id`
  return { workspaceId, sessionId, told }
}

const asJson = (value: object) => JSON.parse(JSON.stringify(value)) as Record<string, unknown>

void t.test('readers are nudged when it is committed, and only then', async (t) => {
  const { workspaceId, sessionId } = await given()
  let nudges = 0
  const listener = listen(url, ['awfar_events'], () => (nudges += 1), log)
  t.teardown(() => listener.close())
  await until('it listens', () => nudges === 1)
  const write = (tx: typeof sql | Parameters<Parameters<typeof sql.begin>[0]>[0]) =>
    appendEvents(tx, [{ workspaceId, sessionId, type: 'message', payload: {} }])
  const failing = sql.begin(async (tx) => {
    await write(tx)
    throw new Error('rolled back')
  })
  await t.rejects(failing, { message: 'rolled back' })
  await sql.begin(async (tx) => {
    await write(tx)
    // Whatever was sent before the commit is heard before this.
    await sql`select pg_notify('awfar_events', 'other')`
    await until('the other one', () => nudges >= 2)
    t.equal(nudges, 2, 'nothing but that')
  })
  await until('the nudge', () => nudges === 3)
})

void t.test('what is accepted is answered, and told, as it is read afterwards', async (t) => {
  const { workspaceId, sessionId, told } = await given()
  const [{ id: sentBy }] = (await sql`
    insert into profiles (workspace_id, email, full_name, role, password_hash)
    values (${workspaceId}, 'ann@example.com', 'Ann', 'agent', '') returning id`) as [
    { id: string },
  ]
  const [{ id: mediaId }] = (await sql`
    insert into media (workspace_id, kind, mime_type, size, filename)
    values (${workspaceId}, 'image', 'image/png', 12, 'a.png') returning id`) as [{ id: string }]
  const submit = async (messages: NewMessage[], by: string | null) => {
    const submission = { workspaceId, sessionId, sentBy: by, requestId: 'r', messages }
    const outcomes = await accept(sql, submission)
    return outcomes.flatMap((outcome) => ('message' in outcome ? [outcome.message] : []))
  }
  const waChatId = '12025550100@c.us'
  const [first] = await submit([{ waChatId, content: { type: 'text', body: 'Hello' } }], null)
  const accepted = await submit(
    [
      {
        ...{ waChatId, content: { type: 'text', body: 'ö "\\' }, mentions: ['1@c.us'] },
        quotedMessageId: first!.id,
      },
      { waChatId, content: { type: 'location', latitude: 1.5, longitude: -2e-7, name: 'Here' } },
      { waChatId, content: { type: 'contact', name: 'Bob', phone: '+12025550101' } },
      {
        ...{ waChatId: '1-2@g.us', sendAt: new Date(Date.now() + 60_000) },
        content: { type: 'poll', question: 'Now?', options: ['Yes', 'No'], multiple: false },
      },
      {
        waChatId,
        content: { type: 'image', mediaId, caption: 'A', mimeType: 'image/png', filename: 'a.png' },
      },
    ],
    sentBy,
  )
  t.equal(accepted.length, 5)
  t.match(accepted[4], { media: { id: mediaId, filename: 'a.png', status: 'pending' } })
  t.match(accepted[3], {
    heldBy: 'SCHEDULED',
    notBefore: accepted[3]!.sendAt!.toISOString(),
  })
  t.match(accepted[0], { sentBy: { id: sentBy, fullName: 'Ann' }, heldBy: /^SESSION_/ })
  const events = await told()
  for (const [i, message] of [first!, ...accepted].entries()) {
    const read = asJson(messageResource((await findMessage(sql, workspaceId, message.id))!))
    t.strictSame(asJson(message), read, `${message.type}, answered`)
    t.strictSame(events[i], { type: 'message.any', payload: read }, `${message.type}, told`)
  }
})

void t.test(
  'what is accepted, cancelled and queued again is told, each as it is then',
  async (t) => {
    const { workspaceId, sessionId, told } = await given()
    const content = { type: 'text' as const, body: 'Hello' }
    const outcomes = await accept(sql, {
      ...{ workspaceId, sessionId, sentBy: null, requestId: 'r' },
      messages: ['1@c.us', '2@c.us'].map((waChatId) => ({ waChatId, content })),
    })
    const accepted = outcomes.flatMap((outcome) => ('message' in outcome ? [outcome.message] : []))
    await cancelQueued(sql, sessionId)
    const again = (await retry(sql, workspaceId, accepted[0]!.id))!
    const cancelled = (await findMessage(sql, workspaceId, accepted[1]!.id))!
    t.strictSame(await told(), [
      ...accepted.map((message) => ({ type: 'message.any', payload: asJson(message) })),
      {
        type: 'message.ack',
        payload: { ...asJson(accepted[0]!), status: 'cancelled', heldBy: null },
      },
      { type: 'message.ack', payload: asJson(messageResource(cancelled)) },
      { type: 'message.ack', payload: asJson(messageResource(again)) },
    ])
  },
)

void t.test(
  'a chat is told as the API answers it: when somebody writes, and when it is read',
  async (t) => {
    const { workspaceId, sessionId, told } = await given()
    const session = { id: sessionId, workspaceId, fence: 0 }
    const id = await storeReceived(sql, session, {
      ...{ fromMe: false, waChatId: '12025550100@c.us', keyId: 'K1', participant: '' },
      ...{ waMessageId: 'false_12025550100@c.us_K1', type: 'text', body: 'Hi', ack: 0 },
      ...{ timestamp: Math.floor(Date.now() / 1_000), senderName: 'Ann', chatName: null },
    })
    const { chatId, ...message } = (await findMessage(sql, workspaceId, id!))!
    const unread = (await findChat(sql, workspaceId, chatId))!
    t.equal(unread.unreadCount, 1)
    const payload = asJson(messageResource({ ...message, chatId }))
    t.strictSame(await told(), [
      { type: 'message', payload },
      { type: 'message.any', payload },
      { type: 'chat.updated', payload: asJson(unread) },
    ])

    await sql.begin((tx) => markRead(tx, workspaceId, chatId))
    t.strictSame((await told()).at(-1), {
      type: 'chat.updated',
      payload: asJson({ ...unread, unreadCount: 0 }),
    })
  },
)
