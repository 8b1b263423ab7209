import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { FastifyInstance, LightMyRequestResponse } from 'fastify'
import t from 'tap'
import { connect } from '../../shared/db.ts'
import { claimKey, removeExpiredKeys, resealAnswers, takeKey } from '../../shared/idempotency.ts'
import { KeyRing } from '../../shared/key-ring.ts'
import { matchWhole } from '../../shared/test/match.ts'
import { appOver, errorShape, signIn, signInWithSession, testApp } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)
const withSession = () => signInWithSession(it)
const sends = '/api/whatsapp/send'
const sessions = '/api/whatsapp/sessions'
const hello = { to: '1234567890', message: 'Hello' }

/** Posts as a person, under a key. */
const post = (
  { token }: Person,
  url: string,
  key: string | undefined,
  body?: object,
  { app = it.app, header = 'idempotency-key' }: { app?: FastifyInstance; header?: string } = {},
): Promise<LightMyRequestResponse> =>
  app.inject({
    method: 'POST',
    url,
    headers: { authorization: `Bearer ${token}`, ...(key !== undefined && { [header]: key }) },
    ...(body !== undefined && { body }),
  })

/** As a client does that is told to ask again: on a busy machine the first request may take longer than the others wait. */
async function patiently(ask: () => Promise<LightMyRequestResponse>) {
  for (;;) {
    const answer = await ask()
    if (answer.json<{ code?: string }>().code !== 'IDEMPOTENCY_IN_PROGRESS') return answer
  }
}

const isReplay = ({ headers }: LightMyRequestResponse) => headers['idempotency-replayed'] === 'true'

async function messagesOf({ workspaceId }: Person): Promise<number> {
  const [row] = await it.sql<{ count: number }>`
    select count(*) from messages where workspace_id = ${workspaceId}`
  return row!.count
}

async function keysOf({ workspaceId }: Person): Promise<number> {
  const [row] = await it.sql<{ count: number }>`
    select count(*) from idempotency_keys where workspace_id = ${workspaceId}`
  return row!.count
}

/** Another process, as far as this one can tell: its own pool, its own memory. */
async function otherProcess(): Promise<FastifyInstance> {
  const sql = connect(it.url, { applicationName: 'other' })
  t.teardown(() => sql.close())
  return (await appOver(t, sql)).app
}
const other = await otherProcess()

void t.test('a repeated request is answered although its time has come meanwhile', async (t) => {
  const person = await withSession()
  const body = { ...hello, sendAt: new Date(Date.now() + 60_000).toISOString() }
  const first = await post(person, sends, 'later', body)
  t.equal(first.statusCode, 202)
  const now = Date.now
  t.intercept(Date, 'now', { value: () => now() + 300_000 })
  const again = await post(person, sends, 'later', body)
  t.ok(isReplay(again))
  t.equal(again.body, first.body)
  t.match((await post(person, sends, 'other', body)).json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'body.sendAt' }],
  })
})

void t.test('a repeated request is answered with the stored answer, to the byte', async (t) => {
  const person = await withSession()
  const first = await post(person, sends, 'order-42', hello)
  t.equal(first.statusCode, 202)
  t.equal(isReplay(first), false)
  for (const app of [it.app, other]) {
    const again = await post(person, sends, 'order-42', hello, { app })
    t.equal(again.statusCode, 202)
    t.equal(again.body, first.body)
    t.equal(again.headers['content-type'], first.headers['content-type'])
    t.ok(isReplay(again))
  }
  t.equal(await messagesOf(person), 1)

  const another = await post(person, sends, 'order-43', hello)
  t.notOk(isReplay(another))
  const unkeyed = [await post(person, sends, undefined, hello)]
  unkeyed.push(await post(person, sends, undefined, hello))
  t.notOk(unkeyed.some(isReplay))
  t.equal(await messagesOf(person), 4)
  t.equal(await keysOf(person), 2)
})

void t.test('the answer looks the same with a key and without', async (t) => {
  const person = await withSession()
  const [keyed, plain] = [
    await post(person, sends, 'k', hello),
    await post(person, sends, undefined, hello),
  ]
  t.equal(keyed.headers['content-type'], plain.headers['content-type'])
  t.strictSame(Object.keys(keyed.json<object>()), Object.keys(plain.json<object>()))
})

void t.test('both spellings of the header name the same key', async (t) => {
  const person = await withSession()
  const first = await post(person, sends, 'k', hello, { header: 'X-Idempotency-Key' })
  const again = await post(person, sends, 'k', hello, { header: 'Idempotency-Key' })
  t.equal(again.body, first.body)
  t.ok(isReplay(again))
  const both = await it.app.inject({
    method: 'POST',
    url: sends,
    headers: {
      authorization: `Bearer ${person.token}`,
      'idempotency-key': 'k',
      'x-idempotency-key': 'k',
    },
    body: hello,
  })
  t.equal(both.body, first.body)
})

void t.test('a key that is none is refused, together with the other faults', async (t) => {
  const person = await withSession()
  const before = await messagesOf(person)
  for (const key of ['', 'a b', 'é', 'x'.repeat(256), 'tab\t.']) {
    const answer = await post(person, sends, key, { to: 'Ada', message: 'x' })
    t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'), key)
    matchWhole(t, answer.json(), {
      details: [{ path: 'body.to' }, { path: 'headers.idempotency-key' }],
    })
  }
  for (const key of ['!', '~', '"8e03978e-40d5"', 'x'.repeat(255)]) {
    t.equal((await post(person, sends, key, hello)).statusCode, 202, key)
  }
  const different = await it.app.inject({
    method: 'POST',
    url: sends,
    headers: {
      authorization: `Bearer ${person.token}`,
      'idempotency-key': 'one',
      'x-idempotency-key': 'other',
    },
    body: hello,
  })
  t.match(different.json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    message: /Idempotency-Key and another X-Idempotency-Key/,
    details: [{ path: 'headers' }],
  })
  t.equal(await messagesOf(person), before + 4)
})

void t.test('the same key with another request is refused', async (t) => {
  const person = await withSession()
  await post(person, sends, 'k', hello)
  const others: [string, object | undefined][] = [
    [sends, { ...hello, message: 'Bye' }],
    [sends, { ...hello, sessionId: person.sessionId }],
    [sessions, { name: 'Other' }],
    [`${sessions}/${person.sessionId}/start`, undefined],
  ]
  for (const [url, body] of others) {
    const answer = await post(person, url, 'k', body)
    t.match(answer.json(), errorShape(422, 'IDEMPOTENCY_KEY_REUSED'), url)
  }
  await post(person, `${sessions}/${person.sessionId}/stop`, 'stop')
  const second = (await person.call('POST', sessions, { name: 'Second' })).json<{ id: string }>()
  const answer = await post(person, `${sessions}/${second.id}/stop`, 'stop')
  t.match(answer.json(), errorShape(422, 'IDEMPOTENCY_KEY_REUSED'), 'another session')
  t.equal(await messagesOf(person), 1)
})

void t.test('the same request may be written differently', async (t) => {
  const person = await withSession()
  const first = await post(person, sends, 'k', { to: '1234567890', message: 'Hello' })
  const again = await post(person, sends, 'k', { message: 'Hello', to: '+1 234 567-890' })
  t.equal(again.body, first.body)
  t.ok(isReplay(again))
})

void t.test('a key belongs to its workspace', async (t) => {
  const [one, two] = [await withSession(), await withSession()]
  const first = await post(one, sends, 'k', hello)
  const second = await post(two, sends, 'k', { ...hello, message: 'Bye' })
  t.equal(second.statusCode, 202)
  t.notOk(isReplay(second))
  t.not(second.body, first.body)

  const colleague = await signIn(it, { role: 'agent', workspaceId: one.workspaceId })
  t.equal((await post(colleague, sends, 'k', hello)).body, first.body)
})

void t.test('parallel identical requests are one request', async (t) => {
  const person = await withSession()
  const keys = ['a', 'b', 'c', 'd']
  const answers = await Promise.all(
    keys.flatMap((key) =>
      Array.from({ length: 100 }, async (_, index) => ({
        key,
        answer: await patiently(() =>
          post(person, sends, key, hello, { app: index % 2 === 0 ? it.app : other }),
        ),
      })),
    ),
  )
  t.equal(await messagesOf(person), keys.length)
  t.equal(await keysOf(person), keys.length)
  for (const key of keys) {
    const same = answers.filter((answer) => answer.key === key).map(({ answer }) => answer)
    t.strictSame([...new Set(same.map(({ statusCode }) => statusCode))], [202])
    t.equal(new Set(same.map(({ body }) => body)).size, 1, 'all answers are the same')
    t.equal(same.filter((answer) => !isReplay(answer)).length, 1, 'one of them did the work')
  }
})

void t.test(
  'while another process works under the key, the request is refused for now',
  async (t) => {
    const person = await withSession()
    const keyed = { workspaceId: person.workspaceId, key: 'k', fingerprint: Buffer.from('x') }
    let release = () => {}
    let held = () => {}
    const released = new Promise<void>((resolve) => (release = resolve))
    const holding = new Promise<void>((resolve) => (held = resolve))
    const holder = it.sql.begin(async (tx) => {
      await takeKey(tx, keyed)
      held()
      await released
    })
    await holding
    const refused = await Promise.all([
      post(person, sends, 'k', hello),
      post(person, sends, 'k', hello),
    ])
    for (const answer of refused) {
      t.match(answer.json(), errorShape(409, 'IDEMPOTENCY_IN_PROGRESS'))
      t.equal(answer.headers['retry-after'], '1')
    }
    t.equal((await post(person, sends, 'free', hello)).statusCode, 202, 'other keys are free')
    release()
    await holder
    t.equal((await post(person, sends, 'k', hello)).statusCode, 202)
    t.equal(await messagesOf(person), 2)
  },
)

void t.test('a request waits a moment for another one with its key', async (t) => {
  const person = await withSession()
  const keyed = { workspaceId: person.workspaceId, key: 'k', fingerprint: Buffer.from('x') }
  let waiting: Promise<LightMyRequestResponse> | undefined
  await it.sql.begin(async (tx) => {
    await takeKey(tx, keyed)
    // Its own first look comes while the key is taken.
    waiting = post(person, sends, 'k', hello)
    await tx`select pg_sleep(0.3)`
  })
  t.equal((await waiting)!.statusCode, 202)
})

void t.test('work that fails leaves nothing, and the key can be used again', async (t) => {
  const person = await signIn(it)
  const refused = await post(person, sends, 'k', hello)
  t.match(refused.json(), errorShape(422, 'NO_SESSION'))
  t.equal(await keysOf(person), 0)
  await person.call('POST', sessions, { name: 'Sales' })
  const accepted = await post(person, sends, 'k', { ...hello, message: 'Corrected' })
  t.equal(accepted.statusCode, 202)
  t.notOk(isReplay(accepted))

  const taken = await post(person, sessions, 'again', { name: 'Sales' })
  t.match(taken.json(), errorShape(409, 'NAME_TAKEN'))
  t.equal((await post(person, sessions, 'again', { name: 'Support' })).statusCode, 201)
})

void t.test('an answer that cannot be stored undoes the work', async (t) => {
  const person = await withSession()
  await it.sql`alter table idempotency_keys add constraint broken check (key <> 'broken')`
  const answer = await post(person, sends, 'broken', hello)
  await it.sql`alter table idempotency_keys drop constraint broken`
  t.equal(answer.statusCode, 500)
  t.equal(await messagesOf(person), 0)
  t.equal((await post(person, sends, 'broken', hello)).statusCode, 202)
  t.equal(await messagesOf(person), 1)
})

void t.test('the audit log tells once what was done once', async (t) => {
  const person = await signIn(it)
  const entries = async () =>
    it.sql<{ action: string; targetId: string | null }>`
      select action, target_id from audit_log where workspace_id = ${person.workspaceId} order by id`
  const ids: string[] = []
  for (const [url, body] of [
    [sessions, { name: 'Sales' }],
    ['/api/labels', { name: 'urgent' }],
  ] as const) {
    for (const replayed of [false, true, true]) {
      const answer = await post(person, url, `audited ${url}`.replaceAll(' ', '-'), body)
      t.equal(isReplay(answer), replayed)
      if (!replayed) ids.push(answer.json<{ id: string }>().id)
    }
  }
  for (const replayed of [false, true])
    t.equal(isReplay(await post(person, `${sessions}/${ids[0]}/stop`, 'stop')), replayed)
  await post(person, `${sessions}/${ids[0]}/stop`, undefined)
  t.strictSame(await entries(), [
    { action: 'session.created', targetId: ids[0] },
    { action: 'label.created', targetId: ids[1] },
    { action: 'session.stop_asked', targetId: ids[0] },
    { action: 'session.stop_asked', targetId: ids[0] },
  ])

  await it.sql`alter table idempotency_keys add constraint broken check (key <> 'unstored')`
  t.equal((await post(person, '/api/labels', 'unstored', { name: 'later' })).statusCode, 500)
  await it.sql`alter table idempotency_keys drop constraint broken`
  t.equal((await entries()).length, 4, 'what was undone was not done')
})

void t.test('a client that never got its answer gets it by asking again', async (t) => {
  const person = await withSession()
  // A server of its own that cuts every connection once the work is committed.
  const { app, nudges } = await appOver(t, it.sql)
  let cut = true
  app.addHook('onSend', async (request) => {
    if (cut) request.raw.socket.destroy()
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  const lost = httpRequest({
    port,
    host: '127.0.0.1',
    path: sends,
    method: 'POST',
    headers: {
      authorization: `Bearer ${person.token}`,
      'content-type': 'application/json',
      'idempotency-key': 'k',
    },
  }).end(JSON.stringify(hello))
  const [error] = (await once(lost, 'error')) as [Error & { code?: string }]
  t.equal(error.code, 'ECONNRESET')
  t.equal(await messagesOf(person), 1, 'it was done all the same')
  t.strictSame(nudges, ['awfar_outbox'], 'and the workers know')

  cut = false
  const again = await post(person, sends, 'k', hello)
  t.equal(again.statusCode, 202)
  t.ok(isReplay(again))
  const [message] = await it.sql`select id from messages where workspace_id = ${person.workspaceId}`
  t.match(again.json(), message)
  t.equal(await messagesOf(person), 1)
})

void t.test(
  'answers are kept for IDEMPOTENCY_TTL_HOURS; then the key is as good as new',
  async (t) => {
    const person = await withSession()
    const { app } = await appOver(t, it.sql, { IDEMPOTENCY_TTL_HOURS: '2' })
    await post(person, sends, 'two', hello, { app })
    await post(person, sends, 'day', hello)
    const age = (hours: number) => it.sql`
    update idempotency_keys set expires_at = expires_at - ${hours} * interval '1 hour'
    where workspace_id = ${person.workspaceId}`
    await age(1.9)
    t.ok(isReplay(await post(person, sends, 'two', hello)))
    await age(0.2)
    const anew = await post(person, sends, 'two', { ...hello, message: 'Bye' })
    t.equal(anew.statusCode, 202)
    t.notOk(isReplay(anew))
    t.ok(isReplay(await post(person, sends, 'two', { ...hello, message: 'Bye' })), 'stored anew')
    await age(21.8)
    t.ok(isReplay(await post(person, sends, 'day', hello)))
    await age(0.2)
    t.notOk(isReplay(await post(person, sends, 'day', hello)))
  },
)

void t.test('keys whose time is over are removed, however many', async (t) => {
  const person = await signIn(it)
  await it.sql`
    insert into idempotency_keys (workspace_id, key, fingerprint, status_code, body, expires_at)
    select ${person.workspaceId}, n, '\\x00', 200, '{}', now() + case when n % 10 = 0 then 1 else -1 end * interval '1 minute'
    from generate_series(1, 70) n`
  t.equal(await removeExpiredKeys(it.sql, 20), 63)
  t.equal(await keysOf(person), 7)
  t.equal(await removeExpiredKeys(it.sql), 0)
})

void t.test('work that waits for a worker is done once, too', async (t) => {
  const person = await withSession()
  const url = `${sessions}/${person.sessionId}/pairing-code`
  const phone = { phone: '+1 202 555-0100' }
  t.match((await post(person, url, 'k', phone)).json(), errorShape(409, 'SESSION_NOT_READY'))
  t.equal(await keysOf(person), 0, 'a refusal frees the key')
  await it.sql`
    update wa_sessions set lease_until = now() + interval '1 minute', status = 'SCAN_QR_CODE', qr = '2@x' where id = ${person.sessionId}`
  const answerNext = async (code: string) => {
    const result = { code, expiresAt: new Date(Date.now() + 180_000).toISOString() }
    for (;;) {
      const [row] = await it.sql`
        update wa_session_requests set done_at = now(), result = ${result}
        where session_id = ${person.sessionId} and kind = 'pairing_code' and done_at is null returning id`
      if (row) return
    }
  }
  const [answers] = await Promise.all([
    Promise.all(
      Array.from({ length: 20 }, (_, index) =>
        patiently(() => post(person, url, 'k', phone, { app: index % 2 === 0 ? it.app : other })),
      ),
    ),
    answerNext('ABCD1234'),
  ])
  t.strictSame([...new Set(answers.map(({ statusCode }) => statusCode))], [200])
  t.equal(new Set(answers.map(({ body }) => body)).size, 1)
  t.equal(answers.filter((answer) => !isReplay(answer)).length, 1)
  t.ok(answers.every(({ headers }) => headers['cache-control'] === 'no-store'))
  const asked =
    await it.sql`select 1 from wa_session_requests where session_id = ${person.sessionId}`
  t.equal(asked.length, 1)
  t.match(
    (await post(person, url, 'k', { phone: '12025550101' })).json(),
    errorShape(422, 'IDEMPOTENCY_KEY_REUSED'),
  )
  const [kept] = await it.sql<{ minutes: number }>`
    select extract(epoch from expires_at - now())::float8 / 60 as minutes from idempotency_keys
    where workspace_id = ${person.workspaceId}`
  t.ok(kept!.minutes <= 3, 'the code is kept for no longer than it is valid')
})

void t.test('work under a claim is refused for now; a claim that ran out is free', async (t) => {
  const person = await withSession()
  const url = `${sessions}/${person.sessionId}/start`
  await post(person, url, 'k')
  const [{ fingerprint } = { fingerprint: Buffer.alloc(0) }] = await it.sql<{
    fingerprint: Buffer
  }>`
    select fingerprint from idempotency_keys where workspace_id = ${person.workspaceId}`
  const keyed = { workspaceId: person.workspaceId, key: 'k', fingerprint }
  const claim = await it.sql.begin((tx) => claimKey(tx, keyed, 60))
  t.match(claim, /^[0-9a-f-]{36}$/)
  t.match((await post(person, url, 'k')).json(), errorShape(409, 'IDEMPOTENCY_IN_PROGRESS'))
  await it.sql`update idempotency_keys set expires_at = now() where workspace_id = ${person.workspaceId}`
  const answer = await post(person, url, 'k')
  t.equal(answer.statusCode, 202)
  t.notOk(isReplay(answer))
  t.ok(isReplay(await post(person, url, 'k')))
})

void t.test(
  'work whose claim was taken over stores no answer over that of its successor',
  async (t) => {
    const person = await withSession()
    const url = `${sessions}/${person.sessionId}/pairing-code`
    await it.sql`
    update wa_sessions set lease_until = now() + interval '1 minute', status = 'SCAN_QR_CODE', qr = '2@x' where id = ${person.sessionId}`
    const slow = post(person, url, 'k', { phone: '12025550100' })
    for (;;) {
      const begun = await it.sql`
      update idempotency_keys set claim = gen_random_uuid() where workspace_id = ${person.workspaceId} returning key`
      if (begun.length > 0) break
    }
    for (;;) {
      const result = { code: 'LATE', expiresAt: new Date(Date.now() + 180_000).toISOString() }
      const told = await it.sql`
      update wa_session_requests set done_at = now(), result = ${result}
      where session_id = ${person.sessionId} and done_at is null returning id`
      if (told.length > 0) break
    }
    t.equal((await slow).statusCode, 200, 'its own caller is answered')
    matchWhole(
      t,
      await it.sql`select body from idempotency_keys where workspace_id = ${person.workspaceId}`,
      [{ body: null }],
    )
  },
)

const webhook = { url: 'https://93.184.216.34/hook', events: ['message'] }

void t.test(
  'an answer that holds a secret is told again, and stands nowhere in the clear',
  async (t) => {
    const person = await withSession()
    const first = await post(person, '/api/webhooks', 'make', webhook)
    const { id, secret } = first.json<{ id: string; secret: string }>()
    const rotations = []
    for (const key of ['rotate', 'rotate', 'rotate-once-more'])
      rotations.push(await post(person, `/api/webhooks/${id}/rotate-secret`, key, {}))
    const [rotated, again, other] = rotations
    t.equal(again!.body, rotated!.body)
    t.not(other!.body, rotated!.body)
    t.equal(rotated!.headers['cache-control'], 'no-store')

    const rows = await it.sql<{ body: string; sealedWith: string }>`
    select body, sealed_with from idempotency_keys where workspace_id = ${person.workspaceId}`
    t.equal(rows.length, 3)
    for (const { body, sealedWith } of rows) {
      t.equal(sealedWith, it.app.keys.current)
      t.notMatch(body, secret)
      t.notMatch(Buffer.from(body, 'base64').toString(), 'whsec_')
    }

    const newer = KeyRing.parse(`newer:${Buffer.alloc(32, 'newer').toString('base64')}`).with(
      it.app.keys,
    )
    t.strictSame(await resealAnswers(it.sql, newer), { resealed: 3, failed: [] })
    t.match(
      await post(person, '/api/webhooks', 'make', webhook),
      { statusCode: 500 },
      'its key is not here',
    )
    t.strictSame(await resealAnswers(it.sql, it.app.keys.with(newer)), { resealed: 3, failed: [] })
    const repeated = await post(person, '/api/webhooks', 'make', webhook)
    t.ok(isReplay(repeated))
    t.equal(repeated.body, first.body)
    t.equal((await person.call('GET', '/api/webhooks')).json<{ data: [] }>().data.length, 1)
  },
)

/** POST routes that are called without a key, and why. */
const exempt: Record<string, string> = {
  '/api/auth/logout-all': 'signed out twice is signed out',
  '/api/auth/password': 'the old password holds once',
  '/api/auth/2fa/enroll': 'its answer is a secret, which is stored nowhere',
  '/api/auth/2fa/confirm': 'a code holds once',
  '/api/auth/2fa/disable': 'a code holds once',
  '/api/auth/2fa/backup-codes': 'its answer is a secret, which is stored nowhere',
  '/api/users/:id/2fa/reset': 'reset twice is reset',
  '/api/contacts/:id/unmerge': 'what was taken apart cannot be once more',
  '/api/contacts/:id/merge': 'one person is one person',
  '/api/templates/:id/preview': 'it writes nothing',
  '/api/uploads/confirm': 'it may be repeated as it is',
}

interface Samples {
  sessionId: string
  chatId: string
  messageId: string
  cancelledId: string
}

/** A request for every POST route that creates or sends. */
const samples: Record<string, (ids: Samples) => { url?: string; body?: object }> = {
  [sends]: () => ({ body: hello }),
  [sessions]: () => ({ body: { name: 'Another' } }),
  '/api/api-keys': () => ({ body: { name: 'Robot', scopes: ['read'] } }),
  '/api/invitations': () => ({ body: { email: 'new@bakery.example', role: 'agent' } }),
  '/api/webhooks': () => ({ body: webhook }),
  '/api/labels': () => ({ body: { name: 'Urgent', color: '#ff0000' } }),
  '/api/chats/:id/notes': ({ chatId }) => ({
    url: `/api/chats/${chatId}/notes`,
    body: { body: 'Calls back tomorrow' },
  }),
  '/api/templates': () => ({ body: { name: 'Welcome', body: 'Hello {{name|there}}' } }),
  '/api/uploads/sign': () => ({
    body: { filename: 'a.pdf', mimeType: 'application/pdf', size: 5 },
  }),
  [`${sends}/bulk`]: () => ({ body: { messages: [hello] } }),
  '/api/messages/:id/reaction': ({ messageId }) => ({
    url: `/api/messages/${messageId}/reaction`,
    body: { emoji: '👍' },
  }),
  '/api/chats/:id/seen': ({ chatId }) => ({ url: `/api/chats/${chatId}/seen` }),
  '/api/chats/:id/typing': ({ chatId }) => ({ url: `/api/chats/${chatId}/typing` }),
  '/api/messages/:id/retry': ({ cancelledId }) => ({ url: `/api/messages/${cancelledId}/retry` }),
  ...Object.fromEntries(
    ['start', 'stop', 'restart', 'logout'].map((command) => [
      `${sessions}/:id/${command}`,
      ({ sessionId }: { sessionId: string }) => ({ url: `${sessions}/${sessionId}/${command}` }),
    ]),
  ),
}

/** Shown to be answered once by a test of their own: they wait for a worker, or take a form. */
const shownElsewhere = [
  '/api/whatsapp/check-number',
  `${sessions}/:id/pairing-code`,
  '/api/upload/media',
  '/api/webhooks/:id/rotate-secret',
  '/api/webhooks/:id/deliveries/:deliveryId/redeliver',
]

void t.test('every POST that needs a sign-in takes a key, or is known not to', async (t) => {
  interface Operation {
    security?: object[]
    parameters?: { name: string; in: string }[]
  }
  const { paths } = (await it.app.inject('/documentation/json')).json<{
    paths: Record<string, { post?: Operation }>
  }>()
  const routes = Object.entries(paths).flatMap(([path, { post: operation }]) => {
    if (!operation || operation.security?.length === 0) return []
    const url = path.replaceAll(/\{(\w+)\}/g, ':$1')
    const inHeader = operation.parameters?.filter((parameter) => parameter.in === 'header')
    return [{ url, headers: inHeader?.map(({ name }) => name) ?? [] }]
  })
  t.ok(routes.length >= 7)
  for (const { url, headers } of routes) {
    const sample = samples[url]
    if (url in exempt) {
      t.strictSame(headers, [], `${url} is exempt and documents no key`)
      continue
    }
    t.strictSame(headers, ['idempotency-key', 'x-idempotency-key'], `${url} documents the header`)
    if (shownElsewhere.includes(url)) continue
    if (!sample) {
      t.fail(`${url} has no sample request: add one, or the reason why it takes no key`)
      continue
    }
    const person = await withSession()
    const queued = async () =>
      (await post(person, sends, undefined, hello)).json<{ id: string; chatId: string }>()
    const { id: messageId, chatId } = await queued()
    const { id: cancelledId } = await queued()
    await person.call('DELETE', `/api/messages/${cancelledId}`)
    const { url: sampleUrl = url, body } = sample({ ...person, chatId, messageId, cancelledId })
    const first = await post(person, sampleUrl, 'k', body)
    const again = await post(person, sampleUrl, 'k', body)
    t.ok(first.statusCode < 300, `${url} answers ${first.statusCode}`)
    t.notOk(isReplay(first))
    t.ok(isReplay(again), `${url} replays`)
    t.equal(again.body, first.body)
  }
  const known = routes.map(({ url }) => url)
  for (const url of [...Object.keys(exempt), ...Object.keys(samples), ...shownElsewhere]) {
    t.ok(known.includes(url), `${url} exists`)
  }
})
