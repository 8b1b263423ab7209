import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from './db.ts'

/** Channels on which a process is nudged. A nudge may be lost: whoever listens also polls. */
export type Channel = 'awfar_outbox' | 'awfar_sessions' | 'awfar_events'

export interface Notifier {
  /** Nudges the listeners of a channel, soon and at most once at a time: nudges that come meanwhile are one. */
  nudge(channel: Channel): void
  /** Waits for the nudge under way. */
  close(): Promise<void>
}

/**
 * Sends nudges outside the caller's transaction: NOTIFY inside it takes a global lock at commit and makes commits queue up.
 * A nudge that fails is dropped, since polling finds the work a moment later; `onError` hears of it. `restMs`: the least time between two of them.
 */
export function createNotifier(sql: Sql, onError: (error: unknown) => void, restMs = 0): Notifier {
  const waiting = new Set<Channel>()
  let running: Promise<void> | undefined

  async function flush(): Promise<void> {
    for (const channel of waiting) {
      waiting.delete(channel)
      await sql`select pg_notify(${channel}, '')`.catch(onError)
      if (restMs > 0) await sleep(restMs)
    }
    running = undefined
  }

  return {
    nudge(channel) {
      waiting.add(channel)
      running ??= flush()
    },
    close: async () => running,
  }
}
