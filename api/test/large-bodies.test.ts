import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import t from 'tap'
import { errorShape, signIn, testApp } from './app.ts'

const it = await testApp(t)
const send = '/api/whatsapp/send'
const to = '+1 202 555 0101'
const good = { to, message: 'x' }

const many = (n: number, item: (i: number) => unknown) =>
  Array.from({ length: n }, (_, i) => item(i))
const polled = (n: number) => ({ to, poll: { question: 'q', options: many(n, (i) => `o${i}`) } })
/** Text: JSON.stringify() does not get so deep. */
const deep = `${'['.repeat(20_000)}${']'.repeat(20_000)}`

async function withSession() {
  const { call, token } = await signIn(it)
  await call('POST', '/api/whatsapp/sessions', { name: 'Sales' })
  const post = (url: string, payload: string | Readable, headers = {}) =>
    it.app.inject({
      ...{ method: 'POST', url, payload },
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', ...headers },
    })
  return { call, post }
}

/** The CPU seconds something takes: the machine may be busy. */
async function seconds(work: () => Promise<unknown>): Promise<number> {
  const before = process.cpuUsage()
  await work()
  return process.cpuUsage(before).user / 1_000_000
}

void t.test('a row that is too large or too deep is rejected alone, and at once', async (t) => {
  const { post } = await withSession()
  const rows = {
    'nested deeply': deep,
    'of very many options': JSON.stringify(polled(20_000)),
    'with very many faults': JSON.stringify({ ...good, mentions: many(200_000, () => 1) }),
    'with very many different faults': JSON.stringify({
      ...good,
      mentions: many(20_000, (i) => ({ i })),
    }),
    'with very many keys': JSON.stringify(Object.fromEntries(many(80_000, (i) => [i, 0]) as [])),
    'with very many people': JSON.stringify({ ...good, mentions: many(100_000, () => to) }),
  }
  const body = `{"messages":[${Object.values(rows).join()},${JSON.stringify(good)}]}`
  const rejected = Object.keys(rows).map((_, index) => ({
    ...{ index, code: 'VALIDATION_FAILED' },
    message: 'The row must hold no more than 2000 values.',
  }))
  const took = await seconds(async () => {
    for (const headers of [{}, { 'idempotency-key': 'large' }]) {
      const answer = await post(`${send}/bulk`, body, headers)
      t.match(answer.json(), { accepted: 1, rejected }, answer.body.slice(0, 200))
    }
  })
  t.ok(took < 2, `${took} s`)
})

void t.test('rows that are wrong all over are rejected soon, and small ones in full', async (t) => {
  const { call } = await withSession()
  const wrong = { ...good, mentions: many(1_990, () => 1) }
  const took = await seconds(async () => {
    const answer = await call('POST', `${send}/bulk`, { messages: many(1_000, () => wrong) })
    t.match(answer.json(), { accepted: 0 })
    t.match(answer.json<{ rejected: object[] }>().rejected[999], {
      message: '"mentions[0]" must be a string',
    })
  })
  t.ok(took < 4, `${took} s`)
  const small = await call('POST', `${send}/bulk`, { messages: [{ to: 7, message: ' ' }] })
  t.match(small.json<{ rejected: object[] }>().rejected[0], {
    message: '"to" must be a string; "message" must be more than blanks',
  })
})

void t.test(
  'a body that is too large or too deep for one message is refused at once',
  async (t) => {
    const { post } = await withSession()
    const bodies = {
      options: JSON.stringify(polled(12_000)),
      mentions: JSON.stringify({ ...good, mentions: many(200_000, () => 1) }),
      depth: `{"to":"${to}","message":${deep}}`,
      keys: `{${many(50_000, (i) => `"k${i}":0`).join()}}`,
      rows: JSON.stringify({ messages: many(300_000, () => 1) }),
    }
    const took = await seconds(async () => {
      for (const [what, body] of Object.entries(bodies)) {
        const url = what === 'rows' ? `${send}/bulk` : send
        // A body that comes in chunks does not say how long it is.
        for (const payload of [body, Readable.from([body])]) {
          const answer = await post(url, payload, { 'idempotency-key': what })
          t.match(answer.json(), {
            ...errorShape(400, 'VALIDATION_FAILED'),
            details: [{ path: 'body', message: '"body" must hold no more than 2000 values' }],
          })
        }
      }
    })
    t.ok(took < 2, `${took} s`)
    const listed = await post(send, JSON.stringify(polled(1_900)))
    t.match(listed.json(), errorShape(400, 'VALIDATION_FAILED'))
  },
)

void t.test('a batch that says too much is refused as a whole, and told the limit', async (t) => {
  const { call } = await withSession()
  // Three bytes a character: bytes are what is written.
  const row = { to, message: '你'.repeat(65_536) }
  const bulk = (n: number) => call('POST', `${send}/bulk`, { messages: many(n, () => row) })
  const tooMuch = await bulk(22)
  t.match(tooMuch.json(), { ...errorShape(413, 'BATCH_TOO_LARGE'), message: /4,194,304 bytes/ })
  t.strictSame((await call('GET', '/api/chats')).json<{ data: object[] }>().data, [])
  t.match((await bulk(21)).json(), { accepted: 21 })
})

void t.test('what templates make of a batch counts, and is not made in vain', async (t) => {
  const { call } = await withSession()
  const made = await call('POST', '/api/templates', { name: 'Echo', body: '{{a}}'.repeat(16) })
  const { id } = made.json<{ id: string }>()
  const bulk = (n: number) =>
    call('POST', `${send}/bulk`, {
      messages: many(n, () => ({ to, template: { id, variables: { a: 'x'.repeat(4_096) } } })),
    })
  const took = await seconds(async () => {
    const answer = await bulk(1_000)
    t.match(answer.json(), { ...errorShape(413, 'BATCH_TOO_LARGE'), message: /4,194,304 bytes/ })
  })
  t.ok(took < 2, `${took} s`)
  t.match((await bulk(63)).json(), { accepted: 63 })
})

void t.test('while large rows are read others are answered', async (t) => {
  const { call } = await withSession()
  const variables = Object.fromEntries(many(1_400, (i) => [`v${i}`, '']) as [string, string][])
  const template = { id: randomUUID(), variables }
  const began = performance.now()
  let last = began
  let longest = 0
  const tick = () => {
    longest = Math.max(longest, performance.now() - last)
    last = performance.now()
  }
  const ticking = setInterval(tick, 1)
  const messages = many(300, () => ({ to, template }))
  const answer = await call('POST', `${send}/bulk`, { messages })
  clearInterval(ticking)
  tick()
  t.match(answer.json(), { accepted: 0 })
  const took = performance.now() - began
  t.ok(longest < took / 3, `${longest} of ${took} ms`)
})
