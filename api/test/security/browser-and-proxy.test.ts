import t from 'tap'
import { testDb } from '../../../shared/test/db.ts'
import { answeredAtOnce, appOver, password, signIn } from '../app.ts'

const { sql } = await testDb(t)
const allowed = 'https://app.example.com'
const { app } = await appOver(t, sql, { CLIENT_ORIGIN: `${allowed},http://localhost:5173` })

const { profile } = await signIn({ app, sql })
const signed = await app.inject({
  method: 'POST',
  url: '/api/auth/login',
  body: { email: profile.email, password, transport: 'cookie' },
})
const cookie = signed.cookies.map(({ name, value }) => `${name}=${value}`).join('; ')

const origins = [
  'null',
  'https://app.example.com.evil.example',
  'https://evilapp.example.com',
  'https://app.example.com:8443',
  'http://app.example.com',
  'https://APP.example.com',
  'https://app.example.com.',
  'https://app.example.com/',
  'https://sub.app.example.com',
  'https://example.com',
  'https://app.example.com@evil.example',
  'https://app.example.com%00.evil.example',
  'https://xn--pp-example.com',
  'https://аpp.example.com',
  'file://',
  'chrome-extension://abc',
  'http://localhost:5174',
  'http://localhost',
  'https://localhost:5173',
  'http://127.0.0.1:5173',
  '*',
  '',
  'https://app.example.com, https://evil.example',
  'https://app_example.com',
  'https://appXexample.com',
  'javascript:alert(1)',
]
for (const origin of origins) {
  void t.test(`CORS: ${JSON.stringify(origin)} may not read answers`, async (t) => {
    const headers = { origin: Buffer.from(origin).toString('latin1') }
    for (const request of [
      { url: '/api/auth/me', headers },
      {
        method: 'OPTIONS' as const,
        url: '/api/auth/me',
        headers: { ...headers, 'access-control-request-method': 'PATCH' },
      },
    ]) {
      const answer = await app.inject(request)
      const given = answer.headers['access-control-allow-origin']
      t.notOk(given === origin && origin !== allowed, `${String(given)}`)
      t.not(given, '*')
      t.not(given, headers.origin)
    }
  })
}

void t.test(
  'CORS: the exact origins may, with credentials, and answers vary by origin',
  async (t) => {
    for (const origin of [allowed, 'http://localhost:5173']) {
      const answer = await app.inject({ url: '/api/auth/me', headers: { origin } })
      t.match(answer.headers, {
        'access-control-allow-origin': origin,
        'access-control-allow-credentials': 'true',
        vary: /Origin/i,
      })
    }
  },
)

const secureHeaders: [string, RegExp][] = [
  ['content-security-policy', /default-src 'none'/],
  ['x-content-type-options', /^nosniff$/],
  ['x-frame-options', /SAMEORIGIN|DENY/],
  ['referrer-policy', /no-referrer/],
  ['strict-transport-security', /max-age=\d{7,}/],
  ['cross-origin-opener-policy', /same-origin/],
  ['cross-origin-resource-policy', /same-origin/],
]
for (const [header, value] of secureHeaders) {
  void t.test(`every answer carries ${header}`, async (t) => {
    for (const url of ['/health', '/api/auth/me', '/nowhere', '/%E0%A4%A']) {
      const answer = await app.inject(url)
      if (url !== '/%E0%A4%A') t.match(answer.headers[header], value, url)
      t.notOk(answer.headers['x-powered-by'])
      t.notOk(answer.headers.server)
    }
  })
}

const state = async () => {
  const [row] = await sql<{ text: string }>`
    select (select count(*) from wa_sessions)::text || (select full_name from profiles where id = ${profile.id}) as text`
  return row!.text
}
const forms: [string, object][] = [
  ['a form', { headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: 'name=x' }],
  ['plain text that is JSON', { headers: { 'content-type': 'text/plain' }, body: '{"name":"x"}' }],
  [
    'a multipart form',
    { headers: { 'content-type': 'multipart/form-data; boundary=x' }, body: '--x--' },
  ],
  [
    'JSON without the token',
    { headers: { 'content-type': 'application/json' }, body: '{"name":"x"}' },
  ],
  [
    'JSON with an empty token',
    { headers: { 'content-type': 'application/json', 'x-csrf-token': '' }, body: '{"name":"x"}' },
  ],
  [
    'JSON with the token in the body',
    { headers: { 'content-type': 'application/json' }, body: '{"name":"x","csrf":"x"}' },
  ],
  ['no type at all', { headers: {}, body: '{"name":"x"}' }],
  [
    'the token in another header',
    {
      headers: {
        'content-type': 'application/json',
        'x-xsrf-token': signed.json<{ csrfToken: string }>().csrfToken,
      },
      body: '{"name":"x"}',
    },
  ],
  [
    'a method override',
    {
      headers: { 'x-http-method-override': 'GET', 'content-type': 'application/json' },
      body: '{"name":"x"}',
    },
  ],
]
for (const [what, request] of forms) {
  void t.test(`CSRF: a foreign page changes nothing by ${what}`, async (t) => {
    const before = await state()
    for (const [method, url] of [
      ['POST', '/api/whatsapp/sessions'],
      ['PATCH', '/api/auth/me'],
      ['POST', '/api/auth/logout-all'],
    ] as const) {
      const { headers, ...rest } = request as { headers: Record<string, string> }
      const answer = await app.inject({
        method,
        url,
        ...rest,
        headers: { ...headers, cookie, origin: 'https://evil.example' },
      })
      t.ok([403, 415].includes(answer.statusCode), `${method} ${url} ${answer.statusCode}`)
    }
    t.equal(await state(), before)
  })
}

void t.test('CSRF: no GET changes anything', async (t) => {
  // Every table whole; but for the counters of rate limits, which GETs do move.
  const content = () => sql<{ name: string; rows: string }>`
    select relname as name,
      query_to_xml(format('select t::text from %I t order by 1', relname), true, false, '')::text as rows
    from pg_stat_user_tables where relname <> 'rate_limits' order by relname`
  const before = await content()
  for (const { method, url } of app.routeTable) {
    if (method !== 'GET' || url.includes('*')) continue
    const answer = await app.inject({
      url: url.replaceAll(/:\w+/g, profile.id) + (url === '/api/events' ? answeredAtOnce : ''),
      headers: { cookie },
    })
    t.ok(answer.statusCode < 500 || url === '/health/ready', url)
  }
  t.strictSame(await content(), before)
})

const limited = (settings: Record<string, string> = {}) =>
  appOver(t, sql, { RATE_LIMIT_GENERAL: '3/15m', RATE_LIMIT_AUTH: '3/15m', ...settings })

for (let hops = 1; hops <= 20; hops++) {
  void t.test(`an X-Forwarded-For of ${hops} from who is no proxy changes no bucket`, async (t) => {
    const { app } = await limited()
    const status = async (i: number) =>
      (
        await app.inject({
          url: '/x',
          remoteAddress: `198.51.100.${hops}`,
          headers: {
            'x-forwarded-for': Array.from({ length: hops }, (_, hop) => `10.${i}.${hop}.1`).join(
              ', ',
            ),
            'x-real-ip': `10.9.9.${i}`,
            forwarded: `for=10.8.8.${i}`,
            'cf-connecting-ip': `10.7.7.${i}`,
          },
        })
      ).statusCode
    t.strictSame(
      [await status(1), await status(2), await status(3), await status(4)],
      [404, 404, 404, 429],
    )
  })
}

const sameBucket: [string, string, string][] = [
  ['two hosts of one /64', '2001:db8:1:2::1', '2001:db8:1:2:ffff::9'],
  ['two ways to write one address', '2001:db8:1:2:0:0:0:1', '2001:db8:1:2::1'],
  ['capitals', '2001:DB8:1:2::1', '2001:db8:1:2::2'],
  ['IPv4 in IPv6 clothes', '::ffff:203.0.113.9', '203.0.113.9'],
]
for (const [what, one, other] of sameBucket) {
  void t.test(`rate limit: ${what} share a bucket`, async (t) => {
    const { app } = await limited()
    const ask = async (remoteAddress: string) =>
      (await app.inject({ url: '/x', remoteAddress })).statusCode
    for (let i = 0; i < 3; i++) await ask(one)
    t.equal(await ask(other), 429)
    t.equal(await ask('2001:db8:9:9::1'), 404)
  })
}

const untrusted: [string, Record<string, string>][] = [
  ['X-Forwarded-Proto', { 'x-forwarded-proto': 'https' }],
  ['X-Forwarded-Host', { 'x-forwarded-host': 'evil.example' }],
  ['both', { 'x-forwarded-proto': 'https', 'x-forwarded-host': 'evil.example' }],
]
for (const [what, headers] of untrusted) {
  void t.test(`${what} from who is no proxy is ignored`, async (t) => {
    const answer = await app.inject({
      url: '/config.json',
      headers: { host: 'api.example.com', ...headers },
    })
    t.match(answer.json(), { apiBaseUrl: 'http://api.example.com' })
  })
}

for (const trust of [
  'true',
  '*',
  '::ffff:10.0.0.0/104',
  '0.0.0.0/0',
  '10.0.0.0/33',
  '-1',
  '10',
  'all',
  'loopback,evil',
]) {
  void t.test(`TRUST_PROXY=${trust} stops the start`, async (t) => {
    await t.rejects(limited({ TRUST_PROXY: trust }), { message: /TRUST_PROXY/ })
  })
}
