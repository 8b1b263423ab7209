import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Sql } from '../../shared/db.ts'
import { createLogger } from '../../shared/logger.ts'
import { findMessage, messageResource } from '../../shared/messages.ts'
import { accept } from '../../shared/outbound.ts'
import { testDb } from '../../shared/test/db.ts'
import { LeaseLost } from '../../shared/wa-session-leases.ts'
import { createSession } from '../../shared/wa-sessions.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import { AckBook } from '../ack-book.ts'
import { Sender } from '../sender.ts'
import { until } from './waiting.ts'

/** Sessions that work, and a database that notes which of them are asked for messages, and counts transactions. */
async function rig(t: Parameters<typeof testDb>[0], sessionCount: number) {
  const { sql } = await testDb(t)
  const workspaceId = await createWorkspace(sql, 'Bakery')
  const sessions: { id: string; workspaceId: string; fence: number; worker: string }[] = []
  for (let i = 0; i < sessionCount; i++) {
    const { id } = await createSession(sql, {
      workspaceId,
      name: `s${i}`,
      engine: 'simulator',
      start: true,
      expiryDays: 30,
    })
    sessions.push({ id, workspaceId, fence: 1, worker: 'test' })
  }
  await sql`
    update wa_sessions set owner = 'test', fence = 1, lease_until = now() + interval '1 hour', status = 'WORKING', linked_at = now()`
  const seen = { asked: [] as string[][], transactions: 0 }
  const watched = Object.assign(
    (...[strings, ...values]: Parameters<Sql>) => {
      if (strings[0]!.includes('with head as')) seen.asked.push((values[0] as string[]).toSorted())
      return sql(strings, ...values)
    },
    {
      begin: (work: Parameters<Sql['begin']>[0]) => {
        seen.transactions += 1
        return sql.begin(work)
      },
    },
  ) as Sql
  const queue = async (sessionId: string) => {
    const [outcome] = await accept(sql, {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: randomUUID(),
      messages: [{ waChatId: '12025550101@c.us', content: { type: 'text', body: 'Hello' } }],
    })
    if (!outcome || 'refusal' in outcome) throw new Error('not accepted')
    const [message] = await sql<{ id: string; keyId: string }>`
      select id, wa_key_id as key_id from messages where id = ${outcome.message.id}`
    return message!
  }
  const status = async (id: string) =>
    messageResource((await findMessage(sql, workspaceId, id))!).status
  return { sql, watched, seen, sessions, queue, status }
}

void t.test(
  'acks that come together are written together, those of a session in order',
  async (t) => {
    const { watched, seen, sessions, queue, status } = await rig(t, 3)
    const messages = await Promise.all(sessions.map(({ id }) => queue(id)))
    const book = new AckBook(watched)
    const recorded = await Promise.all(
      [1, 2].flatMap((ack) =>
        messages.map(({ keyId }, i) => book.record(sessions[i]!, { keyId, ack })),
      ),
    )
    t.strictSame(
      recorded,
      [...messages, ...messages].map(({ id }) => id),
    )
    t.equal(seen.transactions, 2, 'one for the first of each session, one for the second')
    for (const { id } of messages) t.equal(await status(id), 'delivered')
  },
)

void t.test('an ack that cannot be written is refused alone', async (t) => {
  const { watched, sessions, queue, status } = await rig(t, 3)
  const messages = await Promise.all(sessions.map(({ id }) => queue(id)))
  const book = new AckBook(watched)
  const lost = { ...sessions[2]!, fence: 0 }
  const outcomes = await Promise.allSettled([
    book.record(sessions[0]!, { keyId: messages[0]!.keyId, ack: 1.5 }),
    book.record(sessions[1]!, { keyId: messages[1]!.keyId, ack: 1 }),
    book.record(lost, { keyId: messages[2]!.keyId, ack: 1 }),
  ])
  t.match(outcomes, [
    { status: 'rejected', reason: { code: '22P02' } },
    { status: 'fulfilled', value: messages[1]!.id },
    { status: 'rejected', reason: LeaseLost },
  ])
  t.equal(await status(messages[1]!.id), 'sent')
  t.equal(await status(messages[2]!.id), 'queued')
})

void t.test(
  'a nudge asks for the sessions it names, and a session that has more for itself',
  async (t) => {
    const { watched, seen, sessions, queue, status } = await rig(t, 2)
    const log = createLogger('test', { level: 'error', stdout: false })
    const sender = new Sender({
      sql: watched,
      acks: new AckBook(watched),
      worker: 'test',
      log,
      attachments: { fetch: () => Promise.reject(new Error('none')) },
      pacing: {
        WA_SEND_MIN_GAP_MS: 0,
        WA_SEND_JITTER_MS: 0,
        WA_SENDS_PER_MINUTE: 0,
        WA_TYPING: false,
      },
      // Never within this test: what is found was told of.
      pollMs: 3_600_000,
    })
    for (const session of sessions) {
      sender.open(
        session,
        {
          send: ({ keyId }) => Promise.resolve({ waMessageId: keyId, ack: 1 }),
          find: () => Promise.resolve(null),
          typing: () => Promise.resolve(),
          checkNumber: (phone) => Promise.resolve({ exists: true, waId: `${phone}@c.us` }),
        },
        () => t.fail('no trouble expected'),
      )
    }
    await until('both to be settled', () => sessions.every(({ id }) => sender.isIdle(id)))
    const running = sender.run()
    t.teardown(async () => {
      sender.stop()
      await running
    })
    const all = sessions.map(({ id }) => id).toSorted()
    await until('the first claim', () => seen.asked.length > 0)
    t.strictSame(seen.asked[0], all, 'at first, everybody is asked')
    seen.asked.length = 0

    const [first] = sessions
    const messages = [await queue(first!.id), await queue(first!.id)]
    sender.nudge([randomUUID()])
    sender.nudge([first!.id])
    await until('both messages to be sent', async () => (await status(messages[1]!.id)) === 'sent')
    t.strictSame(seen.asked, [[first!.id], [first!.id]])
    await until('both to be idle', () => sessions.every(({ id }) => sender.isIdle(id)))
    sender.nudge()
    await until('the claim for all', () => seen.asked.length === 3)
    t.strictSame(seen.asked[2], all)
  },
)
