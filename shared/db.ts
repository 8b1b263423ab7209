import { createHash } from 'node:crypto'
import type { Socket } from 'node:net'
import pg from 'pg'
import { camelCase } from './camel-case.ts'
import { createNotifier } from './notify.ts'
import type { Channel } from './notify.ts'

/** What a statement may carry as a parameter. Objects travel as json, arrays as Postgres arrays. */
export type Value = string | number | bigint | boolean | Date | null | undefined | object

/** A piece of SQL inside another statement; its values stay parameters. */
export interface Fragment {
  readonly strings: readonly string[]
  readonly values: readonly (Value | Fragment)[]
}

export type Tag = <Row extends object = Record<string, unknown>>(
  strings: TemplateStringsArray,
  ...values: (Value | Fragment)[]
) => Promise<Row[]>

/**
 * Runs SQL written as a tagged template: every `${value}` is a parameter, a nested `fragment` is SQL.
 * Rows come back with camelCase keys; bigint columns as numbers (ids and fences stay far below 2^53).
 */
export interface Statements extends Tag {
  /** Nudges whoever listens on a channel as soon as what was written here is committed: after the transaction, or at once outside of one. */
  nudge(channel: Channel): void
}

export interface Sql extends Statements {
  /** Runs `work` in one transaction: committed when it resolves, rolled back when it throws. Nested calls join the outer one. */
  begin<T>(work: (tx: Transaction) => Promise<T>): Promise<T>
  /** For statements whose rows nobody needs: in a transaction they come after all others, together with its commit, and fail it when they fail. */
  readonly last: Statements
}

/** One transaction. */
export interface Transaction extends Sql {
  /** For a statement that only prepares the next one: it travels together with that. Fails the transaction when it fails. */
  readonly ahead: Tag
}

export interface Db extends Sql {
  /** Waits for running statements and closes all connections. */
  close(): Promise<void>
}

export interface ConnectOptions {
  applicationName: string
  /** Connections at the most. */
  max?: number
  /** Named (prepared) statements; must be off behind a transaction pooler, which is recognised by its port 6543. */
  prepare?: boolean
  /** Called when an idle connection breaks; the pool replaces it by itself. */
  onError?: (error: Error) => void
}

/** Nudges of writes come in bursts; one in so many milliseconds is enough, and NOTIFY has a lock that all commits share. */
const nudgeRestMs = 20

const int8: number = pg.types.builtins.INT8

const types = {
  getTypeParser: (oid: number, format?: 'text' | 'binary') =>
    oid === int8 ? Number : (pg.types.getTypeParser(oid, format) as (value: string) => unknown),
}

/** SQL to be placed inside a statement: `sql\`select … ${where}\``. */
export function fragment(strings: TemplateStringsArray, ...values: (Value | Fragment)[]): Fragment {
  return new SqlFragment(strings, values)
}

class SqlFragment implements Fragment {
  readonly strings: readonly string[]
  readonly values: readonly (Value | Fragment)[]

  constructor(strings: readonly string[], values: readonly (Value | Fragment)[]) {
    this.strings = strings
    this.values = values
  }
}

/** Opens a pool of connections. The first one is made by the first statement. */
export function connect(url: string, options: ConnectOptions): Db {
  const named = (options.prepare ?? true) && new URL(url).port !== '6543'
  const pool = new pg.Pool({
    connectionString: url,
    application_name: options.applicationName,
    max: options.max ?? 10,
    types,
    keepAlive: true,
    connectionTimeoutMillis: 5_000,
    // A server that stops answering must not hold a request for ever.
    query_timeout: 30_000,
    idleTimeoutMillis: 30_000,
    pipeline: named,
  })
  pool.on('error', (error) => options.onError?.(error))
  // The pool listens to idle connections only. One that breaks in use is told by the statement that fails; without a listener it would end the process
  // besides. From the first moment on, since it may break in the very read of the server's words that hands it from one to the next.
  pool.on('connect', (client) => client.on('error', () => {}))

  const statements = Object.assign(tag(pool, named), {
    nudge: (channel: Channel) => notifier.nudge(channel),
  })
  // A nudge that is lost is made up for by polling.
  const notifier = createNotifier(statements, () => {}, nudgeRestMs)
  return Object.assign(statements, {
    last: statements,
    begin: async <T>(work: (tx: Transaction) => Promise<T>): Promise<T> => {
      const client = await pool.connect()
      let broken: Error | undefined
      try {
        const { result, nudges } = await transact(client, named, work)
        for (const channel of nudges) notifier.nudge(channel)
        return result
      } catch (error) {
        // A connection that says nothing any more would have the rollback, too, wait for its whole time; without it, the server undoes all.
        if (isDatabaseAway(error)) broken = error as Error
        else {
          await client.query('rollback').catch((rollbackError: unknown) => {
            broken = rollbackError as Error
          })
        }
        throw error
      } finally {
        client.release(broken)
      }
    },
    close: async () => {
      await notifier.close()
      await pool.end()
    },
  })
}

/**
 * Does `work` in a transaction on this connection and commits it. Where statements are piped, what nobody waits for shares a round trip with what comes after it: on
 * a short transaction half the time, and half the work of both ends, is spent on those.
 */
async function transact<T>(
  client: pg.PoolClient,
  piped: boolean,
  work: (tx: Transaction) => Promise<T>,
): Promise<{ result: T; nudges: Set<Channel> }> {
  const nudges = new Set<Channel>()
  const unanswered: Promise<unknown>[] = []
  /** Sends without waiting; whoever waits for what comes next is told of a failure. */
  const send = async (query: Promise<unknown>) => {
    unanswered.push(query)
    if (piped) query.catch(() => {})
    else await query
  }
  const { stream } = (client as unknown as { connection: { stream: Socket } }).connection
  let held = false
  const hold = () => { if (piped && !held) { held = true; stream.cork() } }
  const go = () => { if (held) { held = false; stream.uncork() } }
  const plain = tag(client, piped)
  const run = ((strings: TemplateStringsArray, ...values: (Value | Fragment)[]) => {
    const answer = plain(strings, ...values)
    go()
    return answer
  }) as Tag
  const nudge = (channel: Channel) => void nudges.add(channel)
  const late: (() => Promise<unknown>)[] = []
  const keep = ((strings, ...values) => {
    late.push(() => plain(strings, ...values))
    return Promise.resolve([])
  }) as Tag
  const ahead: Tag = async (strings, ...values) => {
    hold()
    await send(plain(strings, ...values))
    return []
  }
  const tx: Transaction = Object.assign(run, {
    nudge,
    ahead,
    last: Object.assign(keep, { nudge }),
    begin: <U>(inner: (tx: Transaction) => Promise<U>) => inner(tx),
  })
  try {
    // An owner that stalls in here (a stopped process, a paused machine) must not hold its rows against its successor.
    hold()
    await send(client.query("begin; set local idle_in_transaction_session_timeout = '5s'"))
    const result = await work(tx)
    hold()
    for (const statement of late) await send(statement())
    const commit = client.query('commit')
    go()
    const { command } = await commit
    await Promise.all(unanswered)
    // Postgres answers so, and no error, where a statement has failed and nobody minded.
    if (command !== 'COMMIT')
      throw new Error('The transaction was rolled back: one of its statements had failed.')
    return { result, nudges }
  } catch (error) {
    go()
    // What failed first is the reason; what came after it only says that the transaction is over.
    await Promise.all(unanswered)
    throw error
  }
}

function tag(client: pg.Pool | pg.PoolClient, named: boolean): Tag {
  const run = async (strings: TemplateStringsArray, ...values: (Value | Fragment)[]) => {
    const { text, parameters } = render(strings, values)
    const result = await client.query<Record<string, unknown>>({
      text,
      values: parameters,
      ...(named && { name: nameOf(text) }),
    })
    return result.rows.map(camelCaseKeys)
  }
  return run as Tag
}

/** The text and parameters a statement goes out with. */
export function render(
  strings: readonly string[],
  values: readonly (Value | Fragment)[],
): { text: string; parameters: unknown[] } {
  const parameters: unknown[] = []
  const flatten = (parts: readonly string[], items: readonly (Value | Fragment)[]): string =>
    items.reduce<string>((text, item, index) => {
      const piece =
        item instanceof SqlFragment
          ? flatten(item.strings, item.values)
          : `$${parameters.push(item ?? null)}`
      return text + piece + (parts[index + 1] ?? '')
    }, parts[0] ?? '')
  return { text: flatten(strings, values), parameters }
}

const names = new Map<string, string>()

/** A statement's name is a hash of its text: the same text is prepared once on each connection. */
function nameOf(text: string): string {
  let name = names.get(text)
  if (name === undefined) {
    name = createHash('sha256').update(text).digest('base64url').slice(0, 22)
    names.set(text, name)
  }
  return name
}

function camelCaseKeys(row: Record<string, unknown>): Record<string, unknown> {
  const out: Record<string, unknown> = {}
  for (const key in row) out[camelCase(key)] = row[key]
  return out
}

/**
 * For a transaction whose statements are large and cheap to run: each connection plans them once. Left to itself Postgres plans a statement anew for every
 * array it is given, since it takes one of unknown length for a long one; planning then costs ten times what is done.
 */
export async function planOnce(tx: Transaction): Promise<void> {
  await tx.ahead`set local plan_cache_mode = force_generic_plan`
}

/** Postgres's own error code of a failure, for example 23505 for a unique violation. */
export function pgCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
    ? error.code
    : undefined
}

/** The name of the constraint a statement ran into, if it did. */
export function violated(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? error.constraint : undefined
}

/** Whether a failure says that the database is away, or could not do it just now, and not that the statement was wrong: later it can. */
export function isDatabaseAway(error: unknown): boolean {
  if (error instanceof AggregateError) return error.errors.some(isDatabaseAway)
  const code = pgCode(error)
  if (code !== undefined) {
    // Class 08 connection, 57P0x shutdown and crash, 53300 too many connections; 40001 and 40P01: another transaction came first.
    return /^(08...|57P0[1-5]|53300|40001|40P01|ECONNREFUSED|ECONNRESET|EPIPE|ETIMEDOUT|ENOTFOUND|EAI_AGAIN)$/.test(
      code,
    )
  }
  return (
    error instanceof Error &&
    /^(Connection terminated|timeout exceeded when trying to connect|timeout expired|Query read timeout|Client has encountered a connection error|Cannot use a pool after)/.test(
      error.message,
    )
  )
}
