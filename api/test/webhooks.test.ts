import t from 'tap'
import { createApiKey } from '../../shared/api-keys.ts'
import { until } from '../../shared/test/until.ts'
import { claimDeliveries, fanOut, recordPost } from '../../shared/webhook-deliveries.ts'
import type { Delivery } from '../../shared/webhook-deliveries.ts'
import type { Webhook } from '../../shared/webhooks.ts'
import { appOver, errorShape, signIn, testApp } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)
const base = '/api/webhooks'
const wish = { url: 'https://93.184.215.14/hook', events: ['message', 'message.ack'] }

type Made = Webhook & { secret: string }
const created = async ({ call }: Person, body: object = wish) =>
  (await call('POST', base, body)).json<Made>()

void t.test('a webhook is made, read, changed and deleted; its secret is shown once', async (t) => {
  const { call, workspaceId } = await signIn(it)
  const answer = await call('POST', base, wish)
  t.equal(answer.statusCode, 201)
  t.equal(answer.headers['cache-control'], 'no-store')
  const { secret, ...webhook } = answer.json<Made>()
  t.match(secret, /^whsec_[A-Za-z0-9+/]{43}=$/)
  t.match(webhook, {
    ...wish,
    enabled: true,
    circuit: { state: 'closed', failures: 0, retryAt: null },
    lastSuccessAt: null,
    lastError: null,
    previousSecretUntil: null,
  })
  const url = `${base}/${webhook.id}`
  t.strictSame((await call('GET', url)).json(), webhook)
  t.strictSame((await call('GET', base)).json(), { data: [webhook], nextCursor: null })

  const changed = await call('PATCH', url, { events: ['*'], enabled: false })
  t.match(changed.json(), { id: webhook.id, url: wish.url, events: ['*'], enabled: false })

  const rotated = await call('POST', `${url}/rotate-secret`, { keepHours: 2 })
  const { secret: second, previousSecretUntil } = rotated.json<Made>()
  t.match(second, /^whsec_/)
  t.not(second, secret)
  const hours = (Date.parse(String(previousSecretUntil)) - Date.now()) / 3_600_000
  t.ok(hours > 1.9 && hours < 2.1)
  t.equal((await call('POST', `${url}/rotate-secret`)).statusCode, 200, 'a body is not needed')

  t.equal((await call('DELETE', url)).statusCode, 204)
  t.match((await call('GET', url)).json(), errorShape(404, 'NOT_FOUND'))
  t.match((await call('DELETE', url)).json(), errorShape(404, 'NOT_FOUND'))

  const log = await call('GET', '/api/audit-log')
  const entries = log.json<{ data: { action: string; target: { id: string } | null }[] }>().data
  t.strictSame(
    entries.filter(({ target }) => target?.id === webhook.id).map(({ action }) => action),
    [
      'webhook.deleted',
      'webhook.secret_rotated',
      'webhook.secret_rotated',
      'webhook.changed',
      'webhook.created',
    ],
  )
  t.notMatch(log.body, secret)
  const [kept] = await it.sql<{ text: string }>`
    select string_agg(body, ' ') as text from idempotency_keys where workspace_id = ${workspaceId}`
  t.equal(kept!.text, null)
})

void t.test('a secret of one’s own', async (t) => {
  const person = await signIn(it)
  const secret = `whsec_${Buffer.alloc(24, 1).toString('base64')}`
  t.match(await created(person, { ...wish, secret }), { secret })
  const wrong = [
    'secret',
    'whsec_',
    'whsec_short',
    `whsec_${Buffer.alloc(65).toString('base64')}`,
    `whsec_${'-'.repeat(40)}`,
    // What the libraries of consumers do not read.
    `whsec_${Buffer.alloc(25, 1).toString('base64').replaceAll('=', '')}`,
    `whsec_${Buffer.alloc(24, 1).toString('base64')}=`,
    `whsec_${Buffer.alloc(24, 1).toString('base64')}A`,
  ]
  for (const text of wrong) {
    const answer = await person.call('POST', base, { ...wish, secret: text })
    t.match(answer.json(), {
      ...errorShape(400, 'VALIDATION_FAILED'),
      details: [{ path: 'body.secret' }],
    })
    t.ok(text.length < 8 || !answer.body.includes(text), 'what may be a secret is not told back')
  }
})

void t.test('what is no webhook is refused, with the place of the fault', async (t) => {
  const person = await signIn(it)
  const { id } = await created(person)
  const refused: [object, string][] = [
    [{ ...wish, url: 'ftp://example.com/' }, 'body.url'],
    [{ ...wish, url: 'file:///etc/passwd' }, 'body.url'],
    [{ ...wish, url: 'gopher://example.com/' }, 'body.url'],
    [{ ...wish, url: 'example.com' }, 'body.url'],
    [{ ...wish, url: 'https://me:secret@example.com/' }, 'body.url'],
    [{ ...wish, url: 'https://example.com/#x' }, 'body.url'],
    [{ ...wish, url: 'http://[fe80::1%25eth0]/' }, 'body.url'],
    [{ ...wish, url: 'https://exa mple.com/' }, 'body.url'],
    [{ ...wish, url: `https://example.com/${'x'.repeat(2048)}` }, 'body.url'],
    [{ ...wish, events: [] }, 'body.events'],
    [{ ...wish, events: ['nonsense'] }, 'body.events.0'],
    [{ ...wish, events: ['message', 'message'] }, 'body.events.1'],
    [{ ...wish, id }, 'body.id'],
  ]
  for (const [body, path] of refused) {
    for (const [method, url] of [
      ['POST', base],
      ['PATCH', `${base}/${id}`],
    ] as const) {
      const answer = await person.call(method, url, body)
      t.match(answer.json(), { ...errorShape(400, 'VALIDATION_FAILED'), details: [{ path }] })
    }
  }
  t.match(
    (await person.call('PATCH', `${base}/${id}`, {})).json(),
    errorShape(400, 'VALIDATION_FAILED'),
  )
})

void t.test(
  'a URL that leads into private networks is refused, however it is written',
  async (t) => {
    const person = await signIn(it)
    const { id } = await created(person)
    const hosts = [
      'localhost',
      'LOCALHOST.',
      'x.localhost',
      'metadata.google.internal',
      'printer.local',
      '127.0.0.1:3001',
      '127.1',
      '2130706433',
      '0x7f000001',
      '0177.0.0.1',
      '0',
      '[::1]',
      '[::ffff:127.0.0.1]',
      '[::127.0.0.1]',
      '[64:ff9b::7f00:1]',
      '10.1.2.3',
      '172.31.255.255',
      '192.168.0.1',
      '169.254.169.254',
      '[fd00:ec2::254]',
      '[fe80::1]',
      '100.64.0.1',
    ]
    for (const host of hosts) {
      for (const [method, url] of [
        ['POST', base],
        ['PATCH', `${base}/${id}`],
      ] as const) {
        const answer = await person.call(method, url, { ...wish, url: `http://${host}/` })
        t.match(
          answer.json(),
          { ...errorShape(422, 'PRIVATE_ADDRESS'), details: [{ path: 'body.url' }] },
          `${method} ${host}`,
        )
      }
    }
    t.match((await person.call('GET', `${base}/${id}`)).json(), wish)
    // Of a name nobody knows nothing can be said; it is looked at before every post.
    const unknown = await person.call('POST', base, { ...wish, url: 'https://nobody.invalid/' })
    t.equal(unknown.statusCode, 201)
    const { app } = await appOver(t, it.sql, { WEBHOOK_ALLOW_PRIVATE: 'true' })
    const trusting = await signIn({ app, sql: it.sql })
    const allowed = await trusting.call('POST', base, { ...wish, url: 'http://127.0.0.1:9/' })
    t.equal(allowed.statusCode, 201)
  },
)

void t.test('not for agents, but for keys that may manage', async (t) => {
  const owner = await signIn(it)
  const { workspaceId } = owner
  const agent = await signIn(it, { role: 'agent', workspaceId })
  const { id } = await created(owner)
  t.match((await agent.call('GET', base)).json(), errorShape(403, 'FORBIDDEN'))
  t.match((await agent.call('POST', base, wish)).json(), errorShape(403, 'FORBIDDEN'))
  const { key } = await createApiKey(it.sql, owner.profile, { name: 'k', scopes: ['manage'] })
  const answer = await it.app.inject({ url: `${base}/${id}`, headers: { 'x-api-key': key } })
  t.equal(answer.statusCode, 200)
})

void t.test('a workspace has so many webhooks, and no more', async (t) => {
  const person = await signIn(it)
  await it.sql`
    insert into webhooks (workspace_id, url, events, key_id, box, tx)
    select ${person.workspaceId}::uuid, 'https://example.com/', '{*}', 'test', '', pg_snapshot_xmin(pg_current_snapshot()) from generate_series(1, 49)`
  t.equal((await person.call('POST', base, wish)).statusCode, 201)
  t.match((await person.call('POST', base, wish)).json(), errorShape(409, 'TOO_MANY_WEBHOOKS'))
  type List = { data: Webhook[]; nextCursor: string | null }
  const first = (await person.call('GET', `${base}?limit=30`)).json<List>()
  const rest = (
    await person.call('GET', `${base}?limit=30&cursor=${first.nextCursor}`)
  ).json<List>()
  t.equal(new Set([...first.data, ...rest.data].map(({ id }) => id)).size, 50)
  t.equal(rest.nextCursor, null)
})

void t.test('deliveries are listed, and made once more', async (t) => {
  const person = await signIn(it)
  const { call, workspaceId } = person
  await call('POST', '/api/whatsapp/sessions', { name: 'Sales', start: false })
  const { id } = await created(person, { ...wish, events: ['message.any'] })
  for (const message of ['one', 'two', 'three']) {
    await call('POST', '/api/whatsapp/send', { to: '12025550100', message })
  }
  const url = `${base}/${id}/deliveries`
  type List = { data: Delivery[]; nextCursor: string | null }
  const list = async (query = '') => (await call('GET', url + query)).json<List>()
  const made = await until('three deliveries', async () => {
    await fanOut(it.sql, id)
    const { data } = await list()
    return data.length === 3 && data
  })
  const first = made.at(-1)!
  t.match(first, {
    type: 'message.any',
    status: 'pending',
    attempts: 0,
    lastAttemptAt: null,
    responseStatus: null,
    error: null,
    deliveredAt: null,
  })
  t.type(first.nextAttemptAt, 'string')
  t.equal(made[0]!.nextAttemptAt, null, 'it waits for the one before it')

  const [claimed] = await claimDeliveries(it.sql, { busy: new Map(), width: 4, limit: 4 })
  const outcome = { ok: true, status: 204, error: null, duration: 7 }
  await recordPost(it.sql, claimed!, outcome, { delayMs: 1, circuitMs: () => 1 })
  const [delivered] = (await list('?status=delivered')).data
  t.match(delivered, { id: first.id, attempts: 1, responseStatus: 204, duration: 7 })
  t.equal((await list('?status=pending')).data.length, 2)
  const page = await list('?limit=2')
  t.strictSame((await list(`?limit=2&cursor=${page.nextCursor}`)).data, [delivered])

  it.nudges.length = 0
  const again = () =>
    it.app.inject({
      method: 'POST',
      url: `${url}/${first.id}/redeliver`,
      headers: { authorization: `Bearer ${person.token}`, 'idempotency-key': 'once' },
    })
  const answer = await again()
  t.equal(answer.statusCode, 202)
  t.match(answer.json(), { id: first.id, eventId: first.eventId, status: 'pending', attempts: 0 })
  t.strictSame(it.nudges, ['awfar_events'])
  const replayed = await again()
  t.equal(replayed.headers['idempotency-replayed'], 'true')
  t.equal(replayed.body, answer.body)

  const [row] = await it.sql<{
    aside: boolean
  }>`select aside from webhook_deliveries where id = ${first.id}`
  t.ok(row!.aside, 'it holds up nobody')
  const nowhere = await call('POST', `${url}/${workspaceId}/redeliver`)
  t.match(nowhere.json(), errorShape(404, 'NOT_FOUND'))
})
