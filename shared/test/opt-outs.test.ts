import { randomUUID } from 'node:crypto'
import t from 'tap'
import { changeContact } from '../contacts.ts'
import { foresee } from '../forecast.ts'
import { storeReceived } from '../inbox.ts'
import { recordEdit } from '../message-changes.ts'
import { accept } from '../outbound.ts'
import type { Received } from '../received.ts'
import { createSession } from '../wa-sessions.ts'
import { updateWorkspace } from '../workspaces.ts'
import { testDb } from './db.ts'
import { matchWhole } from './match.ts'
import { ada, atOnce, bob, rig, text } from './outbox-rig.ts'

void t.test('a word of opting out is one however it is written, and nothing else is', async (t) => {
  const { sql } = await testDb(t)
  const [workspace] = await sql<{ id: string }>`
    insert into workspaces (name) values ('Bakery') returning id`
  const workspaceId = workspace!.id
  const session = await createSession(sql, {
    workspaceId,
    name: 'sales',
    engine: 'simulator',
    start: true,
    expiryDays: 30,
  })
  await sql`update wa_sessions set owner = 'test', fence = 1, lease_until = now() + interval '1 hour'`
  let seconds = Date.now() / 1_000 - 10_000
  const optsOut = async (body: string) => {
    await sql`update contacts set opted_out = false`
    await sql`delete from messages`
    await storeReceived(
      sql,
      { id: session.id, workspaceId, fence: 1 },
      {
        fromMe: false,
        waChatId: ada,
        keyId: randomUUID(),
        participant: '',
        waMessageId: 'x',
        type: 'text',
        body,
        timestamp: (seconds += 1),
        ack: 0,
        senderName: null,
        chatName: null,
      },
    )
    const [contact] = await sql<{ optedOut: boolean }>`select opted_out from contacts`
    return contact!.optedOut
  }
  const words = [
    'STOP',
    'ARRÊT',
    'no quiero',
    'ΤΈΛΟΣ',
    'СТОП',
    '停止',
    'إيقاف',
    'straße',
    'İPTAL',
    '🛑',
  ]
  await updateWorkspace(sql, workspaceId, { optOutWords: words })
  for (const said of [
    ...[
      'stop',
      ' Stop. ',
      'STOP!!!',
      'stop,',
      'stop?',
      '"STOP"',
      '«Stop»',
      '¡Stop!',
      '*stop*',
      '_stop_',
      'stop…',
    ],
    ...['stop 🙏', 'Stop\n', 'ｓｔｏｐ'],
    ...['arrêt', 'ARRET', 'arre\u0302t', 'Arrêt.'],
    ...['No quiero', 'no  quiero', 'NO\nQUIERO!'],
    ...['τέλος', 'τελος', 'стоп', '停止。', 'إيقاف', 'STRASSE', 'Straße', 'iptal', 'İptal', '🛑'],
  ])
    t.equal(await optsOut(said), true, JSON.stringify(said))
  for (const said of [
    ...['stop by tomorrow', 'please stop', 'nonstop', 's t o p', 'stopp', '🙏', '...', ''],
    ...['don’t stop', 'STOP it', 'no', 'quiero', '1', 'arrêter'],
  ])
    t.equal(await optsOut(said), false, JSON.stringify(said))
})

void t.test('who says STOP is sent nothing more, until START or an admin’s reason', async (t) => {
  const { workspaceId, sessionId, sql, queue, next, receive } = await rig(t)
  await receive(ada, 'Please stop by tomorrow')
  await queue(text(ada, 'gladly'))
  await receive(ada, ' stop. ')
  t.equal((await next())!.optedOut, true, 'also what was accepted before')
  const submit = (override?: string) =>
    accept(sql, {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: 'r',
      by: { type: 'anonymous', id: null, name: null, ip: null, userAgent: null, requestId: 'r' },
      messages: [text(ada, 'offer', { optOutOverride: override }), text(bob, 'offer')],
    })
  matchWhole(t, await submit(), [
    { refusal: 'RECIPIENT_OPTED_OUT' },
    { message: { status: 'queued' } },
  ])
  matchWhole(t, await foresee(sql, workspaceId, { sessionId, waChatId: ada }, atOnce), {
    blockedBy: ['RECIPIENT_OPTED_OUT'],
  })
  matchWhole(t, await submit('invoice by law'), [{ message: { status: 'queued' } }, {}])
  await receive(ada, 'START')
  matchWhole(t, await submit(), [{ message: { status: 'queued' } }, {}])
})

const now = () => Date.now() / 1_000

/** A text of Ada's. */
const said = (body: string, more: Partial<Received> = {}): Received => ({
  ...{
    fromMe: false,
    waChatId: ada,
    keyId: randomUUID(),
    participant: '',
    waMessageId: 'x',
    ack: 0,
  },
  ...{ type: 'text', body, timestamp: now(), senderName: null, chatName: null },
  ...more,
})

void t.test('a word that is read late changes nothing that was wished after it', async (t) => {
  const { sql, workspaceId, lane } = await rig(t)
  const hear = (body: string, yearsAgo: number) =>
    storeReceived(sql, lane, said(body, { timestamp: now() - yearsAgo * 31e6, source: 'history' }))
  await hear('Hello', 4)
  const contact = async () =>
    (await sql<{ id: string; optedOut: boolean }>`select id, opted_out from contacts`)[0]!
  const { id } = await contact()
  for (const optedOut of [true, false]) {
    await sql.begin((tx) => changeContact(tx, workspaceId, id, { optedOut }))
    await hear(optedOut ? 'START' : 'STOP', 2)
    t.equal((await contact()).optedOut, optedOut, 'as staff has set it')
  }
  await sql`update contacts set opted_out_at = null`
  await hear('STOP', 2)
  await hear('START', 3)
  t.equal((await contact()).optedOut, true, 'as was written later')
  await hear('START', 1)
  await hear('STOP', 1.5)
  t.equal((await contact()).optedOut, false)
})

void t.test(
  'a text that is changed to STOP is one, also when the change is told first',
  async (t) => {
    for (const first of ['the text', 'the change']) {
      const { sql, lane } = await rig(t)
      const text = said('Stpo')
      const key = { fromMe: false, chatId: ada, id: text.keyId, participant: '' }
      const tell = [
        () => storeReceived(sql, lane, text),
        () => recordEdit(sql, lane, { key, body: 'STOP', at: new Date() }),
      ]
      for (const one of first === 'the text' ? tell : tell.reverse()) await one()
      matchWhole(t, await sql`select opted_out from contacts`, [{ optedOut: true }], first)
    }
  },
)

void t.test('what a card or a poll is called is not said', async (t) => {
  const { sql, lane } = await rig(t)
  for (const type of ['contact', 'poll'] as const)
    await storeReceived(sql, lane, said('Stop', { type }))
  matchWhole(t, await sql`select opted_out from contacts`, [{ optedOut: false }])
  await storeReceived(sql, lane, said('Stop', { type: 'image' }))
  matchWhole(
    t,
    await sql`select opted_out from contacts`,
    [{ optedOut: true }],
    'but what is written below a picture is',
  )
})
