import { createHmac, generateKeyPairSync, randomBytes, randomUUID } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { getPriority, platform } from 'node:os'
import type { LightMyRequestResponse } from 'fastify'
import t from 'tap'
import { removeExpired } from '../../shared/jobs.ts'
import { until } from '../../shared/test/until.ts'
import { hashToken } from '../../shared/tokens.ts'
import { hashPassword, threads, verifyPassword } from '../passwords.ts'
import { appOver, errorShape, jwtSecret, password, signIn, testApp } from './app.ts'

const it = await testApp(t)

interface Tokens {
  user: { id: string; email: string; role: string; workspaceId: string }
  accessToken: string
  refreshToken: string
  expiresIn: number
}

const post = (action: string, body: object, headers = {}) =>
  it.app.inject({ method: 'POST', url: `/api/auth/${action}`, body, headers })
const tokensOf = (answer: LightMyRequestResponse) => answer.json<Tokens>()
const me = async (token: string) =>
  (await it.app.inject({ url: '/api/auth/me', headers: { authorization: `Bearer ${token}` } }))
    .statusCode
const newEmail = () => `${randomBytes(6).toString('hex')}@example.com`
const count = async () => {
  const [row] = await it.sql<Record<string, number>>`
    select (select count(*) from workspaces) as workspaces, (select count(*) from profiles) as profiles,
      (select count(*) from refresh_tokens) as tokens`
  return row
}

/** A fresh sign-in through the front door. */
async function login(): Promise<Tokens> {
  const { profile } = await signIn(it)
  return tokensOf(await post('login', { email: profile.email, password }))
}

void t.test('registering founds a workspace and signs its owner in', async (t) => {
  const email = newEmail()
  const answer = await post('register', {
    email,
    password: 'a long passphrase',
    fullName: 'Ada Lovelace',
    workspaceName: 'Analytical Engines',
  })
  t.equal(answer.statusCode, 201)
  const { user, accessToken, refreshToken, expiresIn } = tokensOf(answer)
  t.match(user, {
    id: String,
    email,
    fullName: 'Ada Lovelace',
    role: 'owner',
    workspaceId: String,
    twoFactorEnabled: false,
    createdAt: /^\d{4}-.*Z$/,
  })
  t.strictSame(Object.keys(answer.json()), ['user', 'accessToken', 'refreshToken', 'expiresIn'])
  t.equal(expiresIn, 900)
  t.notMatch(answer.body, /hash|\$2b\$/)
  const claims = JSON.parse(Buffer.from(accessToken.split('.')[1]!, 'base64url').toString()) as {
    iat: number
    exp: number
  }
  t.equal(claims.exp - claims.iat, 900)

  const mine = await it.app.inject({
    url: '/api/auth/me',
    headers: { authorization: `bearer ${accessToken}` },
  })
  t.strictSame(mine.json(), { user })
  t.match(await it.sql`select name from workspaces where id = ${user.workspaceId}`, [
    { name: 'Analytical Engines' },
  ])
  const [row] = await it.sql<{ passwordHash: string }>`
    select password_hash from profiles where id = ${user.id}`
  t.match(row!.passwordHash, /^\$2b\$12\$/)
  t.equal((await post('login', { email, password: 'a long passphrase' })).statusCode, 200)
  t.equal((await post('refresh', { refreshToken })).statusCode, 200)

  await t.test('every registration founds another', async (t) => {
    const other = await post('register', {
      email: newEmail(),
      password: ('otter pudding ' + 'x'.repeat(72)).slice(0, 72),
      fullName: 'B',
    })
    t.not(tokensOf(other).user.workspaceId, user.workspaceId)
  })

  await t.test(
    'an e-mail is taken however it is capitalised, and nothing is left behind',
    async (t) => {
      const before = await count()
      const again = await post('register', {
        email: email.toUpperCase(),
        password: 'a long passphrase',
        fullName: 'Ada',
      })
      t.match(again.json(), errorShape(409, 'EMAIL_TAKEN'))
      t.strictSame(await count(), before)
    },
  )
})

void t.test('of parallel registrations of one address exactly one succeeds', async (t) => {
  const email = newEmail()
  const before = await count()
  const answers = await Promise.all(
    [0, 1, 2, 3].map(() =>
      post('register', { email, password: 'a long passphrase', fullName: 'Ada' }),
    ),
  )
  t.strictSame(answers.map(({ statusCode }) => statusCode).sort(), [201, 409, 409, 409])
  t.equal((await count())!.workspaces, before!.workspaces! + 1)
})

void t.test('a wrong registration is refused with every fault named', async (t) => {
  const good = { email: newEmail(), password: 'a long passphrase', fullName: 'Ada' }
  const before = await count()
  for (const [what, body, paths] of [
    ['nothing', {}, ['body.email', 'body.password', 'body.fullName']],
    ['no e-mail address', { ...good, email: 'ada' }, ['body.email']],
    ['too long an address', { ...good, email: `${'a'.repeat(250)}@b.co` }, ['body.email']],
    ['a short password', { ...good, password: '1234567' }, ['body.password']],
    ['73 bytes', { ...good, password: 'x'.repeat(73) }, ['body.password']],
    ['19 emoji: 76 bytes', { ...good, password: '😀'.repeat(19) }, ['body.password']],
    ['NUL in the password', { ...good, password: 'long\0enough' }, ['body.password']],
    ['NUL in the name', { ...good, fullName: 'A\0' }, ['body.fullName']],
    ['a blank name', { ...good, fullName: '  ' }, ['body.fullName']],
    ['a role', { ...good, role: 'owner' }, ['body.role']],
    ['a workspace', { ...good, workspaceId: randomUUID() }, ['body.workspaceId']],
    ['a number', { ...good, password: 1234567890 }, ['body.password']],
    ['a list', [good], ['body']],
  ] as const) {
    const answer = await post('register', body)
    t.match(answer.json(), errorShape(400, 'VALIDATION_FAILED'), what)
    const { details } = answer.json<{ details: { path: string }[] }>()
    t.strictSame([...new Set(details.map((fault) => fault.path))], paths, what)
    t.notMatch(answer.body, 'a long passphrase', 'values are not quoted')
  }
  t.strictSame(await count(), before)
})

void t.test('a megabyte as password is refused at once', async (t) => {
  const started = performance.now()
  const body = { email: newEmail(), password: 'x'.repeat(1_000_000), fullName: 'Ada' }
  t.equal((await post('register', body)).statusCode, 400)
  t.equal((await post('login', body)).statusCode, 400)
  t.ok(performance.now() - started < 1_000)
})

void t.test('72 bytes are all read: the 72nd tells passwords apart', async (t) => {
  const email = newEmail()
  const start = '😀'.repeat(13) + 'otter pudding 12345'.slice(0, 19)
  t.equal(
    (await post('register', { email, password: start + 'd', fullName: 'Ada' })).statusCode,
    201,
  )
  t.equal((await post('login', { email, password: start + 'e' })).statusCode, 401)
  t.equal((await post('login', { email, password: start + 'd' })).statusCode, 200)
  t.equal((await post('login', { email, password: start + 'dX' })).statusCode, 400, '73 bytes')
})

void t.test('closed registration answers 403', async (t) => {
  const { app } = await appOver(t, it.sql, { ALLOW_REGISTRATION: 'false' })
  const body = { email: newEmail(), password: 'a long passphrase', fullName: 'Ada' }
  const answer = await app.inject({ method: 'POST', url: '/api/auth/register', body })
  t.match(answer.json(), errorShape(403, 'REGISTRATION_CLOSED'))
})

void t.test(
  'signing in tells an unknown address from a wrong password neither in words nor in time',
  async (t) => {
    const { profile } = await signIn(it)
    await it.sql`update profiles set password_hash = ${await hashPassword('the real one')} where id = ${profile.id}`
    const attempt = async (email: string) => {
      const started = performance.now()
      const answer = await post('login', { email, password: 'a wrong one' })
      const body = answer.json<Record<string, unknown>>()
      delete body.requestId
      return { body, ms: performance.now() - started }
    }
    const times = { known: [] as number[], unknown: [] as number[] }
    for (let round = 0; round < 5; round++) {
      const known = await attempt(profile.email)
      const unknown = await attempt(newEmail())
      t.strictSame(known.body, unknown.body)
      times.known.push(known.ms)
      times.unknown.push(unknown.ms)
    }
    t.match((await attempt(newEmail())).body, { statusCode: 401, code: 'INVALID_CREDENTIALS' })
    const median = (list: number[]) => list.sort((a, b) => a - b)[2]!
    const ratio = median(times.known) / median(times.unknown)
    t.ok(ratio > 0.4 && ratio < 2.5, `ratio of the times ${ratio}`)
    t.equal(
      (await post('login', { email: profile.email.toUpperCase(), password: 'the real one' }))
        .statusCode,
      200,
    )
  },
)

void t.test(
  'more sign-ins at once than can be served are turned away, and the rest succeed',
  async (t) => {
    const people = await Promise.all(Array.from({ length: 30 }, () => signIn(it)))
    const hash = await hashPassword(password)
    const ids = people.map(({ profile }) => profile.id)
    await it.sql`update profiles set password_hash = ${hash} where id = any(${ids}::uuid[])`
    const answers = await Promise.all(
      people.map(({ profile }) => post('login', { email: profile.email, password })),
    )
    const busy = answers.filter(({ statusCode }) => statusCode === 503)
    t.ok(busy.length >= 5 && busy.length < 30, `${busy.length} turned away`)
    t.match(busy[0]!.json(), errorShape(503, 'BUSY'))
    t.ok(busy[0]!.headers['retry-after'])
    t.equal(answers.filter(({ statusCode }) => statusCode === 200).length, 30 - busy.length)
    t.equal(
      (await post('login', { email: people[0]!.profile.email, password })).statusCode,
      200,
      'and on it goes',
    )
  },
)

void t.test('passwords are hashed by threads that give way to all others', async (t) => {
  const hashing = hashPassword(password)
  const priorities = async () => {
    const tasks = await readdir('/proc/self/task')
    const lines = await Promise.all(
      tasks.map((task) => readFile(`/proc/self/task/${task}/stat`, 'utf8').catch(() => '')), // ended meanwhile
    )
    return lines.map((line) => line.slice(line.lastIndexOf(')') + 2).split(' ')[16])
  }
  if (platform() === 'linux') {
    await until('one of a low priority', async () => (await priorities()).includes('19'))
  }
  t.equal(getPriority(), 0, 'ours is what it was')
  t.equal(await verifyPassword(password, await hashing), true)
})

void t.test('a hashing thread that dies fails its password, and the next one works', async (t) => {
  const dying = hashPassword(password)
  await until('it is at work', () => threads.queueSize === 0)
  const failed = t.rejects(dying)
  await Promise.all(threads.threads.map((thread) => thread.terminate()))
  await failed
  t.equal(await verifyPassword(password, await hashPassword(password)), true)
})

void t.test('a refresh token works once', async (t) => {
  const first = await login()
  const answer = await post('refresh', { refreshToken: first.refreshToken })
  t.equal(answer.statusCode, 200)
  const second = tokensOf(answer)
  t.match(second, { user: { id: first.user.id }, expiresIn: 900 })
  t.not(second.refreshToken, first.refreshToken)
  t.equal(await me(second.accessToken), 200)

  const replay = await post('refresh', { refreshToken: first.refreshToken })
  t.match(replay.json(), errorShape(401, 'INVALID_REFRESH_TOKEN'))
  const child = await post('refresh', { refreshToken: second.refreshToken })
  t.equal(child.statusCode, 401, 'its replay ended the family')
  t.equal(await me(second.accessToken), 401, 'and the access tokens given out with it')
  t.equal(await me(first.accessToken), 401)
})

void t.test('the replay of a grandparent ends the family, also a moment later', async (t) => {
  const first = await login()
  const second = tokensOf(await post('refresh', { refreshToken: first.refreshToken }))
  const third = tokensOf(await post('refresh', { refreshToken: second.refreshToken }))
  const elsewhere = tokensOf(await post('login', { email: first.user.email, password }))

  t.equal((await post('refresh', { refreshToken: first.refreshToken })).statusCode, 401)
  t.equal((await post('refresh', { refreshToken: third.refreshToken })).statusCode, 401)
  t.equal(
    (await post('refresh', { refreshToken: elsewhere.refreshToken })).statusCode,
    200,
    'another sign-in stays',
  )
})

void t.test(
  'an ended family stays ended when the token that tells of it has expired',
  async (t) => {
    const replayed = await login()
    const second = tokensOf(await post('refresh', { refreshToken: replayed.refreshToken }))
    t.equal((await post('refresh', { refreshToken: replayed.refreshToken })).statusCode, 401)
    // Days later: the replayed token is past its time, the one it was traded for is not.
    await it.sql`
    update refresh_tokens set expires_at = now() - interval '1 second'
    where token_hash = ${hashToken(replayed.refreshToken)}`
    await removeExpired(it.sql)
    t.equal((await post('refresh', { refreshToken: second.refreshToken })).statusCode, 401)
    t.equal(await me(second.accessToken), 401)

    await it.sql`
    update refresh_tokens set expires_at = now() - interval '1 second'
    where token_hash = ${hashToken(second.refreshToken)}`
    await removeExpired(it.sql)
    const left = await it.sql`
    select from refresh_tokens where profile_id = ${replayed.user.id}`
    t.strictSame(left, [], 'and is forgotten with the last of its tokens')
  },
)

void t.test('of fifty parallel refreshes exactly one wins, and the family ends', async (t) => {
  for (let round = 0; round < 5; round++) {
    const { refreshToken } = await login()
    const answers = await Promise.all(
      Array.from({ length: 50 }, () => post('refresh', { refreshToken })),
    )
    const won = answers.filter(({ statusCode }) => statusCode === 200)
    t.equal(won.length, 1)
    t.ok(answers.every(({ statusCode }) => statusCode === 200 || statusCode === 401))
    const child = tokensOf(won[0]!)
    t.equal((await post('refresh', { refreshToken: child.refreshToken })).statusCode, 401)
    t.equal(await me(child.accessToken), 401)
  }
})

void t.test('a family that is ended while it is refreshed stays ended', async (t) => {
  for (let round = 0; round < 20; round++) {
    const first = await login()
    const second = tokensOf(await post('refresh', { refreshToken: first.refreshToken }))
    const [answer] = await Promise.all([
      post('refresh', { refreshToken: second.refreshToken }),
      post('refresh', { refreshToken: first.refreshToken }),
    ])
    if (answer.statusCode !== 200) continue
    const third = tokensOf(answer)
    t.equal((await post('refresh', { refreshToken: third.refreshToken })).statusCode, 401)
    t.equal(await me(third.accessToken), 401)
  }
})

void t.test('refresh tokens expire, are stored hashed, and nonsense is none', async (t) => {
  const { refreshToken } = await login()
  const [stored] = await it.sql<{ text: string }>`
    select string_agg(refresh_tokens::text, ' ') as text from refresh_tokens`
  t.notMatch(stored!.text, refreshToken)
  t.notMatch(stored!.text, Buffer.from(refreshToken).toString('hex'))
  await it.sql`update refresh_tokens set expires_at = now()`
  for (const token of [refreshToken, 'nonsense', randomBytes(32).toString('base64url')]) {
    const answer = await post('refresh', { refreshToken: token })
    t.match(answer.json(), errorShape(401, 'INVALID_REFRESH_TOKEN'))
  }
  t.match((await post('refresh', {})).json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'body.refreshToken' }],
  })
})

void t.test('signing out ends the sign-in, by either token', async (t) => {
  const byRefresh = await login()
  const bye = await post('logout', { refreshToken: byRefresh.refreshToken })
  t.equal(bye.statusCode, 204)
  t.equal(bye.body, '')
  t.equal((await post('refresh', { refreshToken: byRefresh.refreshToken })).statusCode, 401)
  t.equal(await me(byRefresh.accessToken), 401)
  t.equal(
    (await post('logout', { refreshToken: byRefresh.refreshToken })).statusCode,
    204,
    'twice is once',
  )

  const byAccess = await login()
  const headers = {
    authorization: `Bearer ${byAccess.accessToken}`,
    'content-type': 'application/json',
  }
  const url = '/api/auth/logout'
  t.equal(
    (await it.app.inject({ method: 'POST', url, headers })).statusCode,
    204,
    'an empty body is none',
  )
  t.equal(await me(byAccess.accessToken), 401)
  t.equal((await post('refresh', { refreshToken: byAccess.refreshToken })).statusCode, 401)

  const neither = await it.app.inject({ method: 'POST', url })
  t.match(neither.json(), errorShape(401, 'UNAUTHORIZED'))
  t.equal((await post('logout', { refreshToken: 'nonsense' })).statusCode, 204)
})

void t.test('changes and removals hold at once', async (t) => {
  const { call, profile } = await signIn(it)
  await it.sql`update profiles set role = 'agent', full_name = 'Eve' where id = ${profile.id}`
  t.match((await call('GET', '/api/auth/me')).json(), { user: { role: 'agent', fullName: 'Eve' } })
  await it.sql`delete from profiles where id = ${profile.id}`
  t.match((await call('GET', '/api/auth/me')).json(), errorShape(401, 'UNAUTHORIZED'))
})

void t.test('forged and misused tokens are refused', async (t) => {
  const { profile, token } = await signIn(it)
  const [head, body, signature] = token.split('.') as [string, string, string]
  const claims = JSON.parse(Buffer.from(body, 'base64url').toString()) as Record<string, unknown>
  const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const sign = (header: object, payload: object, secret = jwtSecret, hash = 'sha256') => {
    const text = `${encode(header)}.${encode(payload)}`
    return `${text}.${createHmac(hash, secret).update(text).digest('base64url')}`
  }
  const hs256 = { alg: 'HS256', typ: 'JWT' }
  const without = (name: string) => ({ ...claims, [name]: undefined })
  const now = Math.floor(Date.now() / 1_000)
  const pem = generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey.export({
    type: 'spki',
    format: 'pem',
  })
  const flip = (part: string) => (part.startsWith('e') ? 'f' : 'e') + part.slice(1)

  const bad: Record<string, string> = {
    'alg none': `${encode({ alg: 'none', typ: 'JWT' })}.${body}.`,
    'alg none with a signature': `${encode({ alg: 'none' })}.${body}.${signature}`,
    'alg nOnE': `${encode({ alg: 'nOnE' })}.${body}.${signature}`,
    'another secret': sign(hs256, claims, 'x'.repeat(40)),
    'an empty secret': sign(hs256, claims, ''),
    'a public key as secret': sign(hs256, claims, pem.toString()),
    'HS512 with our secret': sign({ alg: 'HS512', typ: 'JWT' }, claims, jwtSecret, 'sha512'),
    'RS256 with our secret': sign({ alg: 'RS256', typ: 'JWT' }, claims),
    'a key in the header': sign({ ...hs256, jwk: { kty: 'oct', k: 'eA' } }, claims, 'x'),
    expired: sign(hs256, { ...claims, iat: now - 1_000, exp: now - 1 }),
    'not yet valid': sign(hs256, { ...claims, nbf: now + 600 }),
    'no expiry': sign(hs256, without('exp')),
    'another type': sign(hs256, { ...claims, typ: 'refresh' }),
    'no type': sign(hs256, without('typ')),
    'another audience': sign(hs256, { ...claims, aud: 'elsewhere' }),
    'no audience': sign(hs256, without('aud')),
    'another issuer': sign(hs256, { ...claims, iss: 'elsewhere' }),
    'no issuer': sign(hs256, without('iss')),
    'no family': sign(hs256, without('sid')),
    'no subject': sign(hs256, without('sub')),
    'a stranger': sign(hs256, { ...claims, sub: randomUUID() }),
    'changed header': [flip(head), body, signature].join('.'),
    'changed body': [head, flip(body), signature].join('.'),
    'changed signature': [head, body, flip(signature)].join('.'),
    'no signature': `${head}.${body}.`,
    'two parts': `${head}.${body}`,
    nothing: '',
  }
  t.equal(await me(sign(hs256, claims)), 200, 'the forger of this test knows how')
  for (const [what, forged] of Object.entries(bad)) {
    const headers = { authorization: `Bearer ${forged}` }
    const answer = await it.app.inject({ url: '/api/auth/me', headers })
    t.match(answer.json(), errorShape(401, 'UNAUTHORIZED'), what)
  }
  for (const authorization of [
    token,
    `Basic ${token}`,
    `Bearer  ${token}`,
    `Bearer ${token} x`,
    'Bearer',
  ]) {
    const answer = await it.app.inject({ url: '/api/auth/me', headers: { authorization } })
    t.equal(answer.statusCode, 401, authorization.slice(0, 12))
    t.equal(answer.headers['www-authenticate'], 'Bearer')
  }
  const { refreshToken } = tokensOf(await post('login', { email: profile.email, password }))
  t.equal(await me(refreshToken), 401, 'a refresh token is no access token')
  t.equal(
    (await post('refresh', { refreshToken: token })).statusCode,
    400,
    'nor the other way round',
  )
})

void t.test('who is not signed in is told so before the body is read', async (t) => {
  for (const body of ['{"broken', '[]', '{}']) {
    const answer = await it.app.inject({
      method: 'POST',
      url: '/api/whatsapp/send',
      headers: { 'content-type': 'application/json' },
      body,
    })
    t.match(answer.json(), errorShape(401, 'UNAUTHORIZED'))
  }
})
