import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '../../../shared/db.ts'
import type { Producer } from './contestant.ts'
import { median } from './figures.ts'
import { hasPgbench, pgbenchRate } from './pgbench.ts'
import { contestants } from './worker.ts'
import type { Workers } from './workers.ts'
import { createSessions } from './world.ts'

/** More than the fastest can work off in its window: what runs dry has no rate. */
export const backlog = 80_000
export const sizes = [10, 100, 1_000]
/** Connections plan their statements anew a few times before they keep a plan; nobody's is counted. */
const warmUpMs = 700
const windowMs = 1_000

const names = ['awfar', 'awfarQueue', 'pgBoss', 'graphile'] as const
type Name = (typeof names)[number]

/** Messages a second by number of sessions; of pgbench none where it is not installed. */
export interface Rates {
  sessions: number
  rates: Record<Name, number> & { pgbench: number | undefined }
}

export interface DrainOptions {
  sql: Db
  url: string
  folder: string
  workers: Workers
  rounds: number
  say: (text: string) => void
}

/**
 * How fast each contestant works off a backlog, for so many sessions. Every window begins with the same backlog, and all contestants take their turn in
 * each round.
 */
export async function drain(
  options: DrainOptions,
): Promise<{ rates: Rates[]; handled: number; violations: number }> {
  const { sql, url, folder, workers, rounds, say } = options
  const pgbench = await hasPgbench()
  if (!pgbench) say('pgbench is not installed: its column stays empty')
  let handled = 0
  let violations = 0
  const rates: Rates[] = []
  for (const size of sizes) {
    const sessions = await createSessions(sql, size)
    const producers = {} as Record<Name, Producer>
    for (const name of names)
      producers[name] = await contestants[name].openProducer(url, sessions, sql)
    const seen: Record<string, number[]> = {}
    const note = (name: string, rate: number) => (seen[name] ??= []).push(rate)
    for (let round = 0; round < rounds; round++) {
      for (const name of names) {
        await producers[name].fill(backlog / size)
        if (round === 0) await sql`analyze`
        const results = await workers.run({ name, url, sessions, mode: 'drain' }, async (count) => {
          await sleep(warmUpMs)
          await count()
          await sleep(windowMs)
        })
        const count = results.reduce((sum, result) => sum + result.handled, 0)
        note(name, (count / Math.max(...results.map(({ ms }) => ms))) * 1_000)
        if (!name.startsWith('awfar')) continue
        handled += count
        violations += results.reduce((sum, result) => sum + result.violations, 0)
      }
      if (pgbench) {
        await producers.awfar.fill(backlog / size)
        note(
          'pgbench',
          await pgbenchRate(sql, url, folder, sessions, Math.min(200, backlog / size)),
        )
      }
    }
    for (const name of names) await producers[name].close()
    const medians = Object.fromEntries(
      Object.entries(seen).map(([name, all]) => [name, median(all)]),
    )
    rates.push({ sessions: size, rates: medians as Rates['rates'] })
    const list = Object.entries(medians).map(([name, rate]) => `${name} ${Math.round(rate)}`)
    say(`${size} sessions, messages/s: ${list.join(', ')}`)
  }
  return { rates, handled, violations }
}
