import { randomUUID } from 'node:crypto'
import t from 'tap'
import { KeyRing } from '../../shared/key-ring.ts'
import { fanOut } from '../../shared/webhook-deliveries.ts'
import { createWebhook } from '../../shared/webhooks.ts'
import { until } from '../../shared/test/until.ts'
import { errorShape, signIn, testApp, testKey } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)

/** A workspace with one of everything. */
async function furnished() {
  const person = await signIn(it)
  const session = await person.call('POST', '/api/whatsapp/sessions', { name: 'Sales' })
  const sessionId = session.json<{ id: string }>().id
  await it.sql`
    update wa_sessions set lease_until = now() + interval '1 minute', status = 'SCAN_QR_CODE', qr = '2@code', qr_attempt = 1 where id = ${sessionId}`
  const body = { to: '1234567890', message: 'a secret' }
  const sent = await person.call('POST', '/api/whatsapp/send', body)
  const { id: messageId, chatId } = sent.json<{ id: string; chatId: string }>()
  const chat = await person.call('GET', `/api/chats/${chatId}`)
  const { contactId } = chat.json<{ contactId: string }>()
  const note = await person.call('POST', `/api/chats/${chatId}/notes`, { body: 'a secret note' })
  const label = await person.call('POST', '/api/labels', { name: 'A secret label' })
  const [noteId, labelId] = [note.json<{ id: string }>().id, label.json<{ id: string }>().id]
  await person.call('PUT', `/api/chats/${chatId}/labels`, { labelIds: [labelId] })
  const { id: webhookId } = await createWebhook(
    it.sql,
    KeyRing.parse(testKey),
    person.workspaceId,
    { url: 'https://example.com/', events: ['*'] },
  )
  await person.call('POST', '/api/whatsapp/send', { to: '1234567890', message: 'another secret' })
  const { id: deliveryId } = await until('a delivery', async () => {
    await fanOut(it.sql, webhookId)
    const [delivery] = await it.sql<{
      id: string
    }>`select id from webhook_deliveries where webhook_id = ${webhookId}`
    return delivery
  })
  await it.sql`
    insert into wa_session_history (workspace_id, session_id, from_status, to_status)
    values (${person.workspaceId}, ${sessionId}, 'STOPPED', 'STARTING')`
  const uploaded = await it.app.inject({
    method: 'POST',
    url: '/api/upload/media',
    headers: {
      authorization: `Bearer ${person.token}`,
      'content-type': 'multipart/form-data; boundary=x',
    },
    body: '--x\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\na secret\r\n--x--\r\n',
  })
  const wish = { filename: 'a.pdf', mimeType: 'application/pdf', size: 5 }
  const expected = await person.call('POST', '/api/uploads/sign', wish)
  return {
    ...person,
    sessionId,
    messageId,
    chatId,
    contactId,
    mediaId: uploaded.json<{ id: string }>().id,
    pendingId: expected.json<{ mediaId: string }>().mediaId,
    noteId,
    labelId,
    webhookId,
    deliveryId,
  }
}

const mine = await furnished()
const theirs = await furnished()

type Furnished = Awaited<ReturnType<typeof furnished>>

/** Every call that names a resource of a workspace, as a stranger would make it. */
const calls: [string, (person: Furnished) => ReturnType<Person['call']>][] = [
  ['session', ({ call }) => call('GET', `/api/whatsapp/sessions/${theirs.sessionId}`)],
  ...['start', 'stop', 'restart', 'logout'].map((command): (typeof calls)[number] => [
    command,
    ({ call }) => call('POST', `/api/whatsapp/sessions/${theirs.sessionId}/${command}`),
  ]),
  ['delete', ({ call }) => call('DELETE', `/api/whatsapp/sessions/${theirs.sessionId}`)],
  ['qr', ({ call }) => call('GET', `/api/whatsapp/sessions/${theirs.sessionId}/qr`)],
  [
    'pairing code',
    ({ call }) =>
      call('POST', `/api/whatsapp/sessions/${theirs.sessionId}/pairing-code`, {
        phone: '12025550100',
      }),
  ],
  ['history', ({ call }) => call('GET', `/api/whatsapp/sessions/${theirs.sessionId}/history`)],
  [
    'send',
    ({ call }) =>
      call('POST', '/api/whatsapp/send', {
        sessionId: theirs.sessionId,
        to: '1234567890',
        message: 'x',
      }),
  ],
  ['message', ({ call }) => call('GET', `/api/messages/${theirs.messageId}`)],
  ['chat', ({ call }) => call('GET', `/api/chats/${theirs.chatId}`)],
  ['contact', ({ call }) => call('GET', `/api/contacts/${theirs.contactId}`)],
  [
    'change of a contact',
    ({ call }) => call('PATCH', `/api/contacts/${theirs.contactId}`, { name: 'x' }),
  ],
  [
    'merge',
    ({ call, contactId }) =>
      call('POST', `/api/contacts/${contactId}/merge`, { contactId: theirs.contactId }),
  ],
  ['participants', ({ call }) => call('GET', `/api/chats/${theirs.chatId}/participants`)],
  [
    'import',
    ({ call }) => call('GET', `/api/whatsapp/sessions/${theirs.sessionId}/history-import`),
  ],
  ['messages', ({ call }) => call('GET', `/api/chats/${theirs.chatId}/messages`)],
  ['file', ({ call }) => call('GET', `/api/upload/signed-url?mediaId=${theirs.mediaId}`)],
  [
    'file to send',
    ({ call }) => call('POST', '/api/whatsapp/send', { to: '1234567890', mediaId: theirs.mediaId }),
  ],
  [
    'upload to confirm',
    ({ call }) => call('POST', '/api/uploads/confirm', { mediaId: theirs.pendingId }),
  ],
  ['file to delete', ({ call }) => call('DELETE', `/api/upload/${theirs.mediaId}`)],
  ['archive', ({ call }) => call('PATCH', `/api/chats/${theirs.chatId}`, { archived: true })],
  [
    'assign',
    (person) =>
      person.call('PATCH', `/api/chats/${person.chatId}`, { assigneeId: theirs.profile.id }),
  ],
  [
    'assign theirs',
    (person) =>
      person.call('PATCH', `/api/chats/${theirs.chatId}`, { assigneeId: person.profile.id }),
  ],
  [
    'label',
    (person) =>
      person.call('PUT', `/api/chats/${person.chatId}/labels`, { labelIds: [theirs.labelId] }),
  ],
  [
    'label theirs',
    (person) =>
      person.call('PUT', `/api/chats/${theirs.chatId}/labels`, { labelIds: [person.labelId] }),
  ],
  ['notes', ({ call }) => call('GET', `/api/chats/${theirs.chatId}/notes`)],
  ['note', ({ call }) => call('POST', `/api/chats/${theirs.chatId}/notes`, { body: 'x' })],
  [
    'edit note',
    (person) =>
      person.call('PATCH', `/api/chats/${theirs.chatId}/notes/${theirs.noteId}`, { body: 'x' }),
  ],
  ['rename label', ({ call }) => call('PATCH', `/api/labels/${theirs.labelId}`, { name: 'x' })],
  [
    'delete note',
    ({ call }) => call('DELETE', `/api/chats/${theirs.chatId}/notes/${theirs.noteId}`),
  ],
  ['delete label', ({ call }) => call('DELETE', `/api/labels/${theirs.labelId}`)],
  ['webhook', ({ call }) => call('GET', `/api/webhooks/${theirs.webhookId}`)],
  [
    'change of a webhook',
    ({ call }) => call('PATCH', `/api/webhooks/${theirs.webhookId}`, { events: ['message'] }),
  ],
  [
    'another secret of a webhook',
    ({ call }) => call('POST', `/api/webhooks/${theirs.webhookId}/rotate-secret`),
  ],
  ['deliveries', ({ call }) => call('GET', `/api/webhooks/${theirs.webhookId}/deliveries`)],
  [
    'redelivery',
    ({ call }) =>
      call('POST', `/api/webhooks/${theirs.webhookId}/deliveries/${theirs.deliveryId}/redeliver`),
  ],
]

/** Those whose own answer is no success: the end of the others, waiting for a worker or for a file, of a file that is in use. */
const unfinished = ['delete', 'pairing code', 'upload to confirm', 'file to delete']

void t.test('what belongs to others is not found, and stays as it is', async (t) => {
  const state = async () => {
    const [row] = await it.sql<{ text: string }>`
      select coalesce(string_agg(line, ' ' order by line), '') as text from (
        select s::text as line from wa_sessions s where workspace_id = ${theirs.workspaceId}
        union all select r::text from wa_session_requests r where workspace_id = ${theirs.workspaceId}
        union all select m::text from messages m where workspace_id = ${theirs.workspaceId}
        union all select o::text from outbox o where workspace_id = ${theirs.workspaceId}
        union all select f::text from media f where workspace_id = ${theirs.workspaceId}
        union all select b::text from media_objects b where workspace_id = ${theirs.workspaceId}
        union all select n::text from chat_notes n where workspace_id = ${theirs.workspaceId}
        union all select l::text from labels l where workspace_id = ${theirs.workspaceId}
        union all select t::text from chat_labels t where workspace_id = ${theirs.workspaceId}
        union all select e::text from events e where workspace_id = ${theirs.workspaceId}
        union all select k::text from contacts k where workspace_id = ${theirs.workspaceId}
        union all select c::text from chats c where workspace_id = ${theirs.workspaceId}
        union all select w::text from webhooks w where workspace_id = ${theirs.workspaceId}
        union all select d::text from webhook_deliveries d where workspace_id = ${theirs.workspaceId}) lines`
    return row!.text
  }
  const before = await state()
  it.nudges.length = 0
  for (const [what, call] of calls) {
    const answer = await call(mine)
    t.match(answer.json(), errorShape(404, 'NOT_FOUND'), what)
    t.notMatch(answer.body, 'secret')
  }
  t.equal(await state(), before)
  t.strictSame(it.nudges, [], 'and no worker is woken')
  for (const [what, call] of calls) {
    const { statusCode } = unfinished.includes(what) ? { statusCode: 0 } : await call(theirs)
    t.ok(statusCode < 300, `${what} works for its owner`)
  }
})

void t.test('lists hold nothing of others, not even with their ids and cursors', async (t) => {
  const theirLists = [
    await theirs.call('GET', '/api/whatsapp/sessions'),
    await theirs.call('GET', '/api/chats'),
    await theirs.call('GET', '/api/contacts'),
  ]
  t.ok(theirLists.every((list) => list.json<{ data: object[] }>().data.length === 1))
  const lists = [
    '/api/whatsapp/sessions',
    '/api/chats',
    '/api/contacts',
    '/api/contacts?search=1234567890',
    '/api/chats?unread=false&archived=false',
    `/api/chats?sessionId=${theirs.sessionId}`,
    '/api/upload',
    '/api/upload?kind=document',
    `/api/chats?label=${theirs.labelId}`,
    `/api/chats?assignee=${theirs.profile.id}`,
    '/api/chats?search=1234567890',
    '/api/labels',
    '/api/search?q=secret',
    `/api/search?q=secret&chatId=${theirs.chatId}`,
    `/api/search?q=secret&sessionId=${theirs.sessionId}`,
    '/api/webhooks',
    `/api/webhooks/${mine.webhookId}/deliveries`,
  ]
  const { sessionId, chatId, contactId, messageId, mediaId, pendingId, labelId, webhookId } = theirs
  for (const url of lists) {
    const { body } = await mine.call('GET', url)
    for (const id of [
      sessionId,
      chatId,
      contactId,
      messageId,
      mediaId,
      pendingId,
      labelId,
      webhookId,
    ])
      t.notMatch(body, id, url)
  }
  const crossed = `/api/webhooks/${mine.webhookId}/deliveries/${theirs.deliveryId}/redeliver`
  t.equal((await mine.call('POST', crossed)).statusCode, 404)

  const filtered = await mine.call('GET', `/api/chats?sessionId=${theirs.sessionId}`)
  t.strictSame(filtered.json(), { data: [], nextCursor: null })

  const position = JSON.stringify(['2999-01-01 00:00:00+00', theirs.chatId])
  const cursor = Buffer.from(position).toString('base64url')
  const page = await mine.call('GET', `/api/chats?cursor=${cursor}`)
  t.match(page.json(), { data: [{ id: mine.chatId }] })
  t.notMatch(page.body, theirs.chatId)
})

void t.test('a token of somebody who moved workspace shows the new one', async (t) => {
  const person = await signIn(it)
  await it.sql`
    update profiles set workspace_id = ${mine.workspaceId} where id = ${person.profile.id}`
  t.equal((await person.call('GET', `/api/chats/${mine.chatId}`)).statusCode, 200)
  t.equal((await person.call('GET', `/api/chats/${theirs.chatId}`)).statusCode, 404)
  await it.sql`update profiles set workspace_id = ${person.workspaceId} where id = ${person.profile.id}`
  t.equal((await person.call('GET', `/api/chats/${mine.chatId}`)).statusCode, 404)
})

void t.test('every table keeps Supabase’s public roles out', async (t) => {
  await it.sql`
    insert into events (workspace_id, session_id, type, payload)
    values (${mine.workspaceId}, ${mine.sessionId}, 'message', '{}')`
  await it.sql`
    insert into idempotency_keys (workspace_id, key, fingerprint, status_code, body, expires_at)
    values (${mine.workspaceId}, 'k', '\\x00', 200, '{}', now() + interval '1 hour')`
  await it.sql`insert into rate_limits (key, hits, resets_at) values ('k', 1, now())`
  await it.sql`insert into workers (id, host, pid, capacity) values ('w', 'h', 1, 1)`
  await it.sql`
    insert into refresh_tokens (family, profile_id, token_hash, expires_at)
    values (${randomUUID()}, ${mine.profile.id}, '\\x00', now())`
  const tables = await it.sql<{ name: string; secured: boolean }>`
    select quote_ident(relname) as name, relrowsecurity as secured
    from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') order by 1`
  t.ok(tables.length >= 14)
  // With the right to select, it is row level security alone that stands in the way.
  await it.sql`grant usage on schema public to anon, authenticated`
  await it.sql`grant all on all tables in schema public to anon, authenticated`

  let filled = 0
  for (const { name, secured } of tables) {
    t.ok(secured, `${name} has row level security`)
    const visible = async (role?: string) =>
      it.sql.begin(async (tx) => {
        if (role === 'anon') await tx`set local role anon`
        if (role === 'authenticated') await tx`set local role authenticated`
        const [row] = await tx<{ count: number }>([
          `select count(*) from public.${name}`,
        ] as unknown as TemplateStringsArray)
        return row!.count
      })
    if ((await visible()) > 0) filled += 1
    for (const role of ['anon', 'authenticated']) {
      t.equal(await visible(role), 0, `${role} reads nothing of ${name}`)
    }
  }
  t.ok(filled >= 14, `${filled} tables had something to hide`)
  for (const view of await it.sql<{ name: string }>`
    select quote_ident(relname) as name from pg_class
    where relnamespace = 'public'::regnamespace and relkind in ('v', 'm')
      and not coalesce('security_invoker=true' = any(reloptions), false)`) {
    t.fail(`the view ${view.name} would pass row level security by`)
  }
})
