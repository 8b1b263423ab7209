import t from 'tap'
import { expireAudit, listAudit, writeAudit } from '../../shared/audit-log.ts'
import { errorShape, signIn, testApp } from './app.ts'

const it = await testApp(t)
const nobody = {
  type: 'anonymous',
  id: null,
  name: null,
  ip: null,
  userAgent: null,
  requestId: null,
} as const

interface Entries {
  data: { id: number; action: string }[]
  nextCursor: string | null
}

void t.test('the log says who did what to what, from where, before and after', async (t) => {
  const owner = await signIn(it)
  const session = await it.app.inject({
    method: 'POST',
    url: '/api/whatsapp/sessions',
    headers: {
      authorization: `Bearer ${owner.token}`,
      'x-request-id': 'req-7',
      'user-agent': 'curl/8',
    },
    body: { name: 'Sales' },
    remoteAddress: '203.0.113.9',
  })
  const { id } = session.json<{ id: string }>()
  await owner.call('POST', `/api/whatsapp/sessions/${id}/stop`)
  await owner.call('DELETE', `/api/whatsapp/sessions/${id}`)
  await owner.call('DELETE', `/api/whatsapp/sessions/${id}`)
  const log = (await owner.call('GET', '/api/audit-log')).json<Entries>()
  t.strictSame(
    log.data.map(({ action }) => action),
    ['session.deleted', 'session.stop_asked', 'session.created'],
    'what failed is not in it',
  )
  t.match(log.data[0], { target: { type: 'session', id } })
  t.match(log.data[2], {
    at: /^\d{4}-/,
    actor: { type: 'person', id: owner.profile.id, name: 'Ada Lovelace' },
    ip: '203.0.113.9',
    userAgent: 'curl/8',
    requestId: 'req-7',
  })
})

void t.test('it is filtered and read page by page', async (t) => {
  const { workspaceId, call, profile } = await signIn(it)
  for (let i = 0; i < 5; i++) {
    const action = i % 2 ? 'user.updated' : 'user.removed'
    await writeAudit(it.sql, nobody, {
      workspaceId,
      action,
      targetType: 'user',
      targetId: String(i),
    })
  }
  const get = async (query: string) =>
    (await call('GET', `/api/audit-log?${query}`)).json<Entries>()
  const seen: string[] = []
  let cursor = ''
  for (;;) {
    const page = await get(`limit=2${cursor}`)
    seen.push(...page.data.map(({ id }) => String(id)))
    if (page.nextCursor === null) break
    cursor = `&cursor=${page.nextCursor}`
  }
  t.equal(new Set(seen).size, 5)
  t.strictSame(
    seen,
    [...seen].sort((a, b) => Number(b) - Number(a)),
  )
  t.equal((await get('action=user.updated')).data.length, 2)
  t.equal((await get('targetId=3')).data.length, 1)
  t.equal((await get('targetType=session')).data.length, 0)
  t.equal((await get(`actorId=${profile.id}`)).data.length, 0)
  t.equal((await get('from=2999-01-01')).data.length, 0)
  t.equal((await get('to=2999-01-01')).data.length, 5)
  for (const query of ['actorId=x', 'from=x', 'limit=0', 'cursor=x', 'workspaceId=1']) {
    t.match(await get(query), errorShape(400, 'VALIDATION_FAILED'), query)
  }
})

void t.test('it is append-only; only what is old is let go', async (t) => {
  const { workspaceId } = await signIn(it)
  await writeAudit(it.sql, nobody, { workspaceId, action: 'a' })
  await t.rejects(
    it.sql`update audit_log set action = 'b' where workspace_id = ${workspaceId}`,
    /append-only/,
  )
  await t.rejects(it.sql`delete from audit_log where workspace_id = ${workspaceId}`, /append-only/)
  await t.rejects(it.sql`truncate audit_log`, /append-only/)
  await t.rejects(
    it.sql.begin(async (tx) => {
      await tx`set local awfar.audit_retention = 'on'`
      await tx`delete from audit_log where workspace_id = ${workspaceId}`
    }),
    /append-only/,
    'the young stay, whatever is set',
  )
  await it.sql`
    insert into audit_log (workspace_id, actor_type, action, at)
    values (${workspaceId}, 'anonymous', 'old', now() - interval '31 days'), (${workspaceId}, 'anonymous', 'older', now() - interval '400 days')`
  t.equal(await expireAudit(it.sql, 365), 1)
  t.equal(await expireAudit(it.sql, 30), 1)
  t.equal(await expireAudit(it.sql, 1), 0, 'a week is kept in any case')
  const left = await listAudit(it.sql, workspaceId, { limit: 10 })
  t.match(
    left.data.map(({ action }) => action),
    ['a'],
  )
  await t.rejects(it.sql`delete from audit_log where workspace_id = ${workspaceId}`, /append-only/)
})
