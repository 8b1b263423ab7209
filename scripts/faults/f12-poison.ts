/** F12: messages over which the page throws, or breaks down, among others that are innocent. */
import type { Db } from '../../shared/db.ts'
import { EngineError } from '../../wa-worker/engine/engine.ts'
import type { SimulatorEngine } from '../../wa-worker/engine/simulator.ts'
import { openInside } from './inside.ts'
import type { Family, Lab } from './lab.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'

export const poison: Family = { id: 'F12', run }

const sessions = 5
const maxCrashes = 3
const expected: Record<string, string> = { throws: 'SEND_FAILED', breaks: 'PAGE_CRASHED' }

async function run(lab: Lab): Promise<Row[]> {
  const random = lab.random('F12')
  const inside = await openInside(lab, 'f12', sessions, { changeEngine: poisonable })
  const { sql } = inside
  try {
    const all = lab.scaled(500)
    const poisons = lab.scaled(20)
    const bodies = random.shuffled(
      Array.from({ length: all }, (_, index) =>
        index >= poisons ? 'innocent' : index % 2 === 0 ? 'throws' : 'breaks',
      ),
    )
    const per = Math.ceil(all / sessions)
    for (const [index, session] of inside.sessions.entries()) {
      // Poison has a chat of its own now and then, and now and then not.
      const messages = bodies.slice(index * per, (index + 1) * per).map((body) => ({
        to: `1213${index}${random.between(1, 20)}`.padEnd(8, '1') + '0006',
        body,
      }))
      await inside.accept(session, messages)
    }
    const before = await lastOf(sql)
    const emptied = async () => {
      // Waits between tries are cut short, as if time went by faster.
      await sql`
        update outbox_lanes set due_at = now() where due_at > now() and due_at < 'infinity'`
      return (await sql`select from outbox limit 1`).length === 0
    }
    await eventually('the outbox is empty', emptied, 150_000).catch(() => {})
    const failed = new Trials('F12', 'poison: failed, with its code')
    const delivered = new Trials('F12', 'the others: delivered')
    const rows = await sql<{ body: string; status: string; errorCode: string | null; ack: number }>`
      select body, status, error_code, ack from messages where direction = 'outbound'`
    for (const { body, status, errorCode, ack } of rows) {
      const end = `${body} ended as ${status} ${errorCode ?? ''}`
      if (body === 'innocent') delivered.check(ack >= 1, end)
      else failed.check(status === 'failed' && errorCode === expected[body], end)
    }
    const breaking = rows.filter(({ body }) => body === 'breaks').length
    const reasons = await sql<{ reason: string; n: number }>`
      select reason, count(*)::int as n from wa_session_history
      where id > ${before} and from_status = 'WORKING' group by reason order by reason`
    const restarts = reasons.find(({ reason }) => reason === 'BROWSER_CRASHED')?.n ?? 0
    const loop = new Trials('F12', `no crash loop: at most ${maxCrashes} restarts a poison`)
    loop.check(restarts <= maxCrashes * breaking, `${restarts} restarts for ${breaking} poisons`)
    await loop.attempt(async () => {
      await eventually('all sessions work', async () => {
        const working = await sql`select from wa_sessions where status = 'WORKING'`
        return working.length === sessions
      })
    })
    failed.note = `${breaking} break the page, sessions interrupted: ${reasons.map(({ reason, n }) => `${n} × ${reason}`).join(', ')}; simulator in this process, waits between tries cut short`
    return [failed.row(), delivered.row(), loop.row()]
  } finally {
    await inside.close()
  }
}

async function lastOf(sql: Db): Promise<number> {
  const [row] = await sql<{ last: number }>`
    select coalesce(max(id), 0)::bigint as last from wa_session_history`
  return row!.last
}

function poisonable(engine: SimulatorEngine): SimulatorEngine {
  const send = engine.send.bind(engine)
  engine.send = async (message) => {
    const body = message.content.type === 'text' ? message.content.body : ''
    if (body === 'throws')
      throw new EngineError('transient', 'SEND_FAILED', 'The page threw over this message.')
    if (body === 'breaks') {
      engine.crash()
      throw new EngineError('unknown', 'PAGE_CRASHED', 'The page broke down over this message.')
    }
    return send(message)
  }
  return engine
}
