import { randomUUID } from 'node:crypto'
import t from 'tap'
import { recordAck } from '../acks.ts'
import { claim, giveUp, putBack, unconfirmed } from '../claims.ts'
import { connect } from '../db.ts'
import { accept } from '../outbound.ts'
import { endOutbox } from '../outbox.ts'
import { lockReachOut } from '../new-conversations.ts'
import { findPacing } from '../pacing.ts'
import { matchWhole } from './match.ts'
import { ada, atOnce, bob, cleo, lanesAreRight, rig, text, worker } from './outbox-rig.ts'

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
  matchWhole(t, await unconfirmed(sql, lane, 0, atOnce), [{ sameLogin: true, doubts: 0 }])
  await sql`update wa_sessions set login_epoch = login_epoch + 1 where id = ${lane.id}`
  const [left] = await unconfirmed(sql, lane, 0, atOnce)
  t.match(left, { sameLogin: false })
  await putBack(sql, lane, left!, { delayMs: 0, doubted: true })
  t.match(await next(), { sameLogin: true, doubts: 1 })
})

void t.test('what WhatsApp has seen nothing of opens no conversation', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, next, body, read, receive } = await rig(t)
  const budget = { ...atOnce, WA_NEW_CONTACTS_PER_DAY: 1 }
  const [a1, b1] = await queue(text(ada, 'a1'), text(bob, 'b1'))
  const unchecked = { delayMs: 0, forgiven: true, unseen: true }
  const opened = async () => (await findPacing(sql, workspaceId, sessionId))!.state
  const first = (await next(budget))!
  t.match(await read(b1!.id), { heldBy: 'NEW_CONTACTS_PER_DAY' })
  await putBack(sql, lane, first, { ...unchecked, hold: { ms: 60_000, by: 'NUMBER_NOT_CHECKED' } })
  t.match(await opened(), { newContactsToday: 0, newContactsHeldBy: 'NUMBER_NOT_CHECKED' })
  for (const { id } of [a1!, b1!])
    t.match(await read(id), { status: 'queued', heldBy: 'NUMBER_NOT_CHECKED', attempts: 0 })
  t.equal(await next(budget), undefined)
  await receive(cleo, 'hello')
  await queue(text(cleo, 'c1'))
  t.equal(body(await next(budget)), 'c1', 'who is known is answered')

  await sql`update wa_session_pacing set cold_at = now()`
  const second = (await next(budget))!
  t.match([body(second), second.opens, second.cold], ['b1', true, true], 'whose turn it is now')
  await putBack(sql, lane, second, unchecked)
  t.match(await opened(), { newContactsToday: 0, newContactsHeldBy: null })
  const again = (await next(budget))!
  t.match([body(again), again.opens], ['a1', true])
  await putBack(sql, lane, again, { delayMs: 0 })
  const counted = (await next(budget))!
  t.match([body(counted), counted.opens], ['a1', false])
  await putBack(sql, lane, counted, unchecked)
  t.match(await opened(), { newContactsToday: 1 }, 'it may have been seen before')
  await lanesAreRight(t, sql)
})

void t.test('a short hold does not shorten a long one', async (t) => {
  const { sql, sessionId, lane, queue, next, read } = await rig(t)
  const [a1] = await queue(text(ada, 'a1'))
  const claimed = (await next())!
  const locked = new Date(Date.now() + 2 * 3_600_000)
  await lockReachOut(sql, sessionId, locked)
  const hold = { ms: 60_000, by: 'NUMBER_NOT_CHECKED' } as const
  await putBack(sql, lane, claimed, { delayMs: 0, forgiven: true, unseen: true, hold })
  t.match(await read(a1!.id), { heldBy: 'REACHOUT_LOCKED', notBefore: locked })
})
