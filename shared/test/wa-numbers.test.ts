import t from 'tap'
import type { Sql } from '../db.ts'
import { learnPerson } from '../identities.ts'
import { learnNumber, redirectChat } from '../wa-numbers.ts'
import { LeaseLost } from '../wa-session-leases.ts'
import { matchWhole } from './match.ts'
import { rig, text } from './outbox-rig.ts'

const dialled = '5511987654321@c.us'
const canonical = '551187654321@c.us'

/** A database whose client dies at its nth transaction. */
const dyingAt = (n: number, sql: Sql): Sql => {
  let begun = 0
  const statement = (...args: Parameters<Sql>) => sql(...args)
  return Object.assign(
    statement as Sql,
    {
      last: sql.last,
      nudge: sql.nudge.bind(sql),
      begin: (...args: Parameters<Sql['begin']>) =>
        (begun += 1) === n ? Promise.reject(new Error('killed')) : sql.begin(...args),
    } as Pick<Sql, 'begin' | 'last' | 'nudge'>,
  )
}

void t.test('whoever dies while a chat is redirected leaves no opt-out behind', async (t) => {
  for (const n of [1, 2]) {
    const { sql, lane, queue, next, receive } = await rig(t)
    await receive(canonical, 'STOP')
    const [offer] = await queue(text(dialled, 'offer'))
    await t.rejects(redirectChat(dyingAt(n, sql), lane, offer!.chatId, canonical), {
      message: 'killed',
    })
    await redirectChat(sql, lane, offer!.chatId, canonical)
    t.match(await next(), { waChatId: canonical, optedOut: true }, `at transaction ${n}`)
  }
})

void t.test(
  'who has lost the lease learns no number, redirects no chat and meets nobody',
  async (t) => {
    const { sql, lane, queue } = await rig(t)
    const [offer] = await queue(text(dialled, 'offer'))
    const stale = { ...lane, fence: lane.fence - 1 }
    await t.rejects(learnNumber(sql, stale, dialled.slice(0, 13), canonical), LeaseLost)
    await t.rejects(redirectChat(sql, stale, offer!.chatId, canonical), LeaseLost)
    const met = { addresses: [canonical], source: 'page' as const, at: new Date() }
    await t.rejects(learnPerson(sql, stale, met), LeaseLost)
    matchWhole(t, await sql`select canonical_wa_id from chats`, [{ canonicalWaId: null }])
    t.same(await sql`select from wa_numbers`, [])
    t.same(await sql`select from contacts where wa_id = ${canonical}`, [])
  },
)
