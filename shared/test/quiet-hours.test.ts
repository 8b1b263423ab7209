import t from 'tap'
import { lockReachOut } from '../new-conversations.ts'
import { ada, bob, cleo, clock, rig, text } from './outbox-rig.ts'

const minute = 60_000
const hour = 60 * minute

/** A time zone that is at UTC until `at` and an hour ahead from then on (`forward`), or was an hour ahead until then (`back`). */
function changingZone(at: Date, change: 'forward' | 'back'): string {
  const local = new Date(at.getTime() + (change === 'forward' ? 0 : hour))
  const day = Math.floor((local.getTime() - Date.UTC(local.getUTCFullYear(), 0, 1)) / (24 * hour))
  const rule = `${day}/${local.toISOString().slice(11, 19)}`
  const other = `${(day + 180) % 365}/00:00:00`
  return `<WIN>0<SUM>-1,${change === 'forward' ? `${rule},${other}` : `${other},${rule}`}`
}

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

void t.test('who wrote before anything was sent to them is answered in quiet hours', async (t) => {
  const { greet, next, dry, receive, quiet } = await rig(t)
  await quiet(clock(-hour), clock(hour))
  t.match(await dry(ada), { heldBy: 'QUIET_HOURS' })
  await receive(ada, 'Hello?')
  t.match(await dry(ada), { heldBy: null, notBefore: null })
  const { id } = await greet(ada)
  t.match(await next(), { messageId: id })
})

void t.test('of several reasons the one that lasts longest is told', async (t) => {
  const { sql, sessionId, greet, read, quiet } = await rig(t)
  const { id } = await greet(ada)
  const soon = new Date(Date.now() + 60_000)
  await sql`update wa_session_pacing set next_send_at = ${soon}, held_by = 'MIN_GAP'`
  t.match(await read(id), { heldBy: 'MIN_GAP', notBefore: soon.toISOString() })
  await quiet(clock(-hour), clock(3 * hour))
  t.match(await read(id), { heldBy: 'QUIET_HOURS' })
  const locked = new Date(Date.now() + 2 * hour)
  await lockReachOut(sql, sessionId, locked)
  t.match(await read(id), { heldBy: 'QUIET_HOURS' }, 'the lock ends in the middle of them')
  const longer = new Date(Date.now() + 4 * hour)
  await lockReachOut(sql, sessionId, longer)
  t.match(await read(id), { heldBy: 'REACHOUT_LOCKED', notBefore: longer.toISOString() })
  await sql`update outbox_lanes set due_at = now() + interval '5 hours'`
  t.match(await read(id), { heldBy: 'RETRY_BACKOFF' })
  await sql`update wa_session_pacing set next_send_at = now() + interval '6 hours'`
  t.match(await read(id), { heldBy: 'MIN_GAP' })
})

void t.test('quiet hours end when they were said to, also where the clock jumps', async (t) => {
  const { greet, read, next, quiet } = await rig(t)
  const { id } = await greet(ada)
  // Five minutes ago it went from 0:00 to 1:00, as it were; they were to end at 0:10.
  const jump = new Date(Date.now() - 5 * minute)
  const end = jump.getTime() + 10 * minute
  await quiet(clock(-hour), clock(5 * minute), changingZone(jump, 'forward'))
  t.match(await read(id), { heldBy: 'QUIET_HOURS' })
  t.ok(Math.abs((await read(id)).notBefore!.getTime() - end) < 2_000)
  t.equal(await next(), undefined)
})

void t.test('quiet hours do not begin again where the clock is put back', async (t) => {
  const { greet, read, next, quiet } = await rig(t)
  const { id } = await greet(ada)
  // In 20 minutes the hour begins anew. They end ten minutes ago by the clock, and 50 minutes from now by it once more.
  const zone = changingZone(new Date(Date.now() + 20 * minute), 'back')
  const end = Date.now() + 50 * minute
  await quiet(clock(-hour), clock(50 * minute), zone)
  t.match(await read(id), { heldBy: 'QUIET_HOURS' })
  t.ok(Math.abs((await read(id)).notBefore!.getTime() - end) < 2_000)
  t.equal(await next(), undefined)
})
