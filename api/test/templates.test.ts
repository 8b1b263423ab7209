import { randomUUID } from 'node:crypto'
import t from 'tap'
import { existingTemplate, renderTemplate } from '../../shared/templates.ts'
import type { Template } from '../../shared/templates.ts'
import { errorShape, signIn, testApp } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)
const base = '/api/templates'
const welcome = { name: 'Welcome', body: 'Hello {{name|there}}, order {{order}} is ready.' }

const created = async ({ call }: Person, body: object = welcome) =>
  (await call('POST', base, body)).json<Template>()

void t.test('a template is created, read, changed and deleted', async (t) => {
  const { call } = await signIn(it)
  const answer = await call('POST', base, welcome)
  t.equal(answer.statusCode, 201)
  const template = answer.json<Template>()
  t.strictSame(template, {
    id: template.id,
    ...welcome,
    variables: [
      { name: 'name', fallback: 'there' },
      { name: 'order', fallback: null },
    ],
    createdAt: template.createdAt,
    updatedAt: template.createdAt,
  })
  const url = `${base}/${template.id}`
  t.strictSame((await call('GET', url)).json(), template)

  const changed = await call('PATCH', url, { body: 'Bye {{name}}' })
  t.match(changed.json(), {
    id: template.id,
    name: 'Welcome',
    body: 'Bye {{name}}',
    variables: [{ name: 'name', fallback: null }],
    createdAt: template.createdAt,
  })
  t.not(changed.json<Template>().updatedAt, template.updatedAt)
  t.match((await call('PATCH', url, { name: 'WELCOME' })).json(), { name: 'WELCOME' })

  t.equal((await call('DELETE', url)).statusCode, 204)
  for (const method of ['GET', 'DELETE'] as const) {
    t.match((await call(method, url)).json(), errorShape(404, 'NOT_FOUND'))
  }
  t.match((await call('PATCH', url, { name: 'x' })).json(), errorShape(404, 'NOT_FOUND'))
})

void t.test('a name is there once in a workspace, however it is capitalised', async (t) => {
  const [one, two] = [await signIn(it), await signIn(it)]
  await created(one)
  const taken = await one.call('POST', base, { name: 'WELCOME', body: 'x' })
  t.match(taken.json(), errorShape(409, 'NAME_TAKEN'))
  t.equal((await two.call('POST', base, welcome)).statusCode, 201)
  const other = await created(one, { name: 'Other', body: 'x' })
  const renamed = await one.call('PATCH', `${base}/${other.id}`, { name: 'welcome' })
  t.match(renamed.json(), errorShape(409, 'NAME_TAKEN'))
})

void t.test('templates are listed in pages, newest first', async (t) => {
  const person = await signIn(it)
  for (const name of ['a', 'b', 'c']) await created(person, { name, body: name })
  await created(await signIn(it))
  type List = { data: Template[]; nextCursor: string | null }
  const list = async (query: string) => (await person.call('GET', base + query)).json<List>()
  const names = ({ data }: List) => data.map(({ name }) => name).join('')
  const first = await list('?limit=2')
  t.equal(names(first), 'cb')
  const second = await list(`?limit=2&cursor=${first.nextCursor}`)
  t.equal(names(second), 'a')
  t.equal(second.nextCursor, null)
})

void t.test('what is no template is refused, with the place of the fault', async (t) => {
  const person = await signIn(it)
  const { id } = await created(person)
  const refused: [object, string, RegExp][] = [
    [{ name: 'x', body: 'Hi {{name' }, 'body.body', /"\{\{" that is never closed at character 4/],
    [{ name: 'x', body: 'Hi name}}' }, 'body.body', /"\}\}" that closes nothing at character 8/],
    [{ name: 'x', body: '{{first name}}' }, 'body.body', /name of a variable at character 1/],
    [
      { name: 'x', body: 'Hi {{name|{x}}}' },
      'body.body',
      /"\{" in the fallback of a variable at character 11/,
    ],
    [{ name: 'x', body: 'x'.repeat(4097) }, 'body.body', /4096/],
    [{ name: 'x', body: ' ' }, 'body.body', /blanks/],
    [{ name: 'x'.repeat(121), body: 'x' }, 'body.name', /120/],
    [{ name: 'x', body: 'x', id }, 'body.id', /not allowed/],
  ]
  for (const [body, path, message] of refused) {
    for (const [method, url] of [
      ['POST', base],
      ['PATCH', `${base}/${id}`],
    ] as const) {
      const answer = await person.call(method, url, body)
      t.match(answer.json(), {
        ...errorShape(400, 'VALIDATION_FAILED'),
        details: [{ path, message }],
      })
    }
  }
  const nothing = await person.call('PATCH', `${base}/${id}`, {})
  t.match(nothing.json(), errorShape(400, 'VALIDATION_FAILED'))
  t.equal((await person.call('POST', base, { name: 'x', body: 'x'.repeat(4096) })).statusCode, 201)
})

void t.test('agents read and preview; only admins and owners write', async (t) => {
  const owner = await signIn(it)
  const { workspaceId } = owner
  const { id } = await created(owner)
  const [agent, admin] = [
    await signIn(it, { role: 'agent', workspaceId }),
    await signIn(it, { role: 'admin', workspaceId }),
  ]
  const writes = [
    ['POST', base, { name: 'Another', body: 'x' }],
    ['PATCH', `${base}/${id}`, { name: 'Renamed' }],
    ['DELETE', `${base}/${id}`],
  ] as const
  for (const [method, url, body] of writes) {
    t.match((await agent.call(method, url, body)).json(), errorShape(403, 'FORBIDDEN'), method)
  }
  t.equal((await agent.call('GET', base)).statusCode, 200)
  t.equal((await agent.call('GET', `${base}/${id}`)).statusCode, 200)
  t.equal((await agent.call('POST', `${base}/${id}/preview`, {})).statusCode, 200)
  for (const [method, url, body] of writes) {
    t.ok((await admin.call(method, url, body)).statusCode < 300, method)
  }
})

void t.test('a preview says what is missing and writes nothing', async (t) => {
  const { call } = await signIn(it)
  const { id } = (await call('POST', base, welcome)).json<Template>()
  const preview = async (body: object) => call('POST', `${base}/${id}/preview`, body)
  t.strictSame((await preview({})).json(), {
    body: 'Hello there, order {{order}} is ready.',
    missing: ['order'],
  })
  const values = { name: '{{order}} $& <b>', order: '42', other: 'not used' }
  t.strictSame((await preview({ variables: values })).json(), {
    body: 'Hello {{order}} $& <b>, order 42 is ready.',
    missing: [],
  })
  const accented = { name: 'Accented', body: `{{${'prénom'.normalize('NFC')}|there}}` }
  const { id: other } = (await call('POST', base, accented)).json<Template>()
  const variables = { ['prénom'.normalize('NFD')]: 'Zoé' }
  t.match((await call('POST', `${base}/${other}/preview`, { variables })).json(), { body: 'Zoé' })
  const twice = { name: 'Twice', body: '{{a|}}'.repeat(400) }
  const { id: long } = (await call('POST', base, twice)).json<Template>()
  for (const a of ['x'.repeat(400), ' ', null]) {
    const answer = await call('POST', `${base}/${long}/preview`, { variables: { a } })
    t.match(answer.json(), errorShape(422, 'TEMPLATE_TEXT_INVALID'), 'as sending it would be')
  }
  for (const variables of [{ name: 7 }, { 'a b': 'x' }, { name: 'x\0' }, [], 'x']) {
    t.match((await preview({ variables })).json(), errorShape(400, 'VALIDATION_FAILED'))
  }
})

void t.test('what belongs to others is not found', async (t) => {
  const [mine, theirs] = [await signIn(it), await signIn(it)]
  const { id } = await created(theirs)
  for (const [method, url, body] of [
    ['GET', `${base}/${id}`],
    ['PATCH', `${base}/${id}`, { name: 'Mine' }],
    ['DELETE', `${base}/${id}`],
    ['POST', `${base}/${id}/preview`, {}],
  ] as const) {
    t.match((await mine.call(method, url, body)).json(), errorShape(404, 'NOT_FOUND'), method)
  }
  await t.rejects(existingTemplate(it.sql, mine.workspaceId, id), { code: 'NOT_FOUND' })
  t.match((await theirs.call('GET', `${base}/${id}`)).json(), { name: 'Welcome' })
})

void t.test('the text to send needs every value, and must be one that can be sent', async (t) => {
  const person = await signIn(it)
  const { workspaceId } = person
  const { id } = await created(person, { name: 'a', body: '{{greeting}} {{name|there}} {{order}}' })
  const text = async (values: Record<string, string | null>, template = id) =>
    renderTemplate(await existingTemplate(it.sql, workspaceId, template), values)
  t.equal(await text({ greeting: 'Hello', order: '42' }), 'Hello there 42')
  await t.rejects(text({ name: 'Ada', order: null }), {
    statusCode: 422,
    code: 'TEMPLATE_VARIABLE_MISSING',
    message: /needs a value for greeting, order\.$/,
    details: [
      { path: 'body.template.variables.greeting' },
      { path: 'body.template.variables.order' },
    ],
  })
  const { id: bare } = await created(person, { name: 'b', body: '{{a}}{{b}}' })
  const invalid = { statusCode: 422, code: 'TEMPLATE_TEXT_INVALID' }
  await t.rejects(text({ a: ' ', b: '' }, bare), { ...invalid, message: /is blank/ })
  const [half, more] = ['x'.repeat(32_768), 'x'.repeat(32_769)]
  await t.rejects(text({ a: half, b: more }, bare), { ...invalid, message: /longer than 65536/ })
  t.equal((await text({ a: half, b: half }, bare)).length, 65_536)
  await t.rejects(text({}, randomUUID()), { code: 'NOT_FOUND' })
})
