import { createHash } from 'node:crypto'
import pg from 'pg'
import { camelCase } from './camel-case.ts'
import { createNotifier } from './notify.ts'
import type { Nudge } from './notify.ts'
import { transact } from './transaction.ts'

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
  /** Nudges whoever listens on a channel, over one session or all, as soon as what was written here is committed: behind the transaction, or at once outside of one. */
  nudge(...nudge: Nudge): void
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
  /** For the statement with which the work is done: it travels together with the commit, and nothing may follow it. In a transaction that was joined it is one as any other. */
  readonly final: Tag
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
  /** How long to wait for the answer to one statement. */
  answerTimeoutMs?: number
  /** Called when an idle connection breaks; the pool replaces it by itself. */
  onError?: (error: Error) => void
}

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
  const { answerTimeoutMs = 30_000 } = options
  const pool = new pg.Pool({
    connectionString: url,
    application_name: options.applicationName,
    max: options.max ?? 10,
    types,
    keepAlive: true,
    connectionTimeoutMillis: 5_000,
    // A server that stops answering must not hold a request for ever.
    query_timeout: answerTimeoutMs,
    idleTimeoutMillis: 30_000,
    pipeline: named,
  })
  pool.on('error', (error) => options.onError?.(error))
  // The pool listens to idle connections only. One that breaks in use is told by the statement that fails; without a listener it would end the process
  // besides. From the first moment on, since it may break in the very read of the server's words that hands it from one to the next.
  pool.on('connect', (client) => client.on('error', () => {}))

  const run = tag(pool, named)
  // A nudge that is lost is made up for by polling.
  const notifier = createNotifier(run, () => {})
  const statements = Object.assign(run, {
    nudge: (...nudge: Nudge) => notifier.nudge(...nudge),
  })
  return Object.assign(statements, {
    last: statements,
    begin: async <T>(work: (tx: Transaction) => Promise<T>): Promise<T> => {
      const client = await pool.connect()
      // It gives up first: what its caller has given up must not be committed by what was sent behind it.
      const statementTimeoutMs = Math.ceil(0.9 * answerTimeoutMs)
      const run = tag(client, named)
      return transact({ client, run, piped: named, statementTimeoutMs, notifier }, work)
    },
    close: async () => {
      await notifier.close()
      await pool.end()
    },
  })
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
