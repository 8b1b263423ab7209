import { randomUUID } from 'node:crypto'
import t from 'tap'
import { appOver, errorShape, signIn, testApp } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)
const base = '/api/whatsapp/sessions'

interface Session {
  id: string
  name: string
  status: string
  desiredState: string
}

void t.test(
  'a session is created wanted running, in the engine of this installation',
  async (t) => {
    const { call, workspaceId } = await signIn(it)
    it.nudges.length = 0
    const created = await call('POST', base, { name: 'Sales' })
    t.equal(created.statusCode, 201)
    const session = created.json<Session>()
    t.match(session, {
      id: String,
      name: 'Sales',
      status: 'STOPPED',
      reason: null,
      since: String,
      desiredState: 'running',
      active: false,
      phone: null,
      pushName: null,
      engine: 'webjs',
      connectedAt: null,
      expiresAt: String,
      lastSeenAt: null,
      createdAt: String,
    })
    t.equal(Object.keys(session).length, 14)
    t.strictSame(it.nudges, ['awfar_sessions'])
    t.strictSame((await call('GET', `${base}/${session.id}`)).json(), session)

    const stopped = await call('POST', base, { name: 'Support', start: false })
    t.match(stopped.json(), { desiredState: 'stopped' })

    const { app } = await appOver(t, it.sql, { WA_ENGINE: 'simulator' })
    const simulated = await signIn({ app, sql: it.sql }, { workspaceId })
    t.match((await simulated.call('POST', base, { name: 'Demo' })).json(), { engine: 'simulator' })
  },
)

void t.test('a name is taken once in a workspace, and free again after deletion', async (t) => {
  const { call } = await signIn(it)
  const { id } = (await call('POST', base, { name: 'Sales' })).json<Session>()
  t.match((await call('POST', base, { name: 'Sales' })).json(), errorShape(409, 'NAME_TAKEN'))
  t.equal((await (await signIn(it)).call('POST', base, { name: 'Sales' })).statusCode, 201)
  t.equal((await call('DELETE', `${base}/${id}`)).statusCode, 204)
  t.equal((await call('POST', base, { name: 'Sales' })).statusCode, 201)
})

void t.test('of parallel creations under one name exactly one succeeds', async (t) => {
  const { call } = await signIn(it)
  const answers = await Promise.all(
    Array.from({ length: 8 }, () => call('POST', base, { name: 'x' })),
  )
  t.equal(answers.filter(({ statusCode }) => statusCode === 201).length, 1)
  t.equal(answers.filter(({ statusCode }) => statusCode === 409).length, 7)
})

void t.test('a wrong session is refused and not created', async (t) => {
  const { call } = await signIn(it)
  for (const [body, paths] of [
    [{}, ['body.name']],
    [{ name: '' }, ['body.name']],
    [{ name: '   ' }, ['body.name']],
    [{ name: 'x'.repeat(65) }, ['body.name']],
    [{ name: 'a\0' }, ['body.name']],
    [{ name: 7, start: 'yes' }, ['body.name', 'body.start']],
    [{ name: 'a', engine: 'simulator' }, ['body.engine']],
    [{ name: 'a', workspaceId: randomUUID() }, ['body.workspaceId']],
  ] as const) {
    const answer = await call('POST', base, body)
    t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'))
    const { details } = answer.json<{ details: { path: string }[] }>()
    t.strictSame(
      details.map((fault) => fault.path),
      paths,
    )
  }
  t.match((await call('POST', base)).json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'body' }],
  })
  t.strictSame((await call('GET', base)).json(), { data: [], nextCursor: null })
})

void t.test('sessions are listed newest first, in pages', async (t) => {
  const { call } = await signIn(it)
  for (const name of ['a', 'b', 'c']) await call('POST', base, { name })
  type List = { data: Session[]; nextCursor: string | null }
  const first = (await call('GET', `${base}?limit=2`)).json<List>()
  t.match(first, { data: [{ name: 'c' }, { name: 'b' }], nextCursor: String })
  t.match((await call('GET', `${base}?limit=2&cursor=${first.nextCursor}`)).json(), {
    data: [{ name: 'a' }],
    nextCursor: null,
  })
  t.match((await call('GET', `${base}?limit=500`)).json(), errorShape(400, 'VALIDATION_FAILED'))
  t.match((await call('GET', `${base}?limit=2&cursor=x`)).json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'query.cursor' }],
  })
})

void t.test('commands write what is wanted, as often as one likes', async (t) => {
  const { call } = await signIn(it)
  const { id } = (await call('POST', base, { name: 'Sales', start: false })).json<Session>()
  const requests = async () => {
    const open = await it.sql<{ kind: string }>`
      select kind from wa_session_requests where session_id = ${id} and done_at is null order by kind`
    return open.map(({ kind }) => kind)
  }
  it.nudges.length = 0
  for (const [command, desiredState] of [
    ['start', 'running'],
    ['stop', 'stopped'],
    ['restart', 'running'],
    ['logout', 'stopped'],
  ] as const) {
    for (const time of ['once', 'twice']) {
      const answer = await call('POST', `${base}/${id}/${command}`)
      t.equal(answer.statusCode, 202)
      t.match(answer.json(), { id, desiredState }, `${command} ${time}`)
    }
  }
  t.strictSame(await requests(), ['logout', 'restart'], 'the same wish twice is one wish')
  t.equal(it.nudges.length, 8)
  t.equal(
    (await call('POST', `${base}/${id}/start`, {})).statusCode,
    202,
    'an empty object as body',
  )
})

void t.test('deleting is for owners and admins', async (t) => {
  const owner = await signIn(it)
  const { id } = (await owner.call('POST', base, { name: 'Sales' })).json<Session>()
  const agent = await signIn(it, { role: 'agent', workspaceId: owner.workspaceId })
  const admin = await signIn(it, { role: 'admin', workspaceId: owner.workspaceId })
  const sent = await agent.call('POST', '/api/whatsapp/send', { to: '1234567890', message: 'x' })
  const { id: messageId, chatId } = sent.json<{ id: string; chatId: string }>()

  t.match((await agent.call('DELETE', `${base}/${id}`)).json(), errorShape(403, 'FORBIDDEN'))
  t.equal((await agent.call('GET', `${base}/${id}`)).statusCode, 200)
  const deleted = await admin.call('DELETE', `${base}/${id}`)
  t.equal(deleted.statusCode, 204)
  t.equal(deleted.body, '')

  for (const [method, path] of [
    ['GET', ''],
    ['DELETE', ''],
    ['POST', '/start'],
    ['GET', '/qr'],
    ['GET', '/history'],
  ] as const) {
    const answer = await owner.call(method, `${base}/${id}${path}`)
    t.match(answer.json(), errorShape(404, 'NOT_FOUND'), `${method} ${path}`)
  }
  t.match((await owner.call('GET', `/api/messages/${messageId}`)).json(), { status: 'cancelled' })
  t.equal((await owner.call('GET', `/api/chats/${chatId}`)).statusCode, 200, 'chats stay readable')
})

void t.test(
  'the QR code comes as JSON, picture or text, and only while it waits for a scan',
  async (t) => {
    const { call } = await signIn(it)
    const { id } = (await call('POST', base, { name: 'Sales' })).json<Session>()
    const early = await call('GET', `${base}/${id}/qr`)
    t.match(early.json(), { ...errorShape(409, 'SESSION_NOT_READY'), message: /STOPPED/ })

    await it.sql`
    update wa_sessions set lease_until = now() + interval '1 minute', status = 'SCAN_QR_CODE', qr = '2@abc,def==', qr_attempt = 2,
      qr_expires_at = '2030-01-01T00:00:00Z' where id = ${id}`
    const json = await call('GET', `${base}/${id}/qr`)
    t.match(json.json(), {
      value: '2@abc,def==',
      image: /^data:image\/png;base64,/,
      expiresAt: '2030-01-01T00:00:00.000Z',
      attempt: 2,
    })
    t.equal(json.headers['cache-control'], 'no-store')
    const png = await call('GET', `${base}/${id}/qr?format=png`)
    t.equal(png.headers['content-type'], 'image/png')
    t.equal(png.rawPayload.subarray(1, 4).toString(), 'PNG')
    t.equal(png.headers['cache-control'], 'no-store')
    const raw = await call('GET', `${base}/${id}/qr?format=raw`)
    t.equal(raw.body, '2@abc,def==')
    t.match(raw.headers, { 'content-type': /^text\/plain/, 'cache-control': 'no-store' })
    t.equal((await call('GET', `${base}/${id}/qr?format=json`)).statusCode, 200)
    t.match(
      (await call('GET', `${base}/${id}/qr?format=gif`)).json(),
      errorShape(400, 'VALIDATION_FAILED'),
    )
    t.notMatch((await call('GET', `${base}/${id}`)).body, '2@abc', 'the code stands nowhere else')

    await it.sql`update wa_sessions set lease_until = now() + interval '1 minute', status = 'WORKING' where id = ${id}`
    t.match((await call('GET', `${base}/${id}/qr`)).json(), {
      ...errorShape(409, 'SESSION_NOT_READY'),
      message: /WORKING/,
    })
  },
)

void t.test('the history of a session is told newest first, in pages', async (t) => {
  const { call, workspaceId } = await signIn(it)
  const { id } = (await call('POST', base, { name: 'Sales' })).json<Session>()
  t.strictSame((await call('GET', `${base}/${id}/history`)).json(), { data: [], nextCursor: null })
  for (const to of ['STARTING', 'SCAN_QR_CODE', 'FAILED']) {
    await it.sql`
      insert into wa_session_history (workspace_id, session_id, from_status, to_status, reason, worker)
      values (${workspaceId}, ${id}, 'STOPPED', ${to}, 'QR_TIMEOUT', 'w1')`
  }
  type List = { data: object[]; nextCursor: string | null }
  const first = (await call('GET', `${base}/${id}/history?limit=2`)).json<List>()
  t.match(first.data, [
    { from: 'STOPPED', to: 'FAILED', reason: 'QR_TIMEOUT', detail: null, worker: 'w1', at: String },
    { to: 'SCAN_QR_CODE' },
  ])
  const url = `${base}/${id}/history?limit=2&cursor=${first.nextCursor}`
  t.match((await call('GET', url)).json(), { data: [{ to: 'STARTING' }], nextCursor: null })
})

void t.test('ids that are none are 400, ids of nobody are 404', async (t) => {
  const { call } = await signIn(it)
  const nobody = randomUUID()
  for (const [method, path] of [
    ['GET', ''],
    ['DELETE', ''],
    ['POST', '/start'],
    ['POST', '/stop'],
    ['POST', '/restart'],
    ['POST', '/logout'],
    ['GET', '/qr'],
    ['GET', '/history'],
  ] as const) {
    t.match((await call(method, `${base}/${nobody}${path}`)).json(), errorShape(404, 'NOT_FOUND'))
    for (const id of ['1', `{${nobody}}`, nobody.replaceAll('-', ''), `${nobody}x`]) {
      const answer = await call(method, `${base}/${id}${path}`)
      t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'), `${method} ${id}${path}`)
    }
  }
})

void t.test('a pairing code is asked of the worker, and handed on once', async (t) => {
  const { call, workspaceId } = await signIn(it)
  const { id } = (await call('POST', base, { name: 'Pairing' })).json<Session>()
  const path = `${base}/${id}/pairing-code`
  t.match(
    (await call('POST', path, { phone: '+1 202 555-0100' })).json(),
    errorShape(409, 'SESSION_NOT_READY'),
  )
  await it.sql`update wa_sessions set lease_until = now() + interval '1 minute', status = 'SCAN_QR_CODE', qr = '2@x' where id = ${id}`
  for (const phone of ['', 'ann', '123', '1@g.us', 12025550100]) {
    t.match((await call('POST', path, { phone })).json(), errorShape(400, 'VALIDATION_FAILED'))
  }

  /** What a worker does. */
  const answerNext = async (result: object | null, error: string | null) => {
    for (;;) {
      const [row] = await it.sql<{ payload: object }>`
        update wa_session_requests set done_at = now(), result = ${result}, error = ${error}
        where session_id = ${id} and kind = 'pairing_code' and done_at is null returning payload`
      if (row) return row.payload
    }
  }
  const expiresAt = new Date(Date.now() + 180_000).toISOString()
  const [answered, asked] = await Promise.all([
    call('POST', path, { phone: '+1 202 555-0100' }),
    answerNext({ code: 'ABCD1234', expiresAt }, null),
  ])
  t.same(asked, { phone: '12025550100' })
  t.equal(answered.statusCode, 200)
  t.same(answered.json(), { code: 'ABCD1234', expiresAt })
  t.equal(answered.headers['cache-control'], 'no-store')
  t.same(
    await it.sql`select result from wa_session_requests where workspace_id = ${workspaceId}`,
    [{ result: null }],
    'the code is not kept',
  )

  const [refused] = await Promise.all([
    call('POST', path, { phone: '12025550100' }),
    answerNext(null, 'No scan is waited for.'),
  ])
  t.match(refused.json(), errorShape(409, 'PAIRING_FAILED'))
})

/** Which workers are listed, when they are read one by one. */
async function workersOf({ call }: Person): Promise<string[]> {
  const seen: string[] = []
  for (let cursor: string | null = ''; cursor !== null;) {
    const answer = await call('GET', `/api/workers?limit=1${cursor && `&cursor=${cursor}`}`)
    const page: { data: { id: string }[]; nextCursor: string | null } = answer.json()
    seen.push(...page.data.map(({ id }) => id))
    cursor = page.nextCursor
  }
  return seen
}

void t.test('admins see the workers, and of other workspaces only numbers', async (t) => {
  const owner = await signIn(it)
  const stranger = await signIn(it)
  const { id } = (await owner.call('POST', base, { name: 'Watched' })).json<Session>()
  await it.sql`insert into workers (id, host, pid, capacity) values ('w1', 'host', 7, 10)`
  await it.sql`
    update wa_sessions set owner = 'w1', lease_until = now() + interval '1 minute', memory_bytes = 300000000 where id = ${id}`
  const seen = await owner.call('GET', '/api/workers')
  t.match(seen.json(), {
    data: [
      {
        id: 'w1',
        alive: true,
        owned: 1,
        sessions: [{ id, name: 'Watched', status: 'STOPPED', memoryBytes: 300_000_000 }],
      },
    ],
    nextCursor: null,
  })
  const workers = (await stranger.call('GET', '/api/workers')).json<{
    data: { owned: number; sessions: unknown[] }[]
  }>()
  t.strictSame(
    workers.data.map(({ owned, sessions }) => ({ owned, sessions })),
    [{ owned: 1, sessions: [] }],
    'of another workspace’s sessions a worker tells their number only',
  )
  await it.sql`insert into workers (id, host, pid, capacity) values ('w2', 'host', 8, 10)`
  t.strictSame(await workersOf(owner), ['w1', 'w2'])
  const agent = await signIn(it, { workspaceId: owner.workspaceId, role: 'agent' })
  t.match((await agent.call('GET', '/api/workers')).json(), errorShape(403, 'FORBIDDEN'))
})
