import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Chat } from '../../shared/chats.ts'
import { connect } from '../../shared/db.ts'
import type { Label } from '../../shared/labels.ts'
import type { Message } from '../../shared/messages.ts'
import type { Note } from '../../shared/notes.ts'
import { untilLocked } from '../../shared/test/locks.ts'
import { matchWhole } from '../../shared/test/match.ts'
import { errorShape, signIn, testApp } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)

/** A team with a session, and a chat with one message. */
async function team() {
  const owner = await signIn(it)
  const agent = await signIn(it, { role: 'agent', workspaceId: owner.workspaceId })
  const session = await owner.call('POST', '/api/whatsapp/sessions', { name: 'Sales' })
  const sessionId = session.json<{ id: string }>().id
  const first = await send(owner, 'Hello')
  return { ...owner, owner, agent, sessionId, chatId: first.chatId, first }
}

const send = async ({ call }: Person, message: string, to = '1234567890', more = {}) =>
  (await call('POST', '/api/whatsapp/send', { to, message, ...more })).json<Message>()

const readChat = async ({ call }: Person, id: string) =>
  (await call('GET', `/api/chats/${id}`)).json<Chat>()

type List<T> = { data: T[]; nextCursor: string | null }
const listed = async <T>({ call }: Person, url: string) => (await call('GET', url)).json<List<T>>()
const ids = (list: { data: { id: string }[] }) => list.data.map(({ id }) => id)

/** What was told of chats. */
const told = (workspaceId: string) =>
  it.sql<{ payload: Chat }>`
    select payload from events where workspace_id = ${workspaceId} and type = 'chat.updated' order by id`

/** A message comes in, as a worker writes it. */
async function receive(chatId: string, body: string) {
  const [row] = await it.sql<{ id: string }>`
    with m as (
      insert into messages (workspace_id, session_id, chat_id, direction, source, type, body, status, created_at)
      select workspace_id, session_id, id, 'inbound', 'live', 'text', ${body}, 'received', clock_timestamp() from chats where id = ${chatId}
      returning *)
    update chats c set last_message_id = m.id, last_message_at = m.created_at, unread_count = unread_count + 1, archived = false
    from m where c.id = m.chat_id returning m.id`
  return row!.id
}

void t.test('a chat is archived until it goes on', async (t) => {
  const { owner, chatId, workspaceId } = await team()
  const archived = await owner.call('PATCH', `/api/chats/${chatId}`, { archived: true })
  t.match(archived.json(), { id: chatId, archived: true, assignee: null })
  t.strictSame(archived.json<Chat>(), await readChat(owner, chatId))
  t.strictSame(ids(await listed(owner, '/api/chats?archived=true')), [chatId])
  t.strictSame(ids(await listed(owner, '/api/chats?archived=false')), [])
  matchWhole(
    t,
    await told(workspaceId),
    [{ payload: archived.json<Chat>() }],
    'told as the API answers it',
  )
  await send(owner, 'One more thing')
  t.equal((await readChat(owner, chatId)).archived, false)
  for (const body of [{}, { archived: 1 }, { archived: true, name: 'x' }, { assigneeId: 'x' }]) {
    const answer = await owner.call('PATCH', `/api/chats/${chatId}`, body)
    t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'))
  }
  const gone = await owner.call('PATCH', `/api/chats/${randomUUID()}`, { archived: true })
  t.match(gone.json(), errorShape(404, 'NOT_FOUND'))
})

void t.test('a chat is assigned to one of the team, and to nobody when they leave', async (t) => {
  const { owner, agent, chatId, workspaceId } = await team()
  const stranger = await signIn(it)
  const other = (await send(owner, 'x', '2222222')).chatId
  const assign = (assigneeId: string | null, by: Person = agent) =>
    by.call('PATCH', `/api/chats/${chatId}`, { assigneeId })

  const assigned = await assign(agent.profile.id)
  t.strictSame(assigned.json<Chat>().assignee, { id: agent.profile.id, fullName: 'Ada Lovelace' })
  t.strictSame(ids(await listed(agent, '/api/chats?assignee=me')), [chatId])
  t.strictSame(ids(await listed(owner, '/api/chats?assignee=me')), [])
  t.strictSame(ids(await listed(owner, `/api/chats?assignee=${agent.profile.id}`)), [chatId])
  t.strictSame(ids(await listed(owner, '/api/chats?assignee=none')), [other])
  t.match((await assign(stranger.profile.id)).json(), errorShape(404, 'NOT_FOUND'))
  t.match((await assign(randomUUID())).json(), errorShape(404, 'NOT_FOUND'))
  t.match(await readChat(owner, chatId), { assignee: { id: agent.profile.id } })

  t.equal((await assign(null)).json<Chat>().assignee, null)
  await assign(agent.profile.id)
  const before = (await told(workspaceId)).length
  t.equal((await owner.call('DELETE', `/api/users/${agent.profile.id}`)).statusCode, 204)
  t.equal((await readChat(owner, chatId)).assignee, null)
  matchWhole(t, (await told(workspaceId)).slice(before), [
    { payload: { id: chatId, assignee: null } },
  ])
})

void t.test('assigning to somebody who is being removed ends one way or the other', async (t) => {
  const { owner, chatId, workspaceId } = await team()
  for (let round = 0; round < 20; round++) {
    const leaver = await signIn(it, { role: 'agent', workspaceId })
    const [assigned, removed] = await Promise.all([
      owner.call('PATCH', `/api/chats/${chatId}`, { assigneeId: leaver.profile.id }),
      owner.call('DELETE', `/api/users/${leaver.profile.id}`),
    ])
    t.ok([200, 404].includes(assigned.statusCode), assigned.body)
    t.equal(removed.statusCode, 204, removed.body)
    t.equal((await readChat(owner, chatId)).assignee, null)
  }
})

void t.test('what was seen is read at once, and told to WhatsApp when it can be', async (t) => {
  const { owner, chatId, workspaceId } = await team()
  await receive(chatId, 'one')
  await receive(chatId, 'two')
  t.equal((await readChat(owner, chatId)).unreadCount, 2)
  t.strictSame(ids(await listed(owner, '/api/chats?unread=true')), [chatId])
  t.equal((await owner.call('POST', `/api/chats/${chatId}/seen`)).statusCode, 202)
  t.equal((await readChat(owner, chatId)).unreadCount, 0)
  matchWhole(t, await told(workspaceId), [
    { payload: { id: chatId, unreadCount: 0, lastMessage: { body: 'two' } } },
  ])
  matchWhole(t, await it.sql`select kind, done_at from wa_actions where chat_id = ${chatId}`, [
    { kind: 'seen', doneAt: null },
  ])
  await owner.call('POST', `/api/chats/${chatId}/seen`)
  t.equal((await told(workspaceId)).length, 1, 'nothing changed')
})

void t.test('chats are found by name and by number', async (t) => {
  const { owner, chatId } = await team()
  const group = (await send(owner, 'x', '120363041234567890@g.us')).chatId
  await it.sql`update chats set name = 'Équipe 100%_A' where id = ${group}`
  await it.sql`update contacts set name = 'José Núñez' where id = (select contact_id from chats where id = ${chatId})`
  const found = async (part: string) =>
    ids(await listed(owner, `/api/chats?search=${encodeURIComponent(part)}`))
  for (const part of ['josé', 'NÚÑEZ', 'sé n', '+1 234 567', '(234) 567-890', '7890']) {
    t.ok((await found(part)).includes(chatId), part)
  }
  for (const part of ['équipe', '100%', '%_a']) t.strictSame(await found(part), [group], part)
  for (const part of ['%', '_']) t.strictSame(await found(part), [group], part)
  for (const part of ['nobody', '999999', '\\', 'a%b']) t.strictSame(await found(part), [], part)
})

void t.test('a chat that moves while pages are read costs no other chat its place', async (t) => {
  const { owner } = await team()
  const chats: string[] = []
  for (let i = 0; i < 9; i++) chats.push((await send(owner, 'x', `222222${i}`)).chatId)
  const first = await listed<Chat>(owner, '/api/chats?limit=4')
  await receive(chats[1]!, 'I was on a later page')
  const rest = await listed<Chat>(owner, `/api/chats?limit=100&cursor=${first.nextCursor}`)
  const read = [...ids(first), ...ids(rest)]
  t.equal(new Set(read).size, read.length, 'none twice')
  t.strictSame(
    [chats[0], ...chats.slice(2)].filter((id) => !read.includes(id!)),
    [],
    'none missing but the one that moved',
  )
  t.equal((await listed<Chat>(owner, '/api/chats')).data[0]?.id, chats[1])
})

void t.test(
  'messages of one instant, and of neighbouring microseconds, are each read once',
  async (t) => {
    const { owner, chatId } = await team()
    await it.sql`
    insert into messages (workspace_id, session_id, chat_id, direction, source, type, body, status, created_at)
    select workspace_id, session_id, id, 'inbound', 'live', 'text', n::text, 'received',
      '2026-01-01 10:00:00.000001Z'::timestamptz + (n / 3) * interval '1 microsecond'
    from chats, generate_series(1, 50) n where id = ${chatId}`
    const read: string[] = []
    let cursor = ''
    do {
      const page = await listed<Message>(
        owner,
        `/api/chats/${chatId}/messages?limit=7${cursor && `&cursor=${cursor}`}`,
      )
      read.push(...page.data.map(({ body }) => body!))
      cursor = page.nextCursor ?? ''
    } while (cursor !== '')
    t.strictSame(read, ['Hello', ...Array.from({ length: 50 }, (_, i) => String(50 - i))])
  },
)

void t.test('an offset goes so far and no further', async (t) => {
  const { owner, chatId } = await team()
  t.equal((await owner.call('GET', `/api/chats/${chatId}/messages?offset=10000`)).statusCode, 200)
  const refused = await owner.call('GET', `/api/chats/${chatId}/messages?offset=10001`)
  t.match(refused.json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'query.offset', message: /"cursor"/ }],
  })
})

void t.test('labels are made by admins, and put on chats by everybody', async (t) => {
  const { owner, agent, chatId, workspaceId } = await team()
  const make = async (body: object) => owner.call('POST', '/api/labels', body)
  const urgent = (await make({ name: 'Urgent', color: '#ff0000' })).json<Label>()
  t.strictSame(Object.keys(urgent), ['id', 'name', 'color'])
  const billing = (await make({ name: 'billing' })).json<Label>()
  t.match(billing.color, /^#[0-9a-f]{6}$/)
  t.match((await make({ name: 'URGENT' })).json(), errorShape(409, 'NAME_TAKEN'))
  for (const body of [{}, { name: ' ' }, { name: 'x', color: 'red' }, { name: 'x'.repeat(61) }]) {
    t.match((await make(body)).json(), errorShape(400, 'VALIDATION_FAILED'))
  }
  t.equal((await agent.call('POST', '/api/labels', { name: 'x' })).statusCode, 403)
  t.strictSame((await listed<Label>(agent, '/api/labels')).data, [billing, urgent])

  const put = (labelIds: string[]) => agent.call('PUT', `/api/chats/${chatId}/labels`, { labelIds })
  t.strictSame((await put([urgent.id, billing.id])).json<Chat>().labels, [billing, urgent])
  t.strictSame((await put([urgent.id])).json<Chat>().labels, [urgent])
  t.strictSame((await readChat(agent, chatId)).labels, [urgent])
  matchWhole(t, (await told(workspaceId)).at(-1), { payload: { id: chatId, labels: [urgent] } })
  t.match((await put([billing.id, randomUUID()])).json(), errorShape(404, 'NOT_FOUND'))
  t.match((await put([urgent.id, urgent.id])).json(), errorShape(400, 'VALIDATION_FAILED'))
  t.strictSame((await readChat(agent, chatId)).labels, [urgent], 'all of it or nothing')
  t.strictSame(ids(await listed(agent, `/api/chats?label=${urgent.id}`)), [chatId])
  t.strictSame(ids(await listed(agent, `/api/chats?label=${billing.id}`)), [])

  const renamed = await owner.call('PATCH', `/api/labels/${urgent.id}`, { name: 'Very urgent' })
  t.strictSame(renamed.json(), { ...urgent, name: 'Very urgent' })
  t.match(
    (await owner.call('PATCH', `/api/labels/${urgent.id}`, { name: 'Billing' })).json(),
    errorShape(409, 'NAME_TAKEN'),
  )
  matchWhole(t, await readChat(agent, chatId), { labels: [{ name: 'Very urgent' }] })
  t.equal((await owner.call('DELETE', `/api/labels/${urgent.id}`)).statusCode, 204)
  t.strictSame((await readChat(agent, chatId)).labels, [])
  t.equal((await owner.call('DELETE', `/api/labels/${urgent.id}`)).statusCode, 404)
  const log = await listed<{ action: string }>(owner, '/api/audit-log?targetType=label')
  t.strictSame(
    log.data.map(({ action }) => action),
    ['label.deleted', 'label.updated', 'label.created', 'label.created'],
  )
})

void t.test('labels that are put at the same time are those of one or of the other', async (t) => {
  const { owner, chatId } = await team()
  const made = await Promise.all(
    ['a', 'b', 'c', 'd'].map(async (name) =>
      (await owner.call('POST', '/api/labels', { name })).json<Label>(),
    ),
  )
  const [one, other] = [made.slice(0, 2), made.slice(2)].map((labels) => labels.map(({ id }) => id))
  for (let round = 0; round < 10; round++) {
    await Promise.all(
      [one, other].map((labelIds) =>
        owner.call('PUT', `/api/chats/${chatId}/labels`, { labelIds }),
      ),
    )
    const left = (await readChat(owner, chatId)).labels.map(({ id }) => id).join()
    t.ok([one!.join(), other!.join()].includes(left), left)
  }
})

void t.test('notes stay among colleagues', async (t) => {
  const { owner, agent, chatId } = await team()
  const url = `/api/chats/${chatId}/notes`
  const [{ outbox }] = (await it.sql<{
    outbox: number
  }>`select count(*) as outbox from outbox`) as [{ outbox: number }]
  const written = await agent.call('POST', url, { body: 'Wants a discount' })
  t.equal(written.statusCode, 201)
  const note = written.json<Note>()
  t.strictSame(note, {
    id: note.id,
    chatId,
    author: { id: agent.profile.id, fullName: 'Ada Lovelace' },
    body: 'Wants a discount',
    createdAt: note.createdAt,
    editedAt: null,
  })
  matchWhole(
    t,
    await it.sql`select count(*) as outbox from outbox`,
    [{ outbox }],
    'nothing is to be sent',
  )
  t.notMatch((await owner.call('GET', `/api/chats/${chatId}/messages`)).body, 'discount')
  await owner.call('POST', url, { body: 'No' })
  const first = await listed<Note>(owner, `${url}?limit=1`)
  matchWhole(t, first.data, [{ body: 'No' }])
  matchWhole(t, await listed<Note>(owner, `${url}?limit=1&cursor=${first.nextCursor}`), {
    data: [note],
    nextCursor: null,
  })

  const [theirs, others] = [`${url}/${note.id}`, `${url}/${first.data[0]!.id}`]
  t.match((await owner.call('PATCH', theirs, { body: 'x' })).json(), errorShape(403, 'FORBIDDEN'))
  t.match((await agent.call('DELETE', others)).json(), errorShape(403, 'FORBIDDEN'))
  const edited = (await agent.call('PATCH', theirs, { body: 'Wants 10 %' })).json<Note>()
  t.match(edited, { id: note.id, body: 'Wants 10 %', createdAt: note.createdAt, editedAt: String })
  t.equal((await owner.call('DELETE', theirs)).statusCode, 204, 'an owner tidies up')
  for (const method of ['PATCH', 'DELETE'] as const) {
    const again = await agent.call(method, theirs, method === 'PATCH' ? { body: 'x' } : undefined)
    t.match(again.json(), errorShape(404, 'NOT_FOUND'))
  }
  const kept = (await agent.call('POST', url, { body: 'Mine' })).json<Note>()
  await owner.call('DELETE', `/api/users/${agent.profile.id}`)
  t.match((await listed<Note>(owner, url)).data[0], { id: kept.id, author: null, body: 'Mine' })
})

void t.test('an answer to what is no longer the last message is not sent', async (t) => {
  const { owner, agent, chatId, first, sessionId } = await team()
  const post = (ifLastMessageId: string, more: object = {}, by: Person = agent, query = '') =>
    by.call('POST', `/api/whatsapp/send${query}`, {
      to: '1234567890',
      message: 'An answer',
      ifLastMessageId,
      ...more,
    })
  const counted = async () =>
    (await it.sql<{ count: number }>`select count(*) from messages where chat_id = ${chatId}`)[0]!
      .count

  const asked = await receive(chatId, 'Is it still available?')
  const before = await counted()
  const moved = await post(first.id)
  matchWhole(t, moved.json(), {
    ...errorShape(409, 'CONVERSATION_MOVED'),
    newerMessages: [{ id: asked, body: 'Is it still available?', direction: 'inbound' }],
  })
  t.equal(await counted(), before, 'nothing was written')
  const foreseen = await post(first.id, {}, agent, '?dryRun=true')
  matchWhole(t, foreseen.json(), { chatId, blockedBy: ['CONVERSATION_MOVED'] })
  t.strictSame(
    (await post(asked, {}, agent, '?dryRun=true')).json<{ blockedBy: string[] }>().blockedBy,
    [],
  )

  const answered = await post(asked)
  t.equal(answered.statusCode, 202)
  matchWhole(
    t,
    (await post(asked, {}, owner)).json(),
    {
      code: 'CONVERSATION_MOVED',
      newerMessages: [{ id: answered.json<Message>().id, sentBy: { id: agent.profile.id } }],
    },
    'a colleague was faster',
  )

  const elsewhere = await send(owner, 'x', '2222222')
  for (const [id, statusCode] of [
    [elsewhere.id, 422],
    [randomUUID(), 404],
  ] as const) {
    t.match((await post(id)).json(), errorShape(statusCode, 'LAST_MESSAGE_NOT_FOUND'))
    matchWhole(t, (await post(id, {}, agent, '?dryRun=true')).json(), {
      blockedBy: ['LAST_MESSAGE_NOT_FOUND'],
    })
  }
  t.match((await post('x')).json(), errorShape(400, 'VALIDATION_FAILED'))

  for (let i = 0; i < 25; i++) await receive(chatId, String(i))
  const { newerMessages } = (await post(asked)).json<{ newerMessages: Message[] }>()
  t.equal(newerMessages.length, 20, 'so many at most')
  t.equal(newerMessages[0]?.body, '24', 'the newest first')

  const bulk = await owner.call('POST', '/api/whatsapp/send/bulk', {
    sessionId,
    messages: [
      { to: '1234567890', message: 'a', ifLastMessageId: first.id },
      { to: '2222222', message: 'b', ifLastMessageId: elsewhere.id },
      { to: '2222222', message: 'c', ifLastMessageId: elsewhere.id },
      { to: '3333333', message: 'd' },
      { to: '3333333', message: 'e', ifLastMessageId: first.id },
    ],
  })
  matchWhole(t, bulk.json(), {
    accepted: 2,
    rejected: [
      { index: 0, code: 'CONVERSATION_MOVED' },
      { index: 2, code: 'CONVERSATION_MOVED' },
      { index: 4, code: 'LAST_MESSAGE_NOT_FOUND' },
    ],
  })
})

void t.test('of several who answer at once one is first', async (t) => {
  const { owner, agent, chatId } = await team()
  for (let round = 0; round < 10; round++) {
    const last = await receive(chatId, `question ${round}`)
    const answers = await Promise.all(
      [owner, agent, owner, agent, owner, agent].map(({ call }, i) =>
        call('POST', '/api/whatsapp/send', {
          to: '1234567890',
          message: `answer ${i}`,
          ifLastMessageId: last,
        }),
      ),
    )
    const codes = answers.map(({ statusCode }) => statusCode).sort()
    t.strictSame(codes, [202, 409, 409, 409, 409, 409])
    const winner = answers.find(({ statusCode }) => statusCode === 202)!.json<Message>()
    for (const answer of answers) {
      if (answer.statusCode === 202) continue
      matchWhole(t, answer.json(), { newerMessages: [{ id: winner.id }] })
    }
  }
})

void t.test(
  'a message that is committed while an answer waits for the chat is not passed over',
  async (t) => {
    const { agent, chatId, first } = await team()
    const other = connect(it.url, { applicationName: 'worker' })
    t.teardown(() => other.close())
    let arrived = ''
    let answer: ReturnType<Person['call']> | undefined
    await other.begin(async (tx) => {
      const [row] = await tx<{ id: string }>`
      with m as (
        insert into messages (workspace_id, session_id, chat_id, direction, source, type, body, status, created_at)
        select workspace_id, session_id, id, 'inbound', 'live', 'text', 'wait', 'received', clock_timestamp() from chats where id = ${chatId}
        returning *)
      update chats c set last_message_id = m.id, last_message_at = m.created_at from m where c.id = m.chat_id returning m.id`
      arrived = row!.id
      // It looks, sees nothing of this yet, and comes to stand at the lock of the chat.
      answer = agent.call('POST', '/api/whatsapp/send', {
        to: '1234567890',
        message: 'An answer',
        ifLastMessageId: first.id,
      })
      await untilLocked(it.sql)
    })
    matchWhole(t, (await answer)?.json(), {
      ...errorShape(409, 'CONVERSATION_MOVED'),
      newerMessages: [{ id: arrived, body: 'wait' }],
    })
    matchWhole(t, await it.sql`select count(*)::int as n from messages where chat_id = ${chatId}`, [
      { n: 2 },
    ])
  },
)
