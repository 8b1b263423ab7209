import { randomUUID } from 'node:crypto'
import t from 'tap'
import { recordAck } from '../acks.ts'
import { giveUp, putBack } from '../claims.ts'
import type { Sql } from '../db.ts'
import { messageResource } from '../messages.ts'
import type { Message } from '../messages.ts'
import { cancel, editQueued, retry } from '../waiting-messages.ts'
import { cancelQueued, endOutbox } from '../outbox.ts'
import { deleteSession } from '../wa-sessions.ts'
import { untilLocked } from './locks.ts'
import { matchWhole } from './match.ts'
import { ada, bob, lanesAreRight, rig, text } from './outbox-rig.ts'

void t.test('a message can be taken back and changed until it is claimed', async (t) => {
  const { sql, workspaceId, queue, next, body, confirm, read } = await rig(t)
  const [a1, a2, a3] = await queue(text(ada, 'a1'), text(ada, 'a2'), text(ada, 'a3'))
  t.match(await cancel(sql, workspaceId, a1!.id), { status: 'cancelled' })
  t.match(await cancel(sql, workspaceId, a1!.id), { status: 'cancelled' }, 'twice is once')
  t.match(await editQueued(sql, workspaceId, a2!.id, 'a2, changed'), { body: 'a2, changed' })
  const claimed = (await next())!
  t.equal(body(claimed), 'a2, changed')
  t.match(await cancel(sql, workspaceId, a2!.id), { status: 'sending' })
  t.equal(await editQueued(sql, workspaceId, a2!.id, 'too late'), undefined)
  t.match(await cancel(sql, workspaceId, a3!.id), { status: 'cancelled' })
  await lanesAreRight(t, sql)
  t.equal(await cancel(sql, randomUUID(), a2!.id), undefined, 'not another workspace’s')
  await confirm(claimed)
  t.match(await read(a2!.id), { status: 'sent' })
  await lanesAreRight(t, sql)
})

void t.test(
  'an edit in the very moment of the claim is sent, or refused, never lost',
  async (t) => {
    const { sql, workspaceId, queue, next, body } = await rig(t)
    const [message] = await queue(text(ada, 'before'))
    let claiming: ReturnType<typeof next> | undefined
    await sql.begin(async (tx) => {
      await editQueued(tx, workspaceId, message!.id, 'after')
      claiming = next()
      await untilLocked(sql)
    })
    t.equal(await claiming, undefined, 'what was read before the edit is not claimed')
    t.equal(body(await next()), 'after')
    await lanesAreRight(t, sql)
  },
)

void t.test(
  'of what is edited while it is sent, and again while it waits, the last counts',
  async (t) => {
    const { sql, workspaceId, lane, queue, next, body, confirm, read, edit, due } = await rig(t)
    const [a1] = await queue(text(ada, 'first'))
    const tried = (await next())!
    await edit(a1!, 'second')
    await putBack(sql, lane, tried, { delayMs: 0 })
    const edited = messageResource((await editQueued(sql, workspaceId, a1!.id, 'third'))!)
    t.equal(edited.body, 'third')
    t.strictSame(edited.actions, [])
    const again = (await next())!
    t.equal(body(again), 'third')
    await edit(a1!, 'fourth')
    await confirm(again)
    matchWhole(t, await due(), [{ kind: 'edit', payload: { body: 'fourth' } }])
    matchWhole(t, await read(a1!.id), { body: 'third', actions: [{ value: 'fourth' }] })
  },
)

const whys = {
  'was unknown': { status: 'unknown', code: 'OUTCOME_UNKNOWN', message: '?' },
  'was doubted, then failed': { status: 'failed', code: 'SEND_FAILED', message: 'no' },
  'was doubted, then cancelled': undefined,
} as const
for (const [what, why] of Object.entries(whys)) {
  void t.test(`what may be out is not changed in place: it ${what}`, async (t) => {
    const { sql, workspaceId, lane, queue, next, confirm, read } = await rig(t)
    const [{ id }] = (await queue(text(ada, 'first'))) as [Message]
    let tried = (await next())!
    if (why?.status !== 'unknown') {
      await putBack(sql, lane, tried, { delayMs: 0, doubted: true })
      t.equal(await editQueued(sql, workspaceId, id, 'second'), undefined, 'at once')
      if (why) tried = (await next())!
    }
    if (why) await giveUp(sql, lane, tried, why)
    else await cancel(sql, workspaceId, id)
    t.match(await read(id), {
      status: why ? 'unknown' : 'cancelled',
      error: { code: why?.code ?? 'OUTCOME_UNKNOWN' },
    })
    await retry(sql, workspaceId, id)
    t.equal(await editQueued(sql, workspaceId, id, 'second'), undefined, 'sent once more')
    t.match(await cancel(sql, workspaceId, id), {
      status: 'cancelled',
      errorCode: 'OUTCOME_UNKNOWN',
    })
    await retry(sql, workspaceId, id)
    t.equal(await editQueued(sql, workspaceId, id, 'second'), undefined, 'once more')
    await recordAck(sql, lane, { keyId: (await next())!.keyId, ack: -1 })
    await retry(sql, workspaceId, id)
    t.match(await editQueued(sql, workspaceId, id, 'second'), { body: 'second' }, 'a new id')
    await confirm((await next())!)
    await lanesAreRight(t, sql)
  })
}

void t.test(
  'what certainly is not out is changed in place, also when it is sent once more',
  async (t) => {
    const { sql, workspaceId, lane, queue, next, body, read } = await rig(t)
    const [{ id }] = (await queue(text(ada, 'first'))) as [Message]
    await giveUp(sql, lane, (await next())!, { status: 'failed', code: 'X', message: 'x' })
    await retry(sql, workspaceId, id)
    t.match(await cancel(sql, workspaceId, id), { status: 'cancelled', errorCode: null })
    await retry(sql, workspaceId, id)
    t.match(await editQueued(sql, workspaceId, id, 'second'), { body: 'second' })
    t.equal(body(await next()), 'second')
    t.match(await read(id), { status: 'sending' })
  },
)

void t.test(
  'of what may be out nobody says that it failed because the account changed',
  async (t) => {
    const { sql, lane, queue, next, read } = await rig(t)
    const [a1, b1] = await queue(text(ada, 'a1'), text(bob, 'b1'))
    await putBack(sql, lane, (await next())!, { delayMs: 0, doubted: true })
    await endOutbox(sql, lane, { code: 'ACCOUNT_CHANGED', message: 'x' })
    t.match(await read(a1!.id), { status: 'unknown', error: { code: 'OUTCOME_UNKNOWN' } })
    t.match(await read(b1!.id), { status: 'failed', error: { code: 'ACCOUNT_CHANGED' } })
  },
)

void t.test('a message taken back in the very moment of the claim is not sent', async (t) => {
  const { sql, workspaceId, queue, next, body } = await rig(t)
  const [message] = await queue(text(ada, 'a1'), text(ada, 'a2'))
  let claiming: ReturnType<typeof next> | undefined
  await sql.begin(async (tx) => {
    await cancel(tx, workspaceId, message!.id)
    claiming = next()
    await untilLocked(sql)
  })
  t.equal(await claiming, undefined)
  t.equal(body(await next()), 'a2')
  await lanesAreRight(t, sql)
})

void t.test('what was to open a conversation and was taken back leaves it closed', async (t) => {
  const { sql, workspaceId, sessionId, lane, queue, next } = await rig(t)
  for (const takeBack of [
    (id: string) => cancel(sql, workspaceId, id),
    () => cancelQueued(sql, sessionId),
  ]) {
    const [message] = await queue(text(ada, 'Hello'))
    const claimed = await next()
    t.match(claimed, { cold: true })
    await putBack(sql, lane, claimed!, { delayMs: 0 })
    await takeBack(message!.id)
  }
  await queue(text(ada, 'Hello again'))
  t.match(await next(), { cold: true })
  await lanesAreRight(t, sql)
})

void t.test('a cancel and an ack that comes late do not wait for each other', async (t) => {
  const { sql, workspaceId, lane, queue, next, confirm, read } = await rig(t)
  const [message] = await queue(text(ada, 'Hello'))
  const claimed = await next()
  await putBack(sql, lane, claimed!, { delayMs: 0, doubted: true })
  let both: Promise<unknown> | undefined
  await sql.begin(async (tx) => {
    await tx`select from outbox_lanes for no key update`
    const cancelling = cancel(sql, workspaceId, message!.id)
    await untilLocked(sql)
    both = Promise.all([cancelling, confirm(claimed!)])
    await untilLocked(sql, 2)
  })
  await t.resolves(both!)
  t.match(await read(message!.id), { status: 'sent' }, 'WhatsApp has the last word')
  t.strictSame(await sql`select from outbox`, [])
  await lanesAreRight(t, sql)
})

for (const how of ['accepted', 'sent again'] as const) {
  void t.test(`what is ${how} while its session is deleted does not stay behind`, async (t) => {
    const { sql, workspaceId, sessionId, queue, queueIn, read } = await rig(t)
    const [a1] = await queue(text(ada, 'a1'))
    await cancel(sql, workspaceId, a1!.id)
    const put = async (on: Sql): Promise<string> =>
      how === 'accepted'
        ? (await queueIn(on, text(bob, 'b1')))[0]!.id
        : (await retry(on, workspaceId, a1!.id))!.id
    let deleting: ReturnType<typeof deleteSession> | undefined
    const id = await sql.begin(async (tx) => {
      const id = await put(tx)
      deleting = deleteSession(sql, workspaceId, sessionId)
      await untilLocked(sql)
      return id
    })
    t.equal(await deleting, true)
    t.match(await read(id), { status: 'cancelled' })
    t.strictSame(await sql`select from outbox`, [])
  })

  void t.test(`what is ${how} in the very moment of a deletion is refused`, async (t) => {
    const { sql, workspaceId, sessionId, queue, queueIn } = await rig(t)
    const [a1] = await queue(text(ada, 'a1'))
    await cancel(sql, workspaceId, a1!.id)
    let putting: Promise<unknown> | undefined
    await sql.begin(async (tx) => {
      await deleteSession(tx, workspaceId, sessionId)
      putting = how === 'accepted' ? queueIn(sql, text(bob, 'b1')) : retry(sql, workspaceId, a1!.id)
      void putting.catch(() => {})
      await untilLocked(sql)
    })
    await t.rejects(putting!, { code: how === 'accepted' ? 'NOT_FOUND' : 'SESSION_GONE' })
    t.strictSame(await sql`select from outbox`, [])
  })
}
