import t from 'tap'
import { recordAck } from '../acks.ts'
import { foresee } from '../forecast.ts'
import { lockReachOut } from '../new-conversations.ts'
import { matchWhole } from './match.ts'
import { ada, atOnce, bob, cleo, clock, rig, strangers, text } from './outbox-rig.ts'

const minute = 60_000
const hour = 60 * minute

/** Midnight in UTC, so many days from now. */
const inDays = (days: number, hours = 0) =>
  new Date(new Date().setUTCHours(24 * days + hours, 0, 0, 0))

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
    t.match(await forecast('12025559999@c.us'), {
      heldBy: null,
      estimatedSendAt: inDays(2).toISOString(),
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
    t.match(await forecast(cleo, { sendAt: atEleven }), {
      estimatedSendAt: atEight.toISOString(),
    })
  },
)

void t.test('a dry run sees what is on its way in the chat', async (t) => {
  const { greet, next, dry, read } = await rig(t)
  await greet(ada)
  await next()
  const { id } = await greet(ada)
  const { heldBy } = await read(id)
  t.equal(heldBy, 'PREVIOUS_UNCONFIRMED')
  t.match(await dry(ada), { heldBy })
})

void t.test('who may be opened at night is foretold for the end of the quiet hours', async (t) => {
  const { sql, greet, next, dry, pace } = await rig(t)
  await pace({ newContactsPerDay: 1 })
  await greet('12025550102@c.us')
  t.ok(await next())
  await pace({ newContactsPerDay: 1, quietHours: { from: '22:00', to: '08:00' } })
  t.strictSame((await dry(ada)).estimatedSendAt, inDays(1, 8), 'not at midnight')
  await greet('12025550103@c.us')
  t.strictSame((await dry(ada)).estimatedSendAt, inDays(2, 8), 'one a day')
  await sql`update wa_session_pacing set new_contacts = 5`
  t.strictSame((await dry(ada)).estimatedSendAt, inDays(2, 8), 'what was too much is no debt')
})

void t.test('a dry run says of what holds a message what the message says then', async (t) => {
  const { sql, greet, next, dry, pace } = await rig(t)
  const same = async (waChatId: string) => {
    const { heldBy, notBefore } = await dry(waChatId)
    t.match(await greet(waChatId), { heldBy, notBefore })
    return heldBy
  }
  await pace({ newContactsPerDay: 1 })
  await greet(bob)
  t.equal(await same(ada), null, 'the day is not used up yet')
  t.ok(await next())
  t.equal(await same(cleo), 'NEW_CONTACTS_PER_DAY')
  await sql`update wa_session_pacing set next_send_at = now() + interval '1 minute', held_by = 'MIN_GAP', cold_at = now()`
  t.equal(await same('12025550104@c.us'), 'MIN_GAP')
})

void t.test('what is scheduled is foretold with all that holds it then', async (t) => {
  const { sql, sessionId, greet, next, dry, pace } = await rig(t)
  await pace({ newContactsPerDay: 1 })
  await greet('12025550102@c.us')
  t.ok(await next())
  const soon = new Date(Date.now() + minute)
  const { heldBy, notBefore, estimatedSendAt } = await dry(ada, soon)
  t.strictSame([heldBy, notBefore, estimatedSendAt], ['SCHEDULED', soon, inDays(1)])
  const locked = inDays(3, 5)
  await lockReachOut(sql, sessionId, locked)
  t.strictSame((await dry(ada, soon)).estimatedSendAt, locked)
  const later = inDays(4)
  t.strictSame((await dry(ada, later)).estimatedSendAt, later, 'the lock is over by then')
  await greet('12025550103@c.us')
  t.strictSame((await dry(ada)).estimatedSendAt, inDays(4), 'who waits has the day the lock ends')
})

void t.test('an answer in quiet hours has only answers before it', async (t) => {
  const { greet, dry, receive, pace } = await rig(t)
  for (const stranger of strangers(20)) await greet(stranger)
  await receive(ada, 'Hello?')
  const quietHours = { from: clock(-hour).slice(0, 5), to: clock(hour).slice(0, 5) }
  await pace({ minGapMs: minute, jitterMs: 0, quietHours })
  const { ahead, estimatedSendAt, heldBy } = await dry(ada)
  t.match({ ahead, heldBy }, { ahead: 0, heldBy: null })
  t.ok(+estimatedSendAt! < Date.now() + 1_000)
  t.match(await dry('12025550103@c.us'), { ahead: 20 }, 'a stranger waits for them all')
})

void t.test('before an answer go as many strangers as may be opened today', async (t) => {
  const { sql, lane, greet, next, dry, receive, pace } = await rig(t)
  for (const stranger of strangers(20)) await greet(stranger)
  await receive(ada, 'Hello?')
  await pace({ newContactsPerDay: 3 })
  const { ahead } = await dry(ada)
  const { id } = await greet(ada)
  let sent = 0
  for (let one = await next(); one?.messageId !== id; one = await next()) {
    await recordAck(sql, lane, { keyId: one!.keyId, ack: 1 })
    sent += 1
  }
  t.equal(sent, 3)
  t.equal(ahead, sent)
})

void t.test('a greet that runs into quiet hours goes on after them', async (t) => {
  const { greet, dry, receive, pace } = await rig(t)
  for (const stranger of strangers(10)) await greet(stranger)
  const from = clock(20 * minute).slice(0, 5)
  const to = clock(9 * hour).slice(0, 5)
  await pace({ minGapMs: 10 * minute, jitterMs: 0, quietHours: { from, to } })
  const { estimatedSendAt } = await dry(ada)
  // Ten gaps, and the quiet hours.
  const end = Date.now() + 100 * minute + 9 * hour - 20 * minute
  t.ok(Math.abs(+estimatedSendAt! - end) < 2 * minute, estimatedSendAt!.toISOString())
  await receive(ada, 'Hello?')
  t.ok(+(await dry(ada)).estimatedSendAt! < end - hour, 'an answer does not wait for them')
})

void t.test('only who is a stranger is looked up, and missed', async (t) => {
  const { sql, workspaceId, lane, greet, next, dry } = await rig(t)
  await sql`insert into wa_numbers (workspace_id, phone) values (${workspaceId}, '12025550101')`
  matchWhole(t, await dry(ada), { blockedBy: ['NUMBER_NOT_ON_WHATSAPP'] })
  await greet(ada)
  await recordAck(sql, lane, { keyId: (await next())!.keyId, ack: 1 })
  t.strictSame((await dry(ada)).blockedBy, [])
})
