import t from 'tap'
import { errorShape, signIn, testApp } from './app.ts'

const it = await testApp(t)
const url = '/api/workspace'

void t.test('a workspace is read by its people, with its defaults', async (t) => {
  const { call, workspaceId } = await signIn(it, { role: 'agent' })
  const answer = await call('GET', url)
  t.equal(answer.statusCode, 200)
  t.strictSame(answer.json(), {
    id: workspaceId,
    name: 'Test',
    unknownPolicy: 'reconcile_then_resend_same_id',
    optOutWords: ['STOP', 'UNSUBSCRIBE', 'CANCEL', 'END', 'QUIT', 'STOPALL'],
    createdAt: answer.json<{ createdAt: string }>().createdAt,
  })
})

void t.test('admins and owners change its settings, and only those they name', async (t) => {
  const owner = await signIn(it)
  const { workspaceId } = owner
  const [admin, agent] = [
    await signIn(it, { role: 'admin', workspaceId }),
    await signIn(it, { role: 'agent', workspaceId }),
  ]
  const stranger = await signIn(it)
  const before = (await owner.call('GET', url)).json<object>()
  t.match((await agent.call('PATCH', url, { name: 'x' })).json(), errorShape(403, 'FORBIDDEN'))

  const policy = await admin.call('PATCH', url, { unknownPolicy: 'at_most_once' })
  t.strictSame(policy.json(), { ...before, unknownPolicy: 'at_most_once' })
  const words = await owner.call('PATCH', url, { optOutWords: ['stop', ' Abmelden '] })
  t.strictSame(words.json(), {
    ...before,
    unknownPolicy: 'at_most_once',
    optOutWords: ['STOP', 'ABMELDEN'],
  })
  const none = await owner.call('PATCH', url, { name: 'Bakery', optOutWords: [] })
  t.match(none.json(), { name: 'Bakery' })
  t.strictSame(none.json<{ optOutWords: string[] }>().optOutWords, [])
  t.strictSame((await agent.call('GET', url)).json(), none.json())
  t.match((await stranger.call('GET', url)).json(), { name: 'Test', optOutWords: { length: 6 } })
})

void t.test('settings that make no sense are refused', async (t) => {
  const { call } = await signIn(it)
  const before = (await call('GET', url)).json<object>()
  for (const [body, path] of [
    [{}, 'body'],
    [{ name: '' }, 'body.name'],
    [{ name: 'x'.repeat(121) }, 'body.name'],
    [{ unknownPolicy: 'twice' }, 'body.unknownPolicy'],
    [{ optOutWords: 'STOP' }, 'body.optOutWords'],
    [{ optOutWords: [' '] }, 'body.optOutWords.0'],
    [{ optOutWords: ['x'.repeat(41)] }, 'body.optOutWords.0'],
    [{ optOutWords: ['stop', 'end', 'STOP '] }, 'body.optOutWords.2'],
    [{ optOutWords: Array.from({ length: 51 }, (_, index) => `w${index}`) }, 'body.optOutWords'],
    [{ id: '1' }, 'body.id'],
  ] as const) {
    const answer = await call('PATCH', url, body)
    t.match(answer.json(), { ...errorShape(400, 'VALIDATION_FAILED'), details: [{ path }] }, path)
  }
  t.strictSame((await call('GET', url)).json(), before)
})
