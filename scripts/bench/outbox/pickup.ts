import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '../../../shared/db.ts'
import { pollMs } from './awfar.ts'
import type { ConsumerOptions } from './contestant.ts'
import { contestants } from './worker.ts'
import type { Name } from './worker.ts'
import type { Workers } from './workers.ts'
import { clock, createSessions } from './world.ts'

const sessionCount = 100
/** Messages that go ahead and are not counted: connections are opened and statements planned with them. */
const warmUps = 600

export interface PickupOptions {
  sql: Db
  url: string
  workers: Workers
  rounds: number
  /** Messages of one round. */
  messages: number
}

/**
 * Milliseconds from the beginning of handing a message in to the beginning of its handler, at about 150 messages a second over 100 sessions; without
 * notifications (`deaf`) from its end, since only what is accepted can be looked for.
 */
export async function pickups({ rounds, ...options }: PickupOptions) {
  const names = Object.keys(contestants) as Name[]
  const all = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<
    Name,
    number[]
  >
  let violations = 0
  for (let round = 0; round < rounds; round++) {
    for (const name of names) {
      const result = await pickup(options, name, 'wait', 1_000 / 150)
      all[name].push(...result.pickups)
      violations += result.violations
    }
  }
  // Each session once at the most between two polls: a second one waits for the first, whoever told of it.
  const deaf = await pickup({ ...options, messages: sessionCount }, 'awfar', 'poll', 20)
  return { ...all, deaf: deaf.pickups, violations: violations + deaf.violations }
}

/** Milliseconds that the least commit takes there: whoever puts something in, or claims it, waits for one. */
export async function commitTimes(sql: Db): Promise<number[]> {
  await sql`create table commit_times (n int)`
  const times: number[] = []
  for (let i = 0; i < 200; i++) {
    const began = performance.now()
    await sql`insert into commit_times values (1)`
    times.push(performance.now() - began)
  }
  await sql`drop table commit_times`
  return times
}

async function pickup(
  { sql, url, workers, messages }: Omit<PickupOptions, 'rounds'>,
  name: Name,
  mode: ConsumerOptions['mode'],
  everyMs: number,
): Promise<{ pickups: number[]; violations: number }> {
  const sessions = await createSessions(sql, sessionCount)
  const producer = await contestants[name].openProducer(url, sessions, sql)
  await producer.fill(0)
  const submissions = Array.from({ length: warmUps + messages }, (_, i) => ({
    session: sessions[i % sessionCount]!,
    body: String(i),
  }))
  await producer.prepare?.(submissions)
  const bornAt: number[] = []
  const results = await workers.run({ name, url, sessions, mode }, async () => {
    await sleep(1_000)
    const handedIn: Promise<void>[] = []
    const began = clock()
    for (const [i, { session, body }] of submissions.entries()) {
      await sleep(Math.max(0, began + i * everyMs - clock()))
      bornAt[i] = clock()
      const submitted = producer.submit(session, body)
      handedIn.push(mode === 'poll' ? submitted.then(() => void (bornAt[i] = clock())) : submitted)
    }
    await Promise.all(handedIn)
    await sleep(pollMs + 500)
  })
  await producer.close()
  const cameAt = new Map(results.flatMap((result) => Object.entries(result.cameAt)))
  const handled = results.reduce((sum, result) => sum + result.handled, 0)
  if (cameAt.size !== submissions.length || handled !== submissions.length)
    throw new Error(`${name} handled ${cameAt.size} of ${submissions.length}, ${handled} times.`)
  return {
    pickups: bornAt.map((at, i) => cameAt.get(String(i))! - at).slice(warmUps),
    violations: results.reduce((sum, result) => sum + result.violations, 0),
  }
}
