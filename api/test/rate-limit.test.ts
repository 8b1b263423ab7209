import t from 'tap'
import { connect } from '../../shared/db.ts'
import { countHit } from '../../shared/rate-limits.ts'
import { testDb } from '../../shared/test/db.ts'
import { appOver, errorShape, signIn } from './app.ts'

const { sql } = await testDb(t)
t.beforeEach(() => sql`delete from rate_limits`)

const limited = (
  t: Parameters<typeof appOver>[0],
  settings: Record<string, string> = {},
  db = sql,
) =>
  appOver(t, db, {
    RATE_LIMIT_GENERAL: '3/15m',
    RATE_LIMIT_AUTH: '4/15m',
    RATE_LIMIT_MESSAGES: '2/1m',
    ...settings,
  })
type App = Awaited<ReturnType<typeof limited>>['app']

const from = async (app: App, remoteAddress: string, url = '/api/nowhere', headers = {}) =>
  (await app.inject({ url, remoteAddress, headers })).statusCode
const sign = (app: App, action: string, remoteAddress = '127.0.0.1') =>
  app.inject({ method: 'POST', url: `/api/auth/${action}`, body: {}, remoteAddress })

void t.test('sign-ins and their like share one counter, over all processes', async (t) => {
  const { app } = await limited(t)
  const { app: another } = await limited(t)
  t.equal((await sign(app, 'login')).statusCode, 400)
  t.equal((await sign(app, 'register')).statusCode, 400)
  const third = await sign(another, 'refresh')
  t.match(third.headers, {
    'ratelimit-limit': '4',
    'ratelimit-remaining': '1',
    'ratelimit-reset': /^(900|89\d)$/,
  })
  t.equal((await sign(app, 'login')).statusCode, 400)

  for (const [where, action] of [
    [app, 'login'],
    [another, 'register'],
    [another, 'refresh'],
  ] as const) {
    const refused = await sign(where, action)
    t.match(refused.json(), errorShape(429, 'RATE_LIMITED'))
    t.match(refused.headers, {
      'retry-after': /^(900|89\d)$/,
      'ratelimit-limit': '4',
      'ratelimit-remaining': '0',
    })
  }
  t.equal((await sign(app, 'login', '10.0.0.9')).statusCode, 400, 'another address')
  t.equal(await from(app, '127.0.0.1'), 404, 'the general limit counts apart')
})

void t.test('the window ends', async (t) => {
  const { app } = await limited(t)
  for (let i = 0; i < 5; i++) await sign(app, 'login')
  t.equal((await sign(app, 'login')).statusCode, 429)
  await sql`update rate_limits set resets_at = now()`
  t.equal((await sign(app, 'login')).statusCode, 400)
})

void t.test('messages count per person, whatever the address', async (t) => {
  const { app } = await limited(t)
  const [ada, eve] = [await signIn({ app, sql }), await signIn({ app, sql })]
  const send = (person: typeof ada) => person.call('POST', '/api/whatsapp/send', {})
  t.equal((await send(ada)).statusCode, 400)
  t.equal((await send(ada)).statusCode, 400)
  t.match((await send(ada)).json(), errorShape(429, 'RATE_LIMITED'))
  t.equal((await send(eve)).statusCode, 400)
  t.match(await sql`select key from rate_limits where key like ${'%' + ada.profile.id + '%'}`, [
    { key: `user:${ada.profile.id}:messages` },
  ])
  const anonymous = await app.inject({ method: 'POST', url: '/api/whatsapp/send' })
  t.equal(anonymous.statusCode, 401)
  t.equal(
    anonymous.headers['ratelimit-remaining'],
    '1',
    'who is not signed in is counted by address',
  )
})

void t.test(
  'everything else shares the general limit, unknown paths too; health has none',
  async (t) => {
    const { app } = await limited(t)
    const { call } = await signIn({ app, sql })
    t.equal((await call('GET', '/api/chats')).headers['ratelimit-remaining'], '2')
    t.equal((await call('GET', '/api/auth/me')).headers['ratelimit-remaining'], '1')
    t.equal((await call('GET', '/api/nowhere')).headers['ratelimit-remaining'], '0')
    const refused = await call('GET', '/api/nowhere')
    t.match(refused.json(), errorShape(429, 'RATE_LIMITED'))
    t.ok(refused.headers['retry-after'])
    t.equal((await call('GET', '/api/chats')).statusCode, 429)
    t.equal(await from(app, '127.0.0.1', '/api/chats'), 401, 'the address has a counter of its own')

    for (let i = 0; i < 6; i++) {
      for (const url of ['/health', '/health/live', '/documentation/json']) {
        const answer = await app.inject(url)
        t.equal(answer.statusCode, 200)
        t.equal(answer.headers['ratelimit-limit'], undefined)
      }
    }
  },
)

void t.test('an IPv6 network of one customer is one address', async (t) => {
  const { app } = await limited(t)
  for (const last of ['1', '2', 'ffff:1:2']) await from(app, `2001:db8:1:2::${last}`)
  t.equal(await from(app, '2001:db8:1:2:9::9'), 429)
  t.equal(await from(app, '2001:db8:1:3::1'), 404)
  for (let i = 0; i < 3; i++) await from(app, '::ffff:10.1.1.1')
  t.equal(await from(app, '10.1.1.1'), 429, 'an IPv4 address in IPv6 clothes')
  t.equal(await from(app, '10.1.1.2'), 404)
})

void t.test('addresses that clients claim count only behind trusted proxies', async (t) => {
  const claim = (address: string) => ({ 'x-forwarded-for': address })
  const { app: direct } = await limited(t)
  for (let i = 0; i < 3; i++) await from(direct, '10.0.0.1', '/x', claim(`1.1.1.${i}`))
  t.equal(await from(direct, '10.0.0.1', '/x', claim('1.1.1.9')), 429)

  const { app: hops } = await limited(t, { TRUST_PROXY: '1' })
  for (let i = 0; i < 3; i++) await from(hops, '10.0.0.1', '/x', claim(`9.9.9.${i}, 1.1.1.1`))
  t.equal(
    await from(hops, '10.0.0.1', '/x', claim('9.9.9.9, 1.1.1.1')),
    429,
    'what is left of the hop is a claim',
  )
  t.equal(await from(hops, '10.0.0.1', '/x', claim('1.1.1.2')), 404)

  const { app: subnet } = await limited(t, { TRUST_PROXY: '10.0.0.0/8' })
  for (let i = 0; i < 3; i++) await from(subnet, '10.2.3.4', '/x', claim('1.1.1.1'))
  t.equal(await from(subnet, '10.2.3.4', '/x', claim('1.1.1.1')), 429)
  t.equal(await from(subnet, '11.2.3.4', '/x', claim('1.1.1.1')), 404)
  for (let i = 0; i < 3; i++) await from(subnet, '11.2.3.4', '/x', claim(`1.1.1.${i}`))
  t.equal(await from(subnet, '11.2.3.4', '/x', claim('1.1.1.7')), 429)
})

void t.test('limits can be switched off one by one', async (t) => {
  const { app } = await limited(t, { RATE_LIMIT_AUTH: 'off', RATE_LIMIT_GENERAL: 'off' })
  for (let i = 0; i < 8; i++) {
    const answer = await sign(app, 'login')
    t.equal(answer.statusCode, 400)
    t.equal(answer.headers['ratelimit-limit'], undefined)
    t.equal(await from(app, '127.0.0.1'), 404)
  }
  const { call } = await signIn({ app, sql })
  for (let i = 0; i < 2; i++) await call('POST', '/api/whatsapp/send', {})
  t.equal((await call('POST', '/api/whatsapp/send', {})).statusCode, 429)
})

void t.test('while the database is away sign-ins are counted in memory', async (t) => {
  const away = connect('postgres://nobody@127.0.0.1:1/none', { applicationName: 'test' })
  t.teardown(() => away.close())
  const { app } = await limited(t, {}, away)
  const body = { email: 'a@b.co', password: 'x' }
  const login = () => app.inject({ method: 'POST', url: '/api/auth/login', body })
  for (let i = 0; i < 4; i++)
    t.match((await login()).json(), errorShape(503, 'DATABASE_UNAVAILABLE'))
  t.match((await login()).json(), errorShape(429, 'RATE_LIMITED'))
})

void t.test('parallel hits are all counted', async (t) => {
  const hits = await Promise.all(Array.from({ length: 50 }, () => countHit(sql, 'k', 60_000)))
  t.strictSame(
    hits.map(({ hits }) => hits).sort((a, b) => a - b),
    Array.from({ length: 50 }, (_, i) => i + 1),
  )
  t.match(await countHit(sql, 'far', 9_999 * 86_400_000), { hits: 1, ttlMs: 9_999 * 86_400_000 })
})
