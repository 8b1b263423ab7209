import type { Db } from '../../../shared/db.ts'
import { claim } from '../../../shared/claims.ts'
import { median } from './figures.ts'
import { undone } from './undone.ts'
import { atOnce, createSessions, fill } from './world.ts'

export const laneCounts = [1, 100, 1_000]
const sessionCount = 1_000
const tries = 11
/** A statement has half a minute. */
const loadedAtOnce = 50_000
/** A connection plans a statement anew that often before it keeps a plan. */
const warmUps = 6

export interface ClaimCost {
  backlog: string
  /** Messages that wait. */
  queued: number
  /** Milliseconds of one round trip, in the order of laneCounts. */
  ms: number[]
}

/** What a claim costs with more and more that waits. Each is undone, so that the next one finds the same. */
export async function claimCosts(sql: Db, most: number): Promise<ClaimCost[]> {
  const sessions = await createSessions(sql, sessionCount)
  await sql`update wa_sessions set owner = 'bench-0'`
  const measure = async (backlog: string, queued: number): Promise<ClaimCost> => {
    await sql`vacuum analyze messages, outbox, outbox_lanes, wa_sessions, wa_session_pacing, chats`
    const ms: number[] = []
    for (const count of laneCounts) {
      const times: number[] = []
      for (let i = 0; i < warmUps + tries; i++) {
        const lanes = Array.from({ length: count }, (_, n) => sessions[(i * 7 + n) % sessionCount]!)
        await undone(sql, async (tx) => {
          const began = performance.now()
          await claim(tx, 'bench-0', lanes, atOnce)
          times.push(performance.now() - began)
        })
      }
      ms.push(median(times.slice(warmUps)))
    }
    return { backlog, queued, ms }
  }
  const costs = [await measure('nothing', 0)]
  let loaded = 0
  for (const queued of [10_000, 100_000, 1_000_000].filter((queued) => queued <= most)) {
    while (loaded < queued) {
      loaded = Math.min(queued, loaded + loadedAtOnce)
      await fill(sql, sessions[0]!, loaded / sessionCount, 'inOrder')
    }
    costs.push(await measure(`${queued.toLocaleString('en')} queued`, queued))
  }
  await sql`truncate outbox, outbox_lanes`
  await fill(sql, sessions[0]!, 1, 'inOrder')
  costs.push(await measure(`1,000 queued, ${most.toLocaleString('en')} finished`, 1_000))
  return costs
}
