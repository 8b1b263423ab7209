import { randomInt, randomUUID } from 'node:crypto'
import t from 'tap'
import type { Test } from 'tap'
import { claim } from '../../shared/claims.ts'
import type { Db, Tag } from '../../shared/db.ts'
import { createLogger } from '../../shared/logger.ts'
import { accept } from '../../shared/outbound.ts'
import { testDb } from '../../shared/test/db.ts'
import { matchWhole } from '../../shared/test/match.ts'
import { AckBook } from '../ack-book.ts'
import { EngineError } from '../engine/engine.ts'
import { Sender } from '../sender.ts'
import { until } from './waiting.ts'
import { givenSession, noPacing } from './worker.ts'

/** A message that waits for its time. */
interface Scheduled {
  body: string
  sendAt: Date
}

interface Rig {
  sql: Db
  sessionId: string
  sender: Sender
  /** When what was sent was. */
  sent: number[]
  submit: (...messages: (string | Scheduled)[]) => Promise<unknown>
  open: () => void
  /** Claims what waits, as a worker does that dies then. */
  leave: () => Promise<unknown>
  /** What made the session suspect. */
  troubles: string[]
  /** What became of the first message. */
  first: () => Promise<{ status: string; code: string | null }>
}

/** A sender of one session whose engine takes everything. It polls so seldom that it must be told, if not said otherwise. */
async function rig(
  t: Test,
  {
    onClaim,
    onClaimed = () => {},
    answers = (claimed) => claimed,
    begin = (sql) => sql.begin.bind(sql),
    onSend = () => 1,
    onFind = () => Promise.resolve(null),
    minGapMs = 0,
    pollMs = 60_000,
    ...times
  }: {
    onClaim?: () => Promise<void> | void
    /** Called when a claim is through. */
    onClaimed?: () => void
    /** What becomes of what the database answers to a claim. */
    answers?: <T>(claimed: Promise<T[]>) => Promise<T[]>
    begin?: (sql: Db) => Db['begin']
    /** The ack a send is answered with. */
    onSend?: (keyId: string) => number | Promise<number>
    /** What a look-up is answered with. */
    onFind?: Parameters<Sender['open']>[1]['find']
    minGapMs?: number
    pollMs?: number
    ackWaitMs?: number
    unconfirmedMs?: number
    stalledMs?: number
    unknownMs?: number
  },
): Promise<Rig> {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`update wa_sessions set owner = 'w', fence = 1, status = 'WORKING', linked_at = now()`
  const watched: Tag = async <Row extends object>(...[strings, ...values]: Parameters<Tag>) => {
    if (!strings.join('').includes('claimed as (')) return sql<Row>(strings, ...values)
    await onClaim?.()
    return answers(sql<Row>(strings, ...values)).finally(onClaimed)
  }
  const sent: number[] = []
  const sender = new Sender({
    sql: Object.assign(watched, {
      begin: begin(sql),
      last: sql.last,
      nudge: sql.nudge.bind(sql),
    }),
    worker: 'w',
    log: createLogger('test', { level: 'error', stdout: false }),
    acks: new AckBook(sql),
    attachments: { fetch: () => Promise.reject(new Error('there are no attachments')) },
    pacing: { ...noPacing, WA_SEND_MIN_GAP_MS: minGapMs },
    pollMs,
    ackWaitMs: 1_000,
    ...times,
  })
  const engine: Parameters<Sender['open']>[1] = {
    async send({ chatId, keyId }) {
      sent.push(performance.now())
      return { waMessageId: `true_${chatId}_${keyId}`, ack: await onSend(keyId) }
    },
    find: onFind,
    typing: () => Promise.resolve(),
    checkNumber: (phone) => Promise.resolve({ exists: true, waId: `${phone}@c.us` }),
  }
  const session = { id: sessionId, workspaceId, fence: 1, worker: 'w' }
  const troubles: string[] = []
  const open = () => sender.open(session, engine, (reason) => void troubles.push(reason))
  const leave = () => claim(sql, 'w', [session], noPacing)
  const first = async () => {
    const [row] = await sql<{ status: string; code: string | null }>`
      select status, error_code as code from messages order by seq limit 1`
    return row!
  }
  const submit = (...given: (string | Scheduled)[]) =>
    accept(sql, {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: randomUUID(),
      messages: given
        .map((message) => (typeof message === 'string' ? { body: message } : message))
        .map(({ body, ...schedule }) => ({
          waChatId: `1202555010${body}@c.us`,
          content: { type: 'text', body },
          ...schedule,
        })),
    })
  open()
  await until('what was left to be looked up', () => sender.isIdle(sessionId))
  const running = sender.run()
  t.teardown(async () => {
    sender.stop()
    await sender.close(sessionId)
    await running
  })
  return { sql, sessionId, sender, sent, submit, open, leave, troubles, first }
}

void t.test('a session is asked for its next message when its pace lets it', async (t) => {
  let claims = 0
  const { sql, sessionId, sender, sent, submit } = await rig(t, {
    onClaimed: () => void (claims += 1),
    minGapMs: 500,
  })
  await until('the first claim', () => claims === 1)
  await submit('1', '2')
  sender.nudge([sessionId])
  await until('two are sent', () => sent.length === 2)
  const isLongOver = async () => {
    const [pace] = await sql<{ over: boolean }>`
      select next_send_at < now() - interval '200 ms' as over from wa_session_pacing`
    return pace!.over
  }
  await until('its pace to be over', isLongOver)

  await submit('3')
  sender.nudge([sessionId])
  await until('another is sent', () => sent.length === 3)
  t.equal(claims, 4, 'once for each, after that of an empty queue')

  await submit('4')
  sender.nudge([sessionId])
  await until('one more is sent', () => sent.length === 4)
  t.pass('without a poll, although it came before its time')
})

void t.test('a session is asked again only where something waits', async (t) => {
  let claims = 0
  const { sql, sessionId, sender, sent, submit } = await rig(t, {
    onClaimed: () => void (claims += 1),
  })
  const isOver = async (count: number) =>
    sent.length === count && (await sql`select from outbox`).length === 0
  await until('the first claim', () => claims === 1)
  await submit('1', '2', '2', '3')
  sender.nudge([sessionId])
  await until('four are sent', () => isOver(4))
  await submit('4')
  sender.nudge([sessionId])
  await until('another is sent', () => isOver(5))
  t.equal(claims, 6, 'once for each, after that of an empty queue')
})

void t.test('what comes while a message is on its way is not left lying', async (t) => {
  const sends = [
    { toldOf: 'it', ack: 1 },
    { toldOf: 'any', ack: 2 },
    { toldOf: 'it', ack: 0 },
  ]
  const rigged = await rig(t, {
    async onSend() {
      const send = sends[rigged.sent.length - 1]
      if (!send) return 1
      await rigged.submit(String(rigged.sent.length + 1))
      rigged.sender.nudge(send.toldOf === 'it' ? [rigged.sessionId] : undefined)
      // The claim that passes this session by is over.
      for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate)
      return send.ack
    },
  })
  const { sender, sessionId, sent, submit } = rigged
  await submit('1')
  sender.nudge([sessionId])
  await until('four are sent', () => sent.length === 4)
  t.pass('each without a poll')
})

void t.test('what was looked up in vain is sent again', async (t) => {
  const rigged = await rig(t, {
    onSend() {
      if (rigged.sent.length > 1) return 1
      throw new EngineError('unknown', 'PAGE_AWAY', 'Nobody knows.')
    },
  })
  const { sender, sessionId, sent, submit } = rigged
  await submit('1')
  sender.nudge([sessionId])
  await until('it is sent again', () => sent.length === 2)
  t.pass('without a poll')
})

void t.test('a message that cannot be looked up holds up no other chat', async (t) => {
  const { sender, sessionId, sent, submit, first } = await rig(t, {
    onSend() {
      if (sent.length > 1) return 1
      throw new EngineError('unknown', 'SEND_TIMEOUT', 'No answer.')
    },
    onFind: () => Promise.reject(new EngineError('unknown', 'FIND_FAILED', 'no such chat')),
    pollMs: 50,
    unconfirmedMs: 200,
    unknownMs: 1_500,
  })
  await submit('1')
  sender.nudge([sessionId])
  await until('a try', () => sent.length === 1)
  await submit('2')
  sender.nudge([sessionId])
  await until('the other chat', () => sent.length === 2)
  await until('the end', async () => (await first()).status === 'unknown')
  t.match(await first(), { code: 'OUTCOME_UNKNOWN' })
})

void t.test('nor does one that was left by another worker', async (t) => {
  const { sender, sessionId, sent, submit, open, leave } = await rig(t, {
    onFind: () => Promise.reject(new EngineError('unknown', 'FIND_FAILED', 'no such chat')),
    unconfirmedMs: 200,
  })
  await sender.close(sessionId)
  await submit('1')
  await leave()
  await submit('2')
  open()
  await until('the other chat', () => sent.length === 1)
  t.pass()
})

void t.test('an ack that was lost is looked for however much there is to send', async (t) => {
  let lost: string | undefined
  const { sender, sessionId, submit, first } = await rig(t, {
    async onSend(keyId) {
      lost ??= keyId
      // There is always one more.
      await submit(randomInt(1e9).toString())
      sender.nudge([sessionId])
      return keyId === lost ? 0 : 1
    },
    onFind: ({ chatId, keyId }) =>
      Promise.resolve({ waMessageId: `true_${chatId}_${keyId}`, ack: 1 }),
    unconfirmedMs: 300,
  })
  await submit('1', '2')
  sender.nudge([sessionId])
  await until('it is found', async () => (await first()).status === 'sent')
  t.pass()
})

/** A recipient who never confirms, among others who do. */
const silentAmongOthers = () => {
  let silent: string | undefined
  return {
    onSend: (keyId: string) => (keyId === (silent ??= keyId) ? 0 : 1),
    onFind: ({ chatId, keyId }: { chatId: string; keyId: string }) =>
      Promise.resolve({ waMessageId: `true_${chatId}_${keyId}`, ack: keyId === silent ? 0 : 1 }),
  }
}

void t.test('who does not confirm says nothing of a session in which others do', async (t) => {
  const { sender, sessionId, sent, submit, troubles, first } = await rig(t, {
    ...silentAmongOthers(),
    ...{ pollMs: 50, ackWaitMs: 50, unconfirmedMs: 100, stalledMs: 1_500, unknownMs: 2_500 },
  })
  await submit('silent', 'other')
  sender.nudge([sessionId])
  await until('both are handed over', () => sent.length === 2)
  await until('the end', async () => {
    await submit(randomInt(1e9).toString())
    sender.nudge([sessionId])
    return (await first()).status === 'unknown'
  })
  t.match(await first(), { code: 'OUTCOME_UNKNOWN' })
  t.strictSame(troubles, [])
})

void t.test('a session in which nobody confirms is suspected', async (t) => {
  const { sender, sessionId, submit, troubles } = await rig(t, {
    onSend: () => 0,
    onFind: ({ chatId, keyId }) =>
      Promise.resolve({ waMessageId: `true_${chatId}_${keyId}`, ack: 0 }),
    ...{ pollMs: 50, ackWaitMs: 50, unconfirmedMs: 100, stalledMs: 300 },
  })
  await submit('1')
  sender.nudge([sessionId])
  await until('the suspicion', () => troubles.length > 0)
  t.strictSame(troubles, ['ACKS_STALLED'])
})

void t.test('a session that is opened anew again and again gives up what it must', async (t) => {
  const { sender, sessionId, sent, submit, open, first } = await rig(t, {
    ...silentAmongOthers(),
    ...{ pollMs: 50, ackWaitMs: 50, unconfirmedMs: 100, stalledMs: 10_000, unknownMs: 1_200 },
  })
  await submit('silent')
  sender.nudge([sessionId])
  await until('it is handed over', () => sent.length === 1)
  let openedAt = performance.now()
  await until('the end', async () => {
    if (performance.now() - openedAt > 500) {
      await sender.close(sessionId, 'broken')
      open()
      openedAt = performance.now()
    }
    return (await first()).status === 'unknown'
  })
  t.match(await first(), { code: 'OUTCOME_UNKNOWN' })
})

void t.test('a page that breaks down over look-ups alone is not restarted for ever', async (t) => {
  let looked = 0
  const { sender, sessionId, submit, open, leave, first } = await rig(t, {
    onFind() {
      looked += 1
      return Promise.reject(new EngineError('unknown', 'BROWSER_GONE', 'Target closed.'))
    },
  })
  await sender.close(sessionId)
  await submit('1')
  await leave()
  for (let round = 1; round <= 4; round += 1) {
    open()
    await until('a look-up', () => looked === round)
    t.ok(sender.hasInHand(sessionId), 'the session is not to blame')
    await sender.close(sessionId, 'broken')
  }
  open()
  await until('the end', async () => (await first()).status === 'unknown')
  t.match(await first(), { code: 'PAGE_CRASHED' })
  t.equal(looked, 4)
  t.notOk(sender.hasInHand(sessionId))
})

void t.test('what was put back without a word is sent again', async (t) => {
  let lost = 0
  const rigged = await rig(t, {
    onSend() {
      if (rigged.sent.length > 1) return 1
      throw new EngineError('transient', 'SESSION_NOT_READY', 'It is not connected.')
    },
    begin: (sql) => async (work) => {
      const result = await sql.begin(work)
      if (rigged.sent.length === 1 && lost++ === 0) throw new Error('the answer is lost')
      return result
    },
  })
  const { sender, sessionId, sent, submit } = rigged
  await submit('1')
  sender.nudge([sessionId])
  await until('it is sent again', () => sent.length === 2)
  t.equal(lost, 1, 'without a poll, although an answer was lost')
})

void t.test('what is claimed while its session is opened anew is not left lying', async (t) => {
  let began = 0
  let go!: () => void
  const held = new Promise<void>((resolve) => (go = resolve))
  const { sql, sessionId, sender, sent, submit, open } = await rig(t, {
    onClaim() {
      began += 1
      return began === 2 ? held : undefined
    },
  })
  await until('the first claim', () => began === 1)
  await submit('1')
  sender.nudge([sessionId])
  await until('the claim', () => began === 2)
  await sender.close(sessionId)
  open()
  go()
  await until('it is sent', () => sent.length === 1)
  await until('it is taken out', async () => (await sql`select from outbox`).length === 0)
  matchWhole(
    t,
    await sql`select attempts from messages`,
    [{ attempts: 1 }],
    'and not blamed for it',
  )
})

void t.test('what is claimed by a claim whose answer is lost is not left lying', async (t) => {
  let claims = 0
  let lost = false
  const { sent, submit } = await rig(t, {
    pollMs: 50,
    onClaim: () => void (claims += 1),
    async answers(claimed) {
      const rows = await claimed
      if (rows.length === 0 || lost) return rows
      lost = true
      throw new Error('Connection terminated unexpectedly')
    },
  })
  await until('the first claim', () => claims === 1)
  await submit('1')
  await until('the answer is lost', () => lost)
  await until('it is sent', () => sent.length === 1)
  t.pass('and not looked for a minute later')
})

void t.test("an ack that outruns the answer of the page is not the next message's", async (t) => {
  const acked: string[] = []
  const rigged = await rig(t, {
    onSend(keyId) {
      acked.push(keyId)
      if (acked.length > 1) return 0
      rigged.sender.acked(keyId)
      return 1
    },
  })
  const { sender, sessionId, sent, submit } = rigged
  await submit('1', '2', '3')
  sender.nudge([sessionId])
  await until('three are sent', () => sent.length === 3)
  t.ok(sent[2]! - sent[1]! >= 900, 'the third waits for the ack of the second')
})

void t.test('what falls due by its time is asked for at once', async (t) => {
  let go!: () => void
  const scheduled = new Promise<void>((resolve) => (go = resolve))
  const { sent, submit } = await rig(t, {
    async answers(claimed) {
      const rows = await claimed
      await scheduled
      return rows
    },
  })
  const sendAt = new Date(Date.now() + 500)
  await submit({ body: '1', sendAt })
  await until('it is due', () => new Date() > sendAt)
  go()
  await until('it is sent', () => sent.length === 1)
  t.pass('without another poll')
})
