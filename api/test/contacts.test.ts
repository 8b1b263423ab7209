import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Contact } from '../../shared/contacts.ts'
import { learnPerson } from '../../shared/identities.ts'
import type { Page } from '../../shared/pagination.ts'
import { matchWhole } from '../../shared/test/match.ts'
import { errorShape, signIn, testApp } from './app.ts'

const it = await testApp(t)

/** A workspace that has written to these numbers, the last one last. */
async function withContacts(...numbers: string[]) {
  const person = await signIn(it)
  const made = await person.call('POST', '/api/whatsapp/sessions', { name: 'Sales' })
  const { id } = made.json<{ id: string }>()
  for (const to of numbers) await person.call('POST', '/api/whatsapp/send', { to, message: 'x' })
  const list = async (query = '') =>
    (await person.call('GET', `/api/contacts${query}`)).json<Page<Contact>>()
  const session = { id, workspaceId: person.workspaceId, fence: 0 }
  return { ...person, list, session }
}

const numbers = ['12025550101', '12025550102', '12025550103', '12025550104']

void t.test('contacts are listed newest first, page by page, and searched', async (t) => {
  const { call, list } = await withContacts(...numbers)
  const { data } = await list()
  t.strictSame(data[0], {
    ...{ id: data[0]!.id, name: null, pushName: null, phone: '+12025550104', lid: null },
    ...{ waId: '12025550104@c.us', isBusiness: false, optedOut: false },
    addresses: ['12025550104@c.us'],
  })
  const seen = []
  for (let cursor: string | null = ''; cursor !== null;) {
    const page: Page<Contact> = await list(`?limit=2${cursor && `&cursor=${cursor}`}`)
    seen.push(...page.data)
    cursor = page.nextCursor
  }
  t.strictSame(seen, data)
  t.strictSame((await list('?search=550102')).data, [data[2]])
  t.strictSame((await list('?search=%25')).data, [])
  t.strictSame((await list('?search=2025&limit=1')).data, [data[0]])

  const search = `?search=${'x'.repeat(201)}&limit=0`
  t.match((await call('GET', `/api/contacts${search}`)).json(), {
    ...errorShape(400, 'VALIDATION_FAILED'),
    details: [{ path: 'query.limit' }, { path: 'query.search' }],
  })
})

void t.test(
  'a contact is named, and noted as wanting no messages, with an entry in the log',
  async (t) => {
    const { call, list, workspaceId } = await withContacts(numbers[0]!)
    const { id } = (await list()).data[0]!
    const url = `/api/contacts/${id}`
    const changed = await call('PATCH', url, { name: 'Ann', optedOut: true, reason: 'by phone' })
    t.match(changed.json(), { id, name: 'Ann', optedOut: true })
    t.strictSame((await call('GET', url)).json(), changed.json())
    const refused = await call('POST', '/api/whatsapp/send', { to: numbers[0], message: 'x' })
    t.match(refused.json(), errorShape(403, 'RECIPIENT_OPTED_OUT'))
    matchWhole(t, (await call('GET', '/api/audit-log?action=contact.changed')).json(), {
      data: [
        {
          target: { type: 'contact', id },
          before: { name: null, optedOut: false },
          after: { name: 'Ann', optedOut: true, reason: 'by phone' },
        },
      ],
    })
    const agent = await signIn(it, { role: 'agent', workspaceId })
    const lifted = await agent.call('PATCH', url, { optedOut: false })
    t.match(lifted.json(), errorShape(403, 'FORBIDDEN'))
    t.match((await agent.call('PATCH', url, { optedOut: true })).json(), { optedOut: true })
    t.match((await call('PATCH', url, { optedOut: false })).json(), {
      name: 'Ann',
      optedOut: false,
    })
    t.match((await call('PATCH', url, { name: null })).json(), { name: null })
    for (const body of [{}, { reason: 'x' }, { name: ' ' }, { phone: '1' }, { optedOut: 'yes' }]) {
      t.match((await call('PATCH', url, body)).json(), errorShape(400, 'VALIDATION_FAILED'))
    }
    const nobody = `/api/contacts/${randomUUID()}`
    t.match((await call('PATCH', nobody, { name: 'x' })).json(), errorShape(404, 'NOT_FOUND'))
    t.match((await call('GET', nobody)).json(), errorShape(404, 'NOT_FOUND'))
  },
)

void t.test('who is in a group is told page by page, admins first', async (t) => {
  const { call, workspaceId, session } = await withContacts()
  const [chat] = await it.sql<{ id: string }>`
    insert into chats (workspace_id, session_id, wa_chat_id, is_group)
    values (${workspaceId}, ${session.id}, '120363041234567890@g.us', true) returning id`
  await it.sql`
    insert into chat_participants (chat_id, workspace_id, wa_id, is_admin)
    select ${chat!.id}::uuid, ${workspaceId}::uuid, (12025550100 + n)::text || '@c.us', n in (3, 7) from generate_series(0, 8) n`
  const url = `/api/chats/${chat!.id}/participants`
  const seen: string[] = []
  let query = '?limit=2'
  for (;;) {
    const answer = await call('GET', url + query)
    t.equal(answer.statusCode, 200)
    const { data, nextCursor } = answer.json<{
      data: { waId: string; isAdmin: boolean }[]
      nextCursor: string | null
    }>()
    seen.push(...data.map(({ waId }) => waId.slice(10, 11)))
    if (nextCursor === null) break
    query = `?limit=2&cursor=${nextCursor}`
  }
  t.equal(seen.join(''), '370124568')
  for (const wrong of ['limit=0', 'limit=201', 'cursor=x', 'offset=1'])
    t.match((await call('GET', `${url}?${wrong}`)).json(), errorShape(400, 'VALIDATION_FAILED'))
})

void t.test('two that were one person are taken apart and joined again', async (t) => {
  const { call, list, session } = await withContacts(numbers[0]!, numbers[1]!)
  const [second, first] = (await list()).data
  const addresses = [first!.waId, second!.waId]
  await learnPerson(it.sql, session, { addresses, source: 'number_check', at: new Date() })
  const [joined] = (await list()).data
  t.match(joined, { id: first!.id, addresses })
  t.strictSame((await call('GET', `/api/contacts/${second!.id}`)).json(), joined)

  const apart = await call('POST', `/api/contacts/${first!.id}/unmerge`)
  t.strictSame(apart.json(), { contact: first, separated: second })
  t.match(
    (await call('POST', `/api/contacts/${first!.id}/unmerge`)).json(),
    errorShape(409, 'NOT_MERGED'),
  )
  const again = await call('POST', `/api/contacts/${second!.id}/merge`, { contactId: first!.id })
  t.match(again.json(), { id: first!.id, addresses })
  matchWhole(t, (await call('GET', '/api/audit-log?targetType=contact')).json(), {
    data: [
      { action: 'contact.merged', target: { id: second!.id }, after: { contactId: first!.id } },
      { action: 'contact.unmerged', target: { id: first!.id } },
    ],
  })
  const stranger = await withContacts(numbers[2]!)
  const [theirs] = (await stranger.list()).data
  for (const [one, other] of [
    [first, theirs],
    [theirs, first],
  ]) {
    const answer = await call('POST', `/api/contacts/${one!.id}/merge`, { contactId: other!.id })
    t.match(answer.json(), errorShape(404, 'NOT_FOUND'))
  }
})
