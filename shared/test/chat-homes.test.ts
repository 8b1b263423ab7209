import { randomUUID } from 'node:crypto'
import t from 'tap'
import { putBack } from '../claims.ts'
import { foresee } from '../forecast.ts'
import { learnPerson } from '../identities.ts'
import { accept } from '../outbound.ts'
import { lockReachOut } from '../pacing.ts'
import { redirectChat } from '../wa-numbers.ts'
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
    waChatId: lid,
    heldBy: null,
  })
  const [answer] = await queue(text(ada, 'Good morning'))
  t.match(answer, { waChatId: lid, heldBy: null }, 'an answer is not held by the lock')
  const claimed = await next()
  t.match(claimed, { waChatId: lid, cold: false })
  await confirm(claimed!)
  t.match(
    await sql`select payload->>'waChatId' as at from events where type = 'message.any' order by id desc limit 1`,
    [{ at: lid }],
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
  for (const message of [one, two, three])
    t.match(message, { chatId: first!.chatId, waChatId: dialled })
  await putBack(sql, lane, (await next())!, { delayMs: 60_000 })
  t.equal(await next(), undefined, 'the second waits behind the first')
  await sql`update outbox_lanes set due_at = now()`
  for (const said of ['one', 'two', 'three']) {
    const claimed = await next()
    t.equal(body(claimed), said)
    await confirm(claimed!)
  }
})
