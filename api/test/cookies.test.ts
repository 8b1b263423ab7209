import type { LightMyRequestResponse } from 'fastify'
import t from 'tap'
import { appOver, errorShape, password, signIn, testApp } from './app.ts'

const it = await testApp(t, { CLIENT_ORIGIN: 'https://app.example.com' })

const post = (url: string, headers: Record<string, string> = {}, body?: object) =>
  it.app.inject({ method: 'POST', url, headers, ...(body && { body }) })

/** A browser that signed in: its cookies, as it sends them. */
async function browser() {
  const { profile } = await signIn(it)
  const answer = await post(
    '/api/auth/login',
    {},
    { email: profile.email, password, transport: 'cookie' },
  )
  return { profile, answer, ...jar(answer) }
}
const jar = (answer: LightMyRequestResponse) => ({
  cookie: answer.cookies.map(({ name, value }) => `${name}=${value}`).join('; '),
  csrf: answer.json<{ csrfToken: string }>().csrfToken,
})

void t.test('a browser gets its tokens in cookies scripts cannot read', async (t) => {
  const { answer, cookie, csrf, profile } = await browser()
  t.strictSame(Object.keys(answer.json()), ['user', 'expiresIn', 'csrfToken'])
  const cookies = Object.fromEntries(answer.cookies.map(({ name, ...rest }) => [name, rest]))
  const common = { path: '/', secure: true, sameSite: 'Strict' }
  t.match(cookies, {
    '__Host-access': { ...common, httpOnly: true, maxAge: 900 },
    '__Host-refresh': { ...common, httpOnly: true, maxAge: 604_800 },
    csrf: { ...common, value: csrf, maxAge: 604_800 },
  })
  t.notOk(cookies.csrf!.httpOnly)
  t.ok(answer.cookies.every(({ domain }) => domain === undefined))
  t.equal(answer.headers['cache-control'], 'no-store')
  const me = await it.app.inject({ url: '/api/auth/me', headers: { cookie } })
  t.match(me.json(), { user: { id: profile.id } })
})

void t.test('what changes something needs the CSRF token of this very sign-in', async (t) => {
  const { cookie, csrf } = await browser()
  const other = await browser()
  const create = (token?: string) =>
    post(
      '/api/whatsapp/sessions',
      { cookie, ...(token !== undefined && { 'x-csrf-token': token }) },
      { name: 's' },
    )
  for (const token of [
    undefined,
    '',
    'x',
    other.csrf,
    csrf.slice(0, -1),
    csrf + 'A',
    csrf.toLowerCase(),
  ]) {
    t.match((await create(token)).json(), errorShape(403, 'CSRF_INVALID'), token ?? 'none')
  }
  const planted = cookie.replace(/csrf=[^;]*/, `csrf=${other.csrf}`)
  t.equal(
    (
      await post(
        '/api/whatsapp/sessions',
        { cookie: planted, 'x-csrf-token': other.csrf },
        { name: 's' },
      )
    ).statusCode,
    403,
    'a planted pair that agrees with itself',
  )
  t.equal((await create(csrf)).statusCode, 201)
})

void t.test('refreshing and signing out work with cookies', async (t) => {
  const { cookie, csrf } = await browser()
  const headers = { cookie, 'x-csrf-token': csrf }
  t.match((await post('/api/auth/refresh', { cookie })).json(), errorShape(403, 'CSRF_INVALID'))
  const refreshed = await post('/api/auth/refresh', headers)
  t.equal(refreshed.statusCode, 200)
  const next = jar(refreshed)
  t.equal(next.csrf, csrf, 'the token of the sign-in stays')
  t.notOk(refreshed.json<{ accessToken?: string }>().accessToken)
  t.equal(
    (await it.app.inject({ url: '/api/auth/me', headers: { cookie: next.cookie } })).statusCode,
    200,
  )

  t.match(
    (await post('/api/auth/logout', { cookie: next.cookie })).json(),
    errorShape(403, 'CSRF_INVALID'),
  )
  const bye = await post('/api/auth/logout', { cookie: next.cookie, 'x-csrf-token': csrf })
  t.equal(bye.statusCode, 204)
  t.strictSame(
    bye.cookies.map(({ value }) => value),
    ['', '', ''],
  )
  t.equal(
    (await it.app.inject({ url: '/api/auth/me', headers: { cookie: next.cookie } })).statusCode,
    401,
  )
  t.equal(
    (await post('/api/auth/refresh', { cookie: next.cookie, 'x-csrf-token': csrf })).statusCode,
    401,
  )
})

void t.test('signing out works with the refresh cookie alone', async (t) => {
  const { cookie, csrf } = await browser()
  const refreshOnly = cookie.replace(/__Host-access=[^;]*;? ?/, '')
  t.equal((await post('/api/auth/logout', { cookie: refreshOnly })).statusCode, 403)
  t.equal(
    (await post('/api/auth/logout', { cookie: refreshOnly, 'x-csrf-token': csrf })).statusCode,
    204,
  )
  t.equal((await it.app.inject({ url: '/api/auth/me', headers: { cookie } })).statusCode, 401)
})

void t.test('a bearer token goes before cookies, and needs no CSRF token', async (t) => {
  const { cookie, profile } = await browser()
  const mine = await signIn(it)
  const headers = { cookie, authorization: `Bearer ${mine.token}` }
  const me = await it.app.inject({ url: '/api/auth/me', headers })
  t.match(me.json(), { user: { id: mine.profile.id } })
  t.not(profile.id, mine.profile.id)
  t.equal((await post('/api/whatsapp/sessions', headers, { name: 'a' })).statusCode, 201)
})

void t.test('registering and accepting can answer with cookies, too', async (t) => {
  const answer = await post(
    '/api/auth/register',
    {},
    {
      email: 'cookies@example.com',
      password: 'otter-pudding-violet-7',
      fullName: 'Ada',
      transport: 'cookie',
    },
  )
  t.equal(answer.statusCode, 201)
  t.equal(answer.cookies.length, 3)
})

void t.test('COOKIE_SAME_SITE decides who may make a browser send them', async (t) => {
  const { app } = await appOver(t, it.sql, { COOKIE_SAME_SITE: 'none' })
  const { profile } = await signIn(it)
  const body = { email: profile.email, password, transport: 'cookie' }
  const answer = await app.inject({ method: 'POST', url: '/api/auth/login', body })
  t.ok(answer.cookies.every(({ sameSite, secure }) => sameSite === 'None' && secure))
})

void t.test('/config.json tells a frontend what it needs, and no secret', async (t) => {
  const answer = await it.app.inject({ url: '/config.json', headers: { host: 'api.example.com' } })
  t.match(answer.json(), {
    apiBaseUrl: 'http://api.example.com',
    features: { registration: true, passwordReset: false },
    limits: {
      passwordMaxBytes: 72,
      messageLength: 65_536,
      pageSize: 200,
      uploadBytes: { image: 5_242_880, video: 52_428_800, document: 10_485_760, audio: 15_728_640 },
    },
  })
  t.notMatch(answer.body, it.config.JWT_SECRET)
  const { app } = await appOver(t, it.sql, {
    PUBLIC_URL: 'https://api.example.com',
    ALLOW_REGISTRATION: 'false',
  })
  t.match((await app.inject('/config.json')).json(), {
    apiBaseUrl: 'https://api.example.com',
    features: { registration: false },
  })
})

void t.test('/metrics is for neighbours and for who has the token', async (t) => {
  const { app } = await appOver(t, it.sql, { METRICS_TOKEN: 'metrics-token-0123456789' })
  const ask = async (remoteAddress: string, headers = {}) =>
    app.inject({ url: '/metrics', remoteAddress, headers })
  const near = await ask('127.0.0.1')
  t.equal(near.statusCode, 200)
  t.match(near.headers['content-type'], /^text\/plain/)
  t.match(near.body, /^process_cpu_seconds_total/m)
  t.match(
    (await ask('::1')).body,
    /http_request_duration_seconds_count{method="GET",route="\/metrics",status="200"} 1/,
  )
  for (const [address, headers] of [
    ['10.0.0.1', {}],
    ['10.0.0.1', { authorization: 'Bearer wrong' }],
    ['127.0.0.1', { 'x-forwarded-for': '127.0.0.1' }],
    ['127.0.0.1', { forwarded: 'for=127.0.0.1' }],
  ] as const) {
    t.match((await ask(address, headers)).json(), errorShape(404, 'NOT_FOUND'))
  }
  const far = await ask('10.0.0.1', { authorization: 'Bearer metrics-token-0123456789' })
  t.equal(far.statusCode, 200)
  t.equal(far.headers['ratelimit-limit'], undefined)
})
