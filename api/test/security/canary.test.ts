import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { InjectOptions } from 'fastify'
import t from 'tap'
import { connect } from '../../../shared/db.ts'
import { testDb } from '../../../shared/test/db.ts'
import { appOver, jwtSecret, password, signIn, testKey } from '../app.ts'

const { sql } = await testDb(t)
const dir = t.testdir()
const { app } = await appOver(t, sql, {
  LOG_DIR: dir,
  LOG_LEVEL: 'trace',
  SMTP_URL: 'smtp://127.0.0.1:1',
})
const away = connect('postgres://user:canary-database-password@127.0.0.1:1/none', {
  applicationName: 'test',
})
t.teardown(() => away.close())
const { app: broken } = await appOver(t, away, { LOG_DIR: dir, LOG_LEVEL: 'trace' })
app.log.level = 'trace'

/** Unique values that nobody but their owner may see again. */
const canaries: string[] = ['canary-database-password', jwtSecret, testKey.split(':')[1]!]
const canary = () => {
  const value = `canary-${randomBytes(12).toString('hex')}`
  canaries.push(value)
  return value
}

let seed = 20_261_121
/** Reproducible chance (mulberry32). */
const chance = () => {
  seed = (seed + 0x6d2b79f5) | 0
  let x = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
  return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
}
const pick = <T>(list: readonly T[]): T => list[Math.floor(chance() * list.length)]!

const person = await signIn({ app, sql })
const secretFields = [
  'password',
  'newPassword',
  'currentPassword',
  'token',
  'refreshToken',
  'challengeToken',
  'code',
]

// The pages of @fastify/swagger-ui redirect to themselves with the query they were asked with. Streams of events do not end.
const ours = app.routeTable.filter(
  ({ method, url }) =>
    method !== 'HEAD' && !url.startsWith('/documentation') && url !== '/api/events',
)

function randomRequest({ method, url }: (typeof ours)[number]): InjectOptions {
  const headers: Record<string, string> = pick([
    { authorization: `Bearer ${person.token}` },
    { authorization: `Bearer ${canary()}` },
    { authorization: `Basic ${canary()}` },
    { 'x-api-key': canary() },
    { cookie: `__Host-access=${canary()}; __Host-refresh=${canary()}; csrf=${canary()}` },
    { 'x-csrf-token': canary(), cookie: `__Host-access=${person.token}` },
  ])
  const path = url
    .replaceAll(/:\w+/g, () => pick([person.profile.id, canary()]))
    .replaceAll('*', '')
  const query = pick(['', `?token=${canary()}`, `?access_token=${canary()}&cursor=${canary()}`])
  const fields = Object.fromEntries(
    secretFields.filter(() => chance() < 0.7).map((name) => [name, canary()]),
  )
  const body = pick([
    JSON.stringify({ email: `${canary()}@example.com`, fullName: 'A', ...fields }),
    JSON.stringify(fields),
    `{"password":"${canary()}`,
    JSON.stringify([canary()]),
    JSON.stringify({ nested: { password: canary() }, code: 7 }),
  ])
  const type = pick(['application/json', 'application/json', 'application/json', 'text/plain'])
  if (method === 'GET') return { method, url: path + query, headers }
  return {
    method: method,
    url: path + query,
    headers: { ...headers, 'content-type': type },
    body,
  }
}

/** What was answered and written to the logs so far. */
const answers: string[] = []
const logs = () =>
  readdirSync(dir)
    .map((file) => readFileSync(join(dir, file), 'utf8'))
    .join('\n')
const database = async () => {
  const tables = await sql<{ name: string }>`
    select quote_ident(relname) as name from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'`
  const texts: string[] = []
  for (const { name } of tables) {
    const rows = await sql<{ text: string }>([
      `select t::text as text from public.${name} t`,
    ] as unknown as TemplateStringsArray)
    texts.push(...rows.map(({ text }) => text))
  }
  return texts.join('\n')
}

void t.test('500 random requests leave no secret in answers, logs and tables', async (t) => {
  t.ok(ours.length * 3 < 500, `${ours.length} routes, each several times`)
  const seen = new Map<number, number>()
  for (let i = 0; i < 500; i++) {
    // Every route in turn, several times.
    const request = randomRequest(ours[i % ours.length]!)
    const answer = await (i % 10 === 9 ? broken : app).inject(request)
    seen.set(answer.statusCode, (seen.get(answer.statusCode) ?? 0) + 1)
    answers.push(answer.body, JSON.stringify(answer.headers))
  }
  t.comment(`statuses ${JSON.stringify(Object.fromEntries(seen))}, ${canaries.length} canaries`)
  for (const status of [200, 400, 401, 403, 503]) t.ok(seen.has(status), `${status} was among them`)

  // What works: secrets that are handed out are stored hashed, and those that come in nowhere.
  const mine: string[] = []
  const login = await app.inject({
    method: 'POST',
    url: '/api/auth/login',
    body: { email: person.profile.email, password },
  })
  const { accessToken, refreshToken } = login.json<{ accessToken: string; refreshToken: string }>()
  const key = await person.call('POST', '/api/api-keys', { name: 'k', scopes: ['read'] })
  const invitation = await person.call('POST', '/api/invitations', { email: 'i@example.com' })
  const seed = await person.call('POST', '/api/auth/2fa/enroll')
  const strong = `${canary()}-otter`.slice(0, 60)
  canaries.push(strong)
  const change = await person.call('POST', '/api/auth/password', {
    currentPassword: password,
    newPassword: strong,
  })
  t.equal(change.statusCode, 204)
  mine.push(
    password,
    accessToken,
    refreshToken,
    key.json<{ key: string }>().key,
    invitation.json<{ token: string }>().token,
    seed.json<{ secret: string }>().secret,
  )
  await app.inject({ url: '/api/auth/me', headers: { 'x-api-key': mine[3]! } })

  const [log, stored] = [logs(), await database()]
  t.ok(log.length > 10_000, 'there are logs to search')
  t.ok(stored.includes(person.profile.email), 'there are tables to search')
  const hits = (text: string, secrets: string[]) =>
    secrets.filter((secret) => text.includes(secret))
  t.strictSame(hits(answers.join('\n'), canaries), [])
  t.strictSame(hits(log, [...canaries, ...mine]), [])
  // The addresses people typed at registration are theirs to be stored.
  t.strictSame(
    hits(stored, [
      ...canaries.filter((value) => !stored.includes(`${value}@example.com`)),
      ...mine,
    ]),
    [],
  )
})
