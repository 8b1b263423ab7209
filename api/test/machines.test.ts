import t from 'tap'
import { createApiKey, findByApiKey, isAddressOrSubnet } from '../../shared/api-keys.ts'
import { appOver, errorShape, signIn, testApp } from './app.ts'

const it = await testApp(t)

void t.test('a key is shown once, acts for its maker, and ends when it is deleted', async (t) => {
  const owner = await signIn(it)
  const made = await owner.call('POST', '/api/api-keys', {
    name: 'Zapier',
    scopes: ['read', 'send'],
    expiresAt: '2999-01-01T00:00:00Z',
  })
  t.equal(made.statusCode, 201)
  const { key, id, scopes, allowedIps } = made.json<{
    key: string
    id: string
    scopes: string[]
    allowedIps: string[]
  }>()
  t.strictSame({ scopes, allowedIps }, { scopes: ['read', 'send'], allowedIps: [] })
  t.match(made.json(), {
    name: 'Zapier',
    prefix: key.slice(0, 12),
    createdBy: owner.profile.id,
    lastUsedAt: null,
    expiresAt: '2999-01-01T00:00:00.000Z',
  })
  t.match(key, /^awf_[\w-]{43}$/)
  const [stored] = await it.sql<{
    text: string
  }>`select string_agg(k::text, ' ') as text from api_keys k`
  t.notMatch(stored!.text, key)

  const call = (url: string, method: 'GET' | 'POST' = 'GET', body?: object) =>
    it.app.inject({ method, url, headers: { 'x-api-key': key }, ...(body && { body }) })
  t.match((await call('/api/auth/me')).json(), { user: { id: owner.profile.id } })
  await owner.call('POST', '/api/whatsapp/sessions', { name: 'main' })
  const sent = await call('/api/whatsapp/send', 'POST', { to: '12025550100', message: 'hi' })
  t.match(sent.json(), { sentBy: { id: owner.profile.id } })
  t.match(
    (await call('/api/whatsapp/sessions', 'POST', { name: 'x' })).json(),
    errorShape(403, 'FORBIDDEN'),
  )
  t.match(
    (await call('/api/api-keys', 'POST', { name: 'x', scopes: ['manage'] })).json(),
    errorShape(403, 'FORBIDDEN'),
  )

  const list = await owner.call('GET', '/api/api-keys')
  t.match(list.json(), { data: [{ id, lastUsedAt: String }], nextCursor: null })
  t.notMatch(list.body, key)
  t.equal((await owner.call('DELETE', `/api/api-keys/${id}`)).statusCode, 204)
  t.equal((await call('/api/auth/me')).statusCode, 401)
  t.equal((await owner.call('DELETE', `/api/api-keys/${id}`)).statusCode, 404)
  const log = await owner.call('GET', '/api/audit-log')
  t.match(
    log.json<{ data: { action: string }[] }>().data.map(({ action }) => action),
    ['api_key.deleted', 'session.created', 'api_key.created'],
  )
})

void t.test('a wrong key is refused with every fault named', async (t) => {
  const owner = await signIn(it)
  const good = { name: 'k', scopes: ['read'] }
  for (const [body, path] of [
    [{ ...good, name: ' ' }, 'body.name'],
    [{ ...good, scopes: [] }, 'body.scopes'],
    [{ ...good, scopes: ['root'] }, 'body.scopes.0'],
    [{ ...good, scopes: ['read', 'read'] }, 'body.scopes.1'],
    [{ ...good, expiresAt: '2020-01-01T00:00:00Z' }, 'body.expiresAt'],
    [{ ...good, expiresAt: 'tomorrow' }, 'body.expiresAt'],
    [{ ...good, allowedIps: ['nowhere'] }, 'body.allowedIps.0'],
    [{ ...good, allowedIps: ['10.0.0.0/33'] }, 'body.allowedIps.0'],
    [{ ...good, workspaceId: owner.workspaceId }, 'body.workspaceId'],
  ] as const) {
    const answer = await owner.call('POST', '/api/api-keys', body)
    t.match(answer.json(), { ...errorShape(400, 'VALIDATION_FAILED'), details: [{ path }] }, path)
  }
})

void t.test('a key works from its addresses only', async (t) => {
  const { profile } = await signIn(it)
  const find = async (allowedIps: string[], address: string) => {
    const { key } = await createApiKey(it.sql, profile, { name: 'k', scopes: ['read'], allowedIps })
    return (await findByApiKey(it.sql, key, address)) !== undefined
  }
  for (const [allowed, address, expected] of [
    [[], '203.0.113.9', true],
    [['203.0.113.9'], '203.0.113.9', true],
    [['203.0.113.9'], '::ffff:203.0.113.9', true],
    [['203.0.113.9'], '203.0.113.10', false],
    [['203.0.113.0/24'], '203.0.113.255', true],
    [['203.0.113.0/24'], '203.0.114.0', false],
    [['2001:db8::/32'], '2001:db8:1::1', true],
    [['2001:db8::/32'], '2001:db9::1', false],
    [['2001:db8::/32'], '203.0.113.9', false],
    [['10.0.0.0/8'], '::ffff:a00:1', true],
    [['10.0.0.1', '192.168.0.0/16'], '192.168.7.7', true],
  ] as const) {
    t.equal(await find([...allowed], address), expected, `${allowed.join()} ${address}`)
  }
  for (const text of ['10.0.0.1', '10.0.0.0/8', '::1', '2001:db8::/32', '0.0.0.0/0']) {
    t.ok(isAddressOrSubnet(text), text)
  }
  for (const text of [
    '',
    'x',
    '10.0.0',
    '10.0.0.1/',
    '10.0.0.1/33',
    '::/129',
    '1.1.1.1/8/8',
    '::ffff:10.0.0.0/8',
    'fe80::1%eth0',
    '10.0.0.0/08',
  ]) {
    t.notOk(isAddressOrSubnet(text), text)
  }
})

void t.test('an Authorization header goes before a key', async (t) => {
  const owner = await signIn(it)
  const { key } = await createApiKey(it.sql, owner.profile, { name: 'k', scopes: ['read'] })
  const headers = { 'x-api-key': key, authorization: 'Bearer wrong.wrong.wrong' }
  t.equal((await it.app.inject({ url: '/api/auth/me', headers })).statusCode, 401)
})

void t.test('the use of a key is noted to the minute', async (t) => {
  const { profile } = await signIn(it)
  const { key, id } = await createApiKey(it.sql, profile, { name: 'k', scopes: ['read'] })
  const used = async () => {
    await findByApiKey(it.sql, key, '127.0.0.1')
    const [row] = await it.sql<{
      at: string
    }>`select last_used_at::text as at from api_keys where id = ${id}`
    return row!.at
  }
  const first = await used()
  t.equal(await used(), first)
  await it.sql`update api_keys set last_used_at = now() - interval '61 seconds' where id = ${id}`
  t.ok((await used()) > first)
})

void t.test('each key has rate limits of its own', async (t) => {
  const { app } = await appOver(t, it.sql, { RATE_LIMIT_MESSAGES: '2/1m' })
  const { profile } = await signIn(it)
  const keys = await Promise.all(
    [1, 2].map(() => createApiKey(it.sql, profile, { name: 'k', scopes: ['send'] })),
  )
  const send = async ({ key }: { key: string }) =>
    (
      await app.inject({
        method: 'POST',
        url: '/api/whatsapp/send',
        headers: { 'x-api-key': key },
        body: {},
      })
    ).statusCode
  t.strictSame([await send(keys[0]!), await send(keys[0]!), await send(keys[0]!)], [400, 400, 429])
  t.equal(await send(keys[1]!), 400)
})

void t.test(
  'a key does what is reserved for those in charge only with the scope "manage"',
  async (t) => {
    const { call } = await signIn(it)
    await call('POST', '/api/whatsapp/sessions', { name: 'Sales' })
    const note = { to: '12025550100', message: 'hi' }
    const first = await call('POST', '/api/whatsapp/send', note)
    const { chatId } = first.json<{ chatId: string }>()
    const chat = await call('GET', `/api/chats/${chatId}`)
    const contact = `/api/contacts/${chat.json<{ contactId: string }>().contactId}`
    const override = { ...note, optOutOverride: 'a recall, by law' }
    t.equal((await call('PATCH', contact, { optedOut: true })).statusCode, 200)
    const done = await call('POST', '/api/whatsapp/send', override)
    const message = `/api/messages/${done.json<{ id: string }>().id}`
    for (const [scopes, status] of [
      [['send'], 403],
      [['send', 'manage'], 202],
    ] as const) {
      const made = await call('POST', '/api/api-keys', { name: 'bot', scopes })
      const headers = { 'x-api-key': made.json<{ key: string }>().key }
      const asked = async (method: 'POST' | 'PATCH', url: string, body: object) =>
        (await it.app.inject({ method, url, headers, body })).statusCode
      t.equal(await asked('POST', '/api/whatsapp/send', override), status)
      t.equal(
        await asked('POST', '/api/whatsapp/send?dryRun=true', override),
        status === 403 ? 403 : 200,
      )
      t.equal(await asked('PATCH', message, { message: 'ho' }), status === 403 ? 403 : 200)
      const back = { optedOut: false, reason: 'asked for it on the phone' }
      t.equal(await asked('PATCH', contact, back), status === 403 ? 403 : 200)
    }
  },
)
