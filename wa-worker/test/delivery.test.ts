import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Test } from 'tap'
import { claim, unconfirmed } from '../../shared/claims.ts'
import { createLogger } from '../../shared/logger.ts'
import { findMessage, messageResource } from '../../shared/messages.ts'
import { accept } from '../../shared/outbound.ts'
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
  await sql`update wa_sessions set owner = 'w', fence = 1, status = 'WORKING', linked_at = now()`
  const session = { id: sessionId, workspaceId, fence: 1, worker: 'w' }
  const [outcome] = await accept(sql, {
    workspaceId,
    sessionId,
    sentBy: null,
    requestId: randomUUID(),
    messages: [{ waChatId, content: { type: 'text', body: 'Hello' } }],
  })
  if (!outcome || 'refusal' in outcome) throw new Error('not accepted')
  const { id } = outcome.message
  const [message] = await claim(sql, 'w', [session], noPacing)
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
    send: () => delivery.send(line, message!),
    settle: () => delivery.settle(line, message!),
    left: () => unconfirmed(sql, session, 0, noPacing),
    read: async () => messageResource((await findMessage(sql, workspaceId, id))!),
  }
}

void t.test('a number check that times out leaves no doubt', async (t) => {
  const { sql, send, left, read } = await rig(t, '12025550101@c.us', {
    checkNumber: () => Promise.reject(new EngineError('unknown', 'ACTION_TIMEOUT', 'No answer.')),
  })
  await sql`update workspaces set unknown_policy = 'at_most_once'`
  t.equal(await send(), 'over')
  t.strictSame(await left(), [])
  t.match(await read(), { status: 'queued', attempts: 1 })
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
