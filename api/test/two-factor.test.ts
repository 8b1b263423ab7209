import t from 'tap'
import { KeyRing } from '../../shared/key-ring.ts'
import { resealSeeds, seedOf } from '../../shared/two-factor.ts'
import { codeAt, newSeed, stepOf } from '../totp.ts'
import { errorShape, password, signIn, testApp, testKey } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)
const keys = KeyRing.parse(testKey)

const post = (url: string, body: object, headers = {}) =>
  it.app.inject({ method: 'POST', url, body, headers })

/** A code that has not been used: each call is a step later. */
async function nextCode({ profile }: Person): Promise<string> {
  await it.sql`update two_factor set last_step = last_step - 3 where profile_id = ${profile.id}`
  return codeAt((await seedOf(it.sql, keys, profile.id))!.seed, Date.now())
}

/** A person with a second factor, and their backup codes. */
async function enrolled(workspaceId?: string) {
  const person = await signIn(it, workspaceId === undefined ? {} : { workspaceId, role: 'agent' })
  await person.call('POST', '/api/auth/2fa/enroll')
  const answer = await person.call('POST', '/api/auth/2fa/confirm', {
    code: await nextCode(person),
  })
  return { ...person, backupCodes: answer.json<{ backupCodes: string[] }>().backupCodes }
}
const challengeOf = async ({ profile }: Person, more = {}) =>
  (await post('/api/auth/login', { email: profile.email, password, ...more })).json<{
    challengeToken: string
  }>().challengeToken

void t.test('codes are those of RFC 6238', (t) => {
  const seed = Buffer.from('12345678901234567890')
  // The last six of the eight digits of appendix B.
  for (const [seconds, code] of [
    [59, '287082'],
    [1111111109, '081804'],
    [1111111111, '050471'],
    [1234567890, '005924'],
    [2000000000, '279037'],
    [20000000000, '353130'],
  ] as const) {
    t.equal(codeAt(seed, seconds * 1_000), code)
    const step = Math.floor(seconds / 30)
    for (const drift of [-30, 0, 30]) t.equal(stepOf(seed, code, (seconds + drift) * 1_000), step)
    for (const drift of [-60, 60, 90])
      t.equal(stepOf(seed, code, (seconds + drift) * 1_000), undefined)
  }
  for (const wrong of ['', '28708', '2870822', 'abcdef', '287 82']) {
    t.equal(stepOf(seed, wrong, 59_000), undefined)
  }
  t.not(newSeed().toString('hex'), newSeed().toString('hex'))
  t.equal(newSeed().length, 20)
  t.end()
})

void t.test('a second factor counts once a code was shown', async (t) => {
  const person = await signIn(it)
  const { profile } = person
  const enroll = await person.call('POST', '/api/auth/2fa/enroll')
  t.match(enroll.json(), {
    secret: /^[A-Z2-7]{32}$/,
    otpauthUrl: /^otpauth:\/\/totp\/Awfar:.*secret=[A-Z2-7]{32}/,
    qr: /^data:image\/png;base64,/,
  })
  t.equal(enroll.headers['cache-control'], 'no-store')
  const { secret } = enroll.json<{ secret: string }>()
  const [stored] = await it.sql<{
    text: string
  }>`select f::text as text from two_factor f where profile_id = ${profile.id}`
  t.notMatch(stored!.text, secret)
  t.match(
    await post('/api/auth/login', { email: profile.email, password }).then((a) => a.json<object>()),
    {
      accessToken: String,
      user: { twoFactorEnabled: false },
    },
  )

  const confirm = (code: string) => person.call('POST', '/api/auth/2fa/confirm', { code })
  t.match((await confirm('000000')).json(), errorShape(403, 'INVALID_CODE'))
  t.match((await confirm('1')).json(), errorShape(400, 'VALIDATION_FAILED'))
  const confirmed = await confirm(await nextCode(person))
  const { backupCodes } = confirmed.json<{ backupCodes: string[] }>()
  t.equal(new Set(backupCodes).size, 10)
  t.ok(backupCodes.every((code) => /^[a-z2-7]{4}(-[a-z2-7]{4}){3}$/.test(code)))
  t.match((await person.call('GET', '/api/auth/me')).json(), { user: { twoFactorEnabled: true } })
  t.match((await confirm('000000')).json(), errorShape(409, 'TWO_FACTOR_ENABLED'))
  t.match(
    (await person.call('POST', '/api/auth/2fa/enroll')).json(),
    errorShape(409, 'TWO_FACTOR_ENABLED'),
  )
})

void t.test('signing in then takes two steps', async (t) => {
  const person = await enrolled()
  const login = await post('/api/auth/login', { email: person.profile.email, password })
  t.strictSame(Object.keys(login.json()), ['twoFactorRequired', 'challengeToken'])
  const challengeToken = await challengeOf(person)
  const verify = (code: string, token = challengeToken) =>
    post('/api/auth/2fa/verify', { challengeToken: token, code })
  t.match((await verify('000000')).json(), errorShape(401, 'INVALID_CODE'))
  const code = await nextCode(person)
  const done = await verify(code)
  t.match(done.json(), {
    user: { twoFactorEnabled: true },
    accessToken: String,
    refreshToken: String,
  })
  t.match((await verify(code)).json(), errorShape(401, 'INVALID_CODE'), 'a code works once')

  t.match((await verify(code, 'x.y.z')).json(), errorShape(401, 'INVALID_CHALLENGE'))
  const { accessToken } = done.json<{ accessToken: string }>()
  t.match(
    (await verify(await nextCode(person), accessToken)).json(),
    errorShape(401, 'INVALID_CHALLENGE'),
  )
  const asAccess = await it.app.inject({
    url: '/api/auth/me',
    headers: { authorization: `Bearer ${challengeToken}` },
  })
  t.equal(asAccess.statusCode, 401, 'a challenge is no access token')
  const { profile } = person
  const old = it.app.jwt.sign({
    ...it.app.jwt.decode<{ sub: string; sid: string; typ: 'challenge'; via: 'bearer' }>(
      challengeToken,
    )!,
    iat: Math.floor(Date.now() / 1_000) - 301,
  })
  t.equal((await verify(await nextCode(person), old)).statusCode, 401, 'five minutes')
  await it.sql`update profiles set password_hash = 'changed' where id = ${profile.id}`
  t.equal((await verify(await nextCode(person))).statusCode, 401, 'the password has changed')
})

void t.test('a browser that signs in so gets cookies', async (t) => {
  const person = await enrolled()
  const challengeToken = await challengeOf(person, { transport: 'cookie' })
  const answer = await post('/api/auth/2fa/verify', {
    challengeToken,
    code: await nextCode(person),
  })
  t.match(answer.json(), { csrfToken: String })
  t.notOk(answer.json<{ accessToken?: string }>().accessToken)
  t.equal(answer.cookies.length, 3)
})

void t.test('backup codes work once each, however they are written', async (t) => {
  const person = await enrolled()
  const [first, second, third] = person.backupCodes as [string, string, string]
  const verify = async (code: string) =>
    post('/api/auth/2fa/backup/verify', { challengeToken: await challengeOf(person), code })
  t.equal((await verify(first)).statusCode, 200)
  t.match((await verify(first)).json(), errorShape(401, 'INVALID_CODE'))
  t.equal((await verify(second.toUpperCase().replaceAll('-', ' '))).statusCode, 200)
  const other = await enrolled()
  t.equal((await verify(other.backupCodes[0]!)).statusCode, 401, 'of somebody else')

  const renewed = await person.call('POST', '/api/auth/2fa/backup-codes', {
    code: await nextCode(person),
  })
  t.equal(renewed.statusCode, 200)
  t.equal((await verify(third)).statusCode, 401, 'the old ones are dead')
  t.equal((await verify(renewed.json<{ backupCodes: string[] }>().backupCodes[0]!)).statusCode, 200)
  const [stored] = await it.sql<{
    text: string
  }>`select string_agg(b::text, ' ') as text from backup_codes b`
  t.notMatch(stored!.text, third)
})

void t.test('wrong codes are limited per account, for a while', async (t) => {
  const person = await enrolled()
  const challengeToken = await challengeOf(person)
  const verify = (code: string) => post('/api/auth/2fa/verify', { challengeToken, code })
  for (let i = 0; i < 3; i++) t.equal((await verify('000000')).statusCode, 401)
  const backup = { challengeToken, code: 'aaaa-aaaa-aaaa-aaaa' }
  for (let i = 0; i < 2; i++)
    t.equal((await post('/api/auth/2fa/backup/verify', backup)).statusCode, 401)
  const code = await nextCode(person)
  const refused = await verify(code)
  t.match(refused.json(), errorShape(429, 'TOO_MANY_CODES'))
  t.ok(Number(refused.headers['retry-after']) <= 900)
  t.equal((await person.call('GET', '/api/auth/me')).statusCode, 200, 'who is in stays in')
  await it.sql`update rate_limits set resets_at = now()`
  t.equal((await verify(code)).statusCode, 200)
})

void t.test('it is switched off with password and code', async (t) => {
  const person = await enrolled()
  const off = (body: object) => person.call('POST', '/api/auth/2fa/disable', body)
  t.match(
    (await off({ password: 'wrong', code: await nextCode(person) })).json(),
    errorShape(403, 'INVALID_CREDENTIALS'),
  )
  t.match((await off({ password, code: '000000' })).json(), errorShape(403, 'INVALID_CODE'))
  t.equal((await off({ password, code: await nextCode(person) })).statusCode, 204)
  t.match((await person.call('GET', '/api/auth/me')).json(), { user: { twoFactorEnabled: false } })
  t.strictSame(await it.sql`select from backup_codes where profile_id = ${person.profile.id}`, [])
  t.match((await post('/api/auth/login', { email: person.profile.email, password })).json(), {
    accessToken: String,
  })
  const code = (await person.call('POST', '/api/auth/2fa/backup-codes', { code: '123456' }))
    .statusCode
  t.equal(code, 403)
})

void t.test(
  'an admin takes it away from who lost the phone; their sign-ins end, the log knows',
  async (t) => {
    const owner = await signIn(it)
    const agent = await enrolled(owner.workspaceId)
    const challengeToken = await challengeOf(agent)
    const body = { challengeToken, code: await nextCode(agent) }
    const { accessToken } = (await post('/api/auth/2fa/verify', body)).json<{
      accessToken: string
    }>()
    const reset = () => owner.call('POST', `/api/users/${agent.profile.id}/2fa/reset`)
    t.equal((await reset()).statusCode, 204)
    const headers = { authorization: `Bearer ${accessToken}` }
    t.equal((await it.app.inject({ url: '/api/auth/me', headers })).statusCode, 401)
    t.match((await reset()).json(), errorShape(409, 'TWO_FACTOR_DISABLED'))
    const log = await owner.call('GET', `/api/audit-log?action=two_factor.reset`)
    t.match(log.json(), {
      data: [{ actor: { id: owner.profile.id }, target: { type: 'user', id: agent.profile.id } }],
    })
  },
)

void t.test('nobody resets their own: that takes password and code', async (t) => {
  const owner = await signIn(it)
  await owner.call('POST', '/api/auth/2fa/enroll')
  await owner.call('POST', '/api/auth/2fa/confirm', { code: await nextCode(owner) })
  const answer = await owner.call('POST', `/api/users/${owner.profile.id}/2fa/reset`)
  t.match(answer.json(), errorShape(403, 'FORBIDDEN'))
  t.match((await owner.call('GET', '/api/auth/me')).json(), { user: { twoFactorEnabled: true } })
})

void t.test('seeds are sealed anew with a new key, and belong to their person', async (t) => {
  const [ada, eve] = [await enrolled(), await enrolled()]
  const before = (await seedOf(it.sql, keys, ada.profile.id))!.seed
  const ring = KeyRing.parse(`new:${Buffer.alloc(32, 9).toString('base64')},${testKey}`)
  const { resealed, failed } = await resealSeeds(it.sql, ring)
  t.ok(resealed >= 2)
  t.strictSame(failed, [])
  const newOnly = KeyRing.parse(`new:${Buffer.alloc(32, 9).toString('base64')}`)
  t.strictSame((await seedOf(it.sql, newOnly, ada.profile.id))!.seed, before)
  t.strictSame(await resealSeeds(it.sql, ring), { resealed: 0, failed: [] })
  await it.sql`
    update two_factor set box = (select box from two_factor where profile_id = ${ada.profile.id})
    where profile_id = ${eve.profile.id}`
  await t.rejects(seedOf(it.sql, newOnly, eve.profile.id), { name: 'SealBroken' })
  const stranger = KeyRing.parse(`other:${Buffer.alloc(32, 1).toString('base64')}`)
  t.ok((await resealSeeds(it.sql, stranger)).failed.length >= 2)
})
