import { setTimeout as sleep } from 'node:timers/promises'
import type { Tag } from './db.ts'

/** Channels on which a process is nudged. A nudge may be lost: whoever listens also polls. */
export type Channel = 'awfar_outbox' | 'awfar_sessions' | 'awfar_events'

/** The least time between two nudges of a channel. Those of writes come in bursts, and NOTIFY has a lock that all commits share. */
const restMs: Record<Channel, number> = { awfar_outbox: 0, awfar_sessions: 0, awfar_events: 20 }

/** A channel, and the session it is about; without one it is about all. */
export type Nudge = readonly [channel: Channel, sessionId?: string | undefined]

export interface Notifier {
  /** Nudges the listeners of a channel, over one session or all: at once, or together with others when one is under way. */
  nudge(...nudge: Nudge): void
  /**
   * Nudges, by the connection that is `committing` what they tell of: right behind it, where none of their channel is under way. Resolves when the connection
   * is free. Never rejects.
   */
  follow(committing: Promise<unknown>, by: Tag, nudges: Nudge[]): Promise<void>
  /** Waits for the nudges under way. */
  close(): Promise<void>
}

/** Sessions one nudge names; with more it is meant for all. Postgres carries 8,000 bytes. */
const maxNamed = 200

/**
 * Sends nudges outside the caller's transaction: NOTIFY inside it takes a global lock at commit and makes commits queue up. One of a channel is under
 * way at a time. A nudge that fails is dropped, since polling finds the work a moment later; `onError` hears of it.
 */
export function createNotifier(sql: Tag, onError: (error: unknown) => void): Notifier {
  const waiting = new Map<Channel, Set<string>>()
  const underWay = new Map<Channel, Promise<void>>()

  const isFree = ([channel]: Nudge) => !underWay.has(channel)

  function add([channel, sessionId = all]: Nudge): void {
    waiting.set(channel, (waiting.get(channel) ?? new Set()).add(sessionId))
  }

  /** Sends what waits, and what comes while it does so: another connection may have a queue of transactions before it. */
  async function send(by: Tag): Promise<void> {
    for (;;) {
      const nudges = [...waiting].filter(([channel]) => isFree([channel]))
      if (nudges.length === 0) return
      const channels = nudges.map(([channel]) => channel)
      const payloads = nudges.map(([, sessions]) => payloadOf(sessions))
      const sent = by`select pg_notify(n.channel, n.payload) from unnest(${channels}::text[], ${payloads}::text[]) n(channel, payload)`
      const settled = sent.then(() => {}, onError)
      for (const channel of channels) {
        waiting.delete(channel)
        underWay.set(
          channel,
          settled.then(() => arrived(channel)),
        )
      }
      await settled
    }
  }

  /** Until it has rested, a channel counts as under way. */
  async function arrived(channel: Channel): Promise<void> {
    if (restMs[channel] > 0) {
      await sleep(restMs[channel])
      underWay.delete(channel)
      void send(sql)
    } else underWay.delete(channel)
  }

  return {
    nudge(...nudge) {
      add(nudge)
      void send(sql)
    },
    async follow(committing, by, nudges) {
      const late = nudges.filter((nudge) => !isFree(nudge))
      nudges.filter(isFree).forEach(add)
      const sent = send(by)
      // What another connection carried now might be heard before it is true.
      const committed = await committing.then(
        () => true,
        () => false,
      )
      await sent
      if (committed) late.forEach(add)
      await send(by)
    },
    async close() {
      while (underWay.size > 0) await Promise.all(underWay.values())
    },
  }
}

const all = ''

const payloadOf = (sessions: Set<string>) =>
  sessions.has(all) || sessions.size > maxNamed ? '' : [...sessions].join()
