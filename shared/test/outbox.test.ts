import t from 'tap'
import { recordAck } from '../acks.ts'
import { giveUp, putBack, unconfirmed } from '../claims.ts'
import type { MessageContent } from '../message-content.ts'
import { messageResource } from '../messages.ts'
import { cancel, retry } from '../waiting-messages.ts'
import { releaseScheduled } from '../outbox.ts'
import { redirectChat } from '../wa-numbers.ts'
import { untilLocked } from './locks.ts'
import { ada, atOnce, bob, lanesAreRight, rig, text } from './outbox-rig.ts'

void t.test('in a chat one after the other, across chats the longest waiting first', async (t) => {
  const { sql, queue, next, body, confirm, read } = await rig(t)
  const [first] = await queue(text(ada, 'a1'), text(ada, 'a2'), text(bob, 'b1'))

  const a1 = await next()
  t.equal(body(a1), 'a1')
  t.match(await read(first!.id), { status: 'sending', attempts: 1 })
  const b1 = await next()
  t.equal(body(b1), 'b1', 'a chat that waits for an ack is passed over')
  t.equal(await next(), undefined, 'a2 is behind a1')
  await lanesAreRight(t, sql)

  await confirm(a1!)
  t.match(await read(first!.id), { status: 'sent', attempts: 1, ack: 1 })
  const a2 = await next()
  t.equal(body(a2), 'a2')
  await confirm(b1!)
  await confirm(a2!)
  t.strictSame(await sql`select from outbox`, [])
  await lanesAreRight(t, sql)
})

void t.test('a chat that backs off holds up nobody else', async (t) => {
  const { sql, lane, queue, next, body, read } = await rig(t)
  const [first, second] = await queue(text(ada, 'a1'), text(ada, 'a2'), text(bob, 'b1'))
  await putBack(sql, lane, (await next())!, { delayMs: 60_000 })
  t.match(await read(first!.id), { status: 'queued', heldBy: 'RETRY_BACKOFF', attempts: 1 })
  t.match(await read(second!.id), { heldBy: 'RETRY_BACKOFF' })
  t.equal(body(await next()), 'b1')
  t.equal(await next(), undefined)
  await lanesAreRight(t, sql)

  await sql`update outbox_lanes set due_at = now() where due_at < 'infinity'`
  const again = await next()
  t.equal(body(again), 'a1', 'and keeps its place in its own')
  t.equal(again!.attempts, 2)
  await putBack(sql, lane, again!, { delayMs: 0, forgiven: true })
  t.match(await read(first!.id), { attempts: 1 })
})

void t.test(
  'what leaves from behind the head of a chat, or before its time, does not end the head’s backoff',
  async (t) => {
    const { sql, workspaceId, lane, queue, next, body, read } = await rig(t)
    const inAnHour = new Date(Date.now() + 3_600_000)
    const [a1, a2, a3, a4] = await queue(
      text(ada, 'a1'),
      text(ada, 'a2'),
      text(ada, 'a3', { sendAt: inAnHour }),
      text(ada, 'a4'),
    )
    await putBack(sql, lane, (await next())!, { delayMs: 60_000 })
    for (const other of [a2, a3]) {
      await cancel(sql, workspaceId, other!.id)
      t.match(await read(a1!.id), { heldBy: 'RETRY_BACKOFF' })
      t.equal(await next(), undefined)
    }
    await cancel(sql, workspaceId, a1!.id)
    t.match(await read(a4!.id), { heldBy: null })
    t.equal(body(await next()), 'a4', 'without the head, there is nothing to wait for')
    await lanesAreRight(t, sql)
  },
)

for (const overtaker of ['a message that is due', 'one that is sent once more'] as const) {
  for (const other of ['waits too', 'backs off'] as const) {
    void t.test(
      `${overtaker} overtakes what is being accepted, while the other chat ${other}`,
      async (t) => {
        const { sql, workspaceId, lane, queue, next, confirm } = await rig(t)
        const made = await queue(text(ada, 'a0'), text(bob, 'b0'))
        const [x, y] = made.sort((a, b) => (a.chatId < b.chatId ? -1 : 1))
        for (let m; (m = await next());) {
          if (overtaker === 'one that is sent once more' && m.messageId === y!.id)
            await giveUp(sql, lane, m, { status: 'unknown', code: 'X', message: 'x' })
          else await confirm(m)
        }
        if (overtaker === 'a message that is due') {
          await queue(text(y!.waChatId, 'later', { sendAt: new Date(Date.now() + 3_600_000) }))
          await sql`update outbox set send_at = now()`
        }
        let accepting: Promise<unknown> | undefined
        await sql.begin(async (tx) => {
          await tx`select from outbox_lanes where chat_id = ${x!.chatId} for no key update`
          const texts = [text(y!.waChatId, 'y1'), text(y!.waChatId, 'y2'), text(x!.waChatId, 'x1')]
          accepting = queue(...texts)
          await untilLocked(sql)
          if (overtaker === 'a message that is due') t.equal(await releaseScheduled(sql), 1)
          else await retry(sql, workspaceId, y!.id)
          t.ok(await next(), 'it is on its way, with a place behind what is accepted after that')
        })
        await accepting
        if (other === 'backs off')
          await sql`update outbox_lanes set due_at = now() + interval '1 hour' where chat_id = ${x!.chatId}`
        const second = await next()
        t.equal(second?.chatId, other === 'backs off' ? undefined : x!.chatId, 'one of a chat')
        const onTheirWay = await unconfirmed(sql, lane, 0, atOnce)
        t.equal(onTheirWay.length, other === 'backs off' ? 1 : 2)
        for (const m of onTheirWay) await confirm(m)
        await sql`update outbox_lanes set due_at = now() where due_at < 'infinity'`
        for (let m; (m = await next());) await confirm(m)
        t.strictSame(await sql`select from outbox`, [])
        await lanesAreRight(t, sql)
      },
    )
  }
}

void t.test(
  'many at once to one chat, while it is being sent, lose nothing and keep their order',
  async (t) => {
    const { sql, queue, next, body, confirm } = await rig(t)
    const ids: string[] = []
    const queueing = Promise.all(
      Array.from({ length: 40 }, async (_, i) => {
        const [message] = await queue(text(i % 2 ? ada : bob, String(i)))
        ids.push(message!.id)
      }),
    )
    const sent: string[] = []
    let open = true
    void queueing.then(() => (open = false))
    for (;;) {
      const more = open
      const claimed = await next()
      if (claimed) {
        sent.push(claimed.messageId)
        await confirm(claimed)
      } else if (!more) break
    }
    t.equal(new Set(sent).size, 40)
    t.strictSame([...sent].sort(), ids.sort())
    const order = await sql<{
      id: string
      chatId: string
    }>`select id, chat_id from messages order by seq`
    for (const chat of new Set(order.map(({ chatId }) => chatId))) {
      const accepted = order.filter(({ chatId }) => chatId === chat).map(({ id }) => id)
      t.strictSame(
        sent.filter((id) => accepted.includes(id)),
        accepted,
      )
    }
    t.equal(body(await next()), undefined)
    await lanesAreRight(t, sql)
  },
)

void t.test(
  'a message that is given up lets the next one go, and may be sent again by a person',
  async (t) => {
    const { sql, workspaceId, lane, queue, next, body, read, confirm } = await rig(t)
    const [first] = await queue(text(ada, 'a1'), text(ada, 'a2'))
    const a1 = (await next())!
    await giveUp(sql, lane, a1, { status: 'failed', code: 'SEND_FAILED', message: 'no' })
    t.match(await read(first!.id), {
      status: 'failed',
      error: { code: 'SEND_FAILED' },
      attempts: 1,
    })
    const a2 = (await next())!
    t.equal(body(a2), 'a2')
    await confirm(a2)

    t.match(messageResource((await retry(sql, workspaceId, first!.id))!), {
      status: 'queued',
      error: null,
      attempts: 0,
    })
    await t.rejects(retry(sql, workspaceId, first!.id), { code: 'NOT_RETRYABLE' })
    const again = (await next())!
    t.equal(again.keyId, a1.keyId, 'under the same id: it may have gone out after all')
    await recordAck(sql, lane, { keyId: again.keyId, ack: -1 })
    t.match(await read(first!.id), { status: 'failed', error: { code: 'REFUSED_BY_WHATSAPP' } })
    await retry(sql, workspaceId, first!.id)
    const third = (await next())!
    t.not(third.keyId, a1.keyId, 'under a new one after a refusal')
    await recordAck(sql, lane, { keyId: a1.keyId, ack: -1 })
    t.match(await read(first!.id), { status: 'sending' }, 'the old id is over')
    await confirm(third)
    t.match(await read(first!.id), { status: 'sent', error: null })
    await lanesAreRight(t, sql)
  },
)

void t.test('an ack of a message nobody believed in any more counts', async (t) => {
  const { sql, lane, queue, next, confirm, read } = await rig(t)
  const [first] = await queue(text(ada, 'a1'))
  const a1 = (await next())!
  await giveUp(sql, lane, a1, { status: 'unknown', code: 'OUTCOME_UNKNOWN', message: '?' })
  t.match(await read(first!.id), { status: 'unknown' })
  await confirm(a1, 2)
  t.match(await read(first!.id), { status: 'delivered', error: null })
  await lanesAreRight(t, sql)
})

void t.test('what is given up a moment too late leaves a retry alone', async (t) => {
  const { sql, workspaceId, lane, queue, next, confirm, read } = await rig(t)
  const [first] = await queue(text(ada, 'a1'))
  const stale = (await next())!
  await confirm(stale, -1)
  await retry(sql, workspaceId, first!.id)
  const unknown = { status: 'unknown', code: 'OUTCOME_UNKNOWN', message: '?' } as const
  await giveUp(sql, lane, stale, unknown)
  t.match(await read(first!.id), { status: 'queued', error: null })
  const again = (await next())!
  await giveUp(sql, lane, stale, unknown)
  t.match(await read(first!.id), { status: 'sending', error: null })
  await confirm(again)
  await lanesAreRight(t, sql)
})

void t.test('an answer quotes where its chat is: under the number WhatsApp has', async (t) => {
  const { sql, lane, queue, next, confirm } = await rig(t)
  const [dialled, canonical] = ['5511987654321@c.us', '551187654321@c.us']
  const [first] = await queue(text(dialled, 'a1'))
  const sent = (await next())!
  await redirectChat(sql, lane, sent.chatId, canonical)
  await confirm(sent)
  await queue(text(dialled, 'a2', { quotedMessageId: first!.id }))
  t.match(await next(), { waChatId: canonical, quoted: { chatId: canonical, id: sent.keyId } })
})

void t.test('every kind comes out of the outbox as it went in', async (t) => {
  const { queue, next, confirm, read } = await rig(t)
  const contents: MessageContent[] = [
    { type: 'text', body: 'Hello' },
    { type: 'location', latitude: 52.5, longitude: 13.4, name: 'Office' },
    { type: 'contact', name: 'Cleo', phone: '+12025550103' },
    { type: 'poll', question: 'When?', options: ['Mon', 'Tue'], multiple: false },
  ]
  const [quoted] = await queue(text(ada, 'first'))
  const first = (await next())!
  await confirm(first)
  const messages = await queue(
    ...contents.map((content) => ({
      waChatId: ada,
      content,
      mentions: [bob],
      quotedMessageId: quoted!.id,
    })),
  )
  for (const [i, content] of contents.entries()) {
    const claimed = (await next())!
    t.strictSame(claimed.content, content)
    t.strictSame(claimed.mentions, [bob])
    t.match(claimed.quoted, { fromMe: true, chatId: ada, id: first.keyId })
    await confirm(claimed)
    t.match(await read(messages[i]!.id), { type: content.type, mentions: [bob] })
  }
})

void t.test('what has lost its file is still one of its kind', async (t) => {
  const { sql, workspaceId, queue, next } = await rig(t)
  const [media] = await sql<{ id: string }>`
    insert into media (workspace_id, kind, mime_type, size, filename, status)
    values (${workspaceId}, 'image', 'image/png', 1, 'a.png', 'failed') returning id`
  const file = { mimeType: 'image/png', filename: 'a.png', caption: 'Look' }
  const content = { type: 'image', mediaId: media!.id, ...file } as const
  await queue({ waChatId: ada, content })
  await sql`delete from media`
  t.strictSame((await next())!.content, content, 'the worker finds that the file is gone')
})
