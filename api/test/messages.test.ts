import t from 'tap'
import { randomUUID } from 'node:crypto'
import { matchWhole } from '../../shared/test/match.ts'
import { errorShape, signIn, signInWithSession, testApp } from './app.ts'

const it = await testApp(t)
const withSession = (name?: string) => signInWithSession(it, name)

const rows = async () => {
  const [counts] = await it.sql<Record<string, number>>`
    select (select count(*) from messages) as messages, (select count(*) from outbox) as outbox,
      (select count(*) from chats) as chats, (select count(*) from contacts) as contacts`
  return counts
}

void t.test('a text is accepted, stored whole and announced to the workers', async (t) => {
  const { call, sessionId, profile } = await withSession()
  it.nudges.length = 0

  const sent = await it.app.inject({
    method: 'POST',
    url: '/api/whatsapp/send',
    headers: {
      authorization: `Bearer ${it.app.signAccessToken(profile.id, randomUUID())}`,
      'x-request-id': 'order-42',
    },
    body: { to: '+1 234 567-890', message: 'Hello 👋' },
  })

  t.equal(sent.statusCode, 202)
  t.strictSame(sent.json(), {
    id: sent.json<{ id: string }>().id,
    sessionId,
    chatId: sent.json<{ chatId: string }>().chatId,
    waChatId: '1234567890@c.us',
    waMessageId: null,
    direction: 'outbound',
    source: 'api',
    type: 'text',
    body: 'Hello 👋',
    location: null,
    contactCard: null,
    poll: null,
    mentions: [],
    media: null,
    status: 'queued',
    ack: null,
    error: null,
    attempts: 0,
    notBefore: null,
    heldBy: 'SESSION_STOPPED',
    sendAt: null,
    quotedMessageId: null,
    author: null,
    sentBy: { id: profile.id, fullName: 'Ada Lovelace' },
    reactions: [],
    actions: [],
    editedAt: null,
    revokedAt: null,
    createdAt: sent.json<{ createdAt: string }>().createdAt,
    sentAt: null,
    deliveredAt: null,
    readAt: null,
  })
  t.strictSame(it.nudges, ['awfar_outbox'])
  const { id } = sent.json<{ id: string }>()
  matchWhole(t, await it.sql`select request_id, sent_by from messages where id = ${id}`, [
    { requestId: 'order-42', sentBy: profile.id },
  ])
  t.strictSame((await call('GET', `/api/messages/${id}`)).json(), sent.json())
})

void t.test('every way to write a recipient leads to the same chat', async (t) => {
  const { call } = await withSession()
  const chats = new Set<string>()
  for (const to of [
    '1234567890@c.us',
    '1234567890@s.whatsapp.net',
    '+1 234 567-890',
    '1234567890',
    '+1 (234) 567.890',
  ]) {
    const sent = await call('POST', '/api/whatsapp/send', { to, message: 'Hello' })
    t.match(sent.json(), { waChatId: '1234567890@c.us' }, to)
    chats.add(sent.json<{ chatId: string }>().chatId)
  }
  t.equal(chats.size, 1)
  for (const to of ['120363041234567890@g.us', '123456789012345@lid']) {
    const sent = await call('POST', '/api/whatsapp/send', { to, message: 'Hello' })
    t.match(sent.json(), { waChatId: to }, to)
  }
})

void t.test(
  'what cannot be sent is refused with every fault named, and nothing is written',
  async (t) => {
    const { call } = await withSession()
    const before = await rows()
    const refused: [string, object, string[]][] = [
      ['nothing', {}, ['body.to', 'body']],
      ['a word as recipient', { to: 'Ada', message: 'x' }, ['body.to']],
      ['too short a number', { to: '123', message: 'x' }, ['body.to']],
      ['a number that is no string', { to: 1234567890, message: 'x' }, ['body.to']],
      ['an empty text', { to: '1234567890', message: '' }, ['body.message']],
      ['blanks', { to: '1234567890', message: ' \n\t ' }, ['body.message']],
      ['NUL', { to: '1234567890', message: 'a\0b' }, ['body.message']],
      ['too long a text', { to: '1234567890', message: 'x'.repeat(65_537) }, ['body.message']],
      ['an unknown key', { to: '1234567890', message: 'x', text: 'y' }, ['body.text']],
      [
        'a wrong session id',
        { to: '1234567890', message: 'x', sessionId: '7' },
        ['body.sessionId'],
      ],
      [
        'everything',
        { to: 'Ada', message: ' ', sessionId: 7, a: 1, b: 2 },
        ['body.sessionId', 'body.to', 'body.message', 'body.a', 'body.b'],
      ],
    ]
    for (const [what, body, paths] of refused) {
      const answer = await call('POST', '/api/whatsapp/send', body)
      t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'), what)
      const { details } = answer.json<{ details: { path: string }[] }>()
      t.strictSame(
        details.map((fault) => fault.path),
        paths,
        what,
      )
    }
    t.strictSame(await rows(), before)
  },
)

void t.test('faults of query and body are named together', async (t) => {
  const { call } = await withSession()
  const answer = await call('POST', '/api/whatsapp/send?dry=1', { to: 'Ada', message: 'x' })
  t.match(answer.json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'query.dry' }, { path: 'body.to' }],
  })
})

void t.test('the longest text passes', async (t) => {
  const { call } = await withSession()
  const body = { to: '1234567890', message: '\u0001'.repeat(65_535) + 'x' }
  t.equal((await call('POST', '/api/whatsapp/send', body)).statusCode, 202)
})

void t.test(
  'without a session id the only session sends; none or several are told apart',
  async (t) => {
    const person = await signIn(it)
    const send = (more = {}) =>
      person.call('POST', '/api/whatsapp/send', { to: '1234567890', message: 'x', ...more })
    const create = async (name: string) =>
      (await person.call('POST', '/api/whatsapp/sessions', { name, start: false })).json<{
        id: string
      }>().id

    t.match((await send()).json(), errorShape(422, 'NO_SESSION'))
    const first = await create('one')
    t.match((await send()).json(), { sessionId: first, heldBy: 'SESSION_STOPPED' })
    const second = await create('two')
    t.match((await send()).json(), errorShape(422, 'SESSION_REQUIRED'))
    t.match((await send({ sessionId: second })).json(), { sessionId: second })

    await person.call('DELETE', `/api/whatsapp/sessions/${first}`)
    t.match((await send()).json(), { sessionId: second }, 'deleted sessions do not count')
    t.match((await send({ sessionId: first })).json(), errorShape(404, 'NOT_FOUND'))
    t.match((await send({ sessionId: randomUUID() })).json(), errorShape(404, 'NOT_FOUND'))
  },
)

void t.test('a message that does not exist is 404, an id that is none is 400', async (t) => {
  const { call } = await signIn(it)
  t.match((await call('GET', `/api/messages/${randomUUID()}`)).json(), errorShape(404, 'NOT_FOUND'))
  t.match((await call('GET', '/api/messages/7')).json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'params.id' }],
  })
})

void t.test('chats are listed with their last message, the latest first', async (t) => {
  const { call, sessionId } = await withSession()
  const other = await call('POST', '/api/whatsapp/sessions', { name: 'Other' })
  const { id: otherId } = other.json<{ id: string }>()
  const send = (session: string, to: string, message: string) =>
    call('POST', '/api/whatsapp/send', { sessionId: session, to, message })
  for (const [to, text] of [
    ['1111111', 'a'],
    ['2222222', 'b'],
    ['3333333', 'c'],
    ['1111111', 'd'],
  ] as const) {
    await send(sessionId, to, text)
  }
  await send(otherId, '1111111', 'e')

  type List = {
    data: { id: string; waChatId: string; lastMessage: { body: string } }[]
    nextCursor: string
  }
  const list = async (query = '') => (await call('GET', `/api/chats${query}`)).json<List>()
  const bodies = ({ data }: List) => data.map((chat) => chat.lastMessage.body)

  t.strictSame(bodies(await list()), ['e', 'd', 'c', 'b'])
  t.strictSame(bodies(await list(`?sessionId=${sessionId}`)), ['d', 'c', 'b'])
  t.strictSame(bodies(await list('?unread=true')), [])
  t.strictSame(bodies(await list('?unread=false&archived=false')), ['e', 'd', 'c', 'b'])
  await it.sql`update chats set unread_count = 2, archived = true where session_id = ${otherId}`
  t.strictSame(bodies(await list('?unread=true')), ['e'])
  t.strictSame(bodies(await list('?archived=true')), ['e'])

  const first = await list('?limit=3')
  t.strictSame(bodies(first), ['e', 'd', 'c'])
  const second = await list(`?limit=3&cursor=${first.nextCursor}`)
  t.strictSame(bodies(second), ['b'])
  t.equal(second.nextCursor, null)

  const [newest] = first.data
  const chat = (await call('GET', `/api/chats/${newest!.id}`)).json<{ labels: unknown }>()
  t.strictSame(chat.labels, [])
  t.match(chat, {
    id: newest!.id,
    sessionId: otherId,
    waChatId: '1111111@c.us',
    name: '+1111111',
    isGroup: false,
    contactId: String,
    unreadCount: 2,
    lastMessage: { body: 'e', type: 'text', direction: 'outbound', status: 'queued' },
    archived: true,
    assignee: null,
  })
})

void t.test('the messages of a chat are paged by cursor or by offset', async (t) => {
  const { call } = await withSession()
  let chatId = ''
  for (const message of ['1', '2', '3', '4', '5']) {
    const sent = await call('POST', '/api/whatsapp/send', { to: '1234567890', message })
    ;({ chatId } = sent.json<{ chatId: string }>())
  }
  type List = { data: { body: string }[]; nextCursor: string | null }
  const list = async (query = '') =>
    (await call('GET', `/api/chats/${chatId}/messages${query}`)).json<List>()
  const bodies = ({ data }: List) => data.map((message) => message.body).join('')

  t.equal(bodies(await list()), '54321')
  t.equal(bodies(await list('?limit=2&offset=1')), '43')
  let read = ''
  let cursor: string | null = ''
  while (cursor !== null) {
    const page: List = await list(`?limit=2${cursor && `&cursor=${cursor}`}`)
    read += bodies(page)
    cursor = page.nextCursor
  }
  t.equal(read, '54321')
})

void t.test('wrong queries are refused', async (t) => {
  const { call } = await withSession()
  const sent = await call('POST', '/api/whatsapp/send', { to: '1234567890', message: 'x' })
  const { chatId } = sent.json<{ chatId: string }>()
  const cursor = Buffer.from('["2026-01-01 00:00:00+00","1"]').toString('base64url')
  for (const [url, path] of [
    ['/api/chats?limit=0', 'query.limit'],
    ['/api/chats?limit=201', 'query.limit'],
    ['/api/chats?limit=1.5', 'query.limit'],
    ['/api/chats?limit=ten', 'query.limit'],
    ['/api/chats?limit=1&limit=2', 'query.limit'],
    ['/api/chats?cursor=nonsense', 'query.cursor'],
    [`/api/chats?cursor=${cursor}`, 'query.cursor'],
    ['/api/chats?unread=perhaps', 'query.unread'],
    ['/api/chats?sessionId=1', 'query.sessionId'],
    ['/api/chats?colour=red', 'query.colour'],
    ['/api/chats/1', 'params.id'],
    [`/api/chats/${chatId}/messages?offset=-1`, 'query.offset'],
    [`/api/chats/${chatId}/messages?offset=1&cursor=${cursor}`, 'query'],
    ['/api/auth/me?x=1', 'query.x'],
  ] as const) {
    const answer = await call('GET', url)
    t.match(answer.json(), { ...errorShape(400, 'VALIDATION_FAILED'), details: [{ path }] }, url)
  }
  t.equal(
    (await call('GET', `/api/chats/${chatId}/messages?limit=200&cursor=${cursor}`)).statusCode,
    200,
  )
  for (const at of [
    '0000-01-01 00:00:00+00',
    '2026-02-30 00:00:00+00',
    '2026-04-31 00:00:00+00',
    '2026-01-01 00:00:00+16',
    '2026-01-01 00:00:00-23:59',
    '2026-13-01 00:00:00+00',
  ]) {
    const forged = Buffer.from(JSON.stringify([at, '1'])).toString('base64url')
    const answer = await call('GET', `/api/chats/${chatId}/messages?cursor=${forged}`)
    t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'), at)
  }
})
