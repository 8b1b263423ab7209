/** F10: what customers write, told repeatedly, at once, out of order, under other addresses, unreadable at first, or while nobody listened. */
import { openInside } from './inside.ts'
import type { Inside } from './inside.ts'
import type { Lab, Family } from './lab.ts'
import type { Random } from './random.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually, inParallel } from './waiting.ts'
import { World } from './world.ts'
import { listGaps } from '../../shared/backfill.ts'
import type { Db } from '../../shared/db.ts'
import type { IncomingMessage } from '../../wa-worker/engine/engine.ts'
import { plainMessage } from '../../wa-worker/engine/plain-message.ts'
import { lidOf } from '../../wa-worker/engine/simulator-contacts.ts'

export const inbound: Family = {
  id: 'F10',
  // What is measured runs alone; of the others one waits while the other works.
  run: async (lab) => [
    ...(await burst(lab)),
    ...(await Promise.all([away(lab), inBrowser(lab)])).flat(),
  ],
}

const sessions = 5
/** As in the product: a burst keeps the machine too busy for the short leases of tests. */
const leaseTtlMs = 15_000
const people = 20
/** The same people write to all sessions: these learn of them at once. Their endings mean nothing to the simulator. */
const numbers = Array.from({ length: people }, (_, n) => `120255${51_000 + n}@c.us`)
const limits = { limitPerChat: 60, maxChats: 12 }

interface Written {
  /** From 0 for each person and session. */
  n: number
  from: string
  id: string
  /** Seconds since 1970. */
  at: number
  fate: 'plain' | 'late' | 'never' | 'group'
}

interface Report {
  message: Written
  event: IncomingMessage
}

/** 5,000 messages at once, each told three times; and a few at leisure, for the time they take. */
async function burst(lab: Lab): Promise<Row[]> {
  const random = lab.random('F10')
  const inside = await openInside(lab, 'f10', sessions, { leaseTtlMs })
  const { sql } = inside
  try {
    await watchArrivals(sql)
    const each = lab.scaled(1_000)
    const start = Math.floor(Date.now() / 1_000) - 2 * each
    const all = new Map<string, Written>()
    const firstTold = new Map<string, number>()
    const lines = inside.sessions.map((_, session) => {
      const written = Array.from({ length: each }, (_, index): Written => {
        const fates = ['late', 'never', 'group', 'group'] as const
        return {
          n: Math.floor(index / people),
          from: numbers[index % people]!,
          id: `3AF10${session}${index}`,
          at: start + index,
          fate: fates[random.between(0, 39)] ?? 'plain',
        }
      })
      for (const message of written) all.set(message.id, message)
      return reports(random, written)
    })
    const began = performance.now()
    for (const [session, line] of lines.entries()) {
      const engine = engineOf(inside, session)
      for (const { message, event } of line) {
        if (!firstTold.has(message.id)) firstTold.set(message.id, Date.now())
        engine.emit(event.pending ? 'placeholder' : 'message', event)
      }
      // Reports are written in the order they came: where this one is, all are.
      engine.emit('message', { ...line.at(-1)!.event, ...theEnd(session) })
    }
    const ended = async () => (await sql`select from messages where body = 'end'`).length
    await eventually('the burst is written', async () => (await ended()) === sessions, 150_000)
    const seconds = (performance.now() - began) / 1_000
    await sql`delete from messages where body = 'end'`

    const rows = await sql<{ id: string; n: number; body: string | null; waits: boolean }>`
      select wa_key_id as id, count(*)::int as n, min(body) as body, bool_or(type = 'unknown') as waits
      from messages group by wa_key_id`
    const byId = new Map(rows.map((row) => [row.id, row]))
    const once = new Trials('F10', 'burst, each told 3×, shuffled, lid and number: stored once')
    const readable = new Trials('F10', 'burst: unreadable at first, whole when its content came')
    const arrivals = await arrivalsOf(sql)
    for (const { id, fate, n } of all.values()) {
      const row = byId.get(id)
      const took = arrivals.has(id) ? arrivals.get(id)! - firstTold.get(id)! : undefined
      if (row?.n === 1) once.kept(took)
      else once.failed(`a ${fate} message is stored ${row?.n ?? 0} times`)
      if (fate === 'never') readable.check(row?.waits === true, 'a placeholder is missing')
      if (fate === 'late') readable.check(row?.body === String(n), 'its content is missing')
    }
    once.note = `${all.size} messages in ${lines.flat().length} reports over ${sessions} sessions at once, all written after ${seconds.toFixed(1)} s; times from event to row wait for the whole burst; simulator in this process`

    const order = new Trials('F10', 'burst: in order per chat')
    const chats = await sql<{ chatId: string; bodies: string[] }>`
      select chat_id, array_agg(coalesce(body, '') order by created_at, seq) as bodies from messages group by chat_id`
    for (const { bodies } of chats) {
      // What is unreadable says nothing; in the group all write in turn.
      const said = bodies.filter((body) => body !== '').map(Number)
      order.check(
        said.every((n, index) => index === 0 || said[index - 1]! <= n),
        'a chat is out of order',
      )
    }
    const announced = new Trials('F10', 'burst: told once, when it is readable')
    const events = await sql<{ id: string; n: number }>`
      select m.wa_key_id as id, count(e.id)::int as n
      from messages m left join events e on e.type = 'message' and e.payload->>'id' = m.id::text group by m.wa_key_id`
    for (const { id, n } of events)
      announced.check(n === (all.get(id)!.fate === 'never' ? 0 : 1), `told ${n} times`)

    const one = new Trials('F10', 'lid and number of a person meet in one contact')
    const roots = () => sql<{ addresses: string[] }>`
      select array_agg(a.wa_id) as addresses from contacts k join contacts a on k.id in (a.id, a.merged_into)
      where k.merged_into is null group by k.id`
    await eventually(
      'everybody is known',
      async () => (await roots()).length === people,
      20_000,
    ).catch(() => {})
    const contacts = await roots()
    for (const number of numbers) {
      const own = contacts.filter(({ addresses }) => addresses.includes(number))
      one.check(
        own.length === 1 && own[0]!.addresses.length === 2 && contacts.length === people,
        `${contacts.length} contacts of ${people} people`,
      )
    }
    const [astray] = await sql<{ n: number }>`
      select count(*)::int as n from chats c left join contacts k on k.id = c.contact_id
      where not c.is_group and (k.id is null or k.merged_into is not null)`
    one.check(astray!.n === 0, 'a chat belongs to nobody')
    return [once, readable, order, announced, one, await leisure(lab, inside)].map((trials) =>
      trials.row(),
    )
  } finally {
    await inside.close()
  }
}

/** Each message thrice, near its turn but not at it, now from the number and now from the lid; a placeholder may come after its content. */
function reports(random: Random, written: Written[]): Report[] {
  return written
    .flatMap((message, turn) =>
      Array.from({ length: 3 }, (_, again) => {
        const lid = random.between(0, 1) === 1
        const pending = message.fate === 'never' || (message.fate === 'late' && again === 0)
        return { message, event: told(message, lid, pending), turn: turn + random.between(0, 40) }
      }),
    )
    .toSorted((a, b) => a.turn - b.turn)
}

function told(message: Written, asLid: boolean, pending = false): IncomingMessage {
  const { n, from, id, at, fate } = message
  const person = asLid ? lidOf(from) : from
  const chatId = fate === 'group' ? '120363000000001010@g.us' : person
  const participant = fate === 'group' ? person : ''
  return plainMessage(
    { fromMe: false, chatId, id, participant },
    {
      type: pending ? 'unknown' : 'text',
      body: pending ? null : String(n),
      timestamp: at,
      senderName: `Customer ${from.slice(-9, -5)}`,
      pending,
    },
  )
}

function theEnd(session: number): Partial<IncomingMessage> {
  const key = { fromMe: false, chatId: numbers[0]!, id: `3AEND${session}`, participant: '' }
  return { key, type: 'text', body: 'end', pending: false }
}

/** Often: the next message waits for it. */
const lookingOn = [60_000, 10] as const

/** One after the other: what a message takes when nothing is in its way. */
async function leisure(lab: Lab, inside: Inside): Promise<Trials> {
  const trials = new Trials('F10', 'one at a time: from event to row')
  const many = lab.scaled(200)
  for (let index = 0; index < many; index++) {
    const id = `3ALEISURE${index}`
    const at = Date.now()
    const message = { n: index, from: numbers[index % people]!, id, at: 0, fate: 'plain' as const }
    const event = told({ ...message, at: Math.floor(at / 1_000) }, index % 2 === 0)
    engineOf(inside, index % sessions).emit('message', event)
    await trials.attempt(async () => {
      const [arrived] = await eventually(
        'it is stored',
        async () => {
          const rows = await inside.sql<{ at: number }>`
          select at from faults_arrivals where id = ${id}`
          return rows.length > 0 && rows
        },
        ...lookingOn,
      )
      return arrived!.at - at
    })
  }
  return trials
}

/** Written while no worker ran: read again when one does, and the report says what is proven. */
async function away(lab: Lab): Promise<Row[]> {
  const inside = await openInside(lab, 'f10-away', sessions, { reading: limits, leaseTtlMs })
  const { sql } = inside
  const had = new Trials('F10', 'written while no worker ran: backfilled, once')
  const report = new Trials(
    'F10',
    'the gap report says complete where all is there, and only there',
  )
  try {
    const engines = inside.sessions.map((_, session) => engineOf(inside, session))
    await inside.worker.stop()
    const written: { session: string; chatId: string; body: string; last: boolean }[] = []
    const long = 80
    for (const [index, session] of inside.sessions.entries()) {
      // One session has more chats with news than are read, and one chat of each more messages.
      const chats = index === 0 ? limits.maxChats + 4 : 8
      for (let chat = 0; chat < chats; chat++) {
        const many = chat === chats - 1 ? long : lab.scaled(20)
        for (let n = 0; n < many; n++) {
          const body = `${index} ${chat} ${n}`
          const chatId = `120255${52_000 + chat}@c.us`
          engines[index]!.deliver(chatId, body, undefined, { unheard: true })
          written.push({ session, chatId, body, last: n >= many - limits.limitPerChat })
        }
      }
      await engines[index]!.stop()
    }
    await inside.restart()
    const gaps = await eventually('all sessions have reported', async () => {
      const pages = await inParallelMap(inside.sessions, (session) =>
        listGaps(sql, inside.workspaceId, session, { limit: 200 }),
      )
      return (
        pages.every(({ data }, index) => data.length >= (index === 0 ? limits.maxChats + 1 : 8)) &&
        pages
      )
    })
    const stored = new Map<string, number>()
    for (const { key } of await sql<{ key: string }>`
      select m.session_id || ' ' || m.body as key from messages m where m.source = 'backfill'`)
      stored.set(key, (stored.get(key) ?? 0) + 1)
    for (const [index, session] of inside.sessions.entries()) {
      const { data } = gaps[index]!
      const reported = new Map(data.map(({ waChatId, complete }) => [waChatId, complete]))
      const own = written.filter((one) => one.session === session)
      const chats = [...new Set(own.map(({ chatId }) => chatId))]
      for (const chatId of chats) {
        const messages = own.filter((one) => one.chatId === chatId)
        const count = (one: { body: string }) => stored.get(`${session} ${one.body}`) ?? 0
        const whole = messages.every((one) => count(one) === 1)
        // A chat without an entry is one of those that were too many.
        const says = reported.get(chatId) ?? false
        report.check(says === whole, `complete is ${says} of a chat that is ${whole}`)
        report.check(reported.has(chatId) || reported.get(null) === false, 'a gap is not told of')
        if (!reported.has(chatId)) continue
        for (const one of messages.filter(({ last }) => last))
          had.check(count(one) === 1, `stored ${count(one)} times`)
      }
    }
    had.note = `of ${written.length} written; read are the latest ${limits.limitPerChat} of each of ${limits.maxChats} chats (200 of 100 in the product)`
    return [had.row(), report.row()]
  } finally {
    await inside.close()
  }
}

/** The same through a real browser: a burst, and what came while the worker was dead. */
async function inBrowser(lab: Lab): Promise<Row[]> {
  // A worker that is killed has its sessions for so long.
  const settings = { WA_LEASE_TTL_MS: '5000' }
  const world = await World.open(lab, 'f10-page', { settings })
  const worker = await world.startWorker('worker-a')
  const [subject] = await world.link(1)
  await world.loginsOnDisk([subject!])
  const many = lab.scaled(500)
  const write = (body: string, from: number) => {
    const message = { to: subject!.account, from: String(12_125_550_100 + from), body }
    const id = `3A${body.toUpperCase().replace(' ', '')}`
    world.whatsapp.deliver({ ...message, id })
    // Told twice more, once from the person's other address.
    world.whatsapp.deliver({ ...message, id, again: true })
    world.whatsapp.deliver({ ...message, id, again: true, lid: true })
  }
  const stored = async (like: string) =>
    world.sql<{ body: string; n: number }>`
      select body, count(*)::int as n from messages
      where session_id = ${subject!.id} and direction = 'inbound' and body like ${like} group by body`
  const check = async (trials: Trials, like: string, bodies: string[]) => {
    const all = async () => (await stored(like)).length >= bodies.length
    await eventually('all are stored', all, 60_000).catch(() => {})
    const rows = new Map((await stored(like)).map(({ body, n }) => [body, n]))
    for (const body of bodies)
      trials.check(rows.get(body) === 1, `stored ${rows.get(body) ?? 0} times`)
  }

  const at = performance.now()
  const bodies = Array.from({ length: many }, (_, n) => `burst ${n}`)
  for (const [n, body] of bodies.entries()) write(body, n % 10)
  const burst = new Trials('F10', 'burst in a real browser, each told 3×: stored once')
  await check(burst, 'burst %', bodies)
  burst.note = `all ${many} there after ${((performance.now() - at) / 1_000).toFixed(1)} s`
  const order = new Trials('F10', 'burst in a real browser: in order per chat')
  for (const { numbers: said } of await world.sql<{ numbers: number[] }>`
    select array_agg(substr(body, 7)::int order by created_at, seq) as numbers
    from messages where session_id = ${subject!.id} and body like 'burst %' group by chat_id`) {
    order.check(
      said.every((n, index) => index === 0 || said[index - 1]! < n),
      'a chat is out of order',
    )
  }

  await worker.end('SIGKILL')
  const missed = Array.from({ length: lab.scaled(100) }, (_, n) => `missed ${n}`)
  for (const [n, body] of missed.entries()) write(body, n % 10)
  await world.startWorker('worker-b')
  const backfilled = new Trials(
    'F10',
    'written while the worker was dead, real browser: backfilled',
  )
  await check(backfilled, 'missed %', missed)
  const left = await world.close()
  backfilled.check(left.length === 0, `left behind: ${left.join(', ')}`)
  return [burst.row(), order.row(), backfilled.row()]
}

function engineOf({ worker, sessions: ids }: Inside, session: number) {
  const engine = worker.engines.findLast(({ sessionId }) => sessionId === ids[session])
  if (!engine) throw new Error('no engine')
  return engine
}

async function inParallelMap<T, U>(items: T[], work: (item: T) => Promise<U>): Promise<U[]> {
  const answers: U[] = []
  await inParallel(items, 5, async (item, index) => {
    answers[index] = await work(item)
  })
  return answers
}

/** The moment each message's transaction ended. */
async function watchArrivals(sql: Db): Promise<void> {
  await sql`create table faults_arrivals (id text primary key, at float8 not null)`
  await sql`
    create function faults_arrived() returns trigger language plpgsql as $$ begin
      insert into faults_arrivals values (new.wa_key_id, extract(epoch from clock_timestamp()) * 1000) on conflict do nothing;
      return null;
    end $$`
  await sql`
    create constraint trigger faults_arrived after insert on messages deferrable initially deferred
    for each row execute function faults_arrived()`
}

async function arrivalsOf(sql: Db): Promise<Map<string, number>> {
  const rows = await sql<{ id: string; at: number }>`select id, at from faults_arrivals`
  return new Map(rows.map(({ id, at }) => [id, at]))
}
