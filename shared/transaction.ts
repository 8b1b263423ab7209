import type pg from 'pg'
import type { Statements, Tag, Transaction } from './db.ts'
import { isDatabaseAway } from './db-errors.ts'
import type { Notifier, Nudge } from './notify.ts'

/** What a transaction is done with. */
export interface Means {
  /** Of a pool; given back when all is through. */
  client: pg.PoolClient
  /** Runs a statement on it. */
  run: Tag
  /** Statements may be sent before those before them are answered. */
  piped: boolean
  /** How long the server works on one statement. */
  statementTimeoutMs: number
  notifier: Notifier
}

/**
 * Does `work` in a transaction and commits it, or rolls it back. Where statements are piped, what nobody waits for is held back, and shares a packet and a round
 * trip with what comes after it: on a short transaction half the time, and half the work of both ends, is spent on those. So do nudges, which
 * go right behind the commit.
 */
export async function transact<T>(
  { client, run, piped, statementTimeoutMs, notifier }: Means,
  work: (tx: Transaction) => Promise<T>,
): Promise<T> {
  const { stream } = client.connection
  const opening = [
    'begin',
    // An owner that stalls in here (a stopped process, a paused machine) must not hold its rows against its successor.
    "set local idle_in_transaction_session_timeout = '5s'",
    `set local statement_timeout = ${statementTimeoutMs}`,
  ]
  let begun: Promise<void> | undefined
  let held = false
  let failed = false
  let ending: Promise<void> | undefined
  let released = false
  let joined = 0
  const late: (() => Promise<unknown>)[] = []
  const unanswered: Promise<unknown>[] = []
  const nudges: Nudge[] = []

  function hold(): void {
    if (piped && !held) stream.cork()
    held = piped
  }
  function letGo(): void {
    if (held) stream.uncork()
    held = false
  }
  /** Whoever waits for what comes next is told of a failure. */
  async function sendAlong(statement: () => Promise<unknown>): Promise<void> {
    hold()
    const answer = statement()
    unanswered.push(answer)
    if (piped) answer.catch(() => (failed = true))
    else await answer
  }
  /** Whoever comes first sends the beginning; all wait for the same, and go on in the order in which they came. */
  const open = () => (begun ??= sendAlong(() => client.query(opening.join('; '))))

  /** What is meant for the end goes out, the commit behind it, and behind that the nudges that may; resolves when it is committed. */
  async function commit(): Promise<void> {
    if (late.length > 0) await open()
    for (const statement of late) await sendAlong(statement)
    // What cannot even be sent fails in the next tick, and must not be left out of what is committed.
    if (unanswered.length > 0) await new Promise((resolve) => process.nextTick(resolve))
    if (failed) throw new Error('One of the statements had failed.')
    hold()
    const committed = begun ? client.query('commit') : undefined
    const boarded = piped && begun ? notifier.board(nudges) : []
    const ridden = boarded.length > 0 ? notifier.ride(run, boarded) : undefined
    // Seen to below, or found broken with the rollback behind it.
    ridden?.catch(() => {})
    letGo()
    const answer = await committed
    await Promise.all(unanswered)
    // Postgres answers so, and no error, where a statement has failed and nobody minded.
    if (answer && answer.command !== 'COMMIT')
      throw new Error('The transaction was rolled back: one of its statements had failed.')
    const tell = (all: Nudge[]) => all.forEach((nudge) => notifier.nudge(...nudge))
    released = true
    if (ridden)
      void ridden.then(
        () => client.release(),
        (error: unknown) => {
          client.release(error as Error)
          tell(boarded)
        },
      )
    else client.release()
    tell(nudges.filter((nudge) => !boarded.includes(nudge)))
  }

  function mustGoOn(): void {
    if (ending) throw new Error('The transaction is over.')
  }

  const awaited: Tag = async (strings, ...values) => {
    mustGoOn()
    await open()
    const answer = run<never>(strings, ...values)
    letGo()
    return answer
  }
  const ahead: Tag = async (strings, ...values) => {
    mustGoOn()
    if (!begun && values.length === 0) opening.push(strings[0]!)
    else {
      await open()
      await sendAlong(() => run(strings, ...values))
    }
    return []
  }
  const last: Tag = async (strings, ...values) => {
    mustGoOn()
    late.push(() => run(strings, ...values))
    return []
  }
  const final: Tag = async <Row extends object>(...[strings, ...values]: Parameters<Tag>) => {
    // Who joined a transaction does not end it.
    if (joined > 0) return awaited<Row>(strings, ...values)
    mustGoOn()
    let rows: Row[] = []
    const sendAndCommit = async () => {
      await open()
      await sendAlong(async () => {
        rows = await run<Row>(strings, ...values)
      })
      await commit()
    }
    await (ending = sendAndCommit())
    return rows
  }
  const nudge: Statements['nudge'] = (...nudge) => {
    mustGoOn()
    nudges.push(nudge)
  }
  const begin = async <U>(inner: (tx: Transaction) => Promise<U>) => {
    joined += 1
    try {
      return await inner(tx)
    } finally {
      joined -= 1
    }
  }
  const tx: Transaction = Object.assign(awaited, {
    ...{ nudge, ahead, final, begin },
    last: Object.assign(last, { nudge }),
  })

  try {
    const result = await work(tx)
    await (ending ??= commit())
    return result
  } catch (error) {
    letGo()
    // What was left behind is not given back under its hands.
    await ending?.catch(() => {})
    if (released) throw error
    // What failed first is the reason; what came after it only says that the transaction is over.
    const reason = await Promise.all(unanswered).then(
      () => error,
      (first: unknown) => first,
    )
    await abandon(client, begun !== undefined, reason)
    throw reason
  }
}

/** A rollback is answered after all that was sent before it: then nothing of the transaction is left unanswered. */
async function abandon(client: pg.PoolClient, opened: boolean, reason: unknown): Promise<void> {
  // A connection that says nothing any more would have the rollback, too, wait for its whole time; without it, the server undoes all.
  if (isDatabaseAway(reason)) client.release(reason as Error)
  else if (!opened) client.release()
  else
    await client.query('rollback').then(
      () => client.release(),
      (broken: unknown) => client.release(broken as Error),
    )
}
