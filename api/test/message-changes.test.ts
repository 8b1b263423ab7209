import { randomUUID } from 'node:crypto'
import t from 'tap'
import { recordAck } from '../../shared/acks.ts'
import { claim, giveUp, putBack } from '../../shared/claims.ts'
import type { Sql } from '../../shared/db.ts'
import { untilLocked } from '../../shared/test/locks.ts'
import { matchWhole } from '../../shared/test/match.ts'
import { actionDone, dueActions } from '../../shared/wa-actions.ts'
import { errorShape, signInWithSession, testApp } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)
const withSession = () => signInWithSession(it)
const send = '/api/whatsapp/send'
const to = '+1 202 555 0101'

/** A worker has the session, and a message of it in its hands. */
async function withTry(person: Person & { sessionId: string }) {
  const { sessionId: id, workspaceId } = person
  await it.sql`
    update wa_sessions set status = 'WORKING', owner = 'w', fence = 1, linked_at = now(), lease_until = now() + interval '1 hour' where id = ${id}`
  const lane = { id, workspaceId, fence: 1 }
  const pace = { WA_SEND_MIN_GAP_MS: 0, WA_SEND_JITTER_MS: 0, WA_SENDS_PER_MINUTE: 0 }
  const pacing = { ...pace, WA_NEW_CONTACTS_PER_DAY: 0, WA_TYPING: false }
  const next = async () => (await claim(it.sql, 'w', [lane], pacing))[0]
  const due = async () => (await dueActions(it.sql, 'w', [lane])).map(({ kind }) => kind)
  const message = await given(person, 'queued')
  return { lane, next, due, url: `/api/messages/${message.id}`, tried: (await next())! }
}

/** Does `what` while somebody is at the message's row in the outbox, who does `meanwhile` as soon as it waits for that. */
async function overtaken<T>(
  messageId: string,
  what: () => PromiseLike<T>,
  meanwhile: (tx: Sql) => Promise<unknown>,
): Promise<T> {
  let doing: PromiseLike<T> | undefined
  await it.sql.begin(async (tx) => {
    await tx`select from outbox where message_id = ${messageId} for update`
    doing = what()
    // It is heard of below; until then it must not count as one that nobody handles.
    void doing.then(undefined, () => {})
    await untilLocked(it.sql)
    await meanwhile(tx)
  })
  return doing!
}

interface Message {
  id: string
  chatId: string
  status: string
  actions: { kind: string; status: string }[]
}

/** A message that has come so far. */
async function given({ call }: Person, status: string, body: object = { to, message: 'Helo' }) {
  const message = (await call('POST', send, body)).json<Message>()
  if (status === 'queued') return message
  if (status === 'sending') {
    await it.sql`update outbox set state = 's' where message_id = ${message.id}`
    await it.sql`update outbox_lanes set due_at = 'infinity' where chat_id = ${message.chatId}`
    return message
  }
  await it.sql`delete from outbox where message_id = ${message.id}`
  await it.sql`update outbox_lanes set waiting = waiting - 1 where chat_id = ${message.chatId}`
  await it.sql`update messages set status = ${status} where id = ${message.id}`
  return message
}

void t.test('in every status each change does what can be done, and says so', async (t) => {
  const person = await withSession()
  const { call } = person
  type Expected = [statusCode: number, told: object, actions?: number]
  const done: Expected = [200, { body: 'Hello' }, 0]
  const pending = (kind: string): Expected => [202, { actions: [{ kind, status: 'pending' }] }, 1]
  const refused = (code: string): Expected => [409, errorShape(409, code)]
  const cancelled: Expected = [200, { status: 'cancelled' }, 0]
  const nowhere = refused('NOT_ON_WHATSAPP')
  const late = refused('ALREADY_SENT')
  const uneditable = refused('NOT_EDITABLE')
  const unretryable = refused('NOT_RETRYABLE')
  const again: Expected = [202, { status: 'queued' }, 0]
  const [edit, react, revoke] = [pending('edit'), pending('reaction'), pending('deletion')]
  const table: Record<string, [Expected, Expected, Expected, Expected, Expected]> = {
    //          PATCH       reaction  DELETE     forEveryone  retry
    queued: [done, react, cancelled, cancelled, unretryable],
    sending: [edit, react, late, revoke, unretryable],
    sent: [edit, react, late, revoke, unretryable],
    delivered: [edit, react, late, revoke, unretryable],
    read: [edit, react, late, revoke, unretryable],
    played: [edit, react, late, revoke, unretryable],
    failed: [uneditable, nowhere, nowhere, nowhere, again],
    unknown: [uneditable, react, late, revoke, again],
    cancelled: [uneditable, nowhere, cancelled, cancelled, again],
  }
  for (const [status, row] of Object.entries(table)) {
    for (const [i, [statusCode, told, actions]] of row.entries()) {
      const { id } = await given(person, status)
      const url = `/api/messages/${id}`
      const answer = await [
        () => call('PATCH', url, { message: 'Hello' }),
        () => call('POST', `${url}/reaction`, { emoji: '👍' }),
        () => call('DELETE', url),
        () => call('DELETE', `${url}?forEveryone=true`),
        () => call('POST', `${url}/retry`),
      ][i]!()
      const what = `${status}, ${['edit', 'reaction', 'cancel', 'delete', 'retry'][i]}`
      t.equal(answer.statusCode, statusCode, what)
      t.match(answer.json(), told, what)
      t.equal(answer.json<Partial<Message>>().actions?.length, actions, what)
      if (statusCode < 300)
        t.strictSame((await call('GET', url)).json(), answer.json(), `${what}, read`)
    }
  }
})

void t.test('what was not sent, and will not be, is not quoted', async (t) => {
  const person = await withSession()
  const { call } = person
  for (const status of ['queued', 'sending', 'sent', 'read', 'unknown', 'failed', 'cancelled']) {
    const { id } = await given(person, status)
    const quoting = { to, message: 'About this:', quotedMessageId: id }
    const refused = ['failed', 'cancelled'].includes(status)
    const codes = refused ? ['QUOTED_NOT_FOUND'] : []
    const foretold = await call('POST', `${send}?dryRun=true`, quoting)
    t.strictSame(foretold.json<{ blockedBy: string[] }>().blockedBy, codes, `${status}, foretold`)
    const answer = await call('POST', send, quoting)
    if (!refused) t.match(answer.json(), { quotedMessageId: id }, status)
    else t.match(answer.json(), errorShape(422, 'QUOTED_NOT_FOUND'), status)
    const batch = await call('POST', `${send}/bulk`, { messages: [quoting] })
    const { rejected } = batch.json<{ rejected: { code: string }[] }>()
    t.strictSame(
      rejected.map(({ code }) => code),
      codes,
      `${status}, in bulk`,
    )
  }
})

void t.test('a message that is claimed before it can be taken back is deleted there', async (t) => {
  const person = await withSession()
  const { id, chatId } = await given(person, 'queued')
  const answer = await overtaken(
    id,
    () => person.call('DELETE', `/api/messages/${id}?forEveryone=true`),
    async (tx) => {
      await tx`update outbox set state = 's' where message_id = ${id}`
      await tx`update outbox_lanes set due_at = 'infinity' where chat_id = ${chatId}`
    },
  )
  t.equal(answer.statusCode, 202)
  matchWhole(t, answer.json(), { status: 'sending', actions: [{ kind: 'deletion' }] })
})

void t.test('what is deleted while it is being sent is not sent after all', async (t) => {
  const person = await withSession()
  const { call } = person
  const { lane, next, due, url, tried } = await withTry(person)
  const behind = await given(person, 'queued')
  t.equal((await call('DELETE', `${url}?forEveryone=true`)).statusCode, 202)
  await putBack(it.sql, lane, tried, { delayMs: 60_000 })
  t.match((await call('GET', url)).json(), { status: 'cancelled', error: null, attempts: 1 })
  t.strictSame((await call('GET', url)).json<Message>().actions, [])
  matchWhole(
    t,
    await it.sql`
      select payload ->> 'status' as status from events
      where type = 'message.ack' and payload ->> 'id' = ${tried.messageId}`,
    [{ status: 'cancelled' }],
  )
  t.match(await next(), { messageId: behind.id, cold: true }, 'the conversation is not open')
  t.strictSame(await due(), [])
})

void t.test('nor when the try ends in the very moment of that', async (t) => {
  const person = await withSession()
  const { lane, next, url, tried } = await withTry(person)
  const answer = await overtaken(
    tried.messageId,
    () => person.call('DELETE', `${url}?forEveryone=true`),
    (tx) => putBack(tx, lane, tried, { delayMs: 0 }),
  )
  t.equal(answer.statusCode, 200)
  const { status, actions } = answer.json<Message>()
  t.strictSame({ status, actions }, { status: 'cancelled', actions: [] })
  t.equal(await next(), undefined)
})

void t.test('what may be out is not sent again, and deleted where it is found', async (t) => {
  const person = await withSession()
  const { lane, next, due, url, tried } = await withTry(person)
  await person.call('POST', `${url}/reaction`, { emoji: '👍' })
  await person.call('DELETE', `${url}?forEveryone=true`)
  await putBack(it.sql, lane, tried, { delayMs: 0, doubted: true })
  const told = { status: 'cancelled', error: { code: 'OUTCOME_UNKNOWN' } }
  t.match((await person.call('GET', url)).json(), told)
  t.equal(await next(), undefined)
  t.strictSame(await due(), ['revoke'])
})

void t.test('what may be out and waits to be sent again is changed on WhatsApp', async (t) => {
  const person = await withSession()
  const { call } = person
  const { lane, next, due, url, tried } = await withTry(person)
  await giveUp(it.sql, lane, tried, { status: 'unknown', code: 'OUTCOME_UNKNOWN', message: '?' })
  await call('POST', `${url}/retry`)
  const edited = await call('PATCH', url, { message: 'Hello' })
  t.equal(edited.statusCode, 202)
  const pending = [{ kind: 'edit', status: 'pending' }]
  t.match(edited.json(), { status: 'queued', body: 'Helo', actions: pending })
  t.strictSame(await due(), [], 'not before it is confirmed')
  t.ok(await next())
  await recordAck(it.sql, lane, { keyId: tried.keyId, ack: 1 })
  t.strictSame(await due(), ['edit'])
})

void t.test(
  'what may be out is cancelled, and deleted for everyone where it is found',
  async (t) => {
    const person = await withSession()
    const { call } = person
    const { lane, next, due, url, tried } = await withTry(person)
    await putBack(it.sql, lane, tried, { delayMs: 0, doubted: true })
    const told = { status: 'cancelled', error: { code: 'OUTCOME_UNKNOWN' } }
    const cancelled = await call('DELETE', url)
    t.equal(cancelled.statusCode, 200)
    t.match(cancelled.json(), told)
    for (const what of ['once', 'twice']) {
      const deleted = await call('DELETE', `${url}?forEveryone=true`)
      t.equal(deleted.statusCode, 202, what)
      matchWhole(
        t,
        deleted.json(),
        { ...told, actions: [{ kind: 'deletion', status: 'pending' }] },
        what,
      )
      t.equal(deleted.json<Message>().actions.length, 1, what)
    }
    t.equal(await next(), undefined)
    t.strictSame(await due(), ['revoke'])
  },
)

void t.test('a message that is sent once more is not deleted for an old wish', async (t) => {
  const person = await withSession()
  const { call } = person
  const { lane, next, due, url, tried } = await withTry(person)
  await call('DELETE', `${url}?forEveryone=true`)
  await giveUp(it.sql, lane, tried, { status: 'unknown', code: 'OUTCOME_UNKNOWN', message: '?' })
  t.strictSame(await due(), ['revoke'])
  const again = await call('POST', `${url}/retry`)
  t.equal(again.statusCode, 202)
  t.strictSame(again.json<Message>().actions, [])
  await recordAck(it.sql, lane, { keyId: (await next())!.keyId, ack: 1 })
  t.strictSame(await due(), [])
})

void t.test('what was deleted for everyone is not sent again', async (t) => {
  const person = await withSession()
  const { call } = person
  const { lane, url, tried } = await withTry(person)
  await putBack(it.sql, lane, tried, { delayMs: 0, doubted: true })
  await call('DELETE', `${url}?forEveryone=true`)
  const [action] = await dueActions(it.sql, 'w', [lane])
  await actionDone(it.sql, lane, action!)
  t.match((await call('GET', url)).json(), { status: 'cancelled', revokedAt: String })
  t.match((await call('POST', `${url}/retry`)).json(), errorShape(409, 'NOT_RETRYABLE'))
})

void t.test('what did not come from here is there, but not sent again', async (t) => {
  const person = await withSession()
  for (const change of [
    { direction: 'inbound', source: 'live' },
    { direction: 'outbound', source: 'phone' },
  ]) {
    const { id } = await given(person, 'failed')
    await it.sql`update messages set direction = ${change.direction}, source = ${change.source} where id = ${id}`
    const answer = await person.call('POST', `/api/messages/${id}/retry`)
    t.match(answer.json(), errorShape(409, 'NOT_RETRYABLE'))
  }
})

void t.test('what was asked for before a message was cancelled is over', async (t) => {
  const person = await withSession()
  const { call } = person
  const { lane, next, due, url, tried } = await withTry(person)
  await call('PATCH', url, { message: 'Hello' })
  await call('POST', `${url}/reaction`, { emoji: '👍' })
  await putBack(it.sql, lane, tried, { delayMs: 0 })
  const cancelled = await call('DELETE', url)
  t.match(cancelled.json(), { status: 'cancelled', error: null })
  t.strictSame(cancelled.json<Message>().actions, [])
  t.strictSame(await due(), [])
  await call('POST', `${url}/retry`)
  await recordAck(it.sql, lane, { keyId: (await next())!.keyId, ack: 1 })
  t.strictSame(await due(), [])
})

void t.test('a deletion that is under way, or done, is not asked for again', async (t) => {
  const person = await withSession()
  const { id } = await given(person, 'sent')
  const url = `/api/messages/${id}?forEveryone=true`
  for (const what of ['once', 'twice']) {
    const answer = await person.call('DELETE', url)
    t.equal(answer.statusCode, 202, what)
    t.equal(answer.json<Message>().actions.length, 1, what)
  }
  await it.sql`update wa_actions set done_at = now() where message_id = ${id}`
  await it.sql`update messages set revoked_at = now() where id = ${id}`
  const answer = await person.call('DELETE', url)
  t.equal(answer.statusCode, 202)
  t.match(answer.json(), { revokedAt: String })
  t.strictSame(answer.json<Message>().actions, [])
  t.match(
    (await person.call('PATCH', `/api/messages/${id}`, { message: 'x' })).json(),
    errorShape(409, 'NOT_EDITABLE'),
  )
  t.match(
    (await person.call('POST', `/api/messages/${id}/reaction`, { emoji: '👍' })).json(),
    errorShape(409, 'NOT_ON_WHATSAPP'),
  )
})

void t.test('a deletion that several ask for at once is asked for once', async (t) => {
  const person = await withSession()
  const { id } = await given(person, 'sent')
  const url = `/api/messages/${id}?forEveryone=true`
  const answers = await Promise.all(Array.from({ length: 8 }, () => person.call('DELETE', url)))
  for (const answer of answers) t.equal(answer.json<Message>().actions.length, 1)
})

void t.test('what is cancelled while it is edited is left with no edit', async (t) => {
  const person = await withSession()
  const { call } = person
  const { lane, next, url, tried } = await withTry(person)
  // May be out: it would be edited on WhatsApp.
  await putBack(it.sql, lane, tried, { delayMs: 60_000, doubted: true })
  let cancelling: ReturnType<typeof call> | undefined
  const edited = await overtaken(
    tried.messageId,
    () => call('PATCH', url, { message: 'Hello' }),
    () => {
      cancelling = call('DELETE', url)
      return Promise.resolve()
    },
  )
  const cancelled = await cancelling!
  t.match(cancelled.json(), { status: 'cancelled' })
  t.ok([202, 409].includes(edited.statusCode))
  t.strictSame((await call('GET', url)).json<Message>().actions, [])
  t.equal(await next(), undefined)
})

void t.test('nothing is asked of a session that is deleted', async (t) => {
  const person = await withSession()
  const { call, sessionId, workspaceId } = person
  const { id, chatId } = await given(person, 'read')
  await it.sql`update chats set unread_count = 2 where id = ${chatId}`
  await call('DELETE', `/api/whatsapp/sessions/${sessionId}`)
  for (const [method, path, body] of [
    ['PATCH', `/api/messages/${id}`, { message: 'Hello' }],
    ['POST', `/api/messages/${id}/reaction`, { emoji: '👍' }],
    ['DELETE', `/api/messages/${id}?forEveryone=true`, undefined],
    ['POST', `/api/chats/${chatId}/typing`, undefined],
  ] as const) {
    t.match((await call(method, path, body)).json(), errorShape(409, 'SESSION_GONE'), path)
  }
  t.equal((await call('POST', `/api/chats/${chatId}/seen`)).statusCode, 202, 'read here')
  t.match((await call('GET', `/api/chats/${chatId}`)).json(), { unreadCount: 0 })
  t.strictSame(await it.sql`select from wa_actions where workspace_id = ${workspaceId}`, [])
})

void t.test('the caption of a file is edited as a text is; what has no text is not', async (t) => {
  const person = await withSession()
  const { call } = person
  const location = { latitude: 52.5, longitude: 13.4, name: 'Office' }
  for (const status of ['queued', 'sent']) {
    const place = await given(person, status, { to, location })
    t.match(
      (await call('PATCH', `/api/messages/${place.id}`, { message: 'x' })).json(),
      errorShape(409, 'NOT_EDITABLE'),
    )
    for (const type of ['image', 'video', 'document']) {
      const { id } = await given(person, status)
      await it.sql`update messages set type = ${type}, content = '{"mimeType": "image/png"}' where id = ${id}`
      const answer = await call('PATCH', `/api/messages/${id}`, { message: 'Our hours' })
      t.equal(answer.statusCode, status === 'queued' ? 200 : 202)
      if (status === 'queued') t.match(answer.json(), { body: 'Our hours' })
    }
  }
})

void t.test('who has opted out is sent nothing again either', async (t) => {
  const person = await withSession()
  const { call, workspaceId } = person
  const plain = await given(person, 'failed')
  await it.sql`update contacts set opted_out = true where workspace_id = ${workspaceId}`
  t.match(
    (await call('POST', `/api/messages/${plain.id}/retry`)).json(),
    errorShape(403, 'RECIPIENT_OPTED_OUT'),
  )
  t.match((await call('GET', `/api/messages/${plain.id}`)).json(), { status: 'failed' })
  const reason = { to, message: 'x', optOutOverride: 'a recall, by law' }
  const overridden = await given(person, 'failed', reason)
  t.equal((await call('POST', `/api/messages/${overridden.id}/retry`)).statusCode, 202)
})

void t.test(
  'nor is anything new said to them by a change, a reaction or a sign of writing',
  async (t) => {
    const person = await withSession()
    const { call, workspaceId } = person
    const [sent, waiting] = [await given(person, 'sent'), await given(person, 'queued')]
    const out = errorShape(403, 'RECIPIENT_OPTED_OUT')
    const optOut = (is: boolean) =>
      it.sql`update contacts set opted_out = ${is} where workspace_id = ${workspaceId}`
    const edit = (id: string) => call('PATCH', `/api/messages/${id}`, { message: 'Half price!' })
    const react = (id: string, emoji: string) =>
      call('POST', `/api/messages/${id}/reaction`, { emoji })
    const type = (on: boolean) => call('POST', `/api/chats/${sent.chatId}/typing`, { on })
    await optOut(true)
    t.match((await edit(sent.id)).json(), out)
    t.match((await react(sent.id, '👍')).json(), out)
    t.match((await type(true)).json(), out)
    t.strictSame(await it.sql`select from wa_actions where workspace_id = ${workspaceId}`, [])
    t.equal((await edit(waiting.id)).statusCode, 200, 'what waits is not sent either')

    t.equal((await react(sent.id, '')).statusCode, 202, 'what takes something back is no message')
    t.equal((await type(false)).statusCode, 202)
    t.equal((await call('POST', `/api/chats/${sent.chatId}/seen`)).statusCode, 202)
    t.equal((await call('DELETE', `/api/messages/${sent.id}?forEveryone=true`)).statusCode, 202)

    const reason = { to, message: 'Your invoice', optOutOverride: 'owed by law' }
    const overridden = await given(person, 'sent', reason)
    t.equal((await edit(overridden.id)).statusCode, 202)
    t.equal((await react(overridden.id, '👍')).statusCode, 202)
    await optOut(false)
    t.equal((await type(true)).statusCode, 202)
  },
)

void t.test('a reason to override an opt-out holds for the text it was given for', async (t) => {
  const person = await withSession()
  const reason = { to, message: 'Your invoice', optOutOverride: 'owed by law' }
  for (const status of ['queued', 'sent']) {
    const { id } = await given(person, status, reason)
    const edit = () => person.call('PATCH', `/api/messages/${id}`, { message: 'Half price!' })
    const role = (name: string) =>
      it.sql`update profiles set role = ${name} where workspace_id = ${person.workspaceId}`
    await role('agent')
    t.match((await edit()).json(), errorShape(403, 'FORBIDDEN'), status)
    await role('admin')
    t.equal((await edit()).statusCode, status === 'queued' ? 200 : 202)
    await role('owner')
  }
})

void t.test('only people are mentioned, and only numbers are put on cards', async (t) => {
  const { call } = await withSession()
  const group = '120363041234567890@g.us'
  const lid = '123456789012345@lid'
  const mentioning = await call('POST', send, {
    to: group,
    message: 'Hi @123456789012345 and @12025550102',
    mentions: [lid, '+1 202 555 0102'],
  })
  t.equal(mentioning.statusCode, 202)
  matchWhole(t, mentioning.json(), { waChatId: group, mentions: [lid, '12025550102@c.us'] })
  for (const [body, path] of [
    [{ message: 'x', mentions: [group] }, 'body.mentions.0'],
    [{ message: 'x', mentions: ['12025550102', '+1 202 555 0102'] }, 'body.mentions.1'],
    [{ contactCard: { name: 'Cleo', phone: lid } }, 'body.contactCard.phone'],
    [{ contactCard: { name: 'Cleo', phone: group } }, 'body.contactCard.phone'],
  ] as const) {
    const answer = await call('POST', send, { to: group, ...body })
    t.match(answer.json(), { ...errorShape(400, 'VALIDATION_FAILED'), details: [{ path }] }, path)
  }
})

void t.test('a quote is of the same chat of the same session', async (t) => {
  const { call, sessionId } = await withSession()
  const other = await call('POST', '/api/whatsapp/sessions', { name: 'Other' })
  const { id: otherId } = other.json<{ id: string }>()
  const quote = async (quotedMessageId: string, more: object) =>
    (await call('POST', send, { sessionId, message: 'x', quotedMessageId, ...more })).statusCode
  const first = await call('POST', send, { sessionId, to, message: 'first' })
  const { id } = first.json<Message>()
  t.equal(await quote(id, { to }), 202)
  t.equal(await quote(id, { to: '+1 202 555 0102' }), 422)
  t.equal(await quote(id, { to: '120363041234567890@g.us' }), 422)
  t.equal(await quote(id, { to, sessionId: otherId }), 422)
  t.equal(await quote(randomUUID(), { to }), 404)
  const stranger = await withSession()
  const foreign = await stranger.call('POST', send, { to, message: 'x', quotedMessageId: id })
  t.equal(foreign.statusCode, 404)
})

void t.test('what will leave later is not quoted by what leaves before', async (t) => {
  const person = await withSession()
  const inHours = (hours: number) => new Date(Date.now() + hours * 3_600_000).toISOString()
  const later = await given(person, 'queued', { to, message: 'Tomorrow', sendAt: inHours(24) })
  const quoting = { to, message: 'As I will say', quotedMessageId: later.id }
  for (const [sendAt, codes] of [
    [undefined, ['QUOTED_NOT_FOUND']],
    [inHours(23), ['QUOTED_NOT_FOUND']],
    [inHours(25), []],
  ] as const) {
    const body = { ...quoting, ...(sendAt && { sendAt }) }
    const foretold = await person.call('POST', `${send}?dryRun=true`, body)
    t.match(foretold.json(), { blockedBy: codes })
    t.equal((await person.call('POST', send, body)).statusCode, codes.length > 0 ? 422 : 202)
  }
})

void t.test(
  'of two rows that both answer the last message only the first is accepted',
  async (t) => {
    const person = await withSession()
    const { id } = await given(person, 'queued')
    const row = { to, message: 'x', ifLastMessageId: id }
    const other = { to: '+1 202 555 0102', message: 'x' }
    const unquotable = { ...row, quotedMessageId: randomUUID() }
    const answer = await person.call('POST', `${send}/bulk`, {
      messages: [other, unquotable, row, row],
    })
    matchWhole(t, answer.json(), {
      accepted: 2,
      rejected: [
        { index: 1, code: 'QUOTED_NOT_FOUND' },
        { index: 3, code: 'CONVERSATION_MOVED' },
      ],
    })
  },
)

void t.test('a dry run leaves no trace in any table', async (t) => {
  const person = await withSession()
  const { token, call } = person
  await given(person, 'queued')
  const template = await call('POST', '/api/templates', { name: 'T', body: 'Hi {{name}}' })
  const contents = async () => {
    const tables = await it.sql<{ name: string }>`
      select quote_ident(tablename) as name from pg_tables where schemaname = 'public' order by 1`
    const sums = []
    for (const { name } of tables) {
      const [sum] = await it.sql<{ sum: string }>`
        select query_to_xml(${`select md5(string_agg(x::text, '' order by x::text)) from ${name} x`}, true, true, '')::text as sum`
      sums.push([name, sum!.sum])
    }
    return Object.fromEntries(sums) as Record<string, string>
  }
  const before = await contents()
  t.ok(Object.keys(before).length > 30)
  for (const body of [
    { to, message: 'x' },
    { to: '+1 202 555 0199', message: 'x', sendAt: new Date(Date.now() + 60_000).toISOString() },
    { to, template: { id: template.json<{ id: string }>().id, variables: { name: 'Ada' } } },
    { to, template: { id: template.json<{ id: string }>().id } },
    { to, message: 'x', mentions: ['+1 202 555 0198'], ifLastMessageId: randomUUID() },
  ]) {
    const answer = await it.app.inject({
      method: 'POST',
      url: `${send}?dryRun=true`,
      headers: { authorization: `Bearer ${token}`, 'idempotency-key': 'dry' },
      body,
    })
    t.ok([200, 422].includes(answer.statusCode), answer.body)
    t.notOk('idempotency-replayed' in answer.headers)
  }
  t.strictSame(await contents(), before)
  const real = await it.app.inject({
    method: 'POST',
    url: send,
    headers: { authorization: `Bearer ${token}`, 'idempotency-key': 'dry' },
    body: { to, message: 'x' },
  })
  t.equal(real.statusCode, 202, 'its key is as good as new')
})
