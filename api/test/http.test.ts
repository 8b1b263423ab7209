import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { once } from 'node:events'
import { connect as dial } from 'node:net'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import type { InjectOptions } from 'fastify'
import t from 'tap'
import { connect } from '../../shared/db.ts'
import { heartbeat } from '../../shared/workers.ts'
import { appOver, errorShape, password, signIn, testApp } from './app.ts'

const it = await testApp(t, { CLIENT_ORIGIN: 'https://app.example.com,http://localhost:5173' })
const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

const post = (body: string, type = 'application/json') =>
  it.app.inject({
    method: 'POST',
    url: '/api/auth/login',
    headers: { 'content-type': type },
    body,
  })

void t.test(
  'every refusal has the shape of the contract, whatever it is refused for',
  async (t) => {
    const { token } = await signIn(it)
    const authorization = `Bearer ${token}`
    const json = { authorization, 'content-type': 'application/json' }
    const login = { method: 'POST', url: '/api/auth/login' } as const
    const cases: [string, InjectOptions, number, string][] = [
      ['unknown path', { url: '/nowhere' }, 404, 'NOT_FOUND'],
      ['unknown path below /api', { url: '/api/nowhere' }, 404, 'NOT_FOUND'],
      ['unknown path, signed in', { url: '/api/nowhere', headers: json }, 404, 'NOT_FOUND'],
      [
        'unknown path with a body',
        { method: 'POST', url: '/x', headers: json, body: '{' },
        400,
        'INVALID_JSON',
      ],
      ['wrong method', { method: 'PUT', url: '/api/auth/login' }, 404, 'NOT_FOUND'],
      [
        'wrong method, signed in',
        { method: 'PATCH', url: '/api/chats', headers: json, body: '{}' },
        404,
        'NOT_FOUND',
      ],
      ['broken URL', { url: '/%E0%A4%A' }, 400, 'BAD_REQUEST'],
      [
        'too long a parameter',
        { url: `/api/chats/${'1'.repeat(200)}`, headers: json },
        414,
        'URI_TOO_LONG',
      ],
      ['not signed in', { url: '/api/chats' }, 401, 'UNAUTHORIZED'],
      [
        'not found',
        { url: '/api/chats/018f3b6e-7c1a-7b2a-9c3d-1234567890ab', headers: json },
        404,
        'NOT_FOUND',
      ],
      ['broken JSON', { ...login, headers: json, body: '{"a' }, 400, 'INVALID_JSON'],
      [
        '__proto__',
        { ...login, headers: json, body: '{"__proto__":{"a":1}}' },
        400,
        'INVALID_JSON',
      ],
      [
        'escaped __proto__',
        { ...login, headers: json, body: '{"a":{"__\\u0070roto__":1}}' },
        400,
        'INVALID_JSON',
      ],
      [
        'constructor',
        { ...login, headers: json, body: '{"constructor":{"prototype":1}}' },
        400,
        'INVALID_JSON',
      ],
      [
        'no UTF-8',
        { ...login, headers: json, body: Buffer.from('7b2261223a22fffe227d', 'hex') },
        400,
        'INVALID_JSON',
      ],
      [
        'half a character in UTF-8',
        { ...login, headers: json, body: Buffer.from('7b2261223a22eda080227d', 'hex') },
        400,
        'INVALID_JSON',
      ],
      ['no body', { ...login }, 400, 'VALIDATION_FAILED'],
      ['empty body', { ...login, headers: json, body: '' }, 400, 'VALIDATION_FAILED'],
      ['null', { ...login, headers: json, body: 'null' }, 400, 'VALIDATION_FAILED'],
      ['a string', { ...login, headers: json, body: '"a"' }, 400, 'VALIDATION_FAILED'],
      [
        'too large',
        { ...login, headers: json, body: `"${'x'.repeat(1_048_576)}"` },
        413,
        'BODY_TOO_LARGE',
      ],
      [
        'plain text',
        { ...login, headers: { 'content-type': 'text/plain' }, body: '{}' },
        415,
        'UNSUPPORTED_MEDIA_TYPE',
      ],
      [
        'a form',
        { ...login, headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: 'a=1' },
        415,
        'UNSUPPORTED_MEDIA_TYPE',
      ],
      [
        'no type',
        { ...login, headers: { 'content-type': '' }, body: '{}' },
        415,
        'UNSUPPORTED_MEDIA_TYPE',
      ],
      [
        'a type with a tail',
        { ...login, headers: { 'content-type': 'application/jsonx' }, body: '{}' },
        415,
        'UNSUPPORTED_MEDIA_TYPE',
      ],
      [
        'a type behind a tab',
        { ...login, headers: { 'content-type': 'application/json\ta' }, body: '{}' },
        415,
        'UNSUPPORTED_MEDIA_TYPE',
      ],
      ['OPTIONS of nothing', { method: 'OPTIONS', url: '/nowhere' }, 404, 'NOT_FOUND'],
    ]
    for (const [what, request, status, code] of cases) {
      const answer = await it.app.inject(request)
      // A preflight without its headers is answered by CORS itself.
      if (what === 'OPTIONS of nothing' && answer.statusCode !== 404) continue
      t.equal(answer.statusCode, status, what)
      t.match(answer.json(), errorShape(status, code), what)
      const body = answer.json<{ requestId: string; error: string }>()
      t.equal(answer.headers['x-request-id'], body.requestId, what)
      t.match(answer.headers['content-type'], /^application\/json/)
      const allowed = ['statusCode', 'code', 'error', 'message', 'requestId', 'details']
      t.ok(
        Object.keys(body).every((key) => allowed.includes(key)),
        what,
      )
    }
  },
)

void t.test(
  'a JSON type with parameters or a space in front is validated like any other',
  async (t) => {
    for (const type of [
      'application/json; charset=utf-8',
      ' application/json',
      'APPLICATION/JSON',
    ]) {
      const answer = await post('{"admin":true}', type)
      t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'), type)
    }
  },
)

void t.test(
  'what a route knows nothing of is refused, also by one that takes no body',
  async (t) => {
    const { token } = await signIn(it)
    const headers = { authorization: `Bearer ${token}` }
    for (const [method, url] of [
      ['POST', `/api/messages/${randomUUID()}/retry`],
      ['POST', '/api/auth/logout-all'],
    ] as const) {
      const answer = await it.app.inject({ method, url, headers, body: { optOutOverride: 'law' } })
      t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'), url)
      for (const body of [{}, undefined]) {
        const taken = await it.app.inject({ method, url, headers, ...(body && { body }) })
        t.not(taken.statusCode, 400, url)
      }
    }
  },
)

void t.test('deep, wide and doubled JSON is refused quickly', async (t) => {
  const started = process.cpuUsage()
  const deep = `{"email":${'['.repeat(200_000)}${']'.repeat(200_000)}}`
  t.equal((await post(deep)).statusCode, 400)
  const wide = `{${Array.from({ length: 80_000 }, (_, i) => `"k${i}":0`).join()}}`
  const refused = await post(wide)
  t.equal(refused.statusCode, 400)
  t.ok(refused.body.length < 100_000, 'and not answered at length')
  t.equal(
    (await post(`{"email":"a@b.co","email":7,"password":"x"}`)).statusCode,
    400,
    'the last one counts',
  )
  t.ok(process.cpuUsage(started).user < 2_000_000, 'a moment of CPU, however busy the machine is')
})

void t.test('what Node itself cannot read is answered in the same shape', async (t) => {
  const { app } = await appOver(t, it.sql)
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  for (const [text, status, code] of [
    ['NONSENSE\r\n\r\n', 400, 'BAD_REQUEST'],
    [
      'GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n',
      400,
      'BAD_REQUEST',
    ],
    ['POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n', 400, 'BAD_REQUEST'],
    [
      `GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${'x'.repeat(1_000_000)}\r\n\r\n`,
      431,
      'HEADERS_TOO_LARGE',
    ],
  ] as const) {
    const socket = dial(port, '127.0.0.1')
    socket.on('error', () => {}) // the server hangs up before everything is sent
    let answer = ''
    socket.setEncoding('utf8').on('data', (chunk: string) => (answer += chunk))
    socket.write(text)
    await once(socket, 'close')
    t.match(answer, new RegExp(`^HTTP/1.1 ${status} `), code)
    t.match(JSON.parse(answer.split('\r\n\r\n')[1] ?? '{}'), errorShape(status, code))
  }
})

void t.test('a fault of ours is not explained, and logged', async (t) => {
  const dir = t.testdir()
  const { app } = await appOver(t, it.sql, { LOG_DIR: dir })
  app.get('/boom', { config: { access: 'public' } }, async () => {
    throw new Error('secret detail')
  })
  app.get('/throws-a-string', { config: { access: 'public' } }, async () => {
    // eslint-disable-next-line @typescript-eslint/only-throw-error
    throw 'secret detail'
  })
  for (const url of ['/boom', '/throws-a-string']) {
    const answer = await app.inject(url)
    t.match(answer.json(), errorShape(500, 'INTERNAL_ERROR'))
    t.notMatch(answer.body, 'secret')
  }
  const lines = readFileSync(join(dir, 'error.log'), 'utf8')
  t.match(
    lines,
    /"message":"request failed".*secret detail|secret detail.*"message":"request failed"/,
  )
})

void t.test(
  'while the database is away: 503 with Retry-After, and health does not hang',
  async (t) => {
    const away = connect('postgres://nobody@127.0.0.1:1/none', { applicationName: 'test' })
    t.teardown(() => away.close())
    const { app } = await appOver(t, away)
    const { token } = await signIn(it)
    const headers = { authorization: `Bearer ${token}` }
    const answer = await app.inject({ url: '/api/chats', headers })
    t.match(answer.json(), errorShape(503, 'DATABASE_UNAVAILABLE'))
    t.ok(answer.headers['retry-after'])
    t.notMatch(answer.body, '127.0.0.1')

    t.equal((await app.inject({ url: '/health', headers })).statusCode, 200)
    t.equal((await app.inject('/health/live')).statusCode, 200)
    const ready = await app.inject('/health/ready')
    t.equal(ready.statusCode, 503)
    const fail = { status: 'fail' }
    t.match(ready.json(), {
      status: 'fail',
      checks: { database: fail, migrations: fail, workers: fail, outbox: fail },
    })
  },
)

void t.test('health does not wait for a database that says nothing', async (t) => {
  const silent = Object.assign(() => new Promise(() => {}), {
    begin: () => new Promise(() => {}),
    close: async () => {},
  })
  const { app } = await appOver(t, silent as never)
  const started = performance.now()
  const ready = await app.inject('/health/ready')
  t.equal(ready.statusCode, 503)
  const ms = performance.now() - started
  t.ok(ms > 1_900 && ms < 3_000, `${ms} ms`)
})

void t.test('health tells how things stand', async (t) => {
  const alive = { status: 'ok', timestamp: /Z$/, environment: 'development' }
  t.match((await it.app.inject('/health')).json(), alive)
  t.match((await it.app.inject('/health/live')).json(), alive)

  const before = await it.app.inject('/health/ready')
  t.equal(before.statusCode, 503)
  t.match(before.json(), { checks: { workers: { status: 'fail', alive: 0 } } })
  await heartbeat(it.sql, { id: 'w1', host: 'here', pid: 1, capacity: 5 })
  const after = await it.app.inject('/health/ready')
  t.equal(after.statusCode, 200)
  t.match(after.json(), {
    status: 'ok',
    timestamp: String,
    checks: {
      database: { status: 'ok' },
      migrations: { status: 'ok', applied: Number, newest: Number },
      workers: { status: 'ok', alive: 1 },
      outbox: { status: 'ok', queued: 0, oldestSeconds: 0 },
    },
  })
  await it.sql`update workers set heartbeat_at = now() - interval '61 seconds'`
  t.equal((await it.app.inject('/health/ready')).statusCode, 503)
  const newest = await it.sql`
    update schema_migrations set version = version + 1000
    where version = (select max(version) from schema_migrations) returning version`
  t.match((await it.app.inject('/health/ready')).json(), {
    checks: { migrations: { status: 'fail' } },
  })
  await it.sql`update schema_migrations set version = version - 1000 where version = ${Number(newest[0]!.version)}`
})

void t.test('a sane request id is taken over, any other is replaced', async (t) => {
  const id = async (given?: string) =>
    (
      await it.app.inject({
        url: '/health',
        headers: given === undefined ? {} : { 'x-request-id': given },
      })
    ).headers['x-request-id']
  t.equal(await id('order-42_a.b'), 'order-42_a.b')
  t.equal(await id('x'.repeat(100)), 'x'.repeat(100))
  t.match(await id(), uuid)
  for (const given of ['', 'x'.repeat(101), 'a b', 'a;b', '"', 'ä'])
    t.match(await id(given), uuid, given)
  t.not(await id(), await id())
})

void t.test('browsers may call from the exact origins that are set', async (t) => {
  const ask = (origin: string, method = 'GET' as 'GET' | 'OPTIONS') =>
    it.app.inject({
      method,
      url: '/api/chats',
      headers: {
        origin,
        ...(method === 'OPTIONS' && {
          'access-control-request-method': 'POST',
          'access-control-request-headers': 'authorization',
        }),
      },
    })
  for (const origin of ['https://app.example.com', 'http://localhost:5173']) {
    const preflight = await ask(origin, 'OPTIONS')
    t.equal(preflight.statusCode, 204)
    t.match(preflight.headers, {
      'access-control-allow-origin': origin,
      'access-control-allow-credentials': 'true',
      'access-control-allow-headers': 'authorization',
      'access-control-allow-methods': /DELETE/,
    })
    const refused = await ask(origin)
    t.equal(refused.statusCode, 401)
    t.equal(refused.headers['access-control-allow-origin'], origin, 'errors can be read, too')
    t.match(
      refused.headers['access-control-expose-headers'],
      /X-Request-Id.*Retry-After.*Idempotency-Replayed/,
    )
  }
  for (const origin of [
    'null',
    'https://app.example.com.evil.com',
    'https://evilapp.example.com',
    'https://app.example.com:8443',
    'http://app.example.com',
    'https://APP.example.com',
    'https://app.example.com.',
    'https://app.example.com/',
  ]) {
    for (const method of ['GET', 'OPTIONS'] as const) {
      const answer = await ask(origin, method)
      t.equal(answer.headers['access-control-allow-origin'], undefined, origin)
    }
  }
  const { app } = await appOver(t, it.sql)
  const closed = await app.inject({
    url: '/health',
    headers: { origin: 'https://app.example.com' },
  })
  t.equal(closed.headers['access-control-allow-origin'], undefined, 'nobody by default')
})

void t.test('answers carry the headers that protect browsers', async (t) => {
  t.match((await it.app.inject('/health')).headers, {
    'content-security-policy': "default-src 'none';frame-ancestors 'none'",
    'x-content-type-options': 'nosniff',
    'strict-transport-security': String,
    'referrer-policy': 'no-referrer',
  })
})

void t.test('one line a request, without secrets', async (t) => {
  const dir = t.testdir()
  const { app } = await appOver(t, it.sql, { LOG_DIR: dir })
  const { profile, token } = await signIn({ app, sql: it.sql })
  const headers = { authorization: `Bearer ${token}`, 'x-request-id': 'line-1' }
  await app.inject({ url: '/api/chats?limit=7&cursor=canary-query', headers })
  await app.inject({ url: '/api/chats?limit=7', headers: { ...headers, 'x-request-id': 'line-2' } })
  await app.inject('/health')
  await app.inject({
    method: 'POST',
    url: '/api/auth/login',
    body: { email: profile.email, password: 'canary-password', other: 'canary-body' },
  })
  await app.inject({
    method: 'POST',
    url: '/api/auth/login',
    body: { email: profile.email, password },
  })
  const text = readFileSync(join(dir, 'all.log'), 'utf8')
  const lines = text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)
  t.equal(lines.length, 4, 'health requests are told at level debug only')
  t.match(lines[1], {
    level: 'info',
    message: 'request finished',
    method: 'GET',
    route: '/api/chats',
    status: 200,
    ms: Number,
    requestId: 'line-2',
    userId: profile.id,
    service: 'api',
  })
  t.notMatch(text, /canary|Bearer/)
  t.notMatch(text, token)
  t.notMatch(text, password)
  t.notMatch(text, profile.email)
})

void t.test('the OpenAPI document is complete', async (t) => {
  interface Operation {
    summary?: string
    tags?: string[]
    security?: object[]
    responses: Record<string, { content?: Record<string, { schema: object }> }>
    requestBody?: { required: boolean }
  }
  interface Document {
    openapi: string
    paths: Record<string, Record<string, Operation>>
    components: { schemas: Record<string, object>; securitySchemes: object }
  }
  const answer = await it.app.inject('/documentation/json')
  t.equal(answer.statusCode, 200)
  const document = answer.json<Document>()
  t.equal(document.openapi, '3.1.0')
  t.strictSame(Object.keys(document.components.schemas), [
    'Error',
    'User',
    'Session',
    'Message',
    'Chat',
    'Label',
    'Note',
    'Contact',
    'Template',
    'Workspace',
    'Media',
    'Event',
    'Webhook',
  ])
  t.match(document.components.securitySchemes, { bearer: { type: 'http', scheme: 'bearer' } })

  const served = routesOf(it.app.printRoutes({ commonPrefix: false }))
  t.ok(served.length > 20)
  for (const { method, url } of served) {
    const path = url.replaceAll(/:(\w+)/g, '{$1}')
    const operation = document.paths[path]?.[method.toLowerCase()]
    t.ok(operation, `${method} ${url} is documented`)
    t.ok(operation?.summary, `${method} ${url} has a summary`)
    t.equal(operation?.tags?.length, 1, `${method} ${url} has a tag`)
    t.ok(Object.keys(operation?.responses ?? {}).some((code) => code.startsWith('2')))
    const open = it.app.routeTable.some(
      (route) => route.url === url && route.method === method && route.access === 'public',
    )
    t.equal(operation?.security?.length, open ? 0 : undefined, `${method} ${url} says who may call`)
    if (!open) t.ok(operation?.responses['401'], `${method} ${url} documents 401`)
    for (const [code, { content }] of Object.entries(operation?.responses ?? {})) {
      if (code < '400' || url.startsWith('/health') || url === '/metrics') continue
      const { schema } = content!['application/json']!
      t.strictSame(schema, { $ref: '#/components/schemas/Error' }, `${method} ${url} ${code}`)
    }
  }
  const references = [...answer.body.matchAll(/"\$ref":"#\/components\/schemas\/(\w+)"/g)]
  t.ok(references.every(([, name]) => name! in document.components.schemas))
  for (const [path, codes] of Object.entries({
    '/api/whatsapp/send': ['400', '404', '409', '413', '415', '422'],
    '/api/whatsapp/send/bulk': ['400', '404', '409', '413', '422'],
    '/api/whatsapp/check-number': ['400', '404', '409', '413', '422'],
  }))
    for (const code of codes)
      t.ok(document.paths[path]?.post?.responses[code], `${path} documents ${code}`)
  t.equal(document.paths['/api/messages/{id}/retry']?.post?.requestBody, undefined)
  const schema = JSON.stringify(document.components.schemas.Message)
  for (const spelt of [/"latitude"/, /"contacts"/, /"votes"/]) t.match(schema, spelt)
  t.equal(document.paths['/api/auth/logout']?.post?.requestBody?.required, false)
  t.equal(document.paths['/api/auth/login']?.post?.requestBody?.required, true)

  const page = await it.app.inject('/documentation')
  t.equal(page.statusCode, 200)
  t.match(page.headers, { 'content-type': /html/, 'content-security-policy': /script-src 'self'/ })
})

void t.test('the table of who may call holds every route there is', async (t) => {
  const names = (routes: { method: string; url: string }[]) =>
    routes.map(({ method, url }) => `${method} ${url}`).sort()
  const listed = it.app.routeTable.filter(
    ({ method, url }) => method !== 'HEAD' && !url.startsWith('/documentation'),
  )
  t.strictSame(names(listed), names(routesOf(it.app.printRoutes({ commonPrefix: false }))))
})

/** The routes of the API as Fastify prints them: the documentation's own and the twins it makes for HEAD left out. */
function routesOf(tree: string) {
  const parts: string[] = []
  const routes: { method: 'GET'; url: string }[] = []
  for (const line of tree.split('\n')) {
    const [, indent = '', part = '', methods] =
      /^([│ ]*)[├└]── (\S*)(?: \((.*)\))?$/.exec(line) ?? []
    if (part === '') continue
    parts.splice(indent.length / 4)
    parts.push(part)
    const url = parts.join('')
    if (methods === undefined || url.startsWith('/documentation') || url.includes('*')) continue
    for (const method of methods.split(', ')) {
      if (method !== 'HEAD') routes.push({ method: method as 'GET', url })
    }
  }
  return routes
}
