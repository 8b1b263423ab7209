/**
 * Weeks of sending within a minute: the product's SQL, over a Postgres whose clock is ours. Statements say now() or clock_timestamp(), and a schema that is searched before
 * Postgres's own has another one.
 */
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import type { Sql } from '../../shared/db.ts'
import type { PacingConfig } from '../../shared/pacing.ts'
import type { Parts } from './model-parts.ts'
import type { Random } from './random.ts'

export interface Month {
  messages: number
  days: number
}

export interface Outcome {
  sent: number
  opened: number
  left: number
  /** What was not as promised. */
  gaps: string[]
  minutes: string[]
  budgets: string[]
  quiet: string[]
  starved: string[]
}

const ownClock = [
  'create schema own_clock',
  'create table own_clock.clock (at timestamptz not null)',
  ...['now', 'clock_timestamp'].map(
    (name) =>
      `create function own_clock.${name}() returns timestamptz language sql stable as 'select at from own_clock.clock'`,
  ),
  `do $$ begin execute format('alter database %I set search_path = own_clock, pg_catalog, public', current_database()); end $$`,
]

/** Gives a database a clock that is ours. Only connections that are opened afterwards go by it. */
export async function setOwnClock(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url, application_name: 'own-clock' })
  await client.connect()
  for (const text of ownClock) await client.query(text)
  await client.end()
}

const secondMs = 1_000
const hourMs = 3_600_000
const dayMs = 24 * hourMs
/** Clocks are changed in New York and Berlin within the weeks after. */
const beginsAt = Date.parse('2025-03-01T05:30:00Z')
const zones = ['UTC', 'America/New_York', 'Europe/Berlin', 'Asia/Tokyo', 'Asia/Kolkata']

interface Sent {
  at: number
  cold: boolean
  chat: string
  /** It was an answer to somebody who wrote within a day. */
  answers: boolean
}

/** Sends so many messages in so many days, with replies between, at a pace by chance. Answers what was not as promised. */
export async function liveThrough(
  parts: Pick<Parts, 'accept' | 'claim' | 'createSession' | 'recordAck' | 'storeReceived'>,
  sql: Sql,
  random: Random,
  { messages, days }: Month,
): Promise<Outcome> {
  const zone = zones[random.between(0, zones.length - 1)]!
  const quiet = random.next() < 0.5 ? { from: '21:00', to: '07:30' } : null
  const perDay = random.next() < 0.5 ? random.between(5, 60) : null
  const defaults: PacingConfig = {
    WA_SEND_MIN_GAP_MS: random.between(0, 4) * 500,
    WA_SEND_JITTER_MS: random.between(0, 3_000),
    WA_SENDS_PER_MINUTE: random.between(5, 30),
    WA_TYPING: false,
  }
  let now = beginsAt
  const moveTo = async (at: number) => {
    now = at
    await sql`update own_clock.clock set at = ${new Date(at)}`
  }
  await sql`insert into own_clock.clock values (${new Date(now)})`
  const [workspace] = await sql<{ id: string }>`
    insert into workspaces (name) values ('month') returning id`
  const workspaceId = workspace!.id
  const { id: sessionId } = await parts.createSession(sql, {
    workspaceId,
    name: 'month',
    engine: 'simulator',
    start: true,
    expiryDays: 365,
  })
  const lane = { id: sessionId, workspaceId, fence: 1 }
  await sql`
    update wa_sessions set owner = 'w', fence = 1, lease_until = 'infinity', status = 'WORKING', linked_at = now()
    where id = ${sessionId}`
  await sql`
    update wa_session_pacing
    set time_zone = ${zone}, quiet_from = ${quiet?.from}::time, quiet_to = ${quiet?.to}::time, new_contacts_per_day = ${perDay}
    where session_id = ${sessionId}`

  const accept = async (numbers: string[]) => {
    await parts.accept(sql, {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: randomUUID(),
      messages: numbers.map((number) => ({
        waChatId: `${number}@c.us`,
        content: { type: 'text', body: 'Hello' },
      })),
    })
  }
  const wroteAt = new Map<string, number>()
  const receive = async (number: string) => {
    wroteAt.set(`${number}@c.us`, now)
    await parts.storeReceived(sql, lane, {
      fromMe: false,
      waChatId: `${number}@c.us`,
      keyId: randomUUID(),
      participant: '',
      waMessageId: 'x',
      type: 'text',
      body: 'Hello?',
      timestamp: now / 1_000,
      ack: 0,
      senderName: null,
      chatName: null,
    })
  }

  /** When something is asked for: campaigns of strangers, and customers who write and are answered, now and then several times. */
  const arrivals: { at: number; numbers: string[]; wrote: boolean }[] = []
  let strangers = 0
  for (let left = messages; left > 0;) {
    const campaign = random.next() < 0.15
    const many = Math.min(left, campaign ? random.between(10, 100) : random.between(1, 6))
    const number = () => String(12_125_000_000 + strangers++)
    const known = String(12_126_000_000 + random.between(0, 60))
    arrivals.push({
      at: beginsAt + Math.floor(random.next() * days * dayMs),
      numbers: campaign
        ? Array.from({ length: many }, number)
        : Array.from({ length: many }, () => known),
      wrote: !campaign,
    })
    left -= many
  }
  arrivals.sort((a, b) => a.at - b.at)

  const sent: Sent[] = []
  const starved: string[] = []
  // A backlog of strangers may be longer than the month.
  const endsAt = beginsAt + (days + 2) * dayMs
  while (now < endsAt) {
    while (arrivals.length > 0 && arrivals[0]!.at <= now) {
      const { numbers, wrote } = arrivals.shift()!
      if (wrote) await receive(numbers[0]!)
      await accept(numbers)
    }
    const [claimed] = await parts.claim(sql, 'w', [lane], defaults)
    if (claimed) {
      const { waChatId: chat, cold } = claimed
      sent.push({ at: now, cold, chat, answers: now - (wroteAt.get(chat) ?? 0) < dayMs })
      await parts.recordAck(sql, lane, { keyId: claimed.keyId, ack: 1 })
      await moveTo(now + random.between(1, 400))
      continue
    }
    const [held] = await sql<{ at: Date | null; due: number; coldUntil: Date | null }>`
      select (select count(*)::int from outbox_lanes l where l.waiting > 0 and not l.cold and l.due_at <= now()) as due,
        case when next_send_at > now() then next_send_at end as at,
        case when cold_at > now() then cold_at end as cold_until
      from wa_session_pacing where session_id = ${sessionId}`
    const isQuiet = quiet !== null && isWithin(clockThere(now, zone).time, quiet)
    if (held!.due > 0 && held!.at === null && !isQuiet)
      starved.push(`${held!.due} replies wait at ${new Date(now).toISOString()} for nothing`)
    // Nothing may happen before; a quarter of an hour at a time, since quiet hours end some time.
    const candidates = [arrivals[0]?.at, held!.at?.getTime(), held!.coldUntil?.getTime()]
    const later = candidates.filter((at) => at !== undefined && at > now) as number[]
    const quarter = held!.due > 0 || later.length === 0 ? [now + hourMs / 4] : []
    await moveTo(Math.min(...later, ...quarter))
  }
  const [left] = await sql<{ replies: number; all: number }>`
    select count(*)::int as all, count(*) filter (where not l.cold)::int as replies
    from outbox o join outbox_lanes l on l.chat_id = o.chat_id`
  if (left!.replies > 0) starved.push(`${left!.replies} replies were never sent`)
  return {
    sent: sent.length,
    opened: sent.filter(({ cold }) => cold).length,
    left: left!.all,
    starved,
    gaps: sent.flatMap(({ at }, index) => {
      const before = sent[index - 1]
      const gap = before ? at - before.at : Infinity
      return gap < defaults.WA_SEND_MIN_GAP_MS ? [`${gap} ms after the one before`] : []
    }),
    minutes: sent.flatMap(({ at }, index) => {
      const first = sent[index - defaults.WA_SENDS_PER_MINUTE]
      return first && at - first.at < 60 * secondMs
        ? [`more than ${defaults.WA_SENDS_PER_MINUTE} within ${at - first.at} ms`]
        : []
    }),
    budgets: overBudget(sent, zone, perDay),
    quiet: sent.flatMap(({ at, answers }) =>
      quiet && !answers && isWithin(clockThere(at, zone).time, quiet)
        ? [`sent at ${clockThere(at, zone).time} in ${zone}`]
        : [],
    ),
  }
}

function overBudget(sent: Sent[], zone: string, perDay: number | null): string[] {
  const opened = new Map<string, number>()
  return sent.flatMap(({ at, cold }) => {
    if (!cold) return []
    const { date } = clockThere(at, zone)
    const count = (opened.get(date) ?? 0) + 1
    opened.set(date, count)
    const age = (at - beginsAt) / dayMs
    const budget = perDay ?? (age < 3 ? 20 : age < 7 ? 50 : age < 14 ? 100 : 200)
    return count > budget ? [`${count} conversations opened on ${date}, ${budget} allowed`] : []
  })
}

const formats = new Map<string, Intl.DateTimeFormat>()

/** Date and time of day somewhere, as they are written there: another way of reckoning than Postgres's. */
function clockThere(at: number, timeZone: string): { date: string; time: string } {
  let format = formats.get(timeZone)
  if (!format) {
    format = new Intl.DateTimeFormat('sv-SE', {
      ...{ timeZone, year: 'numeric', month: '2-digit', day: '2-digit' },
      ...{ hour: '2-digit', minute: '2-digit', second: '2-digit' },
    })
    formats.set(timeZone, format)
  }
  const [date, time] = format.format(at).split(' ')
  return { date: date!, time: time! }
}

const isWithin = (time: string, { from, to }: { from: string; to: string }) =>
  from < to ? time >= from && time < to : time >= from || time < to
