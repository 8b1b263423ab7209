import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { IncomingHttpHeaders, Server, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Webhook as StandardWebhook } from 'standardwebhooks'
import t from 'tap'
import type { Test } from 'tap'
import type { Sql } from '../../shared/db.ts'
import { appendEvents, eventId, removeOldEvents } from '../../shared/events.ts'
import type { EventType } from '../../shared/events.ts'
import { KeyRing } from '../../shared/key-ring.ts'
import { createLogger } from '../../shared/logger.ts'
import { testDb } from '../../shared/test/db.ts'
import { settled } from '../../shared/test/event-stream.ts'
import { until } from '../../shared/test/until.ts'
import { isPublicAddress } from '../../shared/webhook-address.ts'
import {
  claimDeliveries,
  expireDeliveries,
  fanOut,
  patience,
  redeliver,
} from '../../shared/webhook-deliveries.ts'
import {
  createWebhook,
  findWebhook,
  resealWebhooks,
  rotateSecret,
  updateWebhook,
} from '../../shared/webhooks.ts'
import type { Wanted } from '../../shared/webhooks.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import { createSession } from '../../shared/wa-sessions.ts'
import { post } from '../webhook-post.ts'
import { Webhooks } from '../webhooks.ts'
import type { WebhookOptions } from '../webhooks.ts'

const { sql } = await testDb(t)
const keys = KeyRing.parse(`k1:${Buffer.alloc(32, 7).toString('base64')}`)
const log = createLogger('test', { level: 'fatal', stdout: false })

interface Request {
  headers: IncomingHttpHeaders
  body: string
  /** The number the event was written with. */
  n: number
  chat: string
  answered: boolean
}

type Behaviour = (request: Request, response: ServerResponse, nth: number) => void

const yes: Behaviour = (_request, response) => void response.writeHead(204).end()

/** Somebody who receives events and behaves. */
async function consumer(t: Test, behave: Behaviour = yes) {
  const requests: Request[] = []
  let behaviour = behave
  /** Chats of which two were received at the same time. */
  const overlaps: string[] = []
  const server: Server = createServer((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk))
    request.on('end', () => {
      const { payload } = JSON.parse(body) as { payload: { n: number; chatId: string } }
      const got = {
        headers: request.headers,
        body,
        n: payload.n,
        chat: payload.chatId,
        answered: false,
      }
      if (requests.some(({ chat, answered }) => !answered && chat === got.chat)) {
        overlaps.push(got.chat)
      }
      requests.push(got)
      response.on('close', () => (got.answered = true))
      behaviour(got, response, requests.length)
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}/hook`,
    port,
    requests,
    overlaps,
    now: (behave: Behaviour) => (behaviour = behave),
    of: (chat: string) => requests.filter((request) => request.chat === chat).map(({ n }) => n),
  }
}

/** A workspace with a webhook, and somebody who serves it. */
async function given(url: string, events: Wanted[] = ['*']) {
  const workspaceId = await createWorkspace(sql, 'Test')
  const session = await createSession(sql, {
    workspaceId,
    name: 'Sales',
    engine: 'simulator',
    start: false,
    expiryDays: 30,
  })
  const webhook = await createWebhook(sql, keys, workspaceId, { url, events })
  const write = (n: number, chatId = 'a', { tx = sql, type = 'message' }: Written = {}) =>
    appendEvents(tx, [{ workspaceId, sessionId: session.id, type, payload: { n, chatId } }])
  const state = async () => (await findWebhook(sql, workspaceId, webhook.id))!
  const deliveries = () => sql<{
    id: string
    status: string
    attempts: number
    error: string | null
    aside: boolean
  }>`
    select id, status, attempts, error, aside from webhook_deliveries where webhook_id = ${webhook.id} order by seq`
  const delivered = (count: number) =>
    until(`${count} delivered`, async () => {
      const rows = await deliveries()
      return rows.filter(({ status }) => status === 'delivered').length === count
    })
  return { workspaceId, webhook, write, state, deliveries, delivered }
}

interface Written {
  tx?: Sql
  type?: EventType
}

/** Serves all webhooks until the test ends, or until it is told to stop. */
function serve(t: Test, options: Partial<WebhookOptions> = {}) {
  const webhooks = new Webhooks({
    sql,
    keys,
    log,
    allowPrivate: true,
    pollMs: 10,
    backoff: () => 50,
    circuitBackoff: () => 150,
    ...options,
  })
  const running = webhooks.run()
  const stop = async () => {
    webhooks.stop()
    await running
  }
  t.teardown(stop)
  return { stop }
}

void t.test('events are posted as the stream tells them, signed', async (t) => {
  const to = await consumer(t)
  const { workspaceId, webhook, write, delivered, state } = await given(to.url, ['message'])
  await write(1)
  await write(2, 'a', { type: 'message.ack' })
  await write(3)
  serve(t)
  await delivered(2)
  t.strictSame(to.of('a'), [1, 3], 'of the types it wants')
  const [{ headers, body }] = to.requests as [Request]
  const verifier = new StandardWebhook(webhook.secret)
  const told = verifier.verify(body, headers as Record<string, string>)
  const [event] = await sql<{ tx: number; id: number; createdAt: Date; sessionId: string }>`
    select tx::text::bigint as tx, id, created_at, session_id from events where workspace_id = ${workspaceId} order by events.tx, id limit 1`
  t.strictSame(told, {
    id: eventId(event!),
    type: 'message',
    workspaceId,
    sessionId: event!.sessionId,
    createdAt: event!.createdAt.toISOString(),
    payload: { n: 1, chatId: 'a' },
  })
  t.equal(headers['webhook-id'], eventId(event!))
  t.throws(() => verifier.verify(`${body} `, headers as Record<string, string>))
  t.match(await state(), {
    circuit: { state: 'closed', failures: 0 },
    lastSuccessAt: Date,
    lastError: null,
  })
})

void t.test('while a secret is being changed both sign', async (t) => {
  const to = await consumer(t)
  const { workspaceId, webhook, write, delivered } = await given(to.url)
  const rotate = (keepHours: number) =>
    rotateSecret(sql, keys, workspaceId, webhook.id, { keepHours })
  const second = (await rotate(1))!
  serve(t)
  await write(1)
  await delivered(1)
  const third = (await rotate(0))!
  await write(2)
  await delivered(2)
  const verifies = (secret: string, { body, headers }: Request) => {
    try {
      return !!new StandardWebhook(secret).verify(body, headers as Record<string, string>)
    } catch {
      return false
    }
  }
  const [one, two] = to.requests as [Request, Request]
  t.strictSame(
    [webhook, second, third].map(({ secret }) => [verifies(secret, one), verifies(secret, two)]),
    [
      [true, false],
      [true, false],
      [false, true],
    ],
  )
})

void t.test('secrets are sealed, also anew with another key', async (t) => {
  const to = await consumer(t)
  const { workspaceId, webhook, write, delivered } = await given(to.url)
  const { secret } = (await rotateSecret(sql, keys, workspaceId, webhook.id, { keepHours: 1 }))!
  const [{ text }] = (await sql<{ text: string }>`
    select w::text as text from webhooks w where id = ${webhook.id}`) as [{ text: string }]
  for (const plain of [secret, webhook.secret]) t.notMatch(text, plain.slice(6))
  const both = KeyRing.parse(`k2:${Buffer.alloc(32, 8).toString('base64')}`).with(keys)
  t.strictSame((await resealWebhooks(sql, both)).failed, [])
  const newer = KeyRing.parse(`k2:${Buffer.alloc(32, 8).toString('base64')}`)
  t.strictSame(await resealWebhooks(sql, newer), { resealed: 0, failed: [] })
  serve(t, { keys: newer })
  await write(1)
  await delivered(1)
  const [{ body, headers }] = to.requests as [Request]
  for (const known of [secret, webhook.secret]) {
    t.ok(new StandardWebhook(known).verify(body, headers as Record<string, string>))
  }
  await resealWebhooks(sql, keys.with(newer))
})

void t.test(
  'a failure is tried again under the same id, its chat waits, others do not',
  async (t) => {
    const to = await consumer(t, ({ chat }, response, nth) => {
      const fails = chat === 'a' && nth < 6
      response.writeHead(fails ? 503 : 200).end()
    })
    const { write, delivered, deliveries, state } = await given(to.url)
    for (let n = 1; n <= 3; n++) {
      await write(n, 'a')
      await write(n, 'b')
    }
    serve(t)
    await delivered(6)
    const [a, b] = [to.of('a'), to.of('b')]
    t.strictSame(b, [1, 2, 3])
    t.strictSame(a.slice(-2), [2, 3])
    t.ok(
      a.length > 3 && a.slice(0, -2).every((n) => n === 1),
      `the first came ${a.length - 2} times`,
    )
    const ids = to.requests.filter(({ chat, n }) => chat === 'a' && n === 1)
    t.equal(new Set(ids.map(({ headers }) => headers['webhook-id'])).size, 1)
    t.equal(new Set(ids.map(({ body }) => body)).size, 1)
    t.match((await deliveries())[0], { status: 'delivered', attempts: a.length - 2, error: null })
    t.match(await state(), { lastFailureAt: Date, lastError: 'HTTP_503' })
  },
)

void t.test('one that is refused for ever steps aside, and its chat goes on', async (t) => {
  const to = await consumer(t, ({ n }, response) => {
    response.writeHead(n === 1 ? 500 : 200).end()
  })
  const { write, delivered, deliveries } = await given(to.url)
  for (const n of [1, 2, 3]) await write(n)
  serve(t)
  await delivered(2)
  t.strictSame(to.of('a').slice(0, patience), Array<number>(patience).fill(1))
  t.strictSame(
    to.of('a').filter((n) => n > 1),
    [2, 3],
  )
  await until('it is still tried', () => to.of('a').filter((n) => n === 1).length > patience)
  const [poison] = await deliveries()
  t.match(poison, { status: 'pending', aside: true, error: 'HTTP_500' })
  to.now(yes)
  await delivered(3)
})

void t.test('an open circuit posts nothing but one probe; then everything, in order', async (t) => {
  const to = await consumer(t, (_request, response) => void response.writeHead(500).end())
  const { write, delivered, state, webhook } = await given(to.url)
  const chats = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']
  for (let n = 1; n <= 3; n++) for (const chat of chats) await write(n, chat)
  let reopens!: () => void
  const { stop } = serve(t, { circuitBackoff: () => 3_600_000 })
  await until('it opens', async () => (await state()).circuit.state === 'open')
  await until('what was under way is over', async () => {
    const underWay = await sql`
      select from webhook_deliveries where webhook_id = ${webhook.id} and claimed_until is not null`
    return underWay.length === 0
  })
  const before = to.requests.length
  t.ok(before >= 5 && before <= 8, `${before} posts opened it`)
  // As many rounds as it takes to be sure: another webhook is served meanwhile.
  const other = await consumer(t)
  const lively = await given(other.url)
  for (let n = 1; n <= 20; n++) await lively.write(n)
  await lively.delivered(20)
  t.equal(to.requests.length, before, 'nothing is posted while it is open')
  await stop()

  let inFlight: (() => void) | undefined
  to.now((_request, response) => {
    inFlight = () => void response.writeHead(200).end()
    reopens?.()
  })
  const probed = new Promise<void>((resolve) => (reopens = resolve))
  await sql`update webhooks set retry_at = now() where id = ${webhook.id}`
  t.equal((await state()).circuit.state, 'half_open')
  serve(t)
  serve(t)
  await probed
  for (let n = 21; n <= 40; n++) await lively.write(n)
  await lively.delivered(40)
  t.equal(to.requests.length, before + 1, 'one to see, whoever serves')
  to.now(yes)
  inFlight!()
  await delivered(24)
  t.match(await state(), { circuit: { state: 'closed', failures: 0, retryAt: null } })
  for (const chat of chats) {
    const order = to.of(chat).filter((n, index, all) => all.lastIndexOf(n) === index)
    t.strictSame(order, [1, 2, 3], chat)
  }
})

void t.test('any number of servers: each delivery once, a chat one after the other', async (t) => {
  const to = await consumer(t, (_request, response) => {
    setImmediate(() => response.writeHead(200).end())
  })
  const { write, delivered } = await given(to.url)
  for (let i = 0; i < 3; i++) serve(t)
  const expected = new Map<string, number[]>()
  for (let n = 1; n <= 120; n++) {
    const chat = `chat-${n % 7}`
    expected.set(chat, [...(expected.get(chat) ?? []), n])
    await write(n, chat)
  }
  await delivered(120)
  t.equal(to.requests.length, 120)
  for (const [chat, numbers] of expected) t.strictSame(to.of(chat), numbers)
  t.strictSame(to.overlaps, [])
})

void t.test('what a process that died was posting is posted by another', async (t) => {
  const to = await consumer(t)
  const { write, delivered, webhook } = await given(to.url)
  for (const n of [1, 2]) await write(n)
  while (await fanOut(sql, webhook.id));
  await until('the events are readable', async () => {
    await fanOut(sql, webhook.id)
    const rows = await sql`select 1 from webhook_deliveries where webhook_id = ${webhook.id}`
    return rows.length === 2
  })
  const busy = new Map<string, number>()
  const claimed = await claimDeliveries(sql, { busy, width: 4, limit: 100 })
  t.equal(claimed.filter(({ webhookId }) => webhookId === webhook.id).length, 1, 'one of a chat')
  const again = await claimDeliveries(sql, { busy, width: 4, limit: 100 })
  t.notOk(again.some(({ webhookId }) => webhookId === webhook.id))
  serve(t)
  await sql`update webhook_deliveries set claimed_until = now() where webhook_id = ${webhook.id} and claimed_until is not null`
  await delivered(2)
  t.strictSame(to.of('a'), [1, 2])
})

void t.test('who hangs, drips, babbles, hangs up or redirects', async (t) => {
  let inside = 0
  const secret = createServer((_request, response) => {
    inside += 1
    response.end('internal')
  }).listen(0, '127.0.0.1')
  await once(secret, 'listening')
  t.teardown(() => secret.close())
  const { port } = secret.address() as AddressInfo
  const to = await consumer(t)
  const options = { allowPrivate: true, timeoutMs: 300 }
  const send = () => post(to.url, JSON.stringify({ payload: { n: 1 } }), {}, options)

  to.now(() => {})
  t.match(await send(), { ok: false, status: null, error: 'TIMEOUT' }, 'hangs')
  to.now((_request, response) => {
    response.writeHead(200).write('…')
  })
  t.match(await send(), { ok: true, status: 200 }, 'says yes, and does not come to an end')
  let written = 0
  to.now((_request, response) => {
    response.writeHead(200)
    const more = () => {
      while (!response.destroyed && written < 50_000_000) {
        written += 65_536
        if (!response.write(Buffer.alloc(65_536))) return void response.once('drain', more)
      }
      response.end()
    }
    more()
  })
  t.match(await send(), { ok: true, status: 200 }, 'babbles')
  t.ok(written < 20_000_000, `${written} bytes were written`)
  to.now((_request, response) => void response.socket!.destroy())
  t.match(await send(), { ok: false, status: null, error: 'ECONNRESET' }, 'hangs up')
  for (const status of [301, 302, 303, 307, 308]) {
    to.now((_request, response) => {
      response.writeHead(status, { location: `http://127.0.0.1:${port}/` }).end()
    })
    t.match(await send(), { ok: false, status, error: `HTTP_${status}` }, 'redirects')
  }
  t.equal(inside, 0, 'nobody went there')
  const closed = await consumer(t)
  const refused = await post('http://127.0.0.1:1/', '{}', {}, options)
  t.match(refused, { ok: false, error: 'ECONNREFUSED' })
  t.equal(closed.requests.length, 0)
})

/** This machine, in the spellings that have got past filters. */
const loopback = [
  'http://127.0.0.1',
  'http://127.1',
  'http://127.0.1',
  'http://2130706433',
  'http://0x7f000001',
  'http://0x7f.0.0.1',
  'http://017700000001',
  'http://0177.0.0.1',
  'http://0',
  'http://0.0.0.0',
  'http://[::1]',
  'http://[::]',
  'http://[0:0:0:0:0:0:0:1]',
  'http://[::ffff:127.0.0.1]',
  'http://[::ffff:7f00:1]',
  'http://[::127.0.0.1]',
  'http://[64:ff9b::7f00:1]',
  'http://[2002:7f00:1::]',
  'http://127.255.255.254',
  'http://１２７.０.０.１',
  'http://localhost',
  'http://LOCALHOST.',
]
const privateOnes = [
  '10.0.0.1',
  '172.16.0.1',
  '192.168.1.1',
  '169.254.169.254',
  '100.64.0.1',
  '100.100.100.200',
  '168.63.129.16',
  '192.0.0.192',
  '198.18.0.1',
  '224.0.0.1',
  '255.255.255.255',
  'fe80::1',
  'fe80::1%eth0',
  'fc00::1',
  'fd00:ec2::254',
  'fec0::1',
  'ff02::1',
  '::ffff:10.0.0.1',
  '2001:db8::1',
  '2001::1',
  'nonsense',
]

void t.test('nothing is posted to where webhooks must not lead', async (t) => {
  const to = await consumer(t)
  const options = { allowPrivate: false, timeoutMs: 5_000 }
  for (const spelling of loopback) {
    const url = new URL(`${spelling}:${to.port}/`)
    const outcome = await post(url.href, '{"payload":{}}', {}, options)
    t.match(outcome, { ok: false, status: null, error: 'PRIVATE_ADDRESS' }, spelling)
  }
  for (const address of privateOnes) t.notOk(isPublicAddress(address), address)
  for (const address of ['1.1.1.1', '93.184.215.14', '2606:4700:4700::1111', '::ffff:1.1.1.1']) {
    t.ok(isPublicAddress(address), address)
  }
  const { write, deliveries } = await given(to.url)
  await write(1)
  serve(t, { allowPrivate: false })
  await until('it was tried', async () => (await deliveries())[0]?.error === 'PRIVATE_ADDRESS')
  t.equal(to.requests.length, 0)
})

void t.test('a name is resolved once, and what was looked at is where it goes', async (t) => {
  const to = await consumer(t)
  const url = `http://hook.example:${to.port}/`
  let asked = 0
  // The second answer is that of somebody who changes where his name leads once it has been looked at.
  const rebinding =
    (...answers: string[]) =>
    async () => {
      const address = answers[asked++] ?? '127.0.0.1'
      return [{ address, family: 4 }]
    }
  const send = (allowPrivate: boolean, ...answers: string[]) => {
    asked = 0
    const lookup = rebinding(...answers)
    return post(url, '{"payload":{}}', {}, { allowPrivate, timeoutMs: 500, lookup })
  }
  t.match(await send(true, '127.0.0.1', '10.255.255.1'), { ok: true })
  t.equal(asked, 1)
  t.equal(to.requests.length, 1)
  t.match(await send(false, '127.0.0.1'), { ok: false, error: 'PRIVATE_ADDRESS' })
  const outcome = await send(false, '192.88.99.77', '127.0.0.1')
  t.notOk(outcome.ok)
  t.equal(asked, 1, 'nobody asks again when it connects')
  const mixed = async () => [
    { address: '1.1.1.1', family: 4 },
    { address: '127.0.0.1', family: 4 },
  ]
  const some = await post(url, '{}', {}, { allowPrivate: false, timeoutMs: 500, lookup: mixed })
  t.match(some, { error: 'PRIVATE_ADDRESS' }, 'all of its addresses count')
  t.equal(to.requests.length, 1)
})

void t.test('after 24 hours it is given up, and may be made once more', async (t) => {
  const to = await consumer(
    t,
    ({ n }, response) => void response.writeHead(n === 1 ? 500 : 200).end(),
  )
  const { workspaceId, webhook, write, delivered, deliveries } = await given(to.url)
  for (const n of [1, 2]) await write(n)
  const { stop } = serve(t, { backoff: () => 86_400_001 })
  await delivered(1)
  t.strictSame(to.of('a'), [1, 2], 'what is given up holds up nobody')
  const [dead] = await deliveries()
  t.match(dead, { status: 'dead', attempts: 1, error: 'HTTP_500' })
  await stop()

  to.now(yes)
  t.match(await redeliver(sql, workspaceId, webhook.id, dead!.id), {
    status: 'pending',
    attempts: 0,
  })
  const waits = serve(t)
  await delivered(2)
  t.equal(to.requests.at(-1)!.headers['webhook-id'], to.requests[0]!.headers['webhook-id'])
  await waits.stop()

  await write(3)
  await until('it is a delivery', async () => {
    await fanOut(sql, webhook.id)
    return (await deliveries()).length === 3
  })
  await sql`
    update webhook_deliveries set expires_at = now() where webhook_id = ${webhook.id} and status = 'pending'`
  serve(t, { timeoutMs: 500 })
  await until('what nobody could post is given up', async () => {
    const last = (await deliveries()).at(-1)!
    return last.status === 'dead' && last.error === 'EXPIRED'
  })

  to.now(() => {})
  for (const n of [4, 5]) await write(n)
  await until('the first is being posted, the second waits for it', () => to.of('a').includes(4))
  await sql`
    update webhook_deliveries set expires_at = now(), claimed_until = now() where webhook_id = ${webhook.id} and status = 'pending'`
  to.now(yes)
  await expireDeliveries(sql)
  const waited = (await deliveries()).at(-1)!
  t.match(waited, { status: 'dead', attempts: 0 })
  await redeliver(sql, workspaceId, webhook.id, waited.id)
  await until('what never had its turn is made all the same', () => to.of('a').includes(5))

  await sql`update events set created_at = now() - interval '8 days' where workspace_id = ${workspaceId}`
  await removeOldEvents(sql)
  t.strictSame(await deliveries(), [], 'a week later they are gone, with their events')
})

void t.test(
  'one that is disabled gets nothing, and afterwards what happens from then on',
  async (t) => {
    const to = await consumer(t)
    const { workspaceId, webhook, write, delivered } = await given(to.url)
    serve(t)
    await write(1)
    await delivered(1)
    const enable = (enabled: boolean) => updateWebhook(sql, workspaceId, webhook.id, { enabled })
    await enable(false)
    await write(2)
    await settled(sql)
    await enable(true)
    await write(3)
    await delivered(2)
    t.strictSame(to.of('a'), [1, 3])
  },
)

void t.test('a late commit is no delivery that comes too late', async (t) => {
  const to = await consumer(t)
  const { write, delivered } = await given(to.url)
  serve(t)
  const total = 60
  let n = 0
  const writer = async () => {
    while (n < total) {
      const own = ++n
      await sql.begin(async (tx) => {
        await write(own, randomBytes(1).toString('hex'), { tx })
        await tx`select pg_sleep(${(own % 5) / 100})`
      })
    }
  }
  await Promise.all([writer(), writer(), writer(), writer()])
  await delivered(total)
  const got = to.requests.map((request) => request.n).toSorted((a, b) => a - b)
  t.strictSame(
    got,
    Array.from({ length: total }, (_, index) => index + 1),
  )
})
