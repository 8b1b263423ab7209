/** F9: acknowledgements that are lost, told twice, out of order or never, and refusals. */
import { openInside } from './inside.ts'
import type { Family, Lab } from './lab.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'
import type { Ack } from '../../shared/acks.ts'
import type { SimulatorEngine } from '../../wa-worker/engine/simulator.ts'

export const acks: Family = { id: 'F9', run }

const sessions = 10
const unknownMs = 3_000

/** By the end of the number; simulated contacts of 0002, 0003 and 0007 refuse, never confirm, and are locked (463), those of 0006 do not answer. */
const kinds = {
  normal: { ending: '10006', share: 30, ends: ['delivered'] },
  lost: { ending: '20006', share: 20, ends: ['delivered'] },
  doubled: { ending: '30006', share: 20, ends: ['delivered'] },
  reordered: { ending: '40006', share: 20, ends: ['delivered'] },
  refused: { ending: '50002', share: 4, ends: ['failed REFUSED_BY_WHATSAPP'] },
  locked: { ending: '60007', share: 4, ends: ['failed REACHOUT_LOCKED'] },
  never: { ending: '70003', share: 2, ends: ['unknown OUTCOME_UNKNOWN'] },
} as const
type Kind = keyof typeof kinds
const names = Object.keys(kinds) as Kind[]

async function run(lab: Lab): Promise<Row[]> {
  const random = lab.random('F9')
  const kindOf = new Map<string, Kind>()
  const inside = await openInside(lab, 'f9', sessions, {
    unknownMs,
    reading: { acksEveryMs: 1_000 },
    // As in the product: on a busy machine the short leases of tests run out, and acks die with the engine.
    leaseTtlMs: 15_000,
    changeEngine: (engine) => disturb(engine, (keyId) => kindOf.get(keyId)),
  })
  const { sql } = inside
  try {
    await watchRegressions(sql)
    const each = lab.scaled(1_000) / sessions
    for (const [index, session] of inside.sessions.entries()) {
      const bodies = names.flatMap((kind) => {
        const many = Math.max(1, Math.round((each * kinds[kind].share) / 100))
        return Array.from({ length: many }, () => kind)
      })
      const messages = random.shuffled(bodies).map((kind) => ({
        to: `1212${String(index).padStart(2, '0')}${kinds[kind].ending}`,
        body: kind,
      }))
      await inside.accept(session, messages)
    }
    for (const { body, keyId } of await sql<{ body: Kind; keyId: string }>`
      select body, wa_key_id as key_id from messages`)
      kindOf.set(keyId, body)

    const stuck = new Trials('F9', 'stuck after the sweep 0')
    const right = new Trials('F9', 'each message ends as WhatsApp has it')
    const settled = async () => {
      // A lock holds new conversations for a day; here it is what was refused that counts.
      await sql`update outbox_lanes set cold = false where cold`
      return (await sql`select from outbox limit 1`).length === 0
    }
    await eventually('the outbox is empty', settled, 150_000).catch(() => {})
    await eventually(
      'the last acks are there',
      async () => (await sql`select from messages where status = 'sent' limit 1`).length === 0,
      10_000,
    ).catch(() => {})
    const rows = await sql<{ body: Kind; end: string; waits: boolean }>`
      select m.body, concat_ws(' ', m.status, m.error_code) as end, o.id is not null as waits
      from messages m left join outbox o on o.message_id = m.id where m.direction = 'outbound'`
    for (const { body, end, waits } of rows) {
      stuck.check(!waits, `${body} waits as ${end}`)
      right.check((kinds[body].ends as readonly string[]).includes(end), `${body} ended as ${end}`)
    }
    const [regressed] = await sql<{ changes: number; back: number }>`
      select count(*)::int as changes, count(*) filter (where back)::int as back from faults_acks`
    const regressions = new Trials('F9', 'changes of ack or status: none goes back')
    for (let index = 0; index < regressed!.changes; index++)
      regressions.check(index >= regressed!.back, 'a status went back')
    stuck.note = `${rows.length} messages (${names.map((kind) => `${rows.filter(({ body }) => body === kind).length} ${kind}`).join(', ')}); simulator in this process, an outcome is unknown after ${unknownMs / 1_000} s instead of 15 min, acks are asked for every second instead of every 5 min, new chats released from a lock`
    return [stuck.row(), right.row(), regressions.row()]
  } finally {
    await inside.close()
  }
}

async function watchRegressions(sql: Awaited<ReturnType<typeof openInside>>['sql']): Promise<void> {
  await sql`create table faults_acks (back boolean not null)`
  await sql`
    create function faults_ack() returns trigger language plpgsql as $$
    declare ranks text[] := '{queued,unknown,sent,delivered,read,played}';
    begin
      insert into faults_acks values (
        coalesce(new.ack < old.ack and not (old.ack = 0 and new.ack = -1), false)
        or (old.ack is not null and new.ack is null)
        or coalesce(array_position(ranks, new.status) < array_position(ranks, old.status), false)
        or old.status in ('failed') and new.status <> old.status);
      return null;
    end $$`
  await sql`
    create trigger faults_ack after update on messages for each row
    when (old.ack is distinct from new.ack or old.status <> new.status) execute function faults_ack()`
}

/** Lets through, or not, what the page tells of acks. */
function disturb(engine: SimulatorEngine, kindOf: (keyId: string) => Kind | undefined) {
  const emit = engine.emit.bind(engine) as (event: string, ...told: unknown[]) => boolean
  const kept = new Map<string, Ack[]>()
  const disturbed = (event: string, ...told: unknown[]): boolean => {
    if (event !== 'ack') return emit(event, ...told)
    const ack = told[0] as Ack
    const kind = kindOf(ack.keyId)
    if (kind === 'lost') return true
    if (kind === 'doubled') for (let again = 0; again < 2; again++) emit('ack', ack)
    if (kind !== 'reordered') return emit('ack', ack)
    const all = [...(kept.get(ack.keyId) ?? []), ack]
    kept.set(ack.keyId, all)
    // The later one first.
    if (all.length === 2) for (const late of all.toReversed()) emit('ack', late)
    return true
  }
  engine.emit = disturbed as typeof engine.emit
  return engine
}
