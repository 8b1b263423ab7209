import { randomUUID } from 'node:crypto'
import type { InjectOptions } from 'fastify'
import t from 'tap'
import { createApiKey } from '../../shared/api-keys.ts'
import type { Scope } from '../../shared/api-keys.ts'
import { createWebhook } from '../../shared/webhooks.ts'
import { csrfToken } from '../plugins/cookies.ts'
import { answeredAtOnce, errorShape, jwtSecret, signIn, testApp } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)
const { app, sql } = it

/** Who calls. `strangers` are of another workspace. */
const owner = await signIn(it)
const admin = await signIn(it, { role: 'admin', workspaceId: owner.workspaceId })
const agent = await signIn(it, { role: 'agent', workspaceId: owner.workspaceId })
const stranger = await signIn(it)
const removed = await signIn(it, { workspaceId: owner.workspaceId })
await sql`delete from profiles where id = ${removed.profile.id}`

const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const keyOf = async (person: Person, scopes: Scope[], more: { expiresAt?: string } = {}) => {
  const { key } = await createApiKey(sql, person.profile, { name: 'k', scopes, ...more })
  return { 'x-api-key': key }
}
const expired = app.jwt.sign({
  sub: owner.profile.id,
  sid: randomUUID(),
  typ: 'access',
  iat: Math.floor(Date.now() / 1_000) - 3_600,
})
const family = randomUUID()
const cookie = `__Host-access=${app.signAccessToken(owner.profile.id, family)}`

type Verdict = 'in' | 401 | 403
type Access = (typeof app.routeTable)[number]['access']
const writes = (method: string) => !['GET', 'HEAD', 'OPTIONS'].includes(method)

/** Each kind of caller, and what they are told by routes of each access. */
const callers: {
  who: string
  headers: Record<string, string>
  verdict: (access: Access, method: string) => Verdict
}[] = [
  { who: 'nobody', headers: {}, verdict: () => 401 },
  { who: 'an expired token', headers: bearer(expired), verdict: () => 401 },
  { who: 'a removed person', headers: bearer(removed.token), verdict: () => 401 },
  { who: 'a key that is none', headers: { 'x-api-key': 'awf_nonsense' }, verdict: () => 401 },
  {
    who: 'an expired key',
    headers: await keyOf(owner, ['read', 'send', 'manage'], { expiresAt: '2020-01-01T00:00:00Z' }),
    verdict: () => 401,
  },
  { who: 'an owner', headers: bearer(owner.token), verdict: () => 'in' },
  { who: 'an admin', headers: bearer(admin.token), verdict: () => 'in' },
  {
    who: 'an agent',
    headers: bearer(agent.token),
    verdict: (access) => (access === 'manage' || access === 'admin' ? 403 : 'in'),
  },
  { who: 'an owner of another workspace', headers: bearer(stranger.token), verdict: () => 'in' },
  ...(await Promise.all(
    (['read', 'send', 'manage'] as const).map(async (scope) => ({
      who: `a key with the scope ${scope}`,
      headers: await keyOf(owner, [scope]),
      verdict: (access: Access): Verdict =>
        ({ read: 'read', send: 'send', operate: 'manage', manage: 'manage' })[access as string] ===
        scope
          ? 'in'
          : 403,
    })),
  )),
  {
    who: 'an agent’s key with every scope',
    headers: await keyOf(agent, ['read', 'send', 'manage']),
    verdict: (access) => (['read', 'send', 'operate'].includes(access) ? 'in' : 403),
  },
  {
    who: 'a browser without the CSRF token',
    headers: { cookie },
    verdict: (_access, method) => (writes(method) ? 403 : 'in'),
  },
  {
    who: 'a browser with the CSRF token of another sign-in',
    headers: { cookie, 'x-csrf-token': csrfToken(jwtSecret, randomUUID()) },
    verdict: (_access, method) => (writes(method) ? 403 : 'in'),
  },
  {
    who: 'a browser',
    headers: { cookie, 'x-csrf-token': csrfToken(jwtSecret, family) },
    verdict: () => 'in',
  },
]

/** Every id in a path names nothing, so that a call that is let in changes nothing. */
const nowhere = randomUUID()
const urlOf = (url: string) =>
  url.replaceAll(/:\w+/g, nowhere).replaceAll('*', 'x') +
  (url === '/api/events' ? answeredAtOnce : '')
/** Those that would change something without naming it. */
const harmless = ['/api/auth/logout-all', '/api/auth/2fa/enroll']

void t.test('every route says who may call, and is private unless it says so', async (t) => {
  const open = app.routeTable
    .filter(
      ({ access, url, method }) =>
        access === 'public' && method !== 'HEAD' && !url.startsWith('/documentation'),
    )
    .map(({ method, url }) => `${method} ${url}`)
    .sort()
  t.strictSame(open, [
    'GET /api/files/:workspaceId/:mediaId',
    'GET /api/files/:workspaceId/:mediaId/thumbnail',
    'GET /config.json',
    'GET /health',
    'GET /health/live',
    'GET /health/ready',
    'GET /metrics',
    'POST /api/auth/2fa/backup/verify',
    'POST /api/auth/2fa/verify',
    'POST /api/auth/login',
    'POST /api/auth/logout',
    'POST /api/auth/password/forgot',
    'POST /api/auth/password/reset',
    'POST /api/auth/refresh',
    'POST /api/auth/register',
    'POST /api/invitations/accept',
    'PUT /api/uploads/:workspaceId/:mediaId',
  ])
})

void t.test('a route that does not say who may call stops the start', async (t) => {
  const { default: Fastify } = await import('fastify')
  const { default: auth } = await import('../plugins/auth.ts')
  const { default: cookies } = await import('../plugins/cookies.ts')
  const { default: errors } = await import('../plugins/errors.ts')
  const { default: joi } = await import('../plugins/joi.ts')
  const bare = Fastify()
  t.teardown(() => bare.close())
  bare.decorate('config', it.config).decorate('sql', sql)
  await bare.register(joi)
  await bare.register(errors)
  await bare.register(cookies)
  await bare.register(auth)
  t.throws(
    () => bare.get('/forgotten', async () => 'open'),
    /GET \/forgotten does not say who may call/,
  )
})

void t.test('the matrix: every route, every kind of caller', async (t) => {
  const routes = app.routeTable.filter(({ access }) => access !== 'public')
  let cells = 0
  for (const { method, url, access } of routes) {
    for (const { who, headers, verdict } of callers) {
      const expected = verdict(access, method)
      if (expected === 'in' && harmless.includes(url)) continue
      const request: InjectOptions = { method: method, url: urlOf(url), headers }
      const { statusCode } = await app.inject(request)
      const told = statusCode === 401 || statusCode === 403 ? statusCode : 'in'
      cells += 1
      if (told !== expected || statusCode >= 500) {
        t.fail(`${method} ${url} (${access}) tells ${who} ${statusCode}, not ${expected}`)
      }
    }
  }
  t.ok(cells > 0)
  t.comment(
    `authorization matrix: ${routes.length} routes × ${callers.length} callers, ${cells} cells`,
  )
})

void t.test('what lies in another workspace is not found, whatever the route', async (t) => {
  const named = app.routeTable.filter(({ url, access }) => url.includes(':') && access !== 'public')
  const key = await createApiKey(sql, owner.profile, { name: 'theirs', scopes: ['read'] })
  const made = await owner.call('POST', '/api/invitations', { email: 'x@example.com' })
  const session = await owner.call('POST', '/api/whatsapp/sessions', { name: 'theirs' })
  const message = await owner.call('POST', '/api/whatsapp/send', {
    to: '12025550100',
    message: 'x',
  })
  const [contact] = await sql<{ id: string }>`
    select id from contacts where workspace_id = ${owner.workspaceId}`
  const { chatId, id: messageId } = message.json<{ chatId: string; id: string }>()
  const idOf = async (url: string, body: object) =>
    (await owner.call('POST', url, body)).json<{ id: string; batchId: string; mediaId: string }>()
  const batch = await idOf('/api/whatsapp/send/bulk', {
    messages: [{ to: '12025550100', message: 'x' }],
  })
  const template = await idOf('/api/templates', { name: 'theirs', body: 'x' })
  const label = await idOf('/api/labels', { name: 'theirs' })
  const webhook = await createWebhook(sql, app.keys, owner.workspaceId, {
    url: 'https://example.com/',
    events: ['*'],
  })
  const file = { filename: 'a.pdf', mimeType: 'application/pdf', size: 5 }
  const { mediaId } = await idOf('/api/uploads/sign', file)
  const ids: [RegExp, string][] = [
    [/^\/api\/batches\//, batch.batchId],
    [/^\/api\/templates\//, template.id],
    [/^\/api\/labels\//, label.id],
    [/^\/api\/webhooks\//, webhook.id],
    [/^\/api\/upload\//, mediaId],
    [/^\/api\/users\//, agent.profile.id],
    [/^\/api\/api-keys\//, key.id],
    [/^\/api\/invitations\//, made.json<{ invitation: { id: string } }>().invitation.id],
    [/^\/api\/whatsapp\/sessions\//, session.json<{ id: string }>().id],
    [/^\/api\/chats\//, chatId],
    [/^\/api\/contacts\//, contact!.id],
    [/^\/api\/messages\//, messageId],
  ]
  const bodies: Record<string, object> = {
    'PATCH /api/users/:id': { role: 'admin' },
    'POST /api/whatsapp/sessions/:id/pairing-code': { phone: '12025550100' },
    'PUT /api/whatsapp/sessions/:id/pacing': {},
    'PATCH /api/messages/:id': { message: 'x' },
    'PATCH /api/contacts/:id': { name: 'x' },
    'POST /api/contacts/:id/merge': { contactId: contact!.id },
    'POST /api/messages/:id/reaction': { emoji: '👍' },
    'PATCH /api/templates/:id': { name: 'mine' },
    'PATCH /api/labels/:id': { name: 'mine' },
    'PATCH /api/chats/:id': { archived: true },
    'PUT /api/chats/:id/labels': { labelIds: [] },
    'POST /api/chats/:id/notes': { body: 'x' },
    'PATCH /api/chats/:id/notes/:noteId': { body: 'x' },
    'PATCH /api/webhooks/:id': { enabled: false },
    'POST /api/templates/:id/preview': { variables: {} },
  }
  for (const { method, url } of named) {
    const id = ids.find(([path]) => path.test(url))?.[1]
    if (id === undefined) {
      t.fail(`${url}: this test has no id of another workspace for it`)
      continue
    }
    const body = bodies[`${method} ${url}`]
    const answer = await stranger.call(method, url.replaceAll(/:\w+/g, id), body)
    t.equal(answer.statusCode, 404, `${method} ${url}`)
    if (method !== 'HEAD') t.match(answer.json(), errorShape(404, 'NOT_FOUND'))
  }
  t.equal((await owner.call('GET', `/api/users/${agent.profile.id}`)).statusCode, 200)
})
