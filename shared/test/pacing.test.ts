import t from 'tap'
import type { Test } from 'tap'
import { recordAck } from '../acks.ts'
import { acceptBatch, cancelBatch } from '../batches.ts'
import { foresee } from '../forecast.ts'
import { accept } from '../outbound.ts'
import { putBack } from '../claims.ts'
import { releaseScheduled } from '../outbox.ts'
import { findPacing, lockReachOut, setPacing } from '../pacing.ts'
import type { Pacing, PacingConfig } from '../pacing.ts'
import { ada, atOnce, noPace, rig as sendingRig, text } from './outbox-rig.ts'

const minute = 60_000
const hour = 60 * minute

async function rig(t: Test) {
  const sending = await sendingRig(t)
  const { sql, workspaceId, sessionId } = sending
  const queue = async (waChatId: string) => (await sending.queue(text(waChatId, 'Hello')))[0]!
  const receive = (from: string) => sending.receive(from, 'Hello?')
  const dry = async (waChatId: string, sendAt?: Date) =>
    (await foresee(sql, workspaceId, { sessionId, waChatId, sendAt }, atOnce))!
  /** Sets quiet hours in a zone of its own. */
  const quiet = (from: string, to: string, zone = 'UTC') =>
    sql`update wa_session_pacing set quiet_from = ${from}::time, quiet_to = ${to}::time, time_zone = ${zone}`
  return { ...sending, queue, receive, dry, quiet }
}

/** The time of day in UTC so many milliseconds from now. */
const clock = (ms: number) => new Date(Date.now() + ms).toISOString().slice(11, 19)

/** A time zone that is at UTC until `at` and an hour ahead from then on (`forward`), or was an hour ahead until then (`back`). */
function changingZone(at: Date, change: 'forward' | 'back'): string {
  const local = new Date(at.getTime() + (change === 'forward' ? 0 : hour))
  const day = Math.floor((local.getTime() - Date.UTC(local.getUTCFullYear(), 0, 1)) / (24 * hour))
  const rule = `${day}/${local.toISOString().slice(11, 19)}`
  const other = `${(day + 180) % 365}/00:00:00`
  return `<WIN>0<SUM>-1,${change === 'forward' ? `${rule},${other}` : `${other},${rule}`}`
}

void t.test('who wrote before anything was sent to them is answered in quiet hours', async (t) => {
  const { queue, next, dry, receive, quiet } = await rig(t)
  await quiet(clock(-hour), clock(hour))
  t.match(await dry(ada), { heldBy: 'QUIET_HOURS' })
  await receive(ada)
  t.match(await dry(ada), { heldBy: null, notBefore: null })
  const { id } = await queue(ada)
  t.match(await next(), { messageId: id })
})

void t.test('of several reasons the one that lasts longest is told', async (t) => {
  const { sql, sessionId, queue, read, quiet } = await rig(t)
  const { id } = await queue(ada)
  const soon = new Date(Date.now() + 60_000)
  await sql`update wa_session_pacing set next_send_at = ${soon}, held_by = 'MIN_GAP'`
  t.match(await read(id), { heldBy: 'MIN_GAP', notBefore: soon })
  await quiet(clock(-hour), clock(3 * hour))
  t.match(await read(id), { heldBy: 'QUIET_HOURS' })
  const locked = new Date(Date.now() + 2 * hour)
  await lockReachOut(sql, sessionId, locked)
  t.match(await read(id), { heldBy: 'QUIET_HOURS' }, 'the lock ends in the middle of them')
  const longer = new Date(Date.now() + 4 * hour)
  await lockReachOut(sql, sessionId, longer)
  t.match(await read(id), { heldBy: 'REACHOUT_LOCKED', notBefore: longer })
  await sql`update outbox_lanes set due_at = now() + interval '5 hours'`
  t.match(await read(id), { heldBy: 'RETRY_BACKOFF' })
  await sql`update wa_session_pacing set next_send_at = now() + interval '6 hours'`
  t.match(await read(id), { heldBy: 'MIN_GAP' })
})

void t.test('a dry run sees what is on its way in the chat', async (t) => {
  const { queue, next, dry, read } = await rig(t)
  await queue(ada)
  await next()
  const { id } = await queue(ada)
  const { heldBy } = await read(id)
  t.equal(heldBy, 'PREVIOUS_UNCONFIRMED')
  t.match(await dry(ada), { heldBy })
})

/** Strangers, each by the address of his own. */
const strangers = (n: number) =>
  Array.from({ length: n }, (_, i) => `1202555${String(2_000 + i)}@c.us`)

/** Midnight in UTC, so many days from now. */
const inDays = (days: number, hours = 0) =>
  new Date(new Date().setUTCHours(24 * days + hours, 0, 0, 0))

void t.test('who may be opened at night is foretold for the end of the quiet hours', async (t) => {
  const { sql, queue, next, dry, pace } = await rig(t)
  await pace({ newContactsPerDay: 1 })
  await queue('12025550102@c.us')
  t.ok(await next())
  await pace({ newContactsPerDay: 1, quietHours: { from: '22:00', to: '08:00' } })
  t.strictSame((await dry(ada)).estimatedSendAt, inDays(1, 8), 'not at midnight')
  await queue('12025550103@c.us')
  t.strictSame((await dry(ada)).estimatedSendAt, inDays(2, 8), 'one a day')
  await sql`update wa_session_pacing set new_contacts = 5`
  t.strictSame((await dry(ada)).estimatedSendAt, inDays(2, 8), 'what was too much is no debt')
})

void t.test('what is scheduled is foretold with all that holds it then', async (t) => {
  const { sql, sessionId, queue, next, dry, pace } = await rig(t)
  await pace({ newContactsPerDay: 1 })
  await queue('12025550102@c.us')
  t.ok(await next())
  const soon = new Date(Date.now() + minute)
  const { heldBy, notBefore, estimatedSendAt } = await dry(ada, soon)
  t.strictSame([heldBy, notBefore, estimatedSendAt], ['SCHEDULED', soon, inDays(1)])
  const locked = inDays(3, 5)
  await lockReachOut(sql, sessionId, locked)
  t.strictSame((await dry(ada, soon)).estimatedSendAt, locked)
  const later = inDays(4)
  t.strictSame((await dry(ada, later)).estimatedSendAt, later, 'the lock is over by then')
  await queue('12025550103@c.us')
  t.strictSame((await dry(ada)).estimatedSendAt, inDays(4), 'who waits has the day the lock ends')
})

void t.test('an answer in quiet hours has only answers before it', async (t) => {
  const { queue, dry, receive, pace } = await rig(t)
  for (const stranger of strangers(20)) await queue(stranger)
  await receive(ada)
  const quietHours = { from: clock(-hour).slice(0, 5), to: clock(hour).slice(0, 5) }
  await pace({ minGapMs: minute, jitterMs: 0, quietHours })
  const { ahead, estimatedSendAt, heldBy } = await dry(ada)
  t.match({ ahead, heldBy }, { ahead: 0, heldBy: null })
  t.ok(+estimatedSendAt! < Date.now() + 1_000)
  t.match(await dry('12025550103@c.us'), { ahead: 20 }, 'a stranger waits for them all')
})

void t.test('before an answer go as many strangers as may be opened today', async (t) => {
  const { sql, lane, queue, next, dry, receive, pace } = await rig(t)
  for (const stranger of strangers(20)) await queue(stranger)
  await receive(ada)
  await pace({ newContactsPerDay: 3 })
  const { ahead } = await dry(ada)
  const { id } = await queue(ada)
  let sent = 0
  for (let one = await next(); one?.messageId !== id; one = await next()) {
    await recordAck(sql, lane, { keyId: one!.keyId, ack: 1 })
    sent += 1
  }
  t.equal(sent, 3)
  t.equal(ahead, sent)
})

void t.test('a queue that runs into quiet hours goes on after them', async (t) => {
  const { queue, dry, receive, pace } = await rig(t)
  for (const stranger of strangers(10)) await queue(stranger)
  const from = clock(20 * minute).slice(0, 5)
  const to = clock(9 * hour).slice(0, 5)
  await pace({ minGapMs: 10 * minute, jitterMs: 0, quietHours: { from, to } })
  const { estimatedSendAt } = await dry(ada)
  // Ten gaps, and the quiet hours.
  const end = Date.now() + 100 * minute + 9 * hour - 20 * minute
  t.ok(Math.abs(+estimatedSendAt! - end) < 2 * minute, estimatedSendAt!.toISOString())
  await receive(ada)
  t.ok(+(await dry(ada)).estimatedSendAt! < end - hour, 'an answer does not wait for them')
})

void t.test('only who is a stranger is looked up, and missed', async (t) => {
  const { sql, workspaceId, lane, queue, next, dry } = await rig(t)
  await sql`insert into wa_numbers (workspace_id, phone) values (${workspaceId}, '12025550101')`
  t.match(await dry(ada), { blockedBy: ['NUMBER_NOT_ON_WHATSAPP'] })
  await queue(ada)
  await recordAck(sql, lane, { keyId: (await next())!.keyId, ack: 1 })
  t.strictSame((await dry(ada)).blockedBy, [])
})

void t.test('quiet hours end when they were said to, also where the clock jumps', async (t) => {
  const { queue, read, next, quiet } = await rig(t)
  const { id } = await queue(ada)
  // Five minutes ago it went from 0:00 to 1:00, as it were; they were to end at 0:10.
  const jump = new Date(Date.now() - 5 * minute)
  const end = jump.getTime() + 10 * minute
  await quiet(clock(-hour), clock(5 * minute), changingZone(jump, 'forward'))
  t.match(await read(id), { heldBy: 'QUIET_HOURS' })
  t.ok(Math.abs((await read(id)).notBefore!.getTime() - end) < 2_000)
  t.equal(await next(), undefined)
})

void t.test('quiet hours do not begin again where the clock is put back', async (t) => {
  const { queue, read, next, quiet } = await rig(t)
  const { id } = await queue(ada)
  // In 20 minutes the hour begins anew. They end ten minutes ago by the clock, and 50 minutes from now by it once more.
  const zone = changingZone(new Date(Date.now() + 20 * minute), 'back')
  const end = Date.now() + 50 * minute
  await quiet(clock(-hour), clock(50 * minute), zone)
  t.match(await read(id), { heldBy: 'QUIET_HOURS' })
  t.ok(Math.abs((await read(id)).notBefore!.getTime() - end) < 2_000)
  t.equal(await next(), undefined)
})

void t.test('a lock of WhatsApp’s outlasts a larger budget', async (t) => {
  const { sql, workspaceId, sessionId, queue, read, next } = await rig(t)
  const { id } = await queue(ada)
  const tomorrow = new Date(Date.now() + 5 * hour)
  await sql`update wa_session_pacing set cold_at = ${tomorrow}, cold_held_by = 'NEW_CONTACTS_PER_DAY'`
  const locked = new Date(Date.now() + hour)
  await lockReachOut(sql, sessionId, locked)
  t.match(await read(id), { heldBy: 'NEW_CONTACTS_PER_DAY', notBefore: tomorrow })
  await setPacing(sql, workspaceId, sessionId, { ...noPace, newContactsPerDay: 100 }, atOnce)
  t.match(await read(id), { heldBy: 'REACHOUT_LOCKED', notBefore: locked })
  t.equal(await next(), undefined)
})

void t.test('a pace that is changed counts what has left already', async (t) => {
  const none: Partial<Pacing> = {}
  const gapOf = (ms: number): PacingConfig => ({ ...atOnce, WA_SEND_MIN_GAP_MS: ms })
  const young: PacingConfig = { ...atOnce, WA_NEW_CONTACTS_PER_DAY: 3 }
  const cases: [
    what: string,
    config: PacingConfig,
    before: Partial<Pacing>,
    after: Partial<Pacing>,
    n: number,
    heldBy: string,
  ][] = [
    [
      'a gap that is shortened, and a cap of one',
      atOnce,
      { minGapMs: 120_000, perMinute: 1 },
      { minGapMs: 0, perMinute: 1 },
      1,
      'SENDS_PER_MINUTE',
    ],
    [
      'the gap of the settings, and something else',
      gapOf(60_000),
      none,
      { typing: true },
      1,
      'MIN_GAP',
    ],
    ['a cap that is lowered', atOnce, { perMinute: 30 }, { perMinute: 2 }, 4, 'SENDS_PER_MINUTE'],
    ['any number, then a cap', atOnce, none, { perMinute: 2 }, 3, 'SENDS_PER_MINUTE'],
    [
      'a budget that is lowered',
      atOnce,
      { newContactsPerDay: 30 },
      { newContactsPerDay: 2 },
      4,
      'NEW_CONTACTS_PER_DAY',
    ],
    [
      'the budget of the settings, and something else',
      young,
      none,
      { typing: true },
      3,
      'NEW_CONTACTS_PER_DAY',
    ],
  ]
  for (const [what, config, before, after, n, heldBy] of cases) {
    const { sql, workspaceId, sessionId, queue, read, next } = await rig(t)
    const pace = (pacing: Partial<Pacing>) =>
      setPacing(sql, workspaceId, sessionId, { ...noPace, ...pacing }, config)
    const queued: string[] = []
    for (let i = 0; i < 9; i++) queued.push((await queue(`1202555010${i}@c.us`)).id)
    await pace(before)
    for (let i = 0; i < n; i++) t.ok(await next(config), what)
    await pace(after)
    t.equal(await next(config), undefined, `${what}: none leaves`)
    t.match(await read(queued.at(-1)!), { heldBy }, what)
  }
})

void t.test('a pace that is eased lets go what it held', async (t) => {
  const { sql, workspaceId, sessionId, queue, next } = await rig(t)
  for (let i = 0; i < 9; i++) await queue(`1202555010${i}@c.us`)
  const pace = (pacing: Partial<Pacing>) =>
    setPacing(sql, workspaceId, sessionId, { ...noPace, ...pacing }, atOnce)
  for (const [held, eased] of [
    [{ minGapMs: 60_000 }, { minGapMs: 0 }],
    [{ perMinute: 1 }, { perMinute: 9 }],
    [{ newContactsPerDay: 1 }, { newContactsPerDay: 9 }],
  ]) {
    await sql`update wa_session_pacing set next_send_at = '-infinity', recent = '{}', new_contacts = 0`
    await pace(held!)
    t.ok(await next())
    t.equal(await next(), undefined)
    await pace(eased!)
    t.ok(await next(), Object.keys(eased!).join())
  }
})

void t.test('what was opened today counts in another time zone, too', async (t) => {
  const { sql, workspaceId, sessionId, queue, next } = await rig(t)
  const pace = (timeZone: string) =>
    setPacing(sql, workspaceId, sessionId, { ...noPace, newContactsPerDay: 1, timeZone }, atOnce)
  await pace('UTC')
  await queue(ada)
  await queue('12025550102@c.us')
  t.ok(await next())
  // It is another day there, whatever the hour is in UTC.
  const ahead = new Date().getUTCHours() >= 12
  const zone = ahead ? 'Etc/GMT-14' : 'Etc/GMT+12'
  const { state } = (await pace(zone))!
  const midnight = new Date().setUTCHours(ahead ? 34 : 12, 0, 0, 0)
  t.strictSame([state.newContactsToday, state.newContactsHeldUntil], [1, new Date(midnight)])
  t.equal(await next(), undefined)
  // What was opened on another day counts there as little as here.
  await sql`update wa_session_pacing set new_on = new_on - 1`
  t.match(await pace('UTC'), { state: { newContactsToday: 0, newContactsHeldUntil: null } })
  t.match(await pace(zone), { state: { newContactsToday: 0 } })
  t.ok(await next())
  t.match(await findPacing(sql, workspaceId, sessionId), { state: { newContactsToday: 1 } })
})

void t.test(
  'what becomes due takes its place behind what waits, in the order of its time',
  async (t) => {
    const { sql, workspaceId, sessionId, next, lane } = await rig(t)
    const at = (ms: number) => new Date(Date.now() + ms)
    const outcomes = await accept(sql, {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: 'r',
      messages: [
        ['third', at(3 * hour)],
        ['second', at(2 * hour)],
        ['first', undefined],
      ].map(([body, sendAt]) => ({
        waChatId: ada,
        content: { type: 'text', body: body as string },
        sendAt: sendAt as Date | undefined,
      })),
    })
    t.equal(outcomes.length, 3)
    await sql`update outbox set send_at = send_at - interval '4 hours' where send_at is not null`
    await releaseScheduled(sql)
    const sent: string[] = []
    for (let claimed = await next(); claimed; claimed = await next()) {
      if (claimed.content.type === 'text') sent.push(claimed.content.body)
      await recordAck(sql, lane, { keyId: claimed.keyId, ack: 1 })
    }
    t.strictSame(sent, ['first', 'second', 'third'])
  },
)

void t.test('what is taken back keeps the number of its attempts', async (t) => {
  const { sql, workspaceId, sessionId, lane, next, read } = await rig(t)
  const submission = { workspaceId, sessionId, sentBy: null, requestId: 'r' }
  const text = { type: 'text', body: 'Hello' } as const
  const { batchId } = await acceptBatch(
    sql,
    { ...submission, messages: [{ waChatId: ada, content: text }] },
    [0],
    [],
  )
  const tried = (await next())!
  await putBack(sql, lane, tried, { delayMs: 60_000 })
  await cancelBatch(sql, workspaceId, batchId)
  t.match(await read(tried.messageId), { status: 'cancelled', attempts: 1 })
})
