import t from 'tap'
import { accept } from '../outbound.ts'
import { cancel, editQueued } from '../waiting-messages.ts'
import { releaseScheduled } from '../outbox.ts'
import { ada, bob, cleo, lanesAreRight, rig, stranger, text } from './outbox-rig.ts'

void t.test('scheduled messages wait for their time and hold up nobody', async (t) => {
  const { sql, workspaceId, queue, next, body, read, confirm } = await rig(t)
  const sendAt = new Date(Date.now() + 3_600_000)
  const [later, , alone] = await queue(
    text(ada, 'later', { sendAt }),
    text(ada, 'now'),
    text(bob, 'alone', { sendAt }),
  )
  t.match(await read(later!.id), {
    status: 'queued',
    heldBy: 'SCHEDULED',
    notBefore: sendAt.toISOString(),
    sendAt: sendAt.toISOString(),
  })
  const now = (await next())!
  t.equal(body(now), 'now')
  await confirm(now)
  t.equal(await next(), undefined)
  t.equal(await releaseScheduled(sql), 0)
  t.match(await editQueued(sql, workspaceId, later!.id, 'later, changed'), {
    sendAt: sendAt.toISOString(),
  })
  await sql`update outbox set send_at = now() where message_id in (${later!.id}, ${alone!.id})`
  t.equal(await releaseScheduled(sql), 2)
  await lanesAreRight(t, sql)
  t.strictSame([body(await next()), body(await next())].sort(), ['alone', 'later, changed'])
  const [other] = await queue(text(cleo, 'never', { sendAt }))
  t.match(await cancel(sql, workspaceId, other!.id), { status: 'cancelled' })
  await lanesAreRight(t, sql)
})

void t.test('what was scheduled for one time leaves in the order it was accepted in', async (t) => {
  const { sql, queue, next, body } = await rig(t)
  const sendAt = new Date(Date.now() + 3_600_000)
  const people = Array.from({ length: 20 }, stranger)
  const bodies = people.map((_, i) => `offer ${i}`)
  await queue(
    ...people.map((to, i) => text(to, bodies[i]!, { sendAt })),
    text(people[0]!, 'the second to the first', { sendAt }),
  )
  await sql`update outbox set send_at = now()`
  const released: number[] = []
  for (let n; (n = await releaseScheduled(sql, 8)) > 0;) released.push(n)
  t.strictSame(released, [8, 8, 5])
  const left: (string | undefined)[] = []
  for (let m; (m = await next());) left.push(body(m))
  t.strictSame(left, bodies)
  await lanesAreRight(t, sql)
})

void t.test('a time that has just passed is now', async (t) => {
  const { sql, queue, next, body, confirm } = await rig(t)
  await queue(text(ada, 'due', { sendAt: new Date(Date.now() - 30_000) }))
  await lanesAreRight(t, sql)
  t.equal(await releaseScheduled(sql), 0, 'nothing is left to be released')
  const due = (await next())!
  t.equal(body(due), 'due')
  await confirm(due)
  await lanesAreRight(t, sql)
})

void t.test('what becomes due waits for nobody who is at work in its chat', async (t) => {
  const { sql, workspaceId, sessionId, queue } = await rig(t)
  const sendAt = new Date(Date.now() + 3_600_000)
  await queue(text(ada, 'a1', { sendAt }), text(bob, 'b1', { sendAt }))
  await sql`update outbox set send_at = now()`
  const submission = { workspaceId, sessionId, sentBy: null, requestId: 'r' }
  const released = await sql.begin(async (tx) => {
    await accept(tx, { ...submission, messages: [text(ada, 'a2')] })
    return sql.begin(async (other) => {
      await other`set local lock_timeout = '2s'`
      return releaseScheduled(other)
    })
  })
  t.equal(released, 1, 'bob')
  t.equal(await releaseScheduled(sql), 1, 'ada')
  t.equal(await releaseScheduled(sql), 0)
  await lanesAreRight(t, sql)
})
