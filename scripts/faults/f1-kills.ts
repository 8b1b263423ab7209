/** F1: workers are killed with SIGKILL at random instants, and around the two transactions of a send, while everybody sends. */
import { randomUUID } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '../../shared/db.ts'
import { accept } from '../../shared/outbound.ts'
import type { Family, Lab } from './lab.ts'
import { unpaced } from './program.ts'
import type { Program } from './program.ts'
import type { Random } from './random.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'
import { World } from './world.ts'

export const kills: Family = { id: 'F1', run }

const workers = 3
const sessions = 6
const chats = 8

/** Where a worker is stopped in the database, to be killed there. `rolledBack`: its statement is ended too, else it is let through. */
const points = {
  'before the claim': { table: 'outbox', deferred: false, rolledBack: true },
  'after the claim': { table: 'outbox', deferred: true, rolledBack: false },
  'before the record': { table: 'messages', deferred: false, rolledBack: true },
  'after the record': { table: 'messages', deferred: true, rolledBack: false },
} as const
type Point = keyof typeof points
const pointNames = Object.keys(points) as Point[]

/** What is killed, and what has been. */
interface Fleet {
  world: World
  wire: string
  running: Map<string, Program>
  named: number
  kills: number
  /** Of these: while messages waited. */
  underLoad: number
}

async function run(lab: Lab): Promise<Row[]> {
  const random = lab.random('F1')
  const world = await World.open(lab, 'f1', {
    engine: 'simulator',
    settings: {
      WA_LEASE_TTL_MS: '4000',
      ...unpaced,
      LOG_LEVEL: 'warn',
    },
  })
  const wire = join(world.folder, 'wire')
  await writeFile(wire, '')
  await holdAtPoints(world.sql)
  const fleet: Fleet = { world, wire, running: new Map(), named: 0, kills: 0, underLoad: 0 }
  for (let index = 0; index < workers; index++) await start(lab, fleet)
  const ids = (await world.link(sessions)).map(({ id }) => id)

  const atPoint = new Map(pointNames.map((point) => [point, 0]))
  const wanted = lab.scaled(10)
  const total = lab.scaled(2_000)
  const [{ workspaceId } = { workspaceId: '' }] = await world.sql<{ workspaceId: string }>`
    select workspace_id from wa_sessions limit 1`
  await acceptAll(world.sql, workspaceId, ids, total / 2, random)
  await killAtPoints(lab, fleet, atPoint, wanted)
  const before = fleet.kills
  await acceptAll(world.sql, workspaceId, ids, total / 2, random)
  await killAtRandom(lab, fleet, random, lab.scaled(60))
  const atRandom = fleet.kills - before
  await eventually(
    'everything is sent',
    async () => (await world.sql`select from outbox limit 1`).length === 0,
    240_000,
  ).catch(() => {})

  const rows = await judge(world.sql, wire, fleet, total)
  const counted = [...atPoint].map(([point, count]) => `${count} ${point}`).join(', ')
  const killed = new Trials('F1', 'SIGKILL of a worker, simulator')
  for (let index = 0; index < fleet.kills; index++) killed.kept()
  for (const [point, count] of atPoint) if (count < wanted) killed.failed(`${count} ${point}`)
  killed.note = `${atRandom} at random instants, ${counted}; ${fleet.underLoad} while messages waited; ${workers} workers, ${sessions} sessions, ${sessions * chats} chats; the judge is a file outside of the workers`
  await world.close()
  return [killed.row(), ...rows]
}

async function start(lab: Lab, fleet: Fleet): Promise<void> {
  const name = `worker-${fleet.named++}`
  const probe = join(import.meta.dirname, 'wire.mjs')
  const program = await fleet.world.startWorker(name, {
    settings: {
      NODE_OPTIONS: `--import=${probe}`,
      FAULTS_PRODUCT: lab.root,
      FAULTS_WIRE: fleet.wire,
    },
  })
  fleet.running.set(name, program)
}

async function killOne(lab: Lab, fleet: Fleet, name: string): Promise<void> {
  const program = fleet.running.get(name)!
  fleet.running.delete(name)
  fleet.kills += 1
  await program.end('SIGKILL')
  if ((await fleet.world.sql`select from outbox limit 1`).length > 0) fleet.underLoad += 1
  await start(lab, fleet)
}

async function acceptAll(
  sql: Db,
  workspaceId: string,
  sessionIds: string[],
  total: number,
  random: Random,
): Promise<void> {
  const per = Math.ceil(total / sessionIds.length)
  for (const [index, sessionId] of sessionIds.entries()) {
    for (let done = 0; done < per; done += 100) {
      const messages = Array.from({ length: Math.min(100, per - done) }, (_, at) => ({
        // These do not answer.
        waChatId: `1214${index}${random.between(0, chats - 1)}000006@c.us`,
        // Enough of each for every kill.
        content: { type: 'text' as const, body: at % 8 === 0 ? pointNames[(at / 8) % 4]! : 'any' },
      }))
      await accept(sql, { workspaceId, sessionId, sentBy: null, requestId: randomUUID(), messages })
    }
  }
}

/** A statement about a message whose text names the point takes long there, and its connection is then called after the point. */
async function holdAtPoints(sql: Db): Promise<void> {
  await sql`create table faults_points (point text primary key)`
  await sql`insert into faults_points select unnest(${pointNames}::text[])`
  await sql`
    create function faults_hold() returns trigger language plpgsql as $$
    declare said text;
    begin
      if tg_table_name = 'outbox' then select body into said from messages where id = new.message_id;
      else said := new.body; end if;
      if said = tg_argv[0] and exists (select from faults_points where point = said) then
        perform set_config('application_name', split_part(current_setting('application_name'), ' ', 1) || ' ' || said, true);
        perform pg_sleep(2);
      end if;
      return case when tg_when = 'BEFORE' then new end;
    end $$`
  for (const [index, [point, { table, deferred }]] of Object.entries(points).entries()) {
    const when =
      table === 'outbox'
        ? `(old.state = 'q' and new.state = 's')`
        : `(old.ack is null and new.ack is not null)`
    const kind = deferred
      ? `create constraint trigger faults_hold_${index} after update on ${table} deferrable initially deferred`
      : `create trigger faults_hold_${index} before update on ${table}`
    // Constants of this file.
    const text = `${kind} for each row when ${when} execute function faults_hold('${point}')`
    await sql([text] as unknown as TemplateStringsArray)
  }
}

async function killAtPoints(
  lab: Lab,
  fleet: Fleet,
  counts: Map<Point, number>,
  wanted: number,
): Promise<void> {
  const { sql } = fleet.world
  const deadline = performance.now() + 600_000
  while ([...counts.values()].some((count) => count < wanted) && performance.now() < deadline) {
    lab.signal.throwIfAborted()
    const held = await sql<{ pid: number; name: string; point: Point }>`
      select pid, split_part(application_name, ' ', 1) as name, substr(application_name, strpos(application_name, ' ') + 1) as point
      from pg_stat_activity
      where datname = current_database() and wait_event = 'PgSleep' and strpos(application_name, ' ') > 0`
    const victims = new Map(held.map((row) => [row.name, row]))
    await Promise.all(
      [...victims.values()].map(async ({ pid, name, point }) => {
        if (!fleet.running.has(name)) return
        const program = fleet.running.get(name)!
        program.kill('SIGKILL')
        if (points[point].rolledBack) await sql`select pg_terminate_backend(${pid})`
        const count = counts.get(point)! + 1
        counts.set(point, count)
        if (count === wanted) await sql`delete from faults_points where point = ${point}`
        await killOne(lab, fleet, name)
      }),
    )
    await sleep(20)
  }
  await sql`delete from faults_points`
}

async function killAtRandom(lab: Lab, fleet: Fleet, random: Random, many: number): Promise<void> {
  let left = many
  const lane = async () => {
    while (left > 0) {
      left -= 1
      lab.signal.throwIfAborted()
      await sleep(random.between(50, 2_500)) // the instant is part of the fault
      const [name] = random.shuffled([...fleet.running.keys()])
      if (name === undefined) left += 1
      else await killOne(lab, fleet, name)
    }
  }
  await Promise.all(Array.from({ length: workers }, lane))
}

async function judge(sql: Db, wire: string, fleet: Fleet, total: number): Promise<Row[]> {
  const log = (await readFile(wire, 'utf8')).split('\n').filter((line) => line !== '')
  const firsts = new Map<string, number>()
  for (const [index, keyId] of log.entries()) if (!firsts.has(keyId)) firsts.set(keyId, index)
  const messages = await sql<{ keyId: string; status: string; chatId: string; doubles: number }>`
    select wa_key_id as key_id, status, chat_id, (count(*) over (partition by session_id, wa_key_id))::int as doubles
    from messages where direction = 'outbound' order by seq`
  const lost = new Trials('F1', 'accepted messages: lost 0')
  const doubled = new Trials('F1', 'accepted messages: doubled in the store 0')
  const seen = new Trials('F1', 'ids the recipients see: unknown to the store 0, each once')
  const order = new Trials('F1', 'chats: in the order of acceptance')
  const extra = new Trials('F1', 'transmissions beyond the first ≤ kills')
  const byChat = new Map<string, number[]>()
  for (const { keyId, status, chatId, doubles } of messages) {
    const at = firsts.get(keyId)
    lost.check(
      at !== undefined && ['sent', 'delivered', 'read'].includes(status),
      `${status}, ${at === undefined ? 'never' : 'was'} transmitted`,
    )
    doubled.check(doubles === 1, 'stored twice')
    if (at !== undefined) byChat.set(chatId, [...(byChat.get(chatId) ?? []), at])
  }
  if (messages.length < total) lost.failed(`${messages.length} messages of ${total}`)
  const known = new Set(messages.map(({ keyId }) => keyId))
  for (const keyId of firsts.keys()) seen.check(known.has(keyId), 'an id of nobody')
  for (const places of byChat.values()) {
    const sorted = places.toSorted((a, b) => a - b)
    order.check(
      places.every((place, index) => place === sorted[index]),
      'another order',
    )
  }
  const again = log.length - firsts.size
  extra.check(again <= fleet.kills, `${again} for ${fleet.kills} kills`)
  extra.note = `${log.length} transmissions of ${firsts.size} messages: ${again} beyond the first, each under its own id`
  return [lost, doubled, seen, order, extra].map((trials) => trials.row())
}
