import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Test } from 'tap'
import { recordAck } from '../acks.ts'
import { acceptBatch, cancelBatch, findBatch } from '../batches.ts'
import { connect } from '../db.ts'
import type { Sql } from '../db.ts'
import { foresee } from '../forecast.ts'
import type { MessageContent } from '../message-content.ts'
import { messageResource } from '../messages.ts'
import type { Message } from '../messages.ts'
import { accept, cancel, editQueued, retry } from '../outbound.ts'
import { claim, giveUp, putBack, unconfirmed } from '../claims.ts'
import { cancelQueued, endOutbox, releaseScheduled } from '../outbox.ts'
import { findPacing } from '../pacing.ts'
import type { PacingConfig } from '../pacing.ts'
import { ada, atOnce, bob, cleo, rig, text, worker } from './outbox-rig.ts'

/** Each lane counts what is there, and while one of its messages is on its way, and only then, it is in its session's hand or put aside. */
async function lanesAreRight(t: Test, sql: Sql): Promise<void> {
  const wrong = await sql`
    select l.chat_id, l.waiting, l.due_at, count(o.id) filter (where o.state <> 'z') as n, bool_or(o.state = 's') as busy
    from outbox_lanes l left join outbox o on o.chat_id = l.chat_id left join wa_session_pacing p on p.session_id = l.session_id
    group by l.chat_id
    having l.waiting <> count(o.id) filter (where o.state <> 'z')
      or (l.due_at = 'infinity' or coalesce(bool_or(o.state = 's' and o.id = p.in_flight), false)) <> coalesce(bool_or(o.state = 's'), false)`
  t.strictSame(wrong, [])
  const without = await sql`
    select from outbox o where not exists (select from outbox_lanes l where l.chat_id = o.chat_id)`
  t.strictSame(without, [])
}

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

void t.test(
  'a forecast knows that chats take turns, what is held, and what is quiet by then',
  async (t) => {
    const { sql, workspaceId, sessionId, queue, next, confirm, receive, pace } = await rig(t)
    const forecast = (waChatId: string, more: { sendAt?: Date } = {}) =>
      foresee(sql, workspaceId, { sessionId, waChatId, ...more }, atOnce)
    for (const one of [ada, bob]) await receive(one, 'hello')
    const [first] = await queue(...Array.from({ length: 50 }, (_, i) => text(ada, `a${i}`)))
    t.match(await forecast(bob), { ahead: 1 }, 'one turn of the other')
    t.match(await forecast(ada), { ahead: 50 })
    const a0 = (await next())!
    t.equal(a0.messageId, first!.id)
    t.match(await forecast(ada), { ahead: 49 }, 'what is on its way is not in front')
    await confirm(a0)

    await pace({ newContactsPerDay: 20 })
    const strangers = Array.from({ length: 45 }, (_, i) => `1202555${String(5_000 + i)}@c.us`)
    await queue(...strangers.map((waChatId) => text(waChatId, 'hi')))
    const inDays = (days: number) =>
      new Date(new Date().setUTCHours(0, 0, 0, 0) + days * 86_400_000)
    t.match(await forecast('12025559999@c.us'), {
      heldBy: 'NEW_CONTACTS_PER_DAY',
      notBefore: inDays(2),
    })
    t.match(await forecast(bob), { ahead: 21, heldBy: null }, 'today’s still go first')
    await sql`update wa_session_pacing set cold_at = now() + interval '1 hour', cold_held_by = 'REACHOUT_LOCKED'`
    t.match(
      await forecast(bob),
      { ahead: 1, heldBy: null },
      'who may not be opened goes not before',
    )

    await pace({ quietHours: { from: '22:00', to: '08:00' } })
    const tomorrow = inDays(1)
    const atEleven = new Date(new Date(tomorrow).setUTCHours(23))
    const atEight = new Date(inDays(2).setUTCHours(8))
    t.match(await forecast(cleo, { sendAt: atEleven }), { estimatedSendAt: atEight })
  },
)

void t.test('what waits in one chat is not read to find the first of another', async (t) => {
  const { url, sql, lane, queue, next, body } = await rig(t)
  for (let n = 0; n < 3; n++)
    await queue(...Array.from({ length: 1_000 }, (_, i) => text(ada, `a${n * 1_000 + i}`)))
  await queue(text(bob, 'b0'))
  await sql`vacuum analyze outbox, outbox_lanes`
  await putBack(sql, lane, (await next())!, { delayMs: 60_000 })
  // A connection tells of what it has read when it is idle, or asked to.
  const one = connect(url, { applicationName: 'test', max: 1 })
  t.teardown(() => one.close())
  const read = async () => {
    await one`select pg_stat_force_next_flush()`
    const [row] = await one<{ n: number }>`
      select sum(idx_tup_read)::int as n from pg_stat_user_indexes where relname = 'outbox'`
    return row!.n
  }
  const before = await read()
  const [claimed] = await claim(one, worker, [lane], atOnce)
  t.equal(body(claimed), 'b0')
  const entries = (await read()) - before
  t.ok(entries > 0 && entries < 50, `${entries} index entries`)
})

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

void t.test('a message can be taken back and changed until it is claimed', async (t) => {
  const { sql, workspaceId, queue, next, body, confirm, read } = await rig(t)
  const [a1, a2, a3] = await queue(text(ada, 'a1'), text(ada, 'a2'), text(ada, 'a3'))
  t.match(await cancel(sql, workspaceId, a1!.id), { status: 'cancelled' })
  t.match(await cancel(sql, workspaceId, a1!.id), { status: 'cancelled' }, 'twice is once')
  t.match(await editQueued(sql, workspaceId, a2!.id, 'a2, changed'), { body: 'a2, changed' })
  const claimed = (await next())!
  t.equal(body(claimed), 'a2, changed')
  t.match(await cancel(sql, workspaceId, a2!.id), { status: 'sending' })
  t.equal(await editQueued(sql, workspaceId, a2!.id, 'too late'), undefined)
  t.match(await cancel(sql, workspaceId, a3!.id), { status: 'cancelled' })
  await lanesAreRight(t, sql)
  t.equal(await cancel(sql, randomUUID(), a2!.id), undefined, 'not another workspace’s')
  await confirm(claimed)
  t.match(await read(a2!.id), { status: 'sent' })
  await lanesAreRight(t, sql)
})

void t.test(
  'an edit in the very moment of the claim is sent, or refused, never lost',
  async (t) => {
    const { sql, workspaceId, queue, next, body } = await rig(t)
    const [message] = await queue(text(ada, 'before'))
    let claiming: ReturnType<typeof next> | undefined
    await sql.begin(async (tx) => {
      await editQueued(tx, workspaceId, message!.id, 'after')
      claiming = next()
      await untilLocked(sql)
    })
    t.equal(await claiming, undefined, 'what was read before the edit is not claimed')
    t.equal(body(await next()), 'after')
    await lanesAreRight(t, sql)
  },
)

void t.test(
  'of what is edited while it is sent, and again while it waits, the last counts',
  async (t) => {
    const { sql, workspaceId, lane, queue, next, body, confirm, read, edit, due } = await rig(t)
    const [a1] = await queue(text(ada, 'first'))
    const tried = (await next())!
    await edit(a1!, 'second')
    await putBack(sql, lane, tried, { delayMs: 0 })
    const edited = messageResource((await editQueued(sql, workspaceId, a1!.id, 'third'))!)
    t.match(edited, { body: 'third', actions: [] })
    const again = (await next())!
    t.equal(body(again), 'third')
    await edit(a1!, 'fourth')
    await confirm(again)
    t.match(await due(), [{ kind: 'edit', payload: { body: 'fourth' } }])
    t.match(await read(a1!.id), { body: 'third', actions: [{ value: 'fourth' }] })
  },
)

const whys = {
  'was unknown': { status: 'unknown', code: 'OUTCOME_UNKNOWN', message: '?' },
  'was doubted, then failed': { status: 'failed', code: 'SEND_FAILED', message: 'no' },
  'was doubted, then cancelled': undefined,
} as const
for (const [what, why] of Object.entries(whys)) {
  void t.test(`what may be out is not changed in place: it ${what}`, async (t) => {
    const { sql, workspaceId, lane, queue, next, confirm, read } = await rig(t)
    const [{ id }] = (await queue(text(ada, 'first'))) as [Message]
    let tried = (await next())!
    if (why?.status !== 'unknown') {
      await putBack(sql, lane, tried, { delayMs: 0, doubted: true })
      t.equal(await editQueued(sql, workspaceId, id, 'second'), undefined, 'at once')
      if (why) tried = (await next())!
    }
    if (why) await giveUp(sql, lane, tried, why)
    else await cancel(sql, workspaceId, id)
    t.match(await read(id), {
      status: why ? 'unknown' : 'cancelled',
      error: { code: why?.code ?? 'OUTCOME_UNKNOWN' },
    })
    await retry(sql, workspaceId, id)
    t.equal(await editQueued(sql, workspaceId, id, 'second'), undefined, 'sent once more')
    t.match(await cancel(sql, workspaceId, id), {
      status: 'cancelled',
      errorCode: 'OUTCOME_UNKNOWN',
    })
    await retry(sql, workspaceId, id)
    t.equal(await editQueued(sql, workspaceId, id, 'second'), undefined, 'once more')
    await recordAck(sql, lane, { keyId: (await next())!.keyId, ack: -1 })
    await retry(sql, workspaceId, id)
    t.match(await editQueued(sql, workspaceId, id, 'second'), { body: 'second' }, 'a new id')
    await confirm((await next())!)
    await lanesAreRight(t, sql)
  })
}

void t.test(
  'what certainly is not out is changed in place, also when it is sent once more',
  async (t) => {
    const { sql, workspaceId, lane, queue, next, body, read } = await rig(t)
    const [{ id }] = (await queue(text(ada, 'first'))) as [Message]
    await giveUp(sql, lane, (await next())!, { status: 'failed', code: 'X', message: 'x' })
    await retry(sql, workspaceId, id)
    t.match(await cancel(sql, workspaceId, id), { status: 'cancelled', errorCode: null })
    await retry(sql, workspaceId, id)
    t.match(await editQueued(sql, workspaceId, id, 'second'), { body: 'second' })
    t.equal(body(await next()), 'second')
    t.match(await read(id), { status: 'sending' })
  },
)

void t.test(
  'of what may be out nobody says that it failed because the account changed',
  async (t) => {
    const { sql, lane, queue, next, read } = await rig(t)
    const [a1, b1] = await queue(text(ada, 'a1'), text(bob, 'b1'))
    await putBack(sql, lane, (await next())!, { delayMs: 0, doubted: true })
    await endOutbox(sql, lane, { code: 'ACCOUNT_CHANGED', message: 'x' })
    t.match(await read(a1!.id), { status: 'unknown', error: { code: 'OUTCOME_UNKNOWN' } })
    t.match(await read(b1!.id), { status: 'failed', error: { code: 'ACCOUNT_CHANGED' } })
  },
)

void t.test('a message taken back in the very moment of the claim is not sent', async (t) => {
  const { sql, workspaceId, queue, next, body } = await rig(t)
  const [message] = await queue(text(ada, 'a1'), text(ada, 'a2'))
  let claiming: ReturnType<typeof next> | undefined
  await sql.begin(async (tx) => {
    await cancel(tx, workspaceId, message!.id)
    claiming = next()
    await untilLocked(sql)
  })
  t.equal(await claiming, undefined)
  t.equal(body(await next()), 'a2')
  await lanesAreRight(t, sql)
})

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

for (const ending of ['given up', 'ended with all others'] as const) {
  void t.test(`a claim does not wait for what is just being ${ending}`, async (t) => {
    const { sql, lane, queue, next } = await rig(t)
    await queue(text(ada, 'a1'), text(bob, 'b1'))
    const a1 = (await next())!
    const why = { code: 'X', message: 'x' }
    await sql.begin(async (tx) => {
      await tx`select from outbox where id = ${a1.outboxId} for update`
      t.equal(await next(), undefined)
      if (ending === 'given up') await giveUp(tx, lane, a1, { ...why, status: 'failed' })
      else await endOutbox(tx, lane, why)
    })
    t.equal((await next()) !== undefined, ending === 'given up')
    await lanesAreRight(t, sql)
  })
}

/** Waits until so many statements of this database wait for a lock. */
async function untilLocked(sql: Sql, count = 1): Promise<void> {
  const deadline = Date.now() + 20_000
  for (;;) {
    const waiting = await sql`
      select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`
    if (waiting.length >= count) return
    if (Date.now() > deadline) throw new Error(`${waiting.length} wait for a lock.`)
    await new Promise((resolve) => setTimeout(resolve, 10))
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

void t.test('scheduled messages wait for their time and hold up nobody', async (t) => {
  const { sql, workspaceId, queue, next, body, read, confirm } = await rig(t)
  const sendAt = new Date(Date.now() + 3_600_000)
  const [later, , alone] = await queue(
    text(ada, 'later', { sendAt }),
    text(ada, 'now'),
    text(bob, 'alone', { sendAt }),
  )
  t.match(await read(later!.id), {
    status: 'queued',
    heldBy: 'SCHEDULED',
    notBefore: sendAt,
    sendAt,
  })
  const now = (await next())!
  t.equal(body(now), 'now')
  await confirm(now)
  t.equal(await next(), undefined)
  t.equal(await releaseScheduled(sql), 0)
  t.match(await editQueued(sql, workspaceId, later!.id, 'later, changed'), { sendAt })
  await sql`update outbox set send_at = now() where message_id in (${later!.id}, ${alone!.id})`
  t.equal(await releaseScheduled(sql), 2)
  await lanesAreRight(t, sql)
  t.strictSame([body(await next()), body(await next())].sort(), ['alone', 'later, changed'])
  const [other] = await queue(text(cleo, 'never', { sendAt }))
  t.match(await cancel(sql, workspaceId, other!.id), { status: 'cancelled' })
  await lanesAreRight(t, sql)
})

void t.test('what was scheduled for one time leaves in the order it was accepted in', async (t) => {
  const { sql, queue, next, body } = await rig(t)
  const sendAt = new Date(Date.now() + 3_600_000)
  const people = Array.from({ length: 20 }, stranger)
  const bodies = people.map((_, i) => `offer ${i}`)
  await queue(
    ...people.map((to, i) => text(to, bodies[i]!, { sendAt })),
    text(people[0]!, 'the second to the first', { sendAt }),
  )
  await sql`update outbox set send_at = now()`
  const released: number[] = []
  for (let n; (n = await releaseScheduled(sql, 8)) > 0;) released.push(n)
  t.strictSame(released, [8, 8, 5])
  const left: (string | undefined)[] = []
  for (let m; (m = await next());) left.push(body(m))
  t.strictSame(left, bodies)
  await lanesAreRight(t, sql)
})

void t.test('a time that has just passed is now', async (t) => {
  const { sql, queue, next, body, confirm } = await rig(t)
  await queue(text(ada, 'due', { sendAt: new Date(Date.now() - 30_000) }))
  await lanesAreRight(t, sql)
  t.equal(await releaseScheduled(sql), 0, 'nothing is left to be released')
  const due = (await next())!
  t.equal(body(due), 'due')
  await confirm(due)
  await lanesAreRight(t, sql)
})

void t.test('what becomes due waits for nobody who is at work in its chat', async (t) => {
  const { sql, workspaceId, sessionId, queue } = await rig(t)
  const sendAt = new Date(Date.now() + 3_600_000)
  await queue(text(ada, 'a1', { sendAt }), text(bob, 'b1', { sendAt }))
  await sql`update outbox set send_at = now()`
  const submission = { workspaceId, sessionId, sentBy: null, requestId: 'r' }
  const released = await sql.begin(async (tx) => {
    await accept(tx, { ...submission, messages: [text(ada, 'a2')] })
    return sql.begin(async (other) => {
      await other`set local lock_timeout = '2s'`
      return releaseScheduled(other)
    })
  })
  t.equal(released, 1, 'bob')
  t.equal(await releaseScheduled(sql), 1, 'ada')
  t.equal(await releaseScheduled(sql), 0)
  await lanesAreRight(t, sql)
})

void t.test(
  'batches are accepted and taken back at once without locking each other out',
  async (t) => {
    const { sql, workspaceId, sessionId } = await rig(t)
    const people = Array.from({ length: 60 }, stranger)
    const messages = people.map((to) => text(to, 'offer'))
    const indexes = people.map((_, i) => i)
    const submission = { workspaceId, sessionId, sentBy: null, requestId: 'r', messages }
    const submit = () => acceptBatch(sql, submission, indexes, [])
    const batches = [await submit(), await submit(), await submit(), await submit(), await submit()]
    await Promise.all(
      batches.flatMap(({ batchId }) => [submit(), cancelBatch(sql, workspaceId, batchId)]),
    )
    const [counted] = await sql`select count(*)::int as n from outbox`
    t.strictSame(counted, { n: 300 })
    await lanesAreRight(t, sql)
  },
)

void t.test('the pace: a gap with jitter, and a cap in any minute', async (t) => {
  const { sql, queue, next, read, pace, confirm } = await rig(t)
  const [, , third] = await queue(text(ada, '1'), text(bob, '2'), text(cleo, '3'))
  const gap = {
    ...atOnce,
    WA_SEND_MIN_GAP_MS: 10_000,
    WA_SEND_JITTER_MS: 5_000,
    WA_SENDS_PER_MINUTE: 2,
  }
  const first = (await next(gap))!
  t.ok(first.waitMs >= 9_900 && first.waitMs <= 15_000, `${first.waitMs}`)
  t.equal(await next(gap), undefined)
  t.match(await read(third!.id), { heldBy: 'MIN_GAP' })

  const passed = () => sql`update wa_session_pacing set next_send_at = now() - interval '1 ms'`
  await passed()
  const capped = { ...atOnce, WA_SENDS_PER_MINUTE: 2 }
  const second = (await next(capped))!
  t.ok(second.waitMs > 50_000, 'two in this minute')
  t.match(await read(third!.id), { heldBy: 'SENDS_PER_MINUTE' })
  await sql`update wa_session_pacing set recent = array(select x - interval '61 seconds' from unnest(recent) x)`
  await passed()
  t.equal((await next(capped))!.waitMs, 0)

  await queue(text(ada, '4'))
  await pace({ minGapMs: 3_000, jitterMs: 0, typing: true })
  await confirm(first)
  t.equal(await next(), undefined, 'the gap is that from the last one')
  await passed()
  const fourth = (await next())!
  t.equal(Math.round(fourth.waitMs), 3_000, 'what is set for the session goes before the settings')
  t.equal(fourth.typing, true)
})

void t.test('new conversations have a budget, answers do not', async (t) => {
  const { sql, workspaceId, sessionId, queue, next, body, read, receive, confirm, pace } =
    await rig(t)
  const budget = { ...atOnce, WA_NEW_CONTACTS_PER_DAY: 1 }
  const [, b1] = await queue(text(ada, 'a1'), text(bob, 'b1'), text(cleo, 'c1'), text(ada, 'a2'))
  const a1 = (await next(budget))!
  t.match(a1, { cold: true })
  await confirm(a1)
  t.equal(body(await next(budget)), 'a2', 'the conversation is open')
  t.equal(await next(budget), undefined)
  const held = await read(b1!.id)
  t.match(held, { heldBy: 'NEW_CONTACTS_PER_DAY' })
  t.ok(held.notBefore! > new Date() && held.notBefore!.toISOString().endsWith('T00:00:00.000Z'))
  t.match(await foresee(sql, workspaceId, { sessionId, waChatId: '12025550199@c.us' }, budget), {
    heldBy: 'NEW_CONTACTS_PER_DAY',
    chatId: null,
  })
  await receive(cleo, 'hello?')
  const c1 = (await next(budget))!
  t.equal(body(c1), 'c1', 'she wrote: that is an answer')
  t.equal(c1.cold, false)
  t.match(await findPacing(sql, workspaceId, sessionId), { state: { newContactsToday: 1 } })
  await pace({ newContactsPerDay: 2 })
  t.equal(body(await next(budget)), 'b1', 'a larger budget holds at once')
  await queue(text('12025550104@c.us', 'd1'))
  t.equal(await next(budget), undefined)
  await sql`update wa_session_pacing set cold_at = '-infinity', new_on = new_on - 1`
  t.equal(body(await next(budget)), 'd1', 'and anew the next day')
})

void t.test('a young number may open fewer conversations', async (t) => {
  const { sql, queue, next, pace } = await rig(t)
  const byAge: PacingConfig = { ...atOnce }
  delete byAge.WA_NEW_CONTACTS_PER_DAY
  const opened = async () => {
    await queue(...Array.from({ length: 60 }, () => text(stranger(), 'hi')))
    let n = 0
    while (await next(byAge)) n += 1
    return n
  }
  t.equal(await opened(), 20, 'in its first days')
  await sql`update wa_session_pacing set new_on = new_on - 1, cold_at = '-infinity'`
  await sql`update wa_sessions set linked_at = now() - interval '4 days'`
  t.equal(await opened(), 50, 'in its first week')
  await pace({ numberSince: '2020-01-01' })
  await sql`update wa_session_pacing set new_on = new_on - 1, cold_at = '-infinity'`
  t.ok((await opened()) > 50, 'an old number that was linked lately is old')
})

let strangers = 0
const stranger = () => `1202556${String((strangers += 1)).padStart(4, '0')}@c.us`

void t.test('a reach-out lock stops new conversations only', async (t) => {
  const { sql, lane, queue, next, body, read, receive } = await rig(t)
  await receive(cleo, 'hello')
  const [a1, b1] = await queue(text(ada, 'a1'), text(bob, 'b1'))
  const refused = (await next())!
  const until = new Date(Date.now() + 7_200_000)
  await recordAck(sql, lane, { keyId: refused.keyId, ack: -1, code: 'REACHOUT_LOCKED', until })
  t.match(await read(a1!.id), { status: 'failed', error: { code: 'REACHOUT_LOCKED' } })
  t.equal(await next(), undefined)
  t.match(await read(b1!.id), { heldBy: 'REACHOUT_LOCKED', notBefore: until })
  const [, a2] = await queue(text(cleo, 'c1'), text(ada, 'a2'))
  t.equal(body(await next()), 'c1')
  t.equal(await next(), undefined, 'the conversation that was refused is not open')
  t.match(await read(a2!.id), { heldBy: 'REACHOUT_LOCKED', notBefore: until })
  await receive(ada, 'hello')
  t.equal(body(await next()), 'a2', 'she has opened it')
})

void t.test('a first message that is tried again is still the first', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, next, receive } = await rig(t)
  await queue(text(ada, 'a1'))
  const first = (await next())!
  await putBack(sql, lane, first, { delayMs: 0 })
  t.match(await next(), { messageId: first.messageId, cold: true }, 'her number is looked up')
  t.match(await findPacing(sql, workspaceId, sessionId), { state: { newContactsToday: 1 } })
  await receive(ada, 'hello')
  await recordAck(sql, lane, { keyId: first.keyId, ack: -1 })
  await queue(text(ada, 'a2'))
  t.match(await next(), { cold: false }, 'she has written meanwhile')
})

void t.test('who is not on WhatsApp is a stranger, and costs no budget', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, next, body, read } = await rig(t)
  const budget = { ...atOnce, WA_NEW_CONTACTS_PER_DAY: 1 }
  const [, b1] = await queue(text(ada, 'a1'), text(bob, 'b1'), text(ada, 'a2'))
  const nowhere = {
    status: 'failed',
    code: 'NUMBER_NOT_ON_WHATSAPP',
    message: 'Not there',
  } as const
  const first = (await next(budget))!
  t.match(await read(b1!.id), { heldBy: 'NEW_CONTACTS_PER_DAY' })
  await giveUp(sql, lane, first, nowhere)
  t.match(await findPacing(sql, workspaceId, sessionId), { state: { newContactsToday: 0 } })
  const opened = (await next(budget))!
  t.equal(body(opened), 'b1')
  await sql`update wa_session_pacing set cold_at = '-infinity'`
  const second = (await next({ ...budget, WA_NEW_CONTACTS_PER_DAY: 2 }))!
  t.match(second, { cold: true }, 'the second to her is looked up, too')
  t.equal(body(second), 'a2')
  await giveUp(sql, lane, second, { status: 'failed', code: 'SEND_FAILED', message: 'no' })
  t.match(await findPacing(sql, workspaceId, sessionId), { state: { newContactsToday: 2 } })
})

void t.test('only the claim that opens a conversation may have its opening back', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, next, body, read } = await rig(t)
  const budget = { ...atOnce, WA_NEW_CONTACTS_PER_DAY: 1 }
  const [, b1] = await queue(text(ada, 'a1'), text(bob, 'b1'))
  const gone = { status: 'failed', code: 'MEDIA_GONE', message: 'Gone', unasked: true } as const
  const opening = (await next(budget))!
  t.match(opening, { cold: true, opens: true })
  await putBack(sql, lane, opening, { delayMs: 0, forgiven: true })
  const again = (await next(budget))!
  t.match(again, { messageId: opening.messageId, attempts: 1, cold: true, opens: false })
  await giveUp(sql, lane, again, gone)
  t.match(await findPacing(sql, workspaceId, sessionId), { state: { newContactsToday: 1 } })
  t.match(await read(b1!.id), { heldBy: 'NEW_CONTACTS_PER_DAY' }, 'it may have been seen')

  await sql`update wa_session_pacing set cold_at = '-infinity', new_on = new_on - 1`
  const other = (await next(budget))!
  t.match([body(other), other.opens], ['b1', true])
  await giveUp(sql, lane, other, gone)
  t.match(await findPacing(sql, workspaceId, sessionId), { state: { newContactsToday: 0 } })
})

void t.test('three refused strangers in a row are taken for a lock', async (t) => {
  const { sql, lane, queue, next, read, confirm } = await rig(t)
  const messages = await queue(...Array.from({ length: 6 }, () => text(stranger(), 'hi')))
  for (const refused of [true, true, false, true, true, true]) {
    const claimed = await next()
    if (!claimed) break
    if (refused) await recordAck(sql, lane, { keyId: claimed.keyId, ack: -1 })
    else await confirm(claimed)
  }
  t.match(await read(messages[5]!.id), { status: 'failed' })
  const [held] = await queue(text(stranger(), 'hi'))
  t.equal(await next(), undefined)
  t.match(await read(held!.id), { heldBy: 'REACHOUT_SUSPECTED' })
})

void t.test('in quiet hours only who wrote lately is answered', async (t) => {
  const { sql, queue, next, body, read, receive, pace } = await rig(t)
  await receive(cleo, 'are you open?')
  await receive(bob, 'long ago')
  await sql`update chats set last_inbound_at = now() - interval '25 hours' where wa_chat_id = ${bob}`
  const [a1, , b1] = await queue(text(ada, 'a1'), text(cleo, 'c1'), text(bob, 'b1'))
  const hour = (new Date().getUTCHours() + 23) % 24
  const at = (h: number) => `${String(h % 24).padStart(2, '0')}:30`
  await pace({ quietHours: { from: at(hour), to: at(hour + 4) } })
  t.equal(body(await next()), 'c1')
  t.equal(await next(), undefined)
  const held = await read(a1!.id)
  t.match(held, { heldBy: 'QUIET_HOURS' })
  t.equal(held.notBefore!.toISOString().slice(11, 16), at(hour + 4))
  t.match(await read(b1!.id), { heldBy: 'QUIET_HOURS' })
  await pace({ quietHours: { from: at(hour + 6), to: at(hour + 8) } })
  t.strictSame([body(await next()), body(await next())].sort(), ['a1', 'b1'])
  await t.rejects(pace({ timeZone: 'Nowhere/Town' }))
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
  t.match(await submit(), [{ refusal: 'RECIPIENT_OPTED_OUT' }, { message: { status: 'queued' } }])
  t.match(await foresee(sql, workspaceId, { sessionId, waChatId: ada }, atOnce), {
    blockedBy: ['RECIPIENT_OPTED_OUT'],
  })
  t.match(await submit('invoice by law'), [{ message: { status: 'queued' } }, {}])
  await receive(ada, 'START')
  t.match(await submit(), [{ message: { status: 'queued' } }, {}])
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

void t.test('a batch is accepted as a whole, watched and cancelled', async (t) => {
  const { sql, workspaceId, sessionId, next, confirm } = await rig(t)
  const people = Array.from({ length: 5 }, stranger)
  const accepted = await acceptBatch(
    sql,
    {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: 'r',
      messages: [
        ...people.map((to) => text(to, 'offer')),
        text(people[0]!, 'quoting', { quotedMessageId: randomUUID() }),
      ],
    },
    [0, 1, 2, 4, 5, 6],
    [{ index: 3, code: 'VALIDATION_FAILED', message: 'no' }],
  )
  t.match(accepted, {
    accepted: 5,
    rejected: [
      { index: 3, code: 'VALIDATION_FAILED' },
      { index: 6, code: 'QUOTED_NOT_FOUND' },
    ],
  })
  const { batchId } = accepted
  const first = (await next())!
  t.match(await findBatch(sql, workspaceId, batchId), { statuses: { queued: 4, sending: 1 } })
  await confirm(first)
  const cancelled = await cancelBatch(sql, workspaceId, batchId)
  t.match(cancelled, { statuses: { sent: 1, cancelled: 4 } })
  t.ok(cancelled!.cancelledAt)
  t.equal(await cancelBatch(sql, randomUUID(), batchId), undefined)
  await lanesAreRight(t, sql)
})

void t.test(
  'two batches to the same people at the same time do not lock each other out',
  async (t) => {
    const { sql, workspaceId, sessionId } = await rig(t)
    const people = Array.from({ length: 30 }, stranger)
    const submit = (order: string[]) =>
      acceptBatch(
        sql,
        {
          workspaceId,
          sessionId,
          sentBy: null,
          requestId: 'r',
          messages: order.map((to) => text(to, 'offer')),
        },
        order.map((_, i) => i),
        [],
      )
    await Promise.all(
      Array.from({ length: 6 }, (_, i) => submit(i % 2 ? people : [...people].reverse())),
    )
    const [counted] = await sql`select count(*)::int as n from outbox`
    t.strictSame(counted, { n: 180 })
    await lanesAreRight(t, sql)
  },
)

void t.test('one claim serves all sessions, and none that is not ours', async (t) => {
  const { sql, workspaceId, lane, open, queue } = await rig(t)
  const second = await open('support')
  const third = await open('foreign')
  await queue(text(ada, 'sales'))
  for (const sessionId of [second, third]) {
    await accept(sql, {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: 'r',
      messages: [text(ada, 'other')],
    })
  }
  await sql`update wa_sessions set fence = 2 where id = ${third}`
  const claimed = await claim(
    sql,
    worker,
    [lane, { id: second, fence: 1 }, { id: third, fence: 1 }],
    atOnce,
  )
  t.strictSame(claimed.map(({ sessionId }) => sessionId).sort(), [lane.id, second].sort())
  t.equal((await unconfirmed(sql, lane, 0, atOnce)).length, 1)
  t.equal(await endOutbox(sql, lane, { code: 'ACCOUNT_CHANGED', message: 'x' }), 1)
  await lanesAreRight(t, sql)
})

void t.test('a message on its way moves in none of the indexes of outbox and pace', async (t) => {
  const { sql, queue, lane } = await rig(t)
  await queue(text(ada, 'one'), text(bob, 'two'))
  const written = await sql.begin(async (tx) => {
    await claim(tx, worker, [lane], atOnce)
    return tx`
      select relname, n_tup_upd as written, n_tup_hot_upd as hot from pg_stat_xact_user_tables
      where relname in ('outbox', 'wa_session_pacing') order by 1`
  })
  t.strictSame(written, [
    { relname: 'outbox', written: 1, hot: 1 },
    { relname: 'wa_session_pacing', written: 1, hot: 1 },
  ])
})

void t.test(
  'accepting and confirming are planned once a connection, not once a message',
  async (t) => {
    const { sql, workspaceId, sessionId, lane } = await rig(t)
    const submission = { workspaceId, sessionId, sentBy: null, requestId: 'r' }
    const plans = await sql.begin(async (tx) => {
      for (const body of ['one', 'two']) {
        await accept(tx, { ...submission, messages: [text(ada, body)] })
        await recordAck(tx, lane, { keyId: randomUUID(), ack: 1 })
      }
      return tx<{ anew: number; kept: number }>`
      select custom_plans::int as anew, generic_plans::int as kept from pg_prepared_statements
      where statement like any(array['%insert into outbox_lanes%', '%with report as%']) and statement not like '%pg_prepared_statements%'`
    })
    t.strictSame(plans, [
      { anew: 0, kept: 2 },
      { anew: 0, kept: 2 },
    ])
  },
)

void t.test('what is on its way is found at once, whatever waits', async (t) => {
  const { sql, queue, lane, next, receive } = await rig(t)
  await queue(text(ada, 'one'), text(ada, 'two'), text(bob, 'three'), text(cleo, 'four'))
  const claimed = [await next(), await next()]
  // What they write meanwhile changes their lane.
  await receive(ada, 'Hello')
  const found = await unconfirmed(sql, lane, 0, atOnce)
  t.same(
    found.map(({ outboxId }) => outboxId),
    claimed.map((message) => message?.outboxId),
  )
  t.same(await unconfirmed(sql, { ...lane, id: randomUUID() }, 0, atOnce), [])
})

void t.test('another login cannot vouch for what was sent under the one before', async (t) => {
  const { sql, lane, queue, next } = await rig(t)
  await queue(text(ada, 'a1'))
  await next()
  t.match(await unconfirmed(sql, lane, 0, atOnce), [{ sameLogin: true, doubts: 0 }])
  await sql`update wa_sessions set login_epoch = login_epoch + 1 where id = ${lane.id}`
  const [left] = await unconfirmed(sql, lane, 0, atOnce)
  t.match(left, { sameLogin: false })
  await putBack(sql, lane, left!, { delayMs: 0, doubted: true })
  t.match(await next(), { sameLogin: true, doubts: 1 })
})

void t.test('what was to open a conversation and was taken back leaves it closed', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, next } = await rig(t)
  for (const takeBack of [
    (id: string) => cancel(sql, workspaceId, id),
    () => cancelQueued(sql, sessionId),
  ]) {
    const [message] = await queue(text(ada, 'Hello'))
    const claimed = await next()
    t.match(claimed, { cold: true })
    await putBack(sql, lane, claimed!, { delayMs: 0 })
    await takeBack(message!.id)
  }
  await queue(text(ada, 'Hello again'))
  t.match(await next(), { cold: true })
  await lanesAreRight(t, sql)
})

void t.test('a cancel and an ack that comes late do not wait for each other', async (t) => {
  const { sql, workspaceId, lane, queue, next, confirm, read } = await rig(t)
  const [message] = await queue(text(ada, 'Hello'))
  const claimed = await next()
  await putBack(sql, lane, claimed!, { delayMs: 0, doubted: true })
  let both: Promise<unknown> | undefined
  await sql.begin(async (tx) => {
    await tx`select from outbox_lanes for no key update`
    const cancelling = cancel(sql, workspaceId, message!.id)
    await untilLocked(sql)
    both = Promise.all([cancelling, confirm(claimed!)])
    await untilLocked(sql, 2)
  })
  await t.resolves(both!)
  t.match(await read(message!.id), { status: 'sent' }, 'WhatsApp has the last word')
  t.strictSame(await sql`select from outbox`, [])
  await lanesAreRight(t, sql)
})
