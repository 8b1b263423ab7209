import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Sql, Tag } from '../../shared/db.ts'
import { createLogger } from '../../shared/logger.ts'
import { accept } from '../../shared/outbound.ts'
import { testDb } from '../../shared/test/db.ts'
import { AckBook } from '../ack-book.ts'
import { Sender } from '../sender.ts'
import { until } from './waiting.ts'
import { givenSession } from './worker.ts'

void t.test(
  'a session that has a pace is asked for its next message when that lets it',
  async (t) => {
    const { sql } = await testDb(t)
    const { workspaceId, sessionId } = await givenSession(sql)
    await sql`update wa_sessions set owner = 'w', fence = 1, status = 'WORKING', linked_at = now()`
    let claims = 0
    const run: Tag = (strings, ...values) => {
      if (strings.join('').includes('claimed as (')) claims += 1
      return sql(strings, ...values)
    }
    const counted: Sql = Object.assign(run, {
      begin: sql.begin.bind(sql),
      last: sql.last,
      nudge: sql.nudge.bind(sql),
    })
    const sent: number[] = []
    const sender = new Sender({
      sql: counted,
      worker: 'w',
      log: createLogger('test', { level: 'error', stdout: false }),
      acks: new AckBook(sql),
      attachments: { fetch: () => Promise.reject(new Error('there are no attachments')) },
      pacing: {
        WA_SEND_MIN_GAP_MS: 100,
        WA_SEND_JITTER_MS: 0,
        WA_SENDS_PER_MINUTE: 0,
        WA_NEW_CONTACTS_PER_DAY: 0,
        WA_TYPING: false,
      },
      pollMs: 60_000,
    })
    sender.open(
      { id: sessionId, workspaceId, fence: 1, worker: 'w' },
      {
        send({ chatId, keyId }) {
          sent.push(performance.now())
          return Promise.resolve({ waMessageId: `true_${chatId}_${keyId}`, ack: 1 })
        },
        find: () => Promise.resolve(null),
        typing: () => Promise.resolve(),
        checkNumber: (phone) => Promise.resolve({ exists: true, waId: `${phone}@c.us` }),
      },
      () => {},
    )
    await until('what was left to be looked up', () => sender.isIdle(sessionId))
    const message = (body: string) =>
      ({ waChatId: '12025550101@c.us', content: { type: 'text', body } }) as const
    const submission = { workspaceId, sessionId, sentBy: null, requestId: randomUUID() }
    await accept(sql, { ...submission, messages: ['1', '2', '3', '4', '5'].map(message) })
    const running = sender.run()
    await until('five are sent', () => sent.length === 5)
    await until('it is asked for a sixth', () => claims === 6)
    t.ok(sent[4]! - sent[0]! >= 400, 'at their pace')

    await accept(sql, { ...submission, messages: [message('6')] })
    sender.nudge([sessionId])
    await until('another is sent', () => sent.length === 6)
    t.equal(claims, 7, 'once for each, and once when there was none')
    sender.stop()
    await sender.close(sessionId)
    await running
    t.same(await sql`select from outbox`, [])
  },
)
