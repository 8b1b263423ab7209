import { randomUUID } from 'node:crypto'
import t from 'tap'
import { findChat } from '../chats.ts'
import { putBack } from '../claims.ts'
import { foresee } from '../forecast.ts'
import { learnPerson, unmerge } from '../identities.ts'
import { findMessage } from '../messages.ts'
import { accept } from '../outbound.ts'
import { lockReachOut } from '../new-conversations.ts'
import { learnNumber, redirectChat } from '../wa-numbers.ts'
import { matchWhole } from './match.ts'
import { ada, atOnce, rig, text } from './outbox-rig.ts'

const lid = '9990001@lid'
const dialled = '5531987654321@c.us'
const canonical = '553187654321@c.us'

void t.test('who wrote from a lid is answered at the number in the same chat', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, next, confirm, receive } = await rig(t)
  await receive(lid, 'Hello')
  await learnPerson(sql, lane, { addresses: [ada, lid], source: 'page', at: new Date() })
  await lockReachOut(sql, lane.id, null)
  t.match(await foresee(sql, workspaceId, { sessionId, waChatId: ada }, atOnce), {
    chatId: (await sql<{ id: string }>`select id from chats`)[0]!.id,
    waChatId: ada,
    heldBy: null,
  })
  const [answer] = await queue(text(ada, 'Good morning'))
  t.match(
    answer,
    { waChatId: ada, heldBy: null },
    'told as it was dialled, and not held by the lock',
  )
  t.match(await findMessage(sql, workspaceId, answer!.id), { waChatId: ada })
  t.match(await findChat(sql, workspaceId, answer!.chatId), { waChatId: lid })
  const claimed = await next()
  t.match(claimed, { waChatId: lid, cold: false })
  await confirm(claimed!)
  matchWhole(
    t,
    await sql`select payload->>'waChatId' as at from events where type = 'message.any' order by id desc limit 1`,
    [{ at: ada }],
  )

  await receive(lid, 'No, thank you')
  const [late] = await accept(sql, {
    ...{ workspaceId, sessionId, sentBy: null, requestId: randomUUID() },
    messages: [text(ada, 'As agreed', { ifLastMessageId: answer!.id })],
  })
  t.match(late, { refusal: 'CONVERSATION_MOVED' })
  t.equal((await sql`select from chats`).length, 1)
})

void t.test('a number and the one WhatsApp has for it are one chat, in one order', async (t) => {
  const { sql, lane, queue, next, body, confirm, receive } = await rig(t)
  const [first] = await queue(text(dialled, 'Olá'))
  await redirectChat(sql, lane, first!.chatId, canonical)
  await confirm((await next())!)
  await receive(canonical, 'Oi')
  const [inbound] = await sql<{ id: string }>`select id from messages where direction = 'inbound'`
  const [one, two, three] = await queue(
    text(dialled, 'one'),
    text(canonical, 'two', { quotedMessageId: inbound!.id }),
    text(dialled, 'three'),
  )
  for (const message of [one, two, three]) t.match(message, { chatId: first!.chatId })
  t.strictSame(
    [one, two, three].map((message) => message?.waChatId),
    [dialled, canonical, dialled],
  )
  await putBack(sql, lane, (await next())!, { delayMs: 60_000 })
  t.equal(await next(), undefined, 'the second waits behind the first')
  await sql`update outbox_lanes set due_at = now()`
  for (const said of ['one', 'two', 'three']) {
    const claimed = await next()
    t.equal(body(claimed), said)
    await confirm(claimed!)
  }
})

void t.test(
  'what is written to an address is not sent before what waits in its own chat',
  async (t) => {
    const { sql, lane, queue, next, body, confirm } = await rig(t)
    const [b1] = await queue(text(canonical, 'b1'))
    await putBack(sql, lane, (await next())!, { delayMs: 60_000 })
    const [a1] = await queue(text(dialled, 'a1'))
    t.not(a1!.chatId, b1!.chatId, 'nobody knows yet')
    const claimed = (await next())!
    await learnNumber(sql, lane, dialled.split('@')[0]!, canonical)
    await redirectChat(sql, lane, claimed.chatId, canonical)
    await confirm(claimed)
    const [b2, b3] = await queue(
      text(canonical, 'b2'),
      text(dialled, 'b3', { quotedMessageId: a1!.id }),
    )
    for (const later of [b2, b3]) t.equal(later!.chatId, b1!.chatId)
    t.equal(await next(), undefined)
    await sql`update outbox_lanes set due_at = now()`
    t.equal(body(await next()), 'b1')
  },
)

void t.test('the number a check has told is written to, whatever is dialled', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, receive } = await rig(t)
  await learnNumber(sql, lane, dialled.split('@')[0]!, canonical)
  const [first] = await queue(text(dialled, 'Olá'))
  t.match(first, { waChatId: dialled })
  t.match(await findChat(sql, workspaceId, first!.chatId), { waChatId: canonical })
  t.match((await queue(text(canonical, 'Olá')))[0], { chatId: first!.chatId })
  await receive(canonical, 'Oi')
  t.equal((await sql`select from chats`).length, 1)
  matchWhole(t, await sql`select phone from contacts`, [{ phone: '+553187654321' }])

  await receive(canonical, 'STOP')
  matchWhole(t, await foresee(sql, workspaceId, { sessionId, waChatId: dialled }, atOnce), {
    chatId: first!.chatId,
    blockedBy: ['RECIPIENT_OPTED_OUT'],
  })
  await t.rejects(queue(text(dialled, 'x')), { message: 'RECIPIENT_OPTED_OUT' })
})

void t.test('who has opted out in a chat is refused at all that leads there', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue } = await rig(t)
  const [first] = await queue(text(dialled, 'Olá'))
  await redirectChat(sql, lane, first!.chatId, canonical)
  const [chat] = await sql<{ contactId: string }>`select contact_id from chats`
  await unmerge(sql, workspaceId, chat!.contactId, async () => {})
  await sql`update contacts set opted_out = true where id = (select contact_id from chats)`
  for (const waChatId of [dialled, canonical]) {
    const foreseen = await foresee(sql, workspaceId, { sessionId, waChatId }, atOnce)
    matchWhole(t, foreseen, { chatId: first!.chatId, blockedBy: ['RECIPIENT_OPTED_OUT'] })
    await t.rejects(queue(text(waChatId, 'x')), { message: 'RECIPIENT_OPTED_OUT' })
  }
})

void t.test(
  'both addresses of somebody are one chat, also when it is opened at both',
  async (t) => {
    const { sql, lane, queue, receive } = await rig(t)
    await learnPerson(sql, lane, { addresses: [ada, lid], source: 'page', at: new Date() })
    const messages = await queue(text(lid, 'one'), text(ada, 'two'), text(lid, 'three'))
    for (const message of messages) t.equal(message.waChatId, ada)

    const [bob, bobsLid] = ['12025550102@c.us', '9990002@lid']
    await learnPerson(sql, lane, { addresses: [bob, bobsLid], source: 'page', at: new Date() })
    await Promise.all([queue(text(bobsLid, 'one')), queue(text(bob, 'two'))])
    matchWhole(t, await sql`select wa_chat_id from chats order by wa_chat_id`, [
      { waChatId: ada },
      { waChatId: bob },
    ])

    // Who is dialled under a third address has two all the same.
    await redirectChat(sql, lane, (await queue(text(dialled, 'Olá')))[0]!.chatId, canonical)
    await learnPerson(sql, lane, {
      addresses: [canonical, '9990003@lid'],
      source: 'page',
      at: new Date(),
    })
    await receive('9990003@lid', 'Oi')
    t.equal((await sql`select from chats`).length, 3)
  },
)
