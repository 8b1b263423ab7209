import { once } from 'node:events'
import { connect as dial } from 'node:net'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { signIn, testApp } from '../app.ts'

const it = await testApp(t)
const { token } = await signIn(it)
await it.app.listen({ port: 0, host: '127.0.0.1' })
const { port } = it.app.server.address() as AddressInfo
const login = '/api/auth/login'

/** What the server answers to raw bytes, until it hangs up or has been silent for a while. */
async function raw(text: string | Buffer): Promise<string> {
  const socket = dial(port, '127.0.0.1')
  let answer = ''
  socket.setEncoding('latin1').on('data', (chunk: string) => (answer += chunk))
  socket.on('error', () => {}) // it may hang up before everything is sent
  socket.setTimeout(1_500, () => socket.destroy())
  socket.write(text)
  await once(socket, 'close')
  return answer
}
const statuses = (answer: string) =>
  [...answer.matchAll(/^HTTP\/1\.1 (\d{3})/gm)].map(([, status]) => Number(status))

const smuggled = 'GET /health HTTP/1.1\r\nHost: x\r\n\r\n'
const post = (headers: string, body = '') =>
  `POST ${login} HTTP/1.1\r\nHost: x\r\n${headers}\r\n\r\n${body}`
const chunked = `2\r\n{}\r\n0\r\n\r\n`

/** Requests two parsers could read in two ways: the second one inside must never be answered. */
const smuggling: [string, string][] = [
  [
    'CL and TE',
    post(
      `Content-Length: ${smuggled.length + 5}\r\nTransfer-Encoding: chunked`,
      `0\r\n\r\n${smuggled}`,
    ),
  ],
  ['TE and CL', post('Transfer-Encoding: chunked\r\nContent-Length: 4', `0\r\n\r\n${smuggled}`)],
  ['two CL that differ', post('Content-Length: 0\r\nContent-Length: 40', smuggled)],
  ['two CL in one line', post('Content-Length: 0, 40', smuggled)],
  [
    'TE twice',
    post('Transfer-Encoding: chunked\r\nTransfer-Encoding: identity', chunked + smuggled),
  ],
  ['TE xchunked', post('Transfer-Encoding: xchunked', chunked + smuggled)],
  ['TE with a comma', post('Transfer-Encoding: chunked, identity', chunked + smuggled)],
  ['TE identity', post('Transfer-Encoding: identity\r\nContent-Length: 0', smuggled)],
  ['TE behind a blank', post('Transfer-Encoding : chunked', chunked + smuggled)],
  ['CL behind a blank', post('Content-Length : 0', smuggled)],
  ['CL with a plus', post('Content-Length: +0', smuggled)],
  ['CL negative', post('Content-Length: -1', smuggled)],
  ['CL hexadecimal', post('Content-Length: 0x0', smuggled)],
  ['CL too large for a number', post('Content-Length: 99999999999999999999999', smuggled)],
  ['CL empty', post('Content-Length:', smuggled)],
  ['CL with text', post('Content-Length: 0x', smuggled)],
  ['folded TE', post('Transfer-Encoding:\r\n chunked\r\nContent-Length: 0', smuggled)],
  ['folded header', post('X-A: b\r\n c\r\nContent-Length : 0', smuggled)],
  [
    'bare LF between headers',
    `POST ${login} HTTP/1.1\nHost: x\nContent-Length: 0\nTransfer-Encoding: chunked\n\n${smuggled}`,
  ],
  [
    'bare CR in a header',
    post('X-A: b\rTransfer-Encoding: chunked\r\nContent-Length : 0', smuggled),
  ],
  ['NUL in a header', post('X-A: b\0c\r\nContent-Length : 0', smuggled)],
  ['a chunk size that is none', post('Transfer-Encoding: chunked', `zz\r\n${smuggled}`)],
  [
    'a chunk size with a sign',
    post('Transfer-Encoding: chunked', `-2\r\n{}\r\n0\r\n\r\n${smuggled}`),
  ],
  ['a huge chunk size', post('Transfer-Encoding: chunked', `fffffffffffffffff\r\n${smuggled}`)],
  [
    'a chunk longer than it says',
    post('Transfer-Encoding: chunked', `1\r\n{}\r\n0\r\n\r\n${smuggled}`),
  ],
  ['a header without a name', post(': x', smuggled)],
  ['a header without a colon', post('nonsense', smuggled)],
  ['a header name with a blank', post('X A: b', smuggled)],
]
for (const [what, text] of smuggling) {
  void t.test(`no request hides in another: ${what}`, async (t) => {
    const answer = await raw(text)
    t.notMatch(answer, /"status":"ok"/, 'the inner request is not answered')
    t.ok(statuses(answer).length <= 1, 'one request, one answer at the most')
    t.ok(statuses(answer).every((status) => status >= 400 && status < 500))
  })
}

const lines: [string, string | Buffer, number[]][] = [
  ['nonsense', 'NONSENSE\r\n\r\n', [400]],
  ['no version', 'GET /health\r\n\r\n', [200]],
  ['an unknown version', 'GET /health HTTP/9.9\r\nHost: x\r\n\r\n', [400]],
  ['an unknown method', 'HACK /health HTTP/1.1\r\nHost: x\r\n\r\n', [400]],
  ['TRACE', 'TRACE /health HTTP/1.1\r\nHost: x\r\n\r\n', [404]],
  ['CONNECT', 'CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n', []],
  [
    'an absolute URL elsewhere',
    'GET http://evil.example/api/chats HTTP/1.1\r\nHost: x\r\n\r\n',
    [400, 401, 404],
  ],
  ['two Hosts', 'GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n', [200, 400]],
  ['no Host', 'GET /health HTTP/1.1\r\n\r\n', [400]],
  ['a URL with NUL', 'GET /hea\0lth HTTP/1.1\r\nHost: x\r\n\r\n', [400]],
  ['a URL of 100 KB', `GET /${'a'.repeat(100_000)} HTTP/1.1\r\nHost: x\r\n\r\n`, [431]],
  [
    'headers of 100 KB',
    `GET /health HTTP/1.1\r\nHost: x\r\nX-A: ${'a'.repeat(100_000)}\r\n\r\n`,
    [431],
  ],
  [
    '3,000 headers',
    `GET /health HTTP/1.1\r\nHost: x\r\n${'X-A: b\r\n'.repeat(3_000)}\r\n`,
    [200, 431],
  ],
  ['HTTP/2 over plain TCP', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', [400, 505]],
  ['TLS', Buffer.from('16030100fa010000f60303', 'hex'), [400]],
  [
    'an upgrade nobody offers',
    'GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
    [200, 400, 404],
  ],
]
for (const [what, text, expected] of lines) {
  void t.test(`unusual requests are answered in bounds: ${what}`, async (t) => {
    const got = statuses(await raw(text))
    t.ok(got.length <= 1)
    if (got.length === 1) t.ok(expected.includes(got[0]!) || got[0] === 400, `${got[0]}`)
    t.equal((await it.app.inject('/health')).statusCode, 200, 'and the server lives')
  })
}

const types: [string, number][] = [
  ['application/json', 400],
  ['application/json; charset=utf-8', 400],
  ['APPLICATION/JSON', 400],
  [' application/json', 400],
  ['application/json;', 400],
  ['application/json\ta', 415],
  ['application/json a', 415],
  ['application/jsonx', 415],
  ['application/json, text/plain', 415],
  ['text/plain', 415],
  ['text/json', 415],
  ['text/plain; application/json', 415],
  ['application/x-www-form-urlencoded', 415],
  ['multipart/form-data; boundary=x', 415],
  ['application/vnd.api+json', 415],
  ['application', 415],
  ['', 415],
  ['*/*', 415],
  ['application/json\0', 415],
]
for (const [type, status] of types) {
  void t.test(`no Content-Type skips the schema: ${JSON.stringify(type)}`, async (t) => {
    const answer = await it.app.inject({
      method: 'POST',
      url: login,
      headers: { 'content-type': type },
      body: '{"admin":true}',
    })
    t.ok([status, 400, 415].includes(answer.statusCode), `${answer.statusCode}`)
    if (answer.statusCode === 400) t.match(answer.json(), { code: /VALIDATION_FAILED|BAD_REQUEST/ })
  })
}

const json = (body: string) =>
  it.app.inject({
    method: 'POST',
    url: '/api/whatsapp/sessions',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
    body,
  })
const bodies: [string, string][] = [
  ['__proto__', '{"name":"a","__proto__":{"start":false}}'],
  ['escaped __proto__', '{"name":"a","__\\u0070roto__":{"x":1}}'],
  ['nested __proto__', '{"name":{"__proto__":{"x":1}}}'],
  ['constructor.prototype', '{"name":"a","constructor":{"prototype":{"x":1}}}'],
  ['prototype', '{"name":"a","prototype":{"x":1}}'],
  ['10,000 levels of lists', `{"name":${'['.repeat(10_000)}${']'.repeat(10_000)}}`],
  ['10,000 levels of objects', `${'{"a":'.repeat(10_000)}1${'}'.repeat(10_000)}`],
  ['50,000 keys', `{${Array.from({ length: 50_000 }, (_, i) => `"k${i}":0`).join()}}`],
  ['a number too large', '{"name":1e999999}'],
  ['NaN', '{"name":NaN}'],
  ['a comment', '{"name":"a"/* x */}'],
  ['a comma too many', '{"name":"a",}'],
  ['single quotes', "{'name':'a'}"],
  ['two values', '{"name":"a"}{"name":"b"}'],
  ['half a surrogate', '{"name":"\\ud800\\u0000"}'],
  ['a byte order mark and nothing', '\ufeff'],
  ['only blanks', '   '],
  ['half an object', '{"name":"a"'],
  ['a list', '[{"name":"a"}]'],
  ['a string', '"name"'],
  ['a number', '7'],
  ['true', 'true'],
  ['null', 'null'],
  ['role in the body', '{"name":"a","role":"owner"}'],
  ['workspace in the body', '{"name":"a","workspaceId":"00000000-0000-0000-0000-000000000000"}'],
  ['workspace in snake case', '{"name":"a","workspace_id":"x"}'],
  ['owner in the body', '{"name":"a","owner":"me"}'],
  ['id in the body', '{"name":"a","id":"00000000-0000-0000-0000-000000000000"}'],
  ['fence in the body', '{"name":"a","fence":9}'],
  ['status in the body', '{"name":"a","status":"WORKING"}'],
  ['start as text', '{"name":"a","start":"true"}'],
  ['NUL in the name', '{"name":"a\\u0000b"}'],
  ['a name of 65 letters', `{"name":"${'a'.repeat(65)}"}`],
]
for (const [what, body] of bodies) {
  void t.test(`a body is refused: ${what}`, async (t) => {
    const answer = await json(body)
    t.equal(answer.statusCode, 400)
    t.match(answer.json(), { code: /VALIDATION_FAILED|INVALID_JSON/ })
    t.equal(({} as { x?: unknown; start?: unknown }).x, undefined, 'nothing is polluted')
  })
}

const queries = [
  'limit=0',
  'limit=201',
  'limit=-1',
  'limit=1.5',
  'limit=x',
  'limit=1e3',
  'limit=',
  'limit=1&limit=2',
  'limit[]=1',
  'cursor=x',
  'cursor=%00',
  'cursor=' + 'A'.repeat(201),
  'unknown=1',
  '__proto__=1',
  'constructor=1',
  'limit[__proto__]=1',
  'workspaceId=1',
  'offset=1',
  'toString=1',
  'cursor=bnVsbA',
  'cursor=W10',
  'cursor=WyJ4IiwieCJd',
]
for (const query of queries) {
  void t.test(`a query is refused: ${query.slice(0, 40)}`, async (t) => {
    const answer = await it.app.inject({
      url: `/api/whatsapp/sessions?${query}`,
      headers: { authorization: `Bearer ${token}` },
    })
    t.equal(answer.statusCode, 400, answer.body)
  })
}

const paths = [
  '/api/chats/x',
  '/api/chats/%00',
  '/api/chats/..%2f..%2fetc%2fpasswd',
  '/api/chats/%2e%2e%2fx',
  '/api/chats/1%20or%201=1',
  "/api/chats/'%20or%20'1'='1",
  '/api/chats/{00000000-0000-0000-0000-000000000000}',
  '/api/chats/null',
  '/api/chats/undefined',
  '/api/chats/00000000-0000-0000-0000-00000000000',
  '/api/chats/%E0%A4%A',
  '/api/chats/*',
  '/api/chats/__proto__',
  '/api/chats/00000000-0000-0000-0000-000000000000%0a',
  '/api/%63hats/x',
  '//api/chats/x',
  '/api//chats',
  '/api/chats/',
  '/API/CHATS',
  '/api/chats;x=1',
  '/api/chats%3fx',
  '/api/chats/..;/users',
]
for (const path of paths) {
  void t.test(`a path leads nowhere: ${path}`, async (t) => {
    const answer = await it.app.inject({ url: path, headers: { authorization: `Bearer ${token}` } })
    t.ok([400, 404].includes(answer.statusCode), `${answer.statusCode}`)
    t.notMatch(answer.body, /root:|select|at Object\./)
  })
}
