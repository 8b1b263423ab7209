import { setTimeout as sleep } from 'node:timers/promises'
import type { Tag } from './db.ts'

/** Channels on which a process is nudged. A nudge may be lost: whoever listens also polls. */
export type Channel = 'awfar_outbox' | 'awfar_sessions' | 'awfar_events'

export interface Notifier {
  /** Nudges the listeners of a channel, over one session or all, soon and at most once at a time: nudges that come meanwhile are one. */
  nudge(channel: Channel, sessionId?: string): void
  /** Waits for the nudge under way. */
  close(): Promise<void>
}

/** Sessions one nudge names; with more it is meant for all. Postgres carries 8,000 bytes. */
const maxNamed = 200

/**
 * Sends nudges outside the caller's transaction: NOTIFY inside it takes a global lock at commit and makes commits queue up.
 * A nudge that fails is dropped, since polling finds the work a moment later; `onError` hears of it. `restMs`: the least time between two of them.
 */
export function createNotifier(sql: Tag, onError: (error: unknown) => void, restMs = 0): Notifier {
  const waiting = new Map<Channel, Set<string>>()
  let running: Promise<void> | undefined

  async function flush(): Promise<void> {
    for (const [channel, sessions] of waiting) {
      waiting.delete(channel)
      const named = !sessions.has(all) && sessions.size <= maxNamed
      await sql`select pg_notify(${channel}, ${named ? [...sessions].join() : ''})`.catch(onError)
      if (restMs > 0) await sleep(restMs)
    }
    running = undefined
  }

  return {
    nudge(channel, sessionId = all) {
      const sessions = waiting.get(channel) ?? new Set()
      waiting.set(channel, sessions.add(sessionId))
      running ??= flush()
    },
    close: async () => running,
  }
}

const all = ''
