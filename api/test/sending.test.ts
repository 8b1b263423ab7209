import { randomUUID } from 'node:crypto'
import t from 'tap'
import { matchWhole } from '../../shared/test/match.ts'
import { until } from '../../shared/test/until.ts'
import { errorShape, signInWithSession, testApp } from './app.ts'

const it = await testApp(t)
const withSession = () => signInWithSession(it)
const send = '/api/whatsapp/send'
const to = '+1 202 555 0101'

const working = (id: string) => it.sql`
  update wa_sessions set status = 'WORKING', owner = 'w', lease_until = now() + interval '1 hour' where id = ${id}`

interface Message {
  id: string
  chatId: string
  heldBy: string | null
}

void t.test('every kind is accepted and answered as it was given', async (t) => {
  const { call } = await withSession()
  const location = { latitude: 52.5, longitude: 13.4, name: 'Office', address: 'Main St 1' }
  const card = { name: 'Cleo', phone: '+49 (30) 1234-5678' }
  const poll = { question: 'When?', options: ['Mon', 'Tue'] }
  t.match((await call('POST', send, { to, location })).json(), {
    type: 'location',
    body: 'Office',
    location,
    poll: null,
  })
  t.match((await call('POST', send, { to, contactCard: card })).json(), {
    type: 'contact',
    contactCard: { name: 'Cleo', phone: '+493012345678' },
  })
  t.match((await call('POST', send, { to, poll })).json(), {
    type: 'poll',
    body: 'When?',
    poll: { ...poll, multiple: false },
  })
  const [contact] = await it.sql<{
    id: string
  }>`select id from contacts where wa_id = '12025550101@c.us'`
  t.match((await call('POST', send, { to, contactCard: { contactId: contact!.id } })).json(), {
    contactCard: { phone: '+12025550101' },
  })
  const first = (await call('POST', send, { to, message: 'Hi @49301234' })).json<Message>()
  matchWhole(
    t,
    (
      await call('POST', send, {
        to,
        message: 'Hi @49301234',
        quotedMessageId: first.id,
        mentions: ['+49 30 1234'],
      })
    ).json(),
    { quotedMessageId: first.id, mentions: ['49301234@c.us'] },
  )
})

void t.test('ids are told as they are, in whatever capitals they came', async (t) => {
  const { call, sessionId } = await withSession()
  const first = (await call('POST', send, { to, message: 'Hi' })).json<Message>()
  const shouted = {
    sessionId: sessionId.toUpperCase(),
    quotedMessageId: first.id.toUpperCase(),
    ifLastMessageId: first.id.toUpperCase(),
  }
  const answer = (await call('POST', send, { to, message: 'Hello?', ...shouted })).json<Message>()
  const told = { sessionId, quotedMessageId: first.id }
  t.match(answer, told)
  t.match((await call('GET', `/api/messages/${answer.id.toUpperCase()}`)).json(), answer)
  const [event] = await it.sql`select payload from events where payload ->> 'id' = ${answer.id}`
  t.match(event, { payload: told })
})

void t.test('what is wrong with a kind is named', async (t) => {
  const { call } = await withSession()
  const future = new Date(Date.now() + 3_600_000).toISOString()
  const refused: [string, object, string[]][] = [
    ['two contents', { to, message: 'x', poll: { question: 'q', options: ['a', 'b'] } }, ['body']],
    [
      'a place off the globe',
      { to, location: { latitude: 91, longitude: 181 } },
      ['body.location.latitude', 'body.location.longitude'],
    ],
    ['half a place', { to, location: { latitude: 1 } }, ['body.location.longitude']],
    ['a card without a number', { to, contactCard: { name: 'x' } }, ['body.contactCard']],
    [
      'a card of both sorts',
      { to, contactCard: { contactId: randomUUID(), name: 'x', phone: to } },
      ['body.contactCard'],
    ],
    ['a poll of one', { to, poll: { question: 'q', options: ['a'] } }, ['body.poll.options']],
    [
      'a poll of the same',
      { to, poll: { question: 'q', options: ['a', 'b', ' a'] } },
      ['body.poll.options.2'],
    ],
    [
      'a poll of numbers',
      { to, poll: { question: 'q', options: [1, 1] } },
      ['body.poll.options.0', 'body.poll.options.1'],
    ],
    [
      'a poll of thirteen',
      { to, poll: { question: 'q', options: [...'abcdefghijklm'] } },
      ['body.poll.options'],
    ],
    ['a mention that is none', { to, message: 'x', mentions: ['Ada'] }, ['body.mentions.0']],
    [
      'a time without its offset',
      { to, message: 'x', sendAt: '2099-01-01T10:00:00' },
      ['body.sendAt'],
    ],
    [
      'a time that does not exist',
      { to, message: 'x', sendAt: '2027-13-41T10:00:00Z' },
      ['body.sendAt'],
    ],
    [
      'a day that does not exist',
      { to, message: 'x', sendAt: '2027-06-31T10:00:00Z' },
      ['body.sendAt'],
    ],
    [
      'yesterday',
      { to, message: 'x', sendAt: new Date(Date.now() - 86_400_000).toISOString() },
      ['body.sendAt'],
    ],
    ['in ten years', { to, message: 'x', sendAt: '2099-01-01T10:00:00Z' }, ['body.sendAt']],
    [
      'no reason',
      { to, message: 'x', sendAt: future, optOutOverride: '' },
      ['body.optOutOverride'],
    ],
    ['a reason of blanks', { to, message: 'x', optOutOverride: '    ' }, ['body.optOutOverride']],
  ]
  for (const [what, body, paths] of refused) {
    const answer = await call('POST', send, body)
    t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'), what)
    const { details } = answer.json<{ details: { path: string }[] }>()
    t.strictSame([...new Set(details.map((fault) => fault.path))], paths, what)
  }
  t.match(
    (await call('POST', send, { to, message: 'x', quotedMessageId: randomUUID() })).json(),
    errorShape(404, 'QUOTED_NOT_FOUND'),
  )
  t.match(
    (await call('POST', send, { to, contactCard: { contactId: randomUUID() } })).json(),
    errorShape(404, 'CONTACT_NOT_FOUND'),
  )
})

void t.test('what a message only points at is not found, or does not fit', async (t) => {
  const { call, workspaceId, sessionId } = await withSession()
  const other = await withSession()
  const theirs = (await other.call('POST', send, { to, message: 'x' })).json<Message>()
  const elsewhere = (await call('POST', send, { to: '12025550199', message: 'x' })).json<Message>()
  const [theirContact] = await it.sql<{ id: string }>`
    select id from contacts where workspace_id = ${other.workspaceId}`
  const [hidden] = await it.sql<{ id: string }>`
    insert into contacts (workspace_id, session_id, wa_id, lid)
    values (${workspaceId}, ${sessionId}, '123456789012345@lid', '123456789012345@lid') returning id`
  const sent = async (body: object) => {
    const answer = await call('POST', send, { to, message: 'x', ...body })
    return { ...answer.json<{ requestId: string }>(), requestId: undefined }
  }
  for (const [key, code] of [
    ['quotedMessageId', 'QUOTED_NOT_FOUND'],
    ['ifLastMessageId', 'LAST_MESSAGE_NOT_FOUND'],
  ] as const) {
    const foreign = await sent({ [key]: theirs.id })
    t.match(foreign, { statusCode: 404, code })
    t.strictSame(foreign, await sent({ [key]: randomUUID() }), 'as one that is made up')
    t.match(await sent({ [key]: elsewhere.id }), { statusCode: 422, code }, 'of another chat')
  }
  const card = (contactId: string) => sent({ message: undefined, contactCard: { contactId } })
  const foreign = await card(theirContact!.id)
  t.match(foreign, { statusCode: 404, code: 'CONTACT_NOT_FOUND' })
  t.strictSame(foreign, await card(randomUUID()))
  t.match(await card(hidden!.id), { statusCode: 422, code: 'CONTACT_NOT_FOUND' })
})

void t.test('a refusal says what to do instead', async (t) => {
  const { call } = await withSession()
  const id = randomUUID()
  for (const [body, sentence] of [
    [{ contactCard: { name: 'x' } }, '"contactCard" must hold "contactId", or "name" and "phone"'],
    [{ contactCard: {} }, '"contactCard" must hold "contactId", or "name" and "phone"'],
    [
      { contactCard: { contactId: id, name: 'x', phone: to } },
      '"contactCard" must hold "contactId", or "name" and "phone"',
    ],
    [
      { mediaId: id, asVoice: true, asDocument: true },
      '"body" may carry only one of [asVoice, asDocument]',
    ],
  ] as const) {
    const answer = await call('POST', send, { to, ...body })
    const { details } = answer.json<{ details: { message: string }[] }>()
    t.strictSame(
      details.map(({ message }) => message),
      [sentence],
    )
  }
  const rows = [{ to }, { to, message: 'x', caption: 'y' }, 7]
  const { rejected } = (await call('POST', `${send}/bulk`, { messages: rows })).json<{
    rejected: { message: string }[]
  }>()
  for (const { message } of rejected) t.match(message, /^"row" m/)
})

void t.test('null is for what is not there, as it is in answers', async (t) => {
  const { call } = await withSession()
  const none = ['sessionId', 'quotedMessageId', 'ifLastMessageId', 'mentions', 'sendAt']
  const others = ['mediaId', 'location', 'contactCard', 'poll', 'template', 'caption', 'asVoice']
  const keys = [...none, ...others, 'asDocument', 'optOutOverride']
  const nulls: Record<string, null> = Object.fromEntries(keys.map((key) => [key, null]))
  const body = { ...nulls, to, message: 'x' }
  const answer = await call('POST', send, body)
  t.equal(answer.statusCode, 202)
  t.match(answer.json(), { body: 'x', quotedMessageId: null, sendAt: null })
  const row = Object.fromEntries(Object.entries(body).filter(([key]) => key !== 'sessionId'))
  const bulk = await call('POST', `${send}/bulk`, { sessionId: null, messages: [row] })
  t.match(bulk.json(), { accepted: 1 })
  t.equal((await call('POST', send, { to, message: 'x', caption: '' })).statusCode, 202)
  const place = { latitude: 1, longitude: 2, name: null, address: null }
  t.equal((await call('POST', send, { to, location: place })).statusCode, 202)
  for (const wrong of [{ message: null }, { message: '' }, { message: 'x', to: null }])
    t.match(
      (await call('POST', send, { to, ...wrong })).json(),
      errorShape(400, 'VALIDATION_FAILED'),
    )
})

void t.test('a scheduled message waits, can be edited and taken back', async (t) => {
  const { call } = await withSession()
  const sendAt = new Date(Date.now() + 3_600_000).toISOString()
  const sent = (await call('POST', send, { to, message: 'Later', sendAt })).json<Message>()
  t.match(sent, { status: 'queued', heldBy: 'SCHEDULED', notBefore: sendAt, sendAt })
  const url = `/api/messages/${sent.id}`
  const edited = await call('PATCH', url, { message: 'Later, changed' })
  t.equal(edited.statusCode, 200)
  t.match(edited.json(), { body: 'Later, changed', editedAt: null })
  for (const what of ['once', 'twice']) {
    const cancelled = await call('DELETE', url)
    t.equal(cancelled.statusCode, 200, what)
    t.match(cancelled.json(), { status: 'cancelled', heldBy: null })
  }
  t.match((await call('PATCH', url, { message: 'x' })).json(), errorShape(409, 'NOT_EDITABLE'))
  const again = await call('POST', `${url}/retry`)
  t.equal(again.statusCode, 202)
  t.match(again.json(), { id: sent.id, status: 'queued', heldBy: 'SCHEDULED', sendAt }, 'in time')
  t.match((await call('GET', url)).json(), { heldBy: 'SCHEDULED', notBefore: sendAt })
  t.match((await call('POST', `${url}/retry`)).json(), errorShape(409, 'NOT_RETRYABLE'))
  t.match(
    (await call('DELETE', `/api/messages/${randomUUID()}`)).json(),
    errorShape(404, 'NOT_FOUND'),
  )
})

void t.test('what was to leave in between leaves at once when it is sent again', async (t) => {
  const { call } = await withSession()
  const sendAt = new Date(Date.now() + 3_600_000).toISOString()
  const { id } = (await call('POST', send, { to, message: 'Later', sendAt })).json<Message>()
  await call('DELETE', `/api/messages/${id}`)
  await it.sql`update messages set send_at = now() - interval '1 minute' where id = ${id}`
  t.match((await call('POST', `/api/messages/${id}/retry`)).json(), {
    heldBy: 'SESSION_STOPPED',
    sendAt: null,
  })
})

void t.test('what was sent is changed by a worker', async (t) => {
  const { call, workspaceId } = await withSession()
  const sent = (await call('POST', send, { to, message: 'Hi' })).json<Message>()
  await it.sql`delete from outbox where message_id = ${sent.id}`
  await it.sql`update messages set status = 'delivered', ack = 2 where id = ${sent.id}`
  const url = `/api/messages/${sent.id}`
  t.match((await call('DELETE', url)).json(), errorShape(409, 'ALREADY_SENT'))
  for (const [method, path, body] of [
    ['PATCH', url, { message: 'Hello' }],
    ['POST', `${url}/reaction`, { emoji: '👍🏽' }],
    ['POST', `${url}/reaction`, { emoji: '' }],
    ['DELETE', `${url}?forEveryone=true`, undefined],
    ['POST', `/api/chats/${sent.chatId}/seen`, undefined],
    ['POST', `/api/chats/${sent.chatId}/typing`, undefined],
    ['POST', `/api/chats/${sent.chatId}/typing`, { on: false }],
  ] as const) {
    t.equal((await call(method, path, body)).statusCode, 202, `${method} ${path}`)
  }
  matchWhole(
    t,
    await it.sql`select kind, payload from wa_actions where workspace_id = ${workspaceId} order by id`,
    [
      { kind: 'edit', payload: { body: 'Hello' } },
      { kind: 'react', payload: { emoji: '👍🏽' } },
      { kind: 'react', payload: { emoji: '' } },
      { kind: 'revoke' },
      { kind: 'seen' },
      { kind: 'typing', payload: { on: true } },
      { kind: 'typing', payload: { on: false } },
    ],
  )
  for (const emoji of ['x', '👍👍', '❤❤', '❤x', '1', '#', '\ufe0f', '❤\ufe0e', '🇩', 'thumbs up']) {
    t.match(
      (await call('POST', `${url}/reaction`, { emoji })).json(),
      errorShape(400, 'VALIDATION_FAILED'),
      emoji,
    )
  }
})

void t.test('an emoji is taken as clients write it, and passed on as WhatsApp does', async (t) => {
  const { call, sessionId } = await withSession()
  const { id } = (await call('POST', send, { to, message: 'Hi' })).json<Message>()
  const written = [
    ...['❤', '☺', '✔', '♥', '©', '⌚\ufe0f', '1\u20e3', '☝🏽', '👩‍❤‍👨', '🕵🏽‍♂', '🏴‍☠', '👁‍🗨\ufe0f'],
    ...['❤\ufe0f', '👍🏽', '🇩🇪', '🏴󠁧󠁢󠁥󠁮󠁧󠁿', '👩‍❤\ufe0f‍👨'],
  ]
  for (const emoji of written) {
    const answer = await call('POST', `/api/messages/${id}/reaction`, { emoji })
    t.equal(answer.statusCode, 202, emoji)
  }
  const asked = await it.sql<{ emoji: string }>`
    select payload ->> 'emoji' as emoji from wa_actions where session_id = ${sessionId} order by id`
  t.strictSame(
    asked.map(({ emoji }) => emoji),
    [
      ...[
        '❤\ufe0f',
        '☺\ufe0f',
        '✔\ufe0f',
        '♥\ufe0f',
        '©\ufe0f',
        '⌚',
        '1\ufe0f\u20e3',
        '☝🏽',
        '👩‍❤\ufe0f‍👨',
      ],
      ...['🕵🏽‍♂\ufe0f', '🏴‍☠\ufe0f', '👁\ufe0f‍🗨\ufe0f', '❤\ufe0f', '👍🏽', '🇩🇪', '🏴󠁧󠁢󠁥󠁮󠁧󠁿', '👩‍❤\ufe0f‍👨'],
    ],
  )
})

void t.test('an inbound message can be reacted to, not changed', async (t) => {
  const { call } = await withSession()
  const { id } = (await call('POST', send, { to, message: 'x' })).json<Message>()
  await it.sql`delete from outbox where message_id = ${id}`
  await it.sql`update messages set direction = 'inbound', source = 'live', status = 'received' where id = ${id}`
  t.match(
    (await call('PATCH', `/api/messages/${id}`, { message: 'y' })).json(),
    errorShape(409, 'NOT_EDITABLE'),
  )
  t.match(
    (await call('DELETE', `/api/messages/${id}?forEveryone=true`)).json(),
    errorShape(409, 'NOT_REVOCABLE'),
  )
  t.match(
    (await call('POST', `/api/messages/${id}/retry`)).json(),
    errorShape(409, 'NOT_RETRYABLE'),
  )
  t.equal((await call('POST', `/api/messages/${id}/reaction`, { emoji: '❤️' })).statusCode, 202)
})

void t.test('a dry run foretells and writes nothing', async (t) => {
  const { call, sessionId } = await withSession()
  const dry = async (body: object) =>
    (await call('POST', `${send}?dryRun=true`, body)).json<{
      blockedBy: string[]
      estimatedSendAt: string | null
    }>()
  const stopped = await dry({ to, message: 'x' })
  t.strictSame(stopped.blockedBy, [])
  t.match(stopped, {
    sessionId,
    chatId: null,
    waChatId: '12025550101@c.us',
    heldBy: 'SESSION_STOPPED',
    estimatedSendAt: null,
    ahead: 0,
  })
  await working(sessionId)
  const foreseen = await dry({ to, message: 'x' })
  t.match(foreseen, { heldBy: null, notBefore: null })
  t.ok(foreseen.estimatedSendAt)
  const sendAt = new Date(Date.now() + 3_600_000).toISOString()
  t.match(await dry({ to, message: 'x', sendAt }), { heldBy: 'SCHEDULED', estimatedSendAt: sendAt })
  t.strictSame(await it.sql`select from outbox where session_id = ${sessionId}`, [])
  t.strictSame(await it.sql`select from chats where session_id = ${sessionId}`, [])
})

void t.test('a dry run foretells what the send itself would answer', async (t) => {
  const { call, workspaceId, sessionId } = await withSession()
  await working(sessionId)
  const blockedBy = async (body: object) =>
    (await call('POST', `${send}?dryRun=true`, { to, message: 'x', ...body })).json<{
      blockedBy: string[]
    }>().blockedBy
  const { id } = (await call('POST', send, { to, message: 'x' })).json<Message>()
  t.strictSame(await blockedBy({ quotedMessageId: id }), [])
  t.strictSame(await blockedBy({ quotedMessageId: randomUUID() }), ['QUOTED_NOT_FOUND'])
  t.strictSame(await blockedBy({ to: '12025550102', quotedMessageId: id }), ['QUOTED_NOT_FOUND'])
  await it.sql`update contacts set opted_out = true where workspace_id = ${workspaceId}`
  t.strictSame(await blockedBy({}), ['RECIPIENT_OPTED_OUT'])
  t.strictSame(await blockedBy({ optOutOverride: 'a recall, by law' }), [])
})

void t.test('an opt-out holds unless somebody in charge has a reason', async (t) => {
  const owner = await withSession()
  const { call, workspaceId, profile } = owner
  await call('POST', send, { to, message: 'x' })
  await it.sql`update contacts set opted_out = true where workspace_id = ${workspaceId}`
  t.match(
    (await call('POST', send, { to, message: 'x' })).json(),
    errorShape(403, 'RECIPIENT_OPTED_OUT'),
  )
  const override = { to, message: 'x', optOutOverride: 'a recall, by law' }
  t.equal((await call('POST', send, override)).statusCode, 202)
  matchWhole(
    t,
    await it.sql`select opt_out_override from messages where opt_out_override is not null and workspace_id = ${workspaceId}`,
    [{ optOutOverride: 'a recall, by law' }],
  )
  await it.sql`update profiles set role = 'agent' where id = ${profile.id}`
  t.match((await call('POST', send, override)).json(), errorShape(403, 'FORBIDDEN'))
})

void t.test('the audit log tells of each opt-out that was overridden, and why', async (t) => {
  const owner = await withSession()
  const { call, workspaceId, profile } = owner
  const log = async () =>
    (await call('GET', '/api/audit-log?action=message.opt_out_overridden')).json<{
      data: { target: { id: string }; after: { reason: string } }[]
    }>().data
  await call('POST', send, { to, message: 'x' })
  await it.sql`update contacts set opted_out = true where workspace_id = ${workspaceId}`
  const override = { to, message: 'x', optOutOverride: 'a recall, by law' }
  await call('POST', `${send}?dryRun=true`, override)
  t.equal((await call('POST', send, { to, message: 'x' })).statusCode, 403)
  const refused = { ...override, quotedMessageId: randomUUID() }
  t.equal((await call('POST', send, refused)).statusCode, 404)
  t.strictSame(await log(), [], 'nothing was sent')

  const headers = { authorization: `Bearer ${owner.token}`, 'idempotency-key': randomUUID() }
  const request = { method: 'POST', url: send, headers, body: override } as const
  const { id } = (await it.app.inject(request)).json<Message>()
  t.equal((await it.app.inject(request)).headers['idempotency-replayed'], 'true')
  const told = await log()
  t.equal(told.length, 1)
  t.match(told[0], {
    actor: { type: 'person', id: profile.id, name: 'Ada Lovelace' },
    action: 'message.opt_out_overridden',
    target: { type: 'message', id },
    before: null,
    after: { to: '12025550101@c.us', reason: 'a recall, by law' },
    ip: '127.0.0.1',
    requestId: String,
  })

  // A guarded message may be written more than once until it stands.
  const guarded = { ...override, ifLastMessageId: id, optOutOverride: 'guarded' }
  t.equal((await call('POST', send, guarded)).statusCode, 202)
  matchWhole(t, await log(), [{ after: { reason: 'guarded' } }, {}])

  const messages = [
    { ...override, optOutOverride: 'first' },
    { to: '12025550102', message: 'x' },
    { ...refused, optOutOverride: 'refused' },
    { to, message: 'x' },
    { ...override, to: '12025550103', optOutOverride: 'second' },
  ]
  const batch = (await call('POST', `${send}/bulk`, { messages })).json<{ batchId: string }>()
  const rows = await call('GET', `/api/batches/${batch.batchId}/messages`)
  const [first, , second] = rows.json<{ data: Message[] }>().data
  matchWhole(t, (await log()).slice(0, -2), [
    { target: { id: second!.id }, after: { to: '12025550103@c.us', reason: 'second' } },
    { target: { id: first!.id }, after: { to: '12025550101@c.us', reason: 'first' } },
  ])
  t.equal((await log()).length, 4)
})

void t.test('a batch is accepted row by row, watched and cancelled', async (t) => {
  const { call, workspaceId } = await withSession()
  const bulk = (messages: unknown) => call('POST', `${send}/bulk`, { messages })
  const answer = await bulk([
    { to, message: 'one' },
    { to: 'Ada', message: 'two' },
    'three',
    { to, poll: { question: 'q', options: ['a', 'b'] } },
    { to, message: 'five', quotedMessageId: randomUUID() },
    { to },
  ])
  t.equal(answer.statusCode, 202)
  const { batchId } = answer.json<{ batchId: string }>()
  matchWhole(t, answer.json(), {
    accepted: 2,
    rejected: [
      { index: 1, code: 'VALIDATION_FAILED', message: /to/ },
      { index: 2, code: 'VALIDATION_FAILED' },
      { index: 4, code: 'QUOTED_NOT_FOUND' },
      { index: 5, code: 'VALIDATION_FAILED' },
    ],
  })
  t.match((await call('GET', `/api/batches/${batchId}`)).json(), {
    id: batchId,
    accepted: 2,
    statuses: { queued: 2 },
    cancelledAt: null,
  })
  const rows = (query: string) => call('GET', `/api/batches/${batchId}/messages${query}`)
  const first = (await rows('?limit=1')).json<{ data: object[]; nextCursor: string }>()
  matchWhole(t, first.data, [{ index: 0, body: 'one', status: 'queued' }])
  matchWhole(t, (await rows(`?limit=1&cursor=${first.nextCursor}`)).json(), {
    data: [{ index: 3, type: 'poll' }],
    nextCursor: null,
  })
  const far = Buffer.from('["2000-01-01 00:00:00+00","99999999999"]').toString('base64url')
  t.same((await rows(`?cursor=${far}`)).json(), { data: [], nextCursor: null })
  t.match((await call('DELETE', `/api/batches/${batchId}`)).json(), { statuses: { cancelled: 2 } })
  matchWhole(t, (await rows('?status=cancelled')).json(), { data: [{ index: 0 }, { index: 3 }] })
  t.same((await rows('?status=failed')).json<{ data: object[] }>().data, [])
  t.match((await rows('?status=lost')).json(), errorShape(400, 'VALIDATION_FAILED'))
  t.match(
    (await call('GET', `/api/batches/${randomUUID()}/messages`)).json(),
    errorShape(404, 'NOT_FOUND'),
  )
  t.match((await call('GET', `/api/batches/${randomUUID()}`)).json(), errorShape(404, 'NOT_FOUND'))
  t.match((await bulk([])).json(), errorShape(400, 'VALIDATION_FAILED'))
  t.match(
    (await bulk(Array(1_001).fill({ to, message: 'x' }))).json(),
    errorShape(400, 'VALIDATION_FAILED'),
  )

  const thousand = Array.from({ length: 1_000 }, (_, i) => ({
    to: `1202555${String(i).padStart(4, '0')}`,
    message: `offer ${i}`,
  }))
  const accepted = await bulk(thousand)
  t.match(accepted.json(), { accepted: 1_000 })
  t.strictSame(accepted.json<{ rejected: unknown }>().rejected, [])
  const [counted] =
    await it.sql`select count(*)::int as n from outbox where workspace_id = ${workspaceId}`
  t.strictSame(counted, { n: 1_000 })
})

void t.test('text that is no Unicode is refused, wherever it stands', async (t) => {
  const { call } = await withSession()
  const half = 'a\ud83d'
  for (const [content, path] of [
    [{ message: half }, 'message'],
    [{ location: { latitude: 1, longitude: 2, name: half } }, 'location.name'],
    [{ contactCard: { name: half, phone: to } }, 'contactCard.name'],
    [{ poll: { question: half, options: ['a', 'b'] } }, 'poll.question'],
    [{ poll: { question: 'q', options: ['a', half] } }, 'poll.options.1'],
  ] as const) {
    t.match((await call('POST', send, { to, ...content })).json(), {
      ...errorShape(400, 'VALIDATION_FAILED'),
      details: [{ path: `body.${path}` }],
    })
  }
  const answer = await call('POST', `${send}/bulk`, {
    messages: [
      { to, message: 'x', ['a\0']: 1 },
      { to, message: 'x', [half]: 1 },
      { to, message: 'x', ['k'.repeat(100_000)]: 1 },
      { to, message: 'x', ...Object.fromEntries(Array.from({ length: 500 }, (_, i) => [i, i])) },
    ],
  })
  t.equal(answer.statusCode, 202)
  const { rejected } = answer.json<{ rejected: { message: string }[] }>()
  t.equal(rejected.length, 4)
  t.ok(rejected.every(({ message }) => message.length <= 1_000))
})

void t.test('a row of a batch is refused without its words being told back', async (t) => {
  const { call } = await withSession()
  const answer = await call('POST', `${send}/bulk`, {
    messages: [
      { to, message: 'secret\0' },
      { to: 'secret', message: 'x' },
      { to, message: 'x', sendAt: 'secret' },
      { to, message: ' ' },
      { to, message: 'x', mediaId: 'secret' },
      { to, template: { id: randomUUID(), variables: { name: 'secret\0' } } },
      { to, message: 'x', quotedMessageId: 'secret\0' },
      ...[null, 7, [], 'secret'],
    ],
  })
  t.equal(answer.statusCode, 202)
  const { rejected } = answer.json<{ rejected: { code: string; message: string }[] }>()
  t.equal(rejected.length, 11)
  for (const { code, message } of rejected) {
    t.equal(code, 'VALIDATION_FAILED')
    t.notMatch(message, /secret|\0/)
  }
  t.match(rejected[0], { message: '"message" must be Unicode text without NUL characters' })
})

void t.test('the pace of a session is set by who is in charge', async (t) => {
  const { call, sessionId, profile } = await withSession()
  const url = `/api/whatsapp/sessions/${sessionId}/pacing`
  t.match((await call('GET', url)).json(), {
    minGapMs: null,
    quietHours: null,
    timeZone: 'UTC',
    state: { newContactsToday: 0 },
  })
  const wanted = {
    minGapMs: 3_000,
    perMinute: 10,
    newContactsPerDay: 50,
    typing: true,
    numberSince: '2020-05-31',
    quietHours: { from: '21:00', to: '08:00' },
    timeZone: 'Europe/Berlin',
  }
  t.match((await call('PUT', url, wanted)).json(), { ...wanted, jitterMs: null })
  t.match((await call('GET', url)).json(), wanted)
  // Intl.supportedValuesOf() has them under older names.
  for (const timeZone of [
    'Asia/Kolkata',
    'America/Argentina/Buenos_Aires',
    'Europe/Kyiv',
    'Etc/UTC',
  ])
    t.match((await call('PUT', url, { timeZone })).json(), { timeZone })
  for (const wrong of [
    { minGapMs: -1 },
    { timeZone: 'Nowhere/Town' },
    { timeZone: 'IST' },
    { timeZone: '+01:00' },
    // Known to Node, not to Postgres.
    { timeZone: 'US/Pacific-New' },
    { quietHours: { from: '25:00', to: '08:00' } },
    { quietHours: { from: '21:00' } },
    { quietHours: { from: '21:00', to: '21:00' } },
    { numberSince: '2020-02-31' },
    { numberSince: '0000-01-01' },
    { numberSince: '+012024-01-01' },
    { speed: 1 },
  ]) {
    t.match(
      (await call('PUT', url, wrong)).json(),
      errorShape(400, 'VALIDATION_FAILED'),
      JSON.stringify(wrong),
    )
  }
  await it.sql`update profiles set role = 'agent' where id = ${profile.id}`
  t.match((await call('PUT', url, wanted)).json(), errorShape(403, 'FORBIDDEN'))
  t.match(
    (await call('GET', `/api/whatsapp/sessions/${randomUUID()}/pacing`)).json(),
    errorShape(404, 'NOT_FOUND'),
  )
})

void t.test('a number that was asked for lately is answered from memory', async (t) => {
  const { call, workspaceId } = await withSession()
  const check = (phone: string) => call('POST', '/api/whatsapp/check-number', { phone })
  t.match((await check(to)).json(), errorShape(409, 'SESSION_NOT_READY'))
  await it.sql`insert into wa_numbers (workspace_id, phone, wa_id) values (${workspaceId}, '12025550101', '12025550101@c.us'), (${workspaceId}, '12025550102', null)`
  t.strictSame((await check(to)).json(), { exists: true, waId: '12025550101@c.us' })
  t.strictSame((await check('12025550102')).json(), { exists: false, waId: null })
  t.match((await check('12@g.us')).json(), errorShape(400, 'VALIDATION_FAILED'))
  await it.sql`update wa_numbers set checked_at = now() - interval '25 hours' where workspace_id = ${workspaceId}`
  t.equal((await check(to)).statusCode, 200)
  t.match((await check('12025550102')).json(), errorShape(409, 'SESSION_NOT_READY'))
})

void t.test('a number nobody remembers is asked of a worker, under one key once', async (t) => {
  const { token, sessionId } = await withSession()
  await working(sessionId)
  const ask = async (phone: string) =>
    it.app.inject({
      ...{ method: 'POST', url: '/api/whatsapp/check-number', body: { phone } },
      headers: { authorization: `Bearer ${token}`, 'idempotency-key': 'asked-once' },
    })
  const asked = ask(to)
  await until('the question', async () => {
    const [answered] = await it.sql`
      update wa_actions set done_at = now(), result = '{"exists": true, "waId": "12025550101@c.us"}'
      where session_id = ${sessionId} and kind = 'check_number' and done_at is null returning id`
    return answered
  })
  const first = await asked
  t.strictSame(first.json(), { exists: true, waId: '12025550101@c.us' })
  const again = await ask(to)
  t.equal(again.headers['idempotency-replayed'], 'true')
  t.equal(again.body, first.body)
  t.match((await ask('12025550102')).json(), errorShape(422, 'IDEMPOTENCY_KEY_REUSED'))
})
