import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import type { Test } from 'tap'
import { createApiKey, deleteApiKey } from '../../shared/api-keys.ts'
import { connect } from '../../shared/db.ts'
import type { Sql } from '../../shared/db.ts'
import {
  appendEvents,
  eventId,
  parseEventId,
  removeOldEvents,
  startingPoint,
} from '../../shared/events.ts'
import type { EventType } from '../../shared/events.ts'
import { createLogger } from '../../shared/logger.ts'
import { testDb } from '../../shared/test/db.ts'
import { openStream, settled } from '../../shared/test/event-stream.ts'
import type { OpenStream } from '../../shared/test/event-stream.ts'
import { until } from '../../shared/test/until.ts'
import { createSession } from '../../shared/wa-sessions.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import { EventFeed } from '../event-feed.ts'
import { fastifyLogger } from '../logger.ts'
import { appOver, errorShape, signIn } from './app.ts'
import type { Person } from './app.ts'

const { sql, url: databaseUrl } = await testDb(t)
const { app } = await appOver(t, sql, {}, {}, { heartbeatMs: 50 })
await app.listen({ port: 0, host: '127.0.0.1' })
const base = addressOf(app.server.address() as AddressInfo)

function addressOf({ port }: AddressInfo) {
  return `http://127.0.0.1:${port}/api/events`
}

const bearer = ({ token }: Pick<Person, 'token'>) => ({ authorization: `Bearer ${token}` })

/** A person with a session to write events of. */
async function given(t: Test) {
  const person = await signIn({ app, sql })
  const { workspaceId, call } = person
  const answer = await call('POST', '/api/whatsapp/sessions', { name: 'Sales', start: false })
  const sessionId = answer.json<{ id: string }>().id
  const write = (
    n: number,
    { tx = sql, type = 'message.any', session = sessionId }: Written = {},
  ) => appendEvents(tx, [{ workspaceId, sessionId: session, type, payload: { n } }])
  const follow = async (query = '', headers: Record<string, string> = {}) => {
    const stream = await openStream(base + query, { ...bearer(person), ...headers })
    t.teardown(() => stream.close())
    return stream
  }
  return { ...person, sessionId, write, follow }
}

interface Written {
  tx?: Sql
  type?: EventType
  session?: string
}

const numbers = ({ frames }: Pick<OpenStream, 'frames'>) => frames.map(({ data }) => data.payload.n)
const has = (stream: OpenStream, count: number) =>
  until(`${count} events`, () => stream.frames.length >= count)

void t.test('what happens is told as it happens, as the API answers it', async (t) => {
  const { call, follow, workspaceId, sessionId } = await given(t)
  const stream = await follow()
  t.equal(stream.status, 200)
  t.match(stream.headers, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache, no-transform',
    'x-accel-buffering': 'no',
    'x-request-id': /./,
    'x-content-type-options': 'nosniff',
  })
  const sent = await call('POST', '/api/whatsapp/send', { to: '12025550100', message: 'Hello' })
  const message = sent.json<{ id: string }>()
  await has(stream, 1)
  const [{ id, event, data }] = stream.frames as [OpenStream['frames'][0]]
  t.equal(event, 'message.any')
  t.strictSame(data, {
    id,
    type: 'message.any',
    workspaceId,
    sessionId,
    createdAt: data.createdAt,
    payload: message,
  })
  t.match(id, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)

  await call('PATCH', `/api/messages/${message.id}`, { message: 'Hello!' })
  const cancelled = await call('DELETE', `/api/messages/${message.id}`)
  await has(stream, 3)
  t.match(stream.frames.slice(1), [
    { event: 'message.edited', data: { payload: { body: 'Hello!', status: 'queued' } } },
    { event: 'message.ack', data: { payload: cancelled.json<object>() } },
  ])
})

void t.test('an id names its place in the order, and orders as text', (t) => {
  const places = [
    { tx: 0, id: 0 },
    { tx: 1, id: 0 },
    { tx: 1, id: 2 ** 45 + 3 },
    { tx: 2 ** 40 + 7, id: 1 },
    { tx: Number.MAX_SAFE_INTEGER, id: Number.MAX_SAFE_INTEGER },
  ]
  const ids = places.map(eventId)
  t.strictSame(ids.map(parseEventId), places)
  t.strictSame(ids.toSorted(), ids)
  t.equal(ids[1], '00000000-0000-8001-8000-000000000000')
  for (const text of ['', '1', randomUUID(), `${ids[0]}0`, ids[0]!.replaceAll('-', '')]) {
    t.equal(parseEventId(text), undefined)
  }
  t.end()
})

void t.test('Last-Event-ID: what came after it comes first, once', async (t) => {
  const { follow, write } = await given(t)
  await write(0)
  await settled(sql)
  const first = await follow()
  for (const n of [1, 2, 3]) await write(n)
  await has(first, 3)
  t.strictSame(numbers(first), [1, 2, 3], 'without one, what happens from now on')
  first.close()
  await write(4)
  const { id } = first.frames[1]!
  const resumed = [
    await follow('', { 'last-event-id': id }),
    await follow(`?lastEventId=${id}`),
    // As a browser reconnects: with the URL it was given, and what it has had since.
    await follow(`?lastEventId=${first.frames[0]!.id}`, { 'last-event-id': id }),
  ]
  await write(5)
  for (const stream of resumed) {
    await has(stream, 3)
    t.strictSame(numbers(stream), [3, 4, 5])
    t.equal(stream.frames[0]!.id, first.frames[2]!.id, 'under the same id')
  }
  const empty = await follow('?lastEventId=', { 'last-event-id': '' })
  t.equal(empty.status, 200)
})

void t.test('a heartbeat moves the Last-Event-ID on past what is not wanted', async (t) => {
  const { follow, write, workspaceId } = await given(t)
  const stream = await follow('?types=session.qr')
  await write(1)
  const [written] = await eventsOf(workspaceId)
  await until('a heartbeat behind it', () => (stream.lastEventId() ?? '') > written!)
  t.strictSame(stream.frames, [])
  const resumed = await follow('', { 'last-event-id': stream.lastEventId()! })
  await write(2)
  await has(resumed, 1)
  t.strictSame(numbers(resumed), [2])
})

void t.test('only the types and the session that were asked for', async (t) => {
  const { call, follow, write } = await given(t)
  const answer = await call('POST', '/api/whatsapp/sessions', { name: 'Other', start: false })
  const session = answer.json<{ id: string }>().id
  const typed = await follow('?types=message.ack,session.status')
  const other = await follow(`?sessionId=${session}`)
  const all = await follow()
  await write(1)
  await write(2, { type: 'message.ack' })
  await write(3, { session })
  await write(4, { type: 'session.status', session })
  await has(all, 4)
  await has(typed, 2)
  await has(other, 2)
  t.strictSame(numbers(typed), [2, 4])
  t.strictSame(numbers(other), [3, 4])
})

void t.test('what is asked for in a wrong way is refused', async (t) => {
  const { call } = await given(t)
  for (const query of ['types=nonsense', 'types=', 'sessionId=x', 'lastEventId=x', 'other=1']) {
    const answer = await call('GET', `/api/events?${query}`)
    t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'), query)
  }
  const { follow } = await given(t)
  const answer = await follow('', { 'last-event-id': 'nonsense' })
  await answer.ended
  t.match(JSON.parse(answer.body()), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'headers.last-event-id' }],
  })
})

void t.test('what commits late is told late, and nothing is passed over', async (t) => {
  const { follow, write } = await given(t)
  const stream = await follow()
  const slow = connect(databaseUrl, { applicationName: 'slow', max: 2 })
  t.teardown(() => slow.close())
  let commit!: () => void
  const held = new Promise<void>((resolve) => (commit = resolve))
  let written!: () => void
  const inserted = new Promise<void>((resolve) => (written = resolve))
  const late = slow.begin(async (tx) => {
    await write(1, { tx })
    written()
    await held
  })
  await inserted
  await write(2)
  // Reads go on, and may not let the second one pass: the first would lie behind what was told.
  const resumedFrom = stream.comments()
  await until('some rounds', () => stream.comments() > resumedFrom + 4)
  t.strictSame(numbers(stream), [])
  commit()
  await late
  await has(stream, 2)
  t.strictSame(numbers(stream), [1, 2])
})

void t.test('many writers, many who come and go: everything, once, in one order', async (t) => {
  const [mine, theirs] = [await given(t), await given(t)]
  const writers = connect(databaseUrl, { applicationName: 'writers', max: 8 })
  t.teardown(() => writers.close())
  const total = 150
  let n = 0
  const writer = async ({ write }: typeof mine) => {
    while (n < total) {
      const own = ++n
      await writers.begin(async (tx) => {
        await write(own, { tx })
        // Others overtake it.
        await tx`select pg_sleep(${(own % 7) / 200})`
        await write(own + 0.5, { tx })
      })
    }
  }
  const told: OpenStream['frames'][] = []
  let writing = true
  const reader = async (which: typeof mine, index: number) => {
    const frames: OpenStream['frames'] = []
    told[index] = frames
    let lastEventId: string | undefined = eventId({ tx: 1, id: 0 })
    for (let visit = 0; writing || visit === 0; visit++) {
      const stream = await which.follow('', { 'last-event-id': lastEventId })
      // Some stay for three events, some for twenty.
      await until(
        'some events',
        () => stream.frames.length >= 3 + ((index * 7 + visit) % 18) || !writing,
      )
      stream.close()
      frames.push(...stream.frames)
      lastEventId = frames.at(-1)?.id ?? lastEventId
    }
    const rest = await which.follow('', { 'last-event-id': lastEventId })
    const counted = await which.call('GET', '/api/auth/me') // anything: the writers are done
    t.equal(counted.statusCode, 200)
    const expected = await eventsOf(which.workspaceId)
    await until('the rest', () => frames.length + rest.frames.length >= expected.length)
    frames.push(...rest.frames)
  }
  const reading = [mine, mine, mine, theirs, theirs].map(reader)
  await Promise.all([mine, mine, mine, theirs, theirs, theirs].map(writer))
  writing = false
  await Promise.all(reading)
  for (const [index, { workspaceId }] of [mine, mine, mine, theirs, theirs].entries()) {
    const expected = await eventsOf(workspaceId)
    t.ok(expected.length > 50)
    t.strictSame(
      told[index]!.map(({ id }) => id),
      expected,
    )
    t.ok(told[index]!.every(({ data }) => data.workspaceId === workspaceId))
  }
})

const eventsOf = async (workspaceId: string) => {
  const rows = await sql<{ tx: number; id: number }>`
    select tx::text::bigint as tx, id from events where workspace_id = ${workspaceId} order by events.tx, id`
  return rows.map(eventId)
}

void t.test('what is no longer kept is said to be gone, and only then', async (t) => {
  const { call, follow, write, workspaceId } = await given(t)
  const quiet = await given(t)
  const stream = await follow()
  for (const n of [1, 2, 3]) await write(n)
  await has(stream, 3)
  const [first, second, third] = stream.frames.map(({ id }) => id)
  await sql`
    update events set created_at = now() - interval '8 days' where workspace_id = ${workspaceId} and payload->>'n' in ('1', '2')`
  t.equal(await removeOldEvents(sql, 1), 2)
  t.equal(await removeOldEvents(sql), 0)

  const gone = await call('GET', `/api/events?lastEventId=${first}`)
  t.match(gone.json(), errorShape(410, 'EVENTS_GONE'))
  for (const [id, rest] of [
    [second, [3, 4]],
    [third, [4]],
  ] as const) {
    const resumed = await follow('', { 'last-event-id': id! })
    if (rest.length === 2) await write(4)
    await has(resumed, rest.length)
    t.strictSame(numbers(resumed), rest, 'nothing is missing behind the last that was removed')
  }
  const old = eventId({ tx: parseEventId(first!)!.tx - 1, id: 0 })
  t.equal(
    (await quiet.follow('', { 'last-event-id': old })).status,
    200,
    'nor of a quiet workspace',
  )
  const elsewhere = await call('GET', `/api/events?lastEventId=${eventId({ tx: 2 ** 50, id: 1 })}`)
  t.match(elsewhere.json(), errorShape(410, 'EVENTS_GONE'), 'an id of another database')
})

void t.test('who is behind is cut off when the retention overtakes him', async (t) => {
  const workspaceId = await createWorkspace(sql, 'Test')
  const { id: sessionId } = await createSession(sql, {
    ...{ workspaceId, name: 'Sales', engine: 'simulator', start: false, expiryDays: 30 },
  })
  const position = (await startingPoint(sql, workspaceId))!
  for (let n = 0; n < 450; n++) {
    await appendEvents(sql, [{ workspaceId, sessionId, type: 'message', payload: { n } }])
  }
  await settled(sql)
  const feed = new EventFeed(
    sql,
    fastifyLogger(createLogger('test', { level: 'fatal', stdout: false })),
  )
  t.teardown(() => feed.close())
  let told = 0
  let cut = false
  await feed.follow(
    {
      ...{ workspaceId, position },
      tell: (events) => (told += events.length),
      cut: () => (cut = true),
      drained: async () => {
        await sql`
          update events set created_at = now() - interval '8 days' where workspace_id = ${workspaceId} and (payload->>'n')::int < 300`
        await removeOldEvents(sql)
      },
    },
    new AbortController().signal,
  )
  t.same({ told, cut }, { told: 200, cut: true })
})

void t.test('a client that takes nothing is cut off, and misses nothing', async (t) => {
  const { follow, workspaceId, sessionId } = await given(t)
  const [slow, quick] = [await follow(), await follow()]
  slow.response.pause()
  const body = 'x'.repeat(50_000)
  const events = 400
  let n = 0
  while (n < events) {
    const some = Array.from({ length: 20 }, () => ({ n: ++n, body }))
    await appendEvents(
      sql,
      some.map((payload) => ({ workspaceId, sessionId, type: 'message.any' as const, payload })),
    )
    await has(quick, n)
  }
  const all = Array.from({ length: events }, (_, index) => index + 1)
  t.strictSame(numbers(quick), all, 'nobody waits for it')
  slow.response.resume()
  t.equal(await slow.ended, 'cut')
  t.ok(slow.frames.length < events, `it had taken ${slow.frames.length}`)
  const resumed = await follow('', { 'last-event-id': slow.frames.at(-1)!.id })
  await has(resumed, events - slow.frames.length)
  t.strictSame([...numbers(slow), ...numbers(resumed)], all, 'many megabytes at its own pace')
})

void t.test('a stream ends with what it was opened by', async (t) => {
  const person = await signIn({ app, sql })
  const { workspaceId, profile } = person
  const family = randomUUID()
  const token = app.signAccessToken(profile.id, family)
  const { id: keyId, key } = await createApiKey(sql, profile, { name: 'k', scopes: ['read'] })
  const { key: kept } = await createApiKey(sql, profile, { name: 'k', scopes: ['read'] })
  const { key: sends } = await createApiKey(sql, profile, { name: 'k', scopes: ['send'] })
  const open = async (headers: Record<string, string>) => {
    const stream = await openStream(base, headers)
    t.teardown(() => stream.close())
    return stream
  }
  t.equal((await open({ 'x-api-key': sends })).status, 403)
  t.equal((await open({})).status, 401)

  const stays = await open({ 'x-api-key': kept })
  const soon = app.jwt.sign(
    { sub: profile.id, sid: randomUUID(), typ: 'access' },
    { expiresIn: '4s' },
  )
  const ends: [string, OpenStream, () => Promise<unknown>][] = [
    ['the token expires', await open({ authorization: `Bearer ${soon}` }), async () => {}],
    [
      'its sign-in is over',
      await open({ cookie: `__Host-access=${token}` }),
      () => sql`
        insert into refresh_tokens (family, profile_id, token_hash, expires_at, revoked_at)
        values (${family}, ${profile.id}, ${Buffer.from(family)}, now() + interval '1 day', now())`,
    ],
    [
      'the key is deleted',
      await open({ 'x-api-key': key }),
      () => deleteApiKey(sql, workspaceId, keyId),
    ],
  ]
  for (const [what, stream, act] of ends) {
    t.equal(stream.status, 200, what)
    await act()
    t.equal(await stream.ended, 'in order', what)
  }
  t.equal((await open({ authorization: `Bearer ${soon}` })).status, 401)
  const beats = stays.comments()
  await until('the other key still listens', () => stays.comments() > beats)
  await sql`delete from profiles where id = ${profile.id}`
  t.equal(await stays.ended, 'in order', 'until its person is removed')
})

void t.test('so many streams each, and no more', async (t) => {
  const { follow, call } = await given(t)
  const asked = await Promise.all(Array.from({ length: 30 }, () => follow()))
  const streams = asked.filter(({ status }) => status === 200)
  t.equal(streams.length, 20, 'also of those that come at once')
  const refused = await call('GET', '/api/events')
  t.match(refused.json(), errorShape(429, 'TOO_MANY_STREAMS'))
  t.ok(refused.headers['retry-after'])
  t.equal((await (await given(t)).follow()).status, 200, 'others are not counted with them')
  streams[0]!.close()
  await until('a place is free', async () => (await follow()).status === 200)
})

void t.test('a stop ends all streams in order, at once', async (t) => {
  const { app } = await appOver(t, sql)
  await app.listen({ port: 0, host: '127.0.0.1' })
  const person = await signIn({ app, sql })
  const url = addressOf(app.server.address() as AddressInfo)
  const streams = await Promise.all([1, 2, 3].map(() => openStream(url, bearer(person))))
  const closed = once(app.server, 'close')
  await app.close()
  await closed
  for (const stream of streams) t.equal(await stream.ended, 'in order')
})
