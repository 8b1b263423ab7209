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
  const webhook = { url: 'https://example.com/', events: ['*' as const] }
  const { id: webhookId } = await createWebhook(
    it.sql,
    KeyRing.parse(testKey),
    person.workspaceId,
    webhook,
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
  return { ...person, sessionId, messageId, chatId, webhookId, deliveryId }
}

const mine = await furnished()
const theirs = await furnished()

/** Every call that names a resource of a workspace, as a stranger would make it. */
const calls: [string, (person: Person) => ReturnType<Person['call']>][] = [
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
  ['messages', ({ call }) => call('GET', `/api/chats/${theirs.chatId}/messages`)],
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

void t.test('what belongs to others is not found, and stays as it is', async (t) => {
  const state = async () => {
    const [row] = await it.sql<{ text: string }>`
      select coalesce(string_agg(line, ' ' order by line), '') as text from (
        select s::text as line from wa_sessions s where workspace_id = ${theirs.workspaceId}
        union all select r::text from wa_session_requests r where workspace_id = ${theirs.workspaceId}
        union all select m::text from messages m where workspace_id = ${theirs.workspaceId}
        union all select o::text from outbox o where workspace_id = ${theirs.workspaceId}
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
    // The one is the end of the others, the other waits for a worker.
    if (what !== 'delete' && what !== 'pairing code')
      t.ok((await call(theirs)).statusCode < 300, `${what} works for its owner`)
  }
})

void t.test('lists hold nothing of others, not even with their ids and cursors', async (t) => {
  const theirLists = [
    await theirs.call('GET', '/api/whatsapp/sessions'),
    await theirs.call('GET', '/api/chats'),
  ]
  t.ok(theirLists.every((list) => list.json<{ data: object[] }>().data.length === 1))
  const lists = [
    '/api/whatsapp/sessions',
    '/api/chats',
    '/api/chats?unread=false&archived=false',
    `/api/chats?sessionId=${theirs.sessionId}`,
    '/api/webhooks',
    `/api/webhooks/${mine.webhookId}/deliveries`,
  ]
  for (const url of lists) {
    const { body } = await mine.call('GET', url)
    for (const id of [theirs.sessionId, theirs.chatId, theirs.messageId, theirs.webhookId]) {
      t.notMatch(body, id, url)
    }
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
