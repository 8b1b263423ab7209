/**
 * npm run bench:reads [-- --quick]: what pages, lists and searches take at a million messages, in a real Postgres, through the queries of the product. --quick takes
 * a tenth of the messages. Ends with 1 when a target is missed.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import pg from 'pg'
import { listChats } from '../../shared/chats.ts'
import { connect } from '../../shared/db.ts'
import type { Db } from '../../shared/db.ts'
import { openDatabase } from '../../shared/embedded-postgres.ts'
import { createLogger } from '../../shared/logger.ts'
import { listMessages } from '../../shared/messages.ts'
import { migrate } from '../../shared/migrations.ts'
import { accept } from '../../shared/outbound.ts'
import { encodeCursor } from '../../shared/pagination.ts'
import { searchMessages } from '../../shared/search.ts'
import { createSession } from '../../shared/wa-sessions.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import { endWhenBrokenOff } from './broken-off.ts'

const { values } = parseArgs({ options: { quick: { type: 'boolean', default: false } } })
const total = values.quick ? 100_000 : 1_000_000
/** Messages of one chat that is as large as a tenth of all. */
const deep = total / 10
const small = total / 20
const chats = 20_000

interface Row {
  what: string
  figure: string
  target: string
  met: boolean
}
const table: Row[] = []

const folder = await mkdtemp(join(tmpdir(), 'awfar-bench-'))
const database = await openDatabase(
  { dataDir: folder },
  createLogger('bench', { level: 'error', stdout: false }),
)
endWhenBrokenOff({ database, folder })
// Of its own: it is copied later, and for that nobody may be connected to it.
const url = new URL('/bench', database.url)
await runAt(database.url, ['create database bench'])
await migrate(url.href)
const sql = connect(url.href, { applicationName: 'bench' })
try {
  const big = await workspace('big')
  try {
    const little = await workspace('little')
    const began = performance.now()
    await fill(big, little)
    console.log(
      `${total.toLocaleString('en')} messages of one workspace and ${small.toLocaleString('en')} of another, over two years, in ${seconds(began)} s`,
    )
    await pages(big)
    await lists(big)
    await searches(big, little)
  } finally {
    await sql.close()
  }
  await writing(big)

  console.table(Object.fromEntries(table.map(({ what, ...row }) => [what, row])))
  const missed = table.filter(({ met }) => !met)
  console.log(missed.length === 0 ? 'every target is met' : `${missed.length} targets are missed`)
  process.exitCode = missed.length === 0 ? 0 : 1
} finally {
  await database.release()
  await rm(folder, { recursive: true, force: true, maxRetries: 5 })
}

interface Bench {
  workspaceId: string
  sessionId: string
}

async function workspace(name: string): Promise<Bench> {
  const workspaceId = await createWorkspace(sql, name)
  const session = await createSession(sql, {
    workspaceId,
    name,
    engine: 'simulator',
    start: false,
    expiryDays: 30,
  })
  return { workspaceId, sessionId: session.id }
}

/**
 * Ten words a message, some of many and many of few, as languages have them; and words of which it is known how often they are there. The two workspaces by turns.
 * Indexes are made when the rows are there, each as the migrations say.
 */
async function fill(big: Bench, little: Bench): Promise<void> {
  const indexes = await sql<{ name: string; definition: string }>`
    select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as definition
    from pg_index where indrelid = 'messages'::regclass and not indisprimary`
  const rows = total + small
  await runAt(url.href, [
    // What it refers to is there.
    'set session_replication_role = replica',
    'set synchronous_commit = off',
    "set maintenance_work_mem = '256MB'",
    ...indexes.map(({ name }) => `drop index ${name}`),
    `insert into chats (workspace_id, session_id, wa_chat_id, name)
     select workspace_id, id, 10000000 + n || '@c.us', 'Customer ' || n from wa_sessions, generate_series(1, ${chats}) n`,
    `create unlogged table bench_chats as
     select id, session_id, workspace_id, row_number() over (partition by session_id order by wa_chat_id)::int as n from chats`,
    'create unique index on bench_chats (session_id, n)',
    `create unlogged table bench_texts as
     select n, (select string_agg('word' || floor(random() ^ 4 * 50000)::int, ' ') from generate_series(1, 10 + 0 * n)) as body
     from generate_series(0, 49999) n`,
    'create unique index on bench_texts (n)',
    'analyze bench_chats, bench_texts',
    `insert into messages (workspace_id, session_id, chat_id, direction, source, type, body, status, wa_key_id, created_at)
     select c.workspace_id, c.session_id, c.id, 'inbound', 'live', 'text', concat_ws(' ', t.body,
         case when random() < 0.5 then 'thanks' end, case when random() < 0.03 then 'order' end,
         case when random() < 0.001 then 'refund' end, case when d.i % ${rows / 10} < 2 then 'needle' end,
         case when d.i between ${0.4 * rows} and ${0.5 * rows} then 'campaign' end,
         case when d.i / 21 % 2 = 0 then 'alpha' else 'omega' end),
       'received', 'K' || d.i, now() - (${rows} - d.i) * (interval '730 days' / ${rows})
     from (
       select i, case when i % 21 = 0 then '${little.sessionId}' else '${big.sessionId}' end::uuid as session_id,
         case when i % 10 = 0 then 1 else least(${chats}, 1 + floor(random() ^ 2 * ${chats})::int) end as n,
         floor(random() * 50000)::int as text
       from generate_series(1, ${rows}) i) d
     join bench_chats c on c.session_id = d.session_id and c.n = d.n
     join bench_texts t on t.n = d.text
     order by d.i`,
    ...indexes.map(({ definition }) => definition),
    `update chats c set last_message_id = m.id, last_message_at = m.created_at, unread_count = (random() < 0.01)::int
     from (select distinct on (chat_id) chat_id, id, created_at from messages order by chat_id, created_at desc, seq desc) m
     where m.chat_id = c.id`,
    'vacuum analyze messages',
    'vacuum analyze chats',
  ])
}

/** Statements that take longer than any of the product may. */
async function runAt(address: string, statements: string[]): Promise<void> {
  const client = new pg.Client({ connectionString: address })
  await client.connect()
  try {
    for (const statement of statements) await client.query(statement)
  } finally {
    await client.end()
  }
}

/** Pages of the largest chat, at some depths: by cursor, and by offset. */
async function pages({ workspaceId, sessionId }: Bench): Promise<void> {
  const [chat] = await sql<{
    id: string
  }>`select id from bench_chats where session_id = ${sessionId} and n = 1`
  const chatId = chat!.id
  const depths = [0, 0.01, 0.1, 0.9].map((share) => share * deep)
  const cursors = await Promise.all(
    depths.map(async (depth) => {
      if (depth === 0) return undefined
      const [row] = await sql<{ at: string; seq: number }>`
        select created_at::text as at, seq from messages where chat_id = ${chatId}
        order by created_at desc, seq desc offset ${depth - 1} limit 1`
      return encodeCursor({ at: row!.at, key: String(row!.seq) })
    }),
  )
  // Round by round, so that what else the machine does hits all alike.
  const keyset: number[][] = depths.map(() => [])
  const offset: number[][] = depths.map(() => [])
  for (let round = 0; round < 40; round++) {
    for (const [i, depth] of depths.entries()) {
      keyset[i]!.push(
        await timed(() =>
          listMessages(sql, workspaceId, chatId, { limit: 50, cursor: cursors[i] }),
        ),
      )
      if (round % 4 === 0)
        offset[i]!.push(
          await timed(() => listMessages(sql, workspaceId, chatId, { limit: 50, offset: depth })),
        )
    }
  }
  for (const [i, depth] of depths.entries()) {
    const ratio = median(keyset[i]!) / median(keyset[0]!)
    const figure = `${ms(median(keyset[i]!))} by cursor, ${ms(median(offset[i]!))} by offset`
    table.push({
      what: `page of 50 at depth ${depth.toLocaleString('en')}`,
      figure: i === 0 ? figure : `${figure}, ${ratio.toFixed(2)} times page 1`,
      target: i === 0 ? '' : 'by cursor ≤ 2 times page 1',
      met: ratio <= 2,
    })
  }
}

async function lists({ workspaceId, sessionId }: Bench): Promise<void> {
  const limit = 50
  const [middle] = await sql<{ at: string; id: string }>`
    select last_message_at::text as at, id from chats where workspace_id = ${workspaceId}
    order by last_message_at desc, id desc offset ${chats / 2} limit 1`
  const deepest = encodeCursor({ at: middle!.at, key: middle!.id })
  await measure('chat list', 20, () => listChats(sql, workspaceId, { limit }))
  await measure('chat list, 10,000 down', 20, () =>
    listChats(sql, workspaceId, { limit, cursor: deepest }),
  )
  await measure('chat list, one session, unread', 20, () =>
    listChats(sql, workspaceId, { limit, sessionId, unread: true }),
  )
  await measure('chat list, by a name', 20, () =>
    listChats(sql, workspaceId, { limit, search: 'customer 777' }),
  )
  await measure('chat list, a name nobody has', 20, () =>
    listChats(sql, workspaceId, { limit, search: 'nobody' }),
  )
}

async function searches(big: Bench, little: Bench): Promise<void> {
  const find = (who: string, { workspaceId }: Bench, q: string, what: string) =>
    measure(`search, ${who}: ${what}`, 20, () => searchMessages(sql, workspaceId, { q, limit: 50 }))
  for (const [who, of] of [
    ['large', big],
    ['small', little],
  ] as const) {
    await find(who, of, 'needle', 'rare, one in 100,000')
    await find(who, of, 'nothing', 'not there')
    await find(who, of, 'refund', 'one in 1,000')
    await find(who, of, 'order', 'one in 33')
    await find(who, of, 'thanks', 'every other')
    await find(who, of, 'campaign', 'every one of a tenth, a year ago')
    await find(who, of, 'thanks order refund', 'three words')
    await find(who, of, '"thanks order"', 'a phrase')
    await find(who, of, 'thanks -alpha', 'one without another')
  }
  // No page ends early here: each has half of all, and all of them are looked at. Told, not promised.
  await measure(
    'search, large: two words of half each that never meet',
    5,
    () => searchMessages(sql, big.workspaceId, { q: 'alpha omega', limit: 50 }),
    null,
  )
  await measure(
    'search, large: a beginning of few words (refu*)',
    5,
    () => searchMessages(sql, big.workspaceId, { q: 'refu*', limit: 50 }),
    null,
  )
  await measure(
    'search, large: a beginning of very many (wor*)',
    5,
    () => searchMessages(sql, big.workspaceId, { q: 'wor*', limit: 50 }),
    null,
  )
}

/** Accepting messages with and without the search, in two databases that are otherwise the same, by turns. */
async function writing({ workspaceId, sessionId }: Bench): Promise<void> {
  const without = new URL(url)
  without.pathname = '/bench_without'
  const copy = `create database bench_without template bench strategy file_copy`
  await runAt(database.url, [copy])
  const [one, other] = [url, without].map((address) =>
    connect(address.href, { applicationName: 'bench' }),
  ) as [Db, Db]
  try {
    await runAt(without.href, ['alter table messages drop column search'])
    const acceptTimed = (db: Db, round: number, size: number) =>
      timed(() =>
        accept(db, {
          workspaceId,
          sessionId,
          sentBy: null,
          requestId: 'bench',
          messages: Array.from({ length: size }, (_, i) => ({
            waChatId: `${20_000_000 + ((round * size + i) % 5_000)}@c.us`,
            content: { type: 'text', body: sentence(round * size + i) },
          })),
        }),
      )
    for (const [what, size, rounds, target] of [
      ['one by one', 1, 300, 1.5],
      // What a message costs besides is shared by a hundred, what its words cost in the index is not.
      ['a hundred at once', 100, 50, 2],
    ] as const) {
      const times: [number[], number[]] = [[], []]
      for (let round = 0; round < rounds; round++) {
        times[0].push(await acceptTimed(one, round, size))
        times[1].push(await acceptTimed(other, round, size))
      }
      const ratio = median(times[0]) / median(times[1])
      table.push({
        what: `accepting messages, ${what}`,
        figure: `${ms(median(times[0]) / size)} with the search, ${ms(median(times[1]) / size)} without, ${ratio.toFixed(2)} times`,
        target: `≤ ${target} times`,
        met: ratio <= target,
      })
    }
  } finally {
    await Promise.all([one.close(), other.close()])
  }
}

/** Some words, other ones for each seed. */
function sentence(seed: number): string {
  const word = (i: number) => ((seed * 7_919 + i * 104_729) % 50_000) ** 2 / 50_000
  return Array.from({ length: 12 }, (_, i) => `word${Math.floor(word(i))}`).join(' ')
}

/** Adds a line: the times of so many calls, against 100 ms unless said otherwise. */
async function measure(
  what: string,
  times: number,
  call: () => Promise<{ data: unknown[] }>,
  target: number | null = 100,
): Promise<void> {
  const { data } = await call()
  const all: number[] = []
  for (let i = 0; i < times; i++) all.push(await timed(call))
  const p95 = all.sort((a, b) => a - b)[Math.ceil(all.length * 0.95) - 1]!
  table.push({
    what,
    figure: `p50 ${ms(median(all))}, p95 ${ms(p95)} (${data.length} found)`,
    target: target === null ? '' : `p95 ≤ ${target} ms`,
    met: target === null || p95 <= target,
  })
}

async function timed(call: () => Promise<unknown>): Promise<number> {
  const began = performance.now()
  await call()
  return performance.now() - began
}

function median(times: number[]): number {
  return [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)]!
}

function ms(value: number): string {
  return `${value.toFixed(2)} ms`
}

function seconds(began: number): string {
  return ((performance.now() - began) / 1_000).toFixed(0)
}
