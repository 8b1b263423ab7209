import { randomBytes, randomUUID } from 'node:crypto'
import t from 'tap'
import { findSignedIn } from '../../shared/profiles.ts'
import { startFamily } from '../../shared/refresh-tokens.ts'
import { createApiKey } from '../../shared/api-keys.ts'
import { until } from '../../shared/test/until.ts'
import { appOver, errorShape, password, signIn, testApp } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t, {
  SMTP_URL: 'smtp://127.0.0.1:1',
  CLIENT_ORIGIN: 'https://app.example.com',
})
const newEmail = () => `${randomBytes(6).toString('hex')}@example.com`
const strong = 'otter-pudding-violet-7'

const post = (url: string, body: object, headers = {}) =>
  it.app.inject({ method: 'POST', url, body, headers })
const me = async (person: Person) => (await person.call('GET', '/api/auth/me')).statusCode

/** A workspace with one of each role. */
async function crew() {
  const owner = await signIn(it)
  const { workspaceId } = owner
  const admin = await signIn(it, { role: 'admin', workspaceId })
  const agent = await signIn(it, { role: 'agent', workspaceId })
  return { owner, admin, agent, workspaceId }
}
/** The actions of a workspace's audit log, newest first. */
const actions = async (workspaceId: string) =>
  (
    await it.sql<{ action: string }>`
      select action from audit_log where workspace_id = ${workspaceId} order by id desc`
  ).map(({ action }) => action)

void t.test('the people of a workspace are listed page by page, and read one by one', async (t) => {
  const { owner, admin, agent } = await crew()
  const first = await owner.call('GET', '/api/users?limit=2')
  const { data, nextCursor } = first.json<{ data: { id: string }[]; nextCursor: string }>()
  const rest = await owner.call('GET', `/api/users?limit=2&cursor=${nextCursor}`)
  const ids = [...data, ...rest.json<{ data: { id: string }[] }>().data].map(({ id }) => id)
  t.strictSame(
    ids,
    [agent, admin, owner].map(({ profile }) => profile.id),
  )
  t.equal(rest.json<{ nextCursor: null }>().nextCursor, null)
  t.notMatch(first.body, /hash|\$2b/)
  const one = await admin.call('GET', `/api/users/${agent.profile.id}`)
  t.match(one.json(), { id: agent.profile.id, role: 'agent', email: agent.profile.email })
})

void t.test('a change of role holds at once, for tokens and keys already given out', async (t) => {
  const { owner, admin } = await crew()
  const { key } = await createApiKey(it.sql, admin.profile, { name: 'k', scopes: ['manage'] })
  const byKey = () => it.app.inject({ url: '/api/users', headers: { 'x-api-key': key } })
  t.equal((await byKey()).statusCode, 200)
  const url = `/api/users/${admin.profile.id}`
  t.match((await owner.call('PATCH', url, { role: 'agent', fullName: 'Eve' })).json(), {
    role: 'agent',
    fullName: 'Eve',
  })
  t.equal((await admin.call('GET', '/api/users')).statusCode, 403)
  t.equal((await byKey()).statusCode, 403)
  t.equal((await owner.call('DELETE', url)).statusCode, 204)
  t.equal(await me(admin), 401)
  t.equal((await byKey()).statusCode, 401)
  t.match(await actions(owner.workspaceId), ['user.removed', 'user.updated'])
  const [entry] = await it.sql`
    select before, after, actor_id, target_id from audit_log
    where workspace_id = ${owner.workspaceId} and action = 'user.updated'`
  t.match(entry, {
    before: { role: 'admin', fullName: 'Ada Lovelace' },
    after: { role: 'agent', fullName: 'Eve' },
    actorId: owner.profile.id,
    targetId: admin.profile.id,
  })
})

void t.test('admins neither make owners nor touch them', async (t) => {
  const { owner, admin, agent } = await crew()
  const of = ({ profile }: Person) => `/api/users/${profile.id}`
  for (const [what, answer] of [
    ['promote oneself', await admin.call('PATCH', of(admin), { role: 'owner' })],
    ['promote another', await admin.call('PATCH', of(agent), { role: 'owner' })],
    ['demote an owner', await admin.call('PATCH', of(owner), { role: 'agent' })],
    ['rename an owner', await admin.call('PATCH', of(owner), { fullName: 'X' })],
    ['remove an owner', await admin.call('DELETE', of(owner))],
    ['reset an owner’s second factor', await admin.call('POST', `${of(owner)}/2fa/reset`)],
    [
      'invite an owner',
      await admin.call('POST', '/api/invitations', { email: newEmail(), role: 'owner' }),
    ],
    ['an agent changes anything', await agent.call('PATCH', of(agent), { role: 'admin' })],
  ] as const) {
    t.match(answer.json(), errorShape(403, 'FORBIDDEN'), what)
  }
  t.equal((await admin.call('PATCH', of(agent), { role: 'admin' })).statusCode, 200)
  t.equal((await admin.call('PATCH', of(agent), { role: 'agent' })).statusCode, 200)
  t.equal((await admin.call('DELETE', of(agent))).statusCode, 204)
  for (const body of [{}, { role: 'root' }, { workspaceId: randomUUID() }, { passwordHash: 'x' }]) {
    t.match(
      (await owner.call('PATCH', of(admin), body)).json(),
      errorShape(400, 'VALIDATION_FAILED'),
    )
  }
})

void t.test('the last owner stays, also when two go at the same moment', async (t) => {
  const { owner } = await crew()
  const url = `/api/users/${owner.profile.id}`
  t.match((await owner.call('DELETE', url)).json(), errorShape(409, 'LAST_OWNER'))
  t.match((await owner.call('PATCH', url, { role: 'admin' })).json(), errorShape(409, 'LAST_OWNER'))
  for (let round = 0; round < 10; round++) {
    const { owner, workspaceId } = await crew()
    const second = await signIn(it, { workspaceId })
    const go = ({ profile }: Person) =>
      owner.call('PATCH', `/api/users/${profile.id}`, { role: 'admin' })
    await Promise.all([go(second), second.call('DELETE', `/api/users/${owner.profile.id}`)])
    const [left] = await it.sql<{ count: number }>`
      select count(*) from profiles where workspace_id = ${workspaceId} and role = 'owner'`
    t.equal(left!.count, 1)
  }
})

void t.test('everybody changes their own name, and nothing else of themselves', async (t) => {
  const { agent, workspaceId } = await crew()
  t.match((await agent.call('PATCH', '/api/auth/me', { fullName: 'Grace' })).json(), {
    user: { fullName: 'Grace', role: 'agent' },
  })
  for (const body of [
    { role: 'owner' },
    { fullName: ' ' },
    {},
    { fullName: 'A', email: newEmail() },
  ]) {
    t.equal((await agent.call('PATCH', '/api/auth/me', body)).statusCode, 400)
  }
  t.match(await actions(workspaceId), ['user.updated'])
})

void t.test('an invitation lets one person in, once', async (t) => {
  const { admin, workspaceId } = await crew()
  const email = newEmail()
  const made = await admin.call('POST', '/api/invitations', { email, role: 'admin' })
  t.equal(made.statusCode, 201)
  const { invitation, token } = made.json<{ invitation: { id: string }; token: string }>()
  t.match(invitation, { id: String, email, role: 'admin', invitedBy: admin.profile.id })
  t.match(it.mails.at(-1), { to: email, text: new RegExp(`https://app.example.com/.*${token}`) })
  const [stored] = await it.sql<{ text: string }>`
    select string_agg(i::text, ' ') as text from invitations i`
  t.notMatch(stored!.text, token)
  t.match((await admin.call('GET', '/api/invitations')).json(), { data: [{ id: invitation.id }] })

  const accept = (token: string, password = strong) =>
    post('/api/invitations/accept', { token, password, fullName: 'Joan' })
  t.match((await accept(token, 'password1')).json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'body.password' }],
  })
  const joined = await accept(token)
  t.equal(joined.statusCode, 201)
  t.match(joined.json(), { user: { email, role: 'admin', workspaceId }, accessToken: String })
  t.match((await accept(token)).json(), errorShape(400, 'INVALID_TOKEN'))
  t.strictSame((await admin.call('GET', '/api/invitations')).json<{ data: [] }>().data, [])
  t.match(
    (
      await admin.call('POST', '/api/invitations', { email: email.toUpperCase(), role: 'agent' })
    ).json(),
    errorShape(409, 'EMAIL_TAKEN'),
  )
  t.strictSame(await actions(workspaceId), ['invitation.accepted', 'invitation.created'])
})

void t.test(
  'an invitation dies when it is taken back, replaced, too old, or its inviter goes',
  async (t) => {
    const { owner, admin } = await crew()
    const email = newEmail()
    const invite = async (by = owner) =>
      (await by.call('POST', '/api/invitations', { email, role: 'agent' })).json<{
        invitation: { id: string }
        token: string
      }>()
    const accept = async (token: string) =>
      (await post('/api/invitations/accept', { token, password: strong, fullName: 'J' })).statusCode

    const replaced = await invite()
    const back = await invite()
    t.equal(await accept(replaced.token), 400, 'replaced')
    t.equal((await owner.call('DELETE', `/api/invitations/${back.invitation.id}`)).statusCode, 204)
    t.equal(await accept(back.token), 400, 'taken back')
    t.equal((await owner.call('DELETE', `/api/invitations/${back.invitation.id}`)).statusCode, 404)
    const old = await invite()
    await it.sql`update invitations set expires_at = now() where id = ${old.invitation.id}`
    t.equal(await accept(old.token), 400, 'too old')
    const demoted = await invite(admin)
    await owner.call('PATCH', `/api/users/${admin.profile.id}`, { role: 'agent' })
    t.equal(await accept(demoted.token), 400, 'its inviter was demoted')
    await owner.call('PATCH', `/api/users/${admin.profile.id}`, { role: 'admin' })
    const gone = await invite(admin)
    await owner.call('DELETE', `/api/users/${admin.profile.id}`)
    t.equal(await accept(gone.token), 400, 'its inviter is gone')
  },
)

void t.test('who has an account elsewhere cannot accept, and the invitation stays', async (t) => {
  const { owner } = await crew()
  const elsewhere = await signIn(it)
  const made = await owner.call('POST', '/api/invitations', { email: elsewhere.profile.email })
  t.equal(made.statusCode, 201, 'whether they do is not told')
  const { token } = made.json<{ token: string }>()
  const body = { token, password: strong, fullName: 'J' }
  t.match((await post('/api/invitations/accept', body)).json(), errorShape(409, 'EMAIL_TAKEN'))
  await it.sql`delete from profiles where id = ${elsewhere.profile.id}`
  t.equal((await post('/api/invitations/accept', body)).statusCode, 201)
})

void t.test('a new password ends all other sign-ins', async (t) => {
  const { owner, workspaceId } = await crew()
  const login = async (password: string) =>
    post('/api/auth/login', { email: owner.profile.email, password })
  const here = (await login(password)).json<{ accessToken: string; refreshToken: string }>()
  const there = (await login(password)).json<{ accessToken: string; refreshToken: string }>()
  const change = (body: object) =>
    post('/api/auth/password', body, { authorization: `Bearer ${here.accessToken}` })

  t.match(
    (await change({ currentPassword: 'wrong', newPassword: strong })).json(),
    errorShape(403, 'INVALID_CREDENTIALS'),
  )
  t.match((await change({ currentPassword: password, newPassword: 'qwerty123' })).json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'body.newPassword' }],
  })
  t.equal((await change({ currentPassword: password, newPassword: strong })).statusCode, 204)
  const alive = async ({ accessToken }: { accessToken: string }) =>
    (
      await it.app.inject({
        url: '/api/auth/me',
        headers: { authorization: `Bearer ${accessToken}` },
      })
    ).statusCode
  t.equal(await alive(here), 200)
  t.equal(await alive(there), 401)
  t.equal((await post('/api/auth/refresh', { refreshToken: there.refreshToken })).statusCode, 401)
  t.equal((await login(password)).statusCode, 401)
  t.equal((await login(strong)).statusCode, 200)
  t.match(await actions(workspaceId), [
    'auth.login',
    'auth.login_failed',
    'auth.password_changed',
    'auth.password_change_failed',
  ])
})

void t.test('a sign-in that is made while the password changes does not outlive it', async (t) => {
  const { profile } = await signIn(it)
  await it.sql`update profiles set password_hash = 'another' where id = ${profile.id}`
  t.equal(await startFamily(it.sql, profile), undefined)
  t.equal(await findSignedIn(it.sql, randomUUID(), randomUUID()), undefined)
})

void t.test('a forgotten password is set anew with a token from an e-mail', async (t) => {
  const { profile, workspaceId } = await signIn(it)
  const { refreshToken } = (
    await post('/api/auth/login', { email: profile.email, password })
  ).json<{ refreshToken: string }>()
  it.mails.length = 0
  const forgot = (email: string) => post('/api/auth/password/forgot', { email })
  const [known, unknown] = [await forgot(profile.email.toUpperCase()), await forgot(newEmail())]
  t.equal(known.statusCode, 204)
  t.strictSame([known.statusCode, known.body], [unknown.statusCode, unknown.body])
  await until('1 mails', () => it.mails.length === 1)
  t.match(it.mails[0], {
    to: profile.email,
    text: /https:\/\/app\.example\.com\/reset-password\?token=/,
  })
  const token = /token=([\w-]+)/.exec(it.mails[0]!.text)![1]!

  const reset = (token: string, password = strong) =>
    post('/api/auth/password/reset', { token, password })
  t.match((await reset('nonsense')).json(), errorShape(400, 'INVALID_TOKEN'))
  t.equal((await reset(token, '12345678')).statusCode, 400)
  t.equal((await reset(token)).statusCode, 204)
  t.equal((await reset(token)).statusCode, 400, 'once')
  t.equal((await post('/api/auth/refresh', { refreshToken })).statusCode, 401)
  t.equal(
    (await post('/api/auth/login', { email: profile.email, password: strong })).statusCode,
    200,
  )
  t.match(await actions(workspaceId), [
    'auth.login',
    'auth.password_reset',
    'auth.password_reset_asked',
  ])
  for (let i = 0; i < 6; i++) await forgot(profile.email)
  await until('4 mails', () => it.mails.length === 4)
  t.equal(it.mails.length, 4, 'no more than three are open at a time')
})

void t.test('without e-mail no reset is begun', async (t) => {
  const { app } = await appOver(t, it.sql)
  const { profile } = await signIn(it)
  const body = { email: profile.email }
  t.equal(
    (await app.inject({ method: 'POST', url: '/api/auth/password/forgot', body })).statusCode,
    204,
  )
  t.strictSame(await it.sql`select from password_resets where profile_id = ${profile.id}`, [])
})

void t.test('signing out everywhere ends every sign-in', async (t) => {
  const { profile, workspaceId } = await signIn(it)
  const logins = await Promise.all(
    [1, 2, 3].map(async () =>
      (await post('/api/auth/login', { email: profile.email, password })).json<{
        accessToken: string
        refreshToken: string
      }>(),
    ),
  )
  const bearer = { authorization: `Bearer ${logins[0]!.accessToken}` }
  t.equal((await post('/api/auth/logout-all', {}, bearer)).statusCode, 204)
  for (const { accessToken, refreshToken } of logins) {
    const headers = { authorization: `Bearer ${accessToken}` }
    t.equal((await it.app.inject({ url: '/api/auth/me', headers })).statusCode, 401)
    t.equal((await post('/api/auth/refresh', { refreshToken })).statusCode, 401)
  }
  t.equal((await actions(workspaceId))[0], 'auth.logout_all')
})

void t.test('guessing locks the guesser out, for a while, and nobody else', async (t) => {
  const { profile } = await signIn(it)
  const login = (remoteAddress: string, given = 'wrong', email = profile.email) =>
    it.app.inject({
      method: 'POST',
      url: '/api/auth/login',
      body: { email, password: given },
      remoteAddress,
    })
  for (const email of [profile.email, newEmail()]) {
    for (let i = 0; i < 10; i++) t.equal((await login('10.0.0.1', 'wrong', email)).statusCode, 401)
    const locked = await login('10.0.0.1', password, email)
    t.match(locked.json(), errorShape(429, 'ACCOUNT_LOCKED'), 'known or not')
    t.ok(Number(locked.headers['retry-after']) <= 900)
  }
  t.equal((await login('10.0.0.2', password)).statusCode, 200, 'the owner comes from elsewhere')

  // An attack from everywhere: strangers are stopped, addresses of the owner are not.
  await it.sql`update rate_limits set hits = 100 where key ~ '^login:[^:]+$'`
  t.equal((await login('10.0.0.3', password)).statusCode, 429)
  t.equal((await login('10.0.0.2', password)).statusCode, 200)
  await it.sql`update rate_limits set resets_at = now()`
  t.equal((await login('10.0.0.1', password)).statusCode, 200, 'a quarter of an hour later')
})

void t.test('who comes back under the same address is somebody else', async (t) => {
  const { owner } = await crew()
  await owner.call('POST', '/api/whatsapp/sessions', { name: 'Sales' })
  const email = newEmail()
  const join = async (fullName: string) => {
    const made = await owner.call('POST', '/api/invitations', { email, role: 'agent' })
    t.equal(made.statusCode, 201, made.body)
    const { token } = made.json<{ token: string }>()
    const joined = await post('/api/invitations/accept', { token, password: strong, fullName })
    t.equal(joined.statusCode, 201, joined.body)
    return joined.json<{ user: { id: string }; accessToken: string }>()
  }
  const first = await join('Joan')
  const headers = { authorization: `Bearer ${first.accessToken}` }
  const sent = await it.app.inject({
    ...{ method: 'POST', url: '/api/whatsapp/send', headers },
    payload: { to: '+1 202 555 0101', message: 'Hello' },
  })
  t.equal(sent.statusCode, 202, sent.body)
  t.equal((await owner.call('DELETE', `/api/users/${first.user.id}`)).statusCode, 204)
  t.equal((await it.app.inject({ url: '/api/auth/me', headers })).statusCode, 401)
  t.equal((await owner.call('GET', `/api/users/${first.user.id}`)).statusCode, 404)

  const second = await join('Joan Clarke')
  t.not(second.user.id, first.user.id)
  t.equal((await it.app.inject({ url: '/api/auth/me', headers })).statusCode, 401)
  const message = await owner.call('GET', `/api/messages/${sent.json<{ id: string }>().id}`)
  t.match(message.json(), { sentBy: { id: first.user.id, fullName: 'Joan' } })
  // Of the first the name is left, and what the audit log says.
  const [kept] = await it.sql<{
    text: string
  }>`select f::text as text from former_members f where id = ${first.user.id}`
  t.match(kept!.text, 'Joan')
  t.notMatch(kept!.text, email)
})
