import { setTimeout as sleep } from 'node:timers/promises'
import type { Tag } from './db.ts'

/** Channels on which a process is nudged. A nudge may be lost: whoever listens also polls. */
export type Channel = 'awfar_outbox' | 'awfar_sessions' | 'awfar_events'

/** A channel, and the session it is about; without one it is about all. */
export type Nudge = readonly [channel: Channel, sessionId?: string | undefined]

/** The least time between two nudges of a channel. Those of writes come in bursts, and NOTIFY has a lock that all commits share. */
const restMs: Record<Channel, number> = { awfar_outbox: 0, awfar_sessions: 0, awfar_events: 20 }

export interface Notifier {
  /** Nudges the listeners of a channel, over one session or all: at once, or together with others when one is under way. */
  nudge(...nudge: Nudge): void
  /** Those that may go by the connection that commits what they tell of, right behind the commit: of each channel by one at a time. Each needs a ride() then. */
  board(nudges: Nudge[]): Nudge[]
  /** Sends what has boarded. Rejects when the connection breaks. */
  ride(by: Tag, boarded: Nudge[]): Promise<void>
  /** Waits for the nudges under way. */
  close(): Promise<void>
}

/** Sessions one nudge names; with more it is meant for all. Postgres carries 8,000 bytes. */
const maxNamed = 200

/**
 * Sends nudges outside the caller's transaction: NOTIFY inside it takes a global lock at commit and makes commits queue up. What does not ride goes by
 * `sql`, one of a channel at a time, so that a commit that takes long delays nobody's nudges but its own. A nudge that fails is dropped, since polling finds the
 * work a moment later; `onError` hears of it.
 */
export function createNotifier(sql: Tag, onError: (error: unknown) => void): Notifier {
  const waiting = new Map<Channel, Set<string>>()
  const underWay = new Map<Channel, Promise<void>>()
  const aboard = new Set<Channel>()

  async function flush(channel: Channel): Promise<void> {
    for (let sessions; (sessions = waiting.get(channel));) {
      waiting.delete(channel)
      await notify(sql, [channel], [payloadOf(sessions)]).catch(onError)
      if (restMs[channel] > 0) await sleep(restMs[channel])
    }
    underWay.delete(channel)
  }

  return {
    nudge(channel, sessionId = all) {
      waiting.set(channel, (waiting.get(channel) ?? new Set()).add(sessionId))
      if (!underWay.has(channel)) underWay.set(channel, flush(channel))
    },
    board(nudges) {
      const boarded = nudges.filter(([channel]) => restMs[channel] === 0 && !aboard.has(channel))
      for (const [channel] of boarded) aboard.add(channel)
      return boarded
    },
    async ride(by, boarded) {
      const channels = [...new Set(boarded.map(([channel]) => channel))]
      const payloads = channels.map((channel) =>
        payloadOf(new Set(boarded.filter(([of]) => of === channel).map(([, id = all]) => id))),
      )
      try {
        await notify(by, channels, payloads)
      } finally {
        for (const channel of channels) aboard.delete(channel)
      }
    },
    async close() {
      while (underWay.size > 0) await Promise.all(underWay.values())
    },
  }
}

const all = ''

const payloadOf = (sessions: Set<string>) =>
  sessions.has(all) || sessions.size > maxNamed ? '' : [...sessions].join()

const notify = (by: Tag, channels: Channel[], payloads: string[]) =>
  by`select pg_notify(n.channel, n.payload) from unnest(${channels}::text[], ${payloads}::text[]) n(channel, payload)`
