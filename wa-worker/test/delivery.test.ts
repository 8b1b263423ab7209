import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Test } from 'tap'
import { claim, unconfirmed } from '../../shared/claims.ts'
import { createLogger } from '../../shared/logger.ts'
import { findMessage, messageResource } from '../../shared/messages.ts'
import { accept } from '../../shared/outbound.ts'
import { findPacing } from '../../shared/pacing.ts'
import { testDb } from '../../shared/test/db.ts'
import { knownNumber, learnNumber } from '../../shared/wa-numbers.ts'
import { AckBook } from '../ack-book.ts'
import { Delivery } from '../delivery.ts'
import type { Line } from '../delivery.ts'
import { EngineError } from '../engine/engine.ts'
import { givenSession, noPacing } from './worker.ts'

/** One message that is claimed, and an engine to bring it to. */
async function rig(t: Test, waChatId: string, over: Partial<Line['engine']>) {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`update wa_sessions set owner = 'w', fence = 1, lease_until = now() + interval '1 hour', status = 'WORKING', linked_at = now()`
  const session = { id: sessionId, workspaceId, fence: 1, worker: 'w' }
  const queue = async (to: string) => {
    const [outcome] = await accept(sql, {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: randomUUID(),
      messages: [{ waChatId: to, content: { type: 'text', body: 'Hello' } }],
    })
    if (!outcome || 'refusal' in outcome) throw new Error('not accepted')
    return outcome.message
  }
  const { id } = await queue(waChatId)
  let [message] = await claim(sql, 'w', [session], noPacing)
  const engine: Line['engine'] = {
    send: () => Promise.reject(new Error('not to be sent')),
    find: () => Promise.resolve(null),
    typing: () => Promise.resolve(),
    checkNumber: (phone) => Promise.resolve({ exists: true, waId: `${phone}@c.us` }),
    ...over,
  }
  const delivery = new Delivery({
    sql,
    log: createLogger('test', { level: 'error', stdout: false }),
    acks: new AckBook(sql),
    attachments: { fetch: () => Promise.reject(new Error('there are none')) },
    ownsLease: () => true,
    maxAttempts: 5,
    maxCrashes: 3,
  })
  const line = { session, engine }
  return {
    sql,
    session,
    message: message!,
    queue,
    /** Claims what waits, as if all waits were over; `to`: what waits for this one. */
    again: async (to = waChatId) => {
      await sql`update wa_session_pacing set cold_at = now()`
      await sql`
        update outbox_lanes l set due_at = now() - (c.wa_chat_id = ${to})::int * interval '1 minute'
        from chats c where c.id = l.chat_id and l.due_at < 'infinity'`
      ;[message] = await claim(sql, 'w', [session], noPacing)
    },
    pace: async () => (await findPacing(sql, workspaceId, sessionId))!.state,
    send: () => delivery.send(line, message!),
    settle: () => delivery.settle(line, message!),
    left: () => unconfirmed(sql, session, 0, noPacing),
    read: async () => messageResource((await findMessage(sql, workspaceId, id))!),
  }
}

const taken: Line['engine']['send'] = ({ chatId, keyId }) =>
  Promise.resolve({ waMessageId: `true_${chatId}_${keyId}`, ack: 1 })

const refusedChecks = {
  ACTION_FAILED: new EngineError('transient', 'ACTION_FAILED', '429 rate-overlimit'),
  ACTION_TIMEOUT: new EngineError('unknown', 'ACTION_TIMEOUT', 'No answer.'),
}
for (const [code, error] of Object.entries(refusedChecks)) {
  void t.test(`a check that ends in ${code} is no fault of the message`, async (t) => {
    const { sql, send, again, left, read, pace } = await rig(t, '12025550101@c.us', {
      checkNumber: () => Promise.reject(error),
    })
    await sql`update workspaces set unknown_policy = 'at_most_once'`
    for (let tried = 0; tried < 7; tried += 1) {
      t.equal(await send(), 'over')
      t.strictSame(await left(), [])
      t.match(await read(), { status: 'queued', attempts: 0, heldBy: 'NUMBER_NOT_CHECKED' })
      t.match(await pace(), { newContactsToday: 0, newContactsHeldBy: 'NUMBER_NOT_CHECKED' })
      await again()
    }
  })
}

void t.test('the longer checks are refused, the longer strangers wait', async (t) => {
  let refuses = true
  const { send, again, pace, read, queue } = await rig(t, '12025550101@c.us', {
    checkNumber: (phone) =>
      refuses
        ? Promise.reject(refusedChecks.ACTION_FAILED)
        : Promise.resolve({ exists: true, waId: `${phone}@c.us` }),
    send: taken,
  })
  const minutes = async () => {
    const { newContactsHeldUntil: until } = await pace()
    return until ? Math.round((until.getTime() - Date.now()) / 60_000) : 0
  }
  for (const expected of [1, 2, 4, 8, 10, 10]) {
    await send()
    t.equal(await minutes(), expected)
    await again()
  }
  refuses = false
  t.equal(await send(), 'acked')
  t.match(await read(), { status: 'sent' })
  refuses = true
  await queue('12025550102@c.us')
  await again('12025550102@c.us')
  await send()
  t.equal(await minutes(), 1, 'it begins anew')
})

void t.test('who alone cannot be checked holds up nobody for ever', async (t) => {
  const silent = '12025550101@c.us'
  const { send, again, read, pace, queue } = await rig(t, silent, {
    checkNumber: (phone) =>
      silent.startsWith(phone)
        ? Promise.reject(refusedChecks.ACTION_FAILED)
        : Promise.resolve({ exists: true, waId: `${phone}@c.us` }),
    send: taken,
  })
  const otherIsSent = async (to: string) => {
    await queue(to)
    await again(to)
    t.equal(await send(), 'acked')
  }
  await send()
  for (let tried = 1; tried <= 5; tried += 1) {
    await otherIsSent(`1202555020${tried}@c.us`)
    t.match(await read(), { status: 'queued', attempts: tried - 1 })
    await again()
    t.equal(await send(), 'over')
    t.match(await pace(), { newContactsToday: tried, newContactsHeldBy: null }, 'the others')
  }
  t.match(await read(), { status: 'failed', error: { code: 'NUMBER_NOT_CHECKED' } })
})

void t.test('a message is looked up where it was sent', async (t) => {
  const canonical = '551187654321@c.us'
  const sentTo: string[] = []
  const { send, settle, read } = await rig(t, '5511987654321@c.us', {
    checkNumber: () => Promise.resolve({ exists: true, waId: canonical }),
    send({ chatId }) {
      sentTo.push(chatId)
      return Promise.reject(new EngineError('unknown', 'SEND_TIMEOUT', 'No answer.'))
    },
    find: ({ chatId, keyId }) =>
      Promise.resolve(
        sentTo.includes(chatId) ? { waMessageId: `true_${chatId}_${keyId}`, ack: 1 } : null,
      ),
  })
  t.equal(await send(), 'unsettled')
  t.equal(await settle(), 'acked')
  t.strictSame(sentTo, [canonical])
  t.match(await read(), { status: 'sent' })
})

void t.test('what is not found for the last time says what came in its way', async (t) => {
  const { message, send, settle, read } = await rig(t, '12025550101@c.us', {
    send: () => Promise.reject(new EngineError('unknown', 'SEND_VANISHED', 'It was lost.')),
  })
  message.attempts = 10
  t.equal(await send(), 'unsettled')
  t.equal(await settle(), 'over')
  t.match(await read(), {
    status: 'failed',
    error: { code: 'ATTEMPTS_EXHAUSTED', message: 'Not sent after 10 attempts. It was lost.' },
  })
})

void t.test('what the page says need not be storable', async (t) => {
  const { send, read } = await rig(t, '12025550101@c.us', {
    send: () => Promise.reject(new EngineError('permanent', 'MEDIA_REFUSED', 'not \0this')),
  })
  t.equal(await send(), 'over')
  t.match(await read(), { error: { code: 'MEDIA_REFUSED', message: 'not this' } })
})

void t.test('a number that turns out not to be on WhatsApp is not taken for known', async (t) => {
  for (const waId of ['551187654321@c.us', '5511987654321@c.us']) {
    const sentTo: string[] = []
    const { sql, session, send, read } = await rig(t, '5511987654321@c.us', {
      send({ chatId }) {
        sentTo.push(chatId)
        return Promise.reject(new EngineError('permanent', 'NUMBER_NOT_ON_WHATSAPP', 'Not there.'))
      },
    })
    await learnNumber(sql, session, '5511987654321', waId)
    t.equal(await send(), 'over')
    t.strictSame(sentTo, [waId], 'it was there some weeks ago')
    t.match(await read(), { status: 'failed', error: { code: 'NUMBER_NOT_ON_WHATSAPP' } })
    const known = await knownNumber(sql, session.workspaceId, '5511987654321')
    t.strictSame(known, { waId: null })
  }
})
