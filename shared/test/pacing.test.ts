import t from 'tap'
import { recordAck } from '../acks.ts'
import { acceptBatch, cancelBatch } from '../batches.ts'
import { giveUp, putBack } from '../claims.ts'
import { foresee } from '../forecast.ts'
import { accept } from '../outbound.ts'
import { releaseScheduled } from '../outbox.ts'
import { lockReachOut } from '../new-conversations.ts'
import { findPacing, setPacing } from '../pacing.ts'
import type { Pacing, PacingConfig } from '../pacing.ts'
import { writeTransition } from '../wa-session-transitions.ts'
import { ada, atOnce, bob, cleo, noPace, rig, stranger, text } from './outbox-rig.ts'

const hour = 3_600_000

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

void t.test('a reach-out lock stops new conversations only', async (t) => {
  const { sql, lane, queue, next, body, read, receive } = await rig(t)
  await receive(cleo, 'hello')
  const [a1, b1] = await queue(text(ada, 'a1'), text(bob, 'b1'))
  const refused = (await next())!
  const until = new Date(Date.now() + 7_200_000)
  await recordAck(sql, lane, { keyId: refused.keyId, ack: -1, code: 'REACHOUT_LOCKED', until })
  t.match(await read(a1!.id), { status: 'failed', error: { code: 'REACHOUT_LOCKED' } })
  t.equal(await next(), undefined)
  t.match(await read(b1!.id), { heldBy: 'REACHOUT_LOCKED', notBefore: until.toISOString() })
  const [, a2] = await queue(text(cleo, 'c1'), text(ada, 'a2'))
  t.equal(body(await next()), 'c1')
  t.equal(await next(), undefined, 'the conversation that was refused is not open')
  t.match(await read(a2!.id), { heldBy: 'REACHOUT_LOCKED', notBefore: until.toISOString() })
  await receive(ada, 'hello')
  t.equal(body(await next()), 'a2', 'she has opened it')
})

void t.test(
  'a lock that is over by our clock, though it was met just now, holds for half an hour',
  async (t) => {
    const { sql, lane, queue, next, read } = await rig(t)
    const [, b1] = await queue(text(ada, 'a1'), text(bob, 'b1'))
    const { keyId } = (await next())!
    const until = new Date(Date.now() - 60_000)
    await recordAck(sql, lane, { keyId, ack: -1, code: 'REACHOUT_LOCKED', until })
    t.equal(await next(), undefined)
    const { heldBy, notBefore } = await read(b1!.id)
    t.equal(heldBy, 'REACHOUT_LOCKED')
    t.ok(Math.abs(+notBefore! - Date.now() - hour / 2) < 10_000)
  },
)

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

void t.test('a lock holds a first message that is tried again, the budget does not', async (t) => {
  const { sql, lane, queue, next, body, read, receive, dry } = await rig(t)
  const budget = { ...atOnce, WA_NEW_CONTACTS_PER_DAY: 1 }
  const [a1] = await queue(text(ada, 'a1'))
  await putBack(sql, lane, (await next(budget))!, { delayMs: 0 })
  const again = (await next(budget))!
  t.equal(body(again), 'a1', 'it was counted')
  const until = new Date(Date.now() + 2 * hour)
  await lockReachOut(sql, lane.id, until)
  await putBack(sql, lane, again, { delayMs: 0 })
  t.equal(await next(), undefined)
  const held = { heldBy: 'REACHOUT_LOCKED', notBefore: until }
  t.match(await read(a1!.id), held)
  t.match(await dry(ada), held, 'and so does what is to follow it')
  await sql`update wa_session_pacing set locked_at = now()`
  t.match(await read(a1!.id), { heldBy: null })
  t.match(await dry(ada), { heldBy: null })
  await lockReachOut(sql, lane.id, until)
  await receive(ada, 'hello')
  t.match(await read(a1!.id), { heldBy: null })
  t.match(await next(), { messageId: a1!.id, opens: false }, 'she has opened it')
})

void t.test('what was counted yesterday is not given back today', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, next } = await rig(t)
  const [a1] = await queue(text(ada, 'a1'))
  await putBack(sql, lane, (await next())!, { delayMs: 60_000 })
  await sql`update wa_session_pacing set new_on = new_on - 1`
  await sql`update outbox set counted_at = counted_at - interval '1 day'`
  await queue(text(bob, 'b1'))
  await next()
  await sql`update outbox_lanes set due_at = now() where due_at < 'infinity'`
  const again = (await next())!
  t.match(again, { messageId: a1!.id, opens: false })
  await giveUp(sql, lane, again, { status: 'failed', code: 'NUMBER_NOT_ON_WHATSAPP', message: '' })
  const { state } = (await findPacing(sql, workspaceId, sessionId))!
  t.equal(state.newContactsToday, 1, 'the conversation with Bob')
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

void t.test('to another number everybody is a stranger, and its warm-up begins', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, next, confirm, receive, pace } = await rig(t)
  const works = (waId: string) =>
    writeTransition(
      sql,
      { ...lane, worker: 'test' },
      {
        ...{ from: 'STARTING', to: 'WORKING', reason: null },
        account: { waId, lid: null, phone: null, pushName: null },
      },
    )
  await works('12025559998@c.us')
  const group = '120363000000000001@g.us'
  await queue(text(ada, 'a1'), text(group, 'g1'))
  for (let claimed = await next(); claimed; claimed = await next()) await confirm(claimed)
  await receive(bob, 'hello')
  await pace({ numberSince: '2020-01-01', typing: true })
  await lockReachOut(sql, sessionId, null)
  const isCold = async (to: string) => {
    const [sent] = await queue(text(to, 'x'))
    const claimed = await next()
    t.equal(claimed?.messageId, sent!.id)
    await confirm(claimed!)
    return claimed!.cold
  }
  await works('12025559998@c.us')
  t.strictSame([await isCold(ada), await isCold(group)], [false, false], 'it is the same number')

  await works('12025559999@c.us')
  t.match(await findPacing(sql, workspaceId, sessionId), {
    ...{ numberSince: null, typing: true },
    state: { newContactsToday: 0, newContactsHeldBy: null },
  })
  t.strictSame([await isCold(ada), await isCold(bob), await isCold(group)], [true, true, false])
  t.equal(await isCold(ada), false, 'now it has written to her')
})

void t.test('a lock of WhatsApp’s outlasts a larger budget', async (t) => {
  const { sql, workspaceId, sessionId, greet, read, next } = await rig(t)
  const { id } = await greet(ada)
  const tomorrow = new Date(Date.now() + 5 * hour)
  await sql`update wa_session_pacing set cold_at = ${tomorrow}, cold_held_by = 'NEW_CONTACTS_PER_DAY'`
  const locked = new Date(Date.now() + hour)
  await lockReachOut(sql, sessionId, locked)
  t.match(await read(id), { heldBy: 'NEW_CONTACTS_PER_DAY', notBefore: tomorrow.toISOString() })
  await setPacing(sql, workspaceId, sessionId, { ...noPace, newContactsPerDay: 100 }, atOnce)
  t.match(await read(id), { heldBy: 'REACHOUT_LOCKED', notBefore: locked.toISOString() })
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
    const { sql, workspaceId, sessionId, greet, read, next } = await rig(t)
    const pace = (pacing: Partial<Pacing>) =>
      setPacing(sql, workspaceId, sessionId, { ...noPace, ...pacing }, config)
    const queued: string[] = []
    for (let i = 0; i < 9; i++) queued.push((await greet(`1202555010${i}@c.us`)).id)
    await pace(before)
    for (let i = 0; i < n; i++) t.ok(await next(config), what)
    await pace(after)
    t.equal(await next(config), undefined, `${what}: none leaves`)
    t.match(await read(queued.at(-1)!), { heldBy }, what)
  }
})

void t.test('a pace that is eased lets go what it held', async (t) => {
  const { sql, workspaceId, sessionId, greet, next } = await rig(t)
  for (let i = 0; i < 9; i++) await greet(`1202555010${i}@c.us`)
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
  const { sql, workspaceId, sessionId, greet, next } = await rig(t)
  const pace = (timeZone: string) =>
    setPacing(sql, workspaceId, sessionId, { ...noPace, newContactsPerDay: 1, timeZone }, atOnce)
  await pace('UTC')
  await greet(ada)
  await greet('12025550102@c.us')
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
