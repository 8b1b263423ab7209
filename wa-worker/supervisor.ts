import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import {
  census,
  ownedSessions,
  renewLeases,
  takeLeases,
  releaseLease,
} from '../shared/wa-session-leases.ts'
import type { LeasedSession } from '../shared/wa-session-leases.ts'
import { heartbeat } from '../shared/workers.ts'
import type { Worker } from '../shared/workers.ts'
import type { Session } from './session.ts'
import { Wake } from '../shared/wake.ts'

export interface SupervisorOptions {
  sql: Sql
  log: Logger
  worker: Worker
  leaseTtlMs: number
  /** How long a session may go without being connected before it expires. */
  expiryDays: number
  /** How often to look for sessions nobody nudged about. */
  pollMs?: number
  /** `isErrand`: it was taken beyond what there is room for, and must not run. */
  createSession(leased: LeasedSession, how: { isErrand: boolean }): Session
}

/** Sessions taken in one step. */
const atOnce = 2
/** Errands at a time beyond the capacity: a logout must not wait until a session that runs is stopped. Each may need a browser for a moment. */
const errandsAtOnce = 1
/** Steps for which a worker that has its share leaves waiting sessions to the others. */
const patientSteps = 3

/**
 * Makes reality match the sessions' rows: takes leases on sessions that should run, renews them, passes on what is wished, and lets go
 * of what is lost. A lease is renewed at a third of its length; the database's clock decides who owns what, and this worker's own
 * monotonic clock decides when it must assume that it owns nothing any more.
 */
export class Supervisor {
  readonly #options: SupervisorOptions
  readonly #sessions = new Map<string, Session>()
  readonly #wake = new Wake()
  /** When the last renewal was asked for that succeeded, of each lease; of all together nothing is known before the first. */
  readonly #renewals = new Map<string, number>()
  #renewedAt = -Infinity
  /** Steps in a row in which somebody's session lay waiting. */
  #patience = 0
  /** Fences of sessions taken anew while their former engine still closes. */
  readonly #waiting = new Map<string, number>()
  #stopping = false
  #watchdog: NodeJS.Timeout | undefined

  constructor(options: SupervisorOptions) {
    this.#options = options
  }

  /** Something about a session was asked for. */
  nudge(): void {
    this.#wake.ring()
  }

  /** Runs until stop() is called. */
  async run(): Promise<void> {
    const { leaseTtlMs, log, pollMs = 1_000 } = this.#options
    // Its own timer: the loop below may hang in a statement just when it matters.
    this.#watchdog = setInterval(() => this.#abandonWhenStale(), Math.min(1_000, leaseTtlMs / 6))
    while (!this.#stopping) {
      try {
        await this.#step()
      } catch (error) {
        log.error('supervision failed', { error })
      }
      await this.#wake.wait(Math.min(pollMs, leaseTtlMs / 3))
    }
  }

  /** Hands every session over: engines closed, logins kept, leases given back. */
  async stop(): Promise<void> {
    this.#stopping = true
    this.#wake.ring()
    // Leases are renewed meanwhile, since closing browsers takes its time.
    const renewal = setInterval(
      () => void this.#renew().catch(() => {}),
      this.#options.leaseTtlMs / 3,
    )
    await Promise.all([...this.#sessions.values()].map((session) => session.handOver()))
    clearInterval(renewal)
    clearInterval(this.#watchdog)
  }

  async #step(): Promise<void> {
    const { sql, worker, leaseTtlMs } = this.#options
    const oldest = Math.min(this.#renewedAt, ...this.#renewals.values())
    const due = performance.now() - oldest >= leaseTtlMs / 3
    if (due) await heartbeat(sql, worker)
    const owned = due ? await this.#renew() : await ownedSessions(sql, worker.id)
    for (const leased of owned) {
      const session = this.#sessions.get(leased.id)
      if (session?.owned.fence === leased.fence) session.wish(leased)
    }
    if (this.#stopping) return
    const room = worker.capacity - this.#sessions.size
    if (room > 0) await this.#takeShare(room)
    else if (room + errandsAtOnce > 0) await this.#take(room + errandsAtOnce, 'errands')
  }

  /**
   * Takes a few of the sessions nobody owns: a few, since each starts a browser and many at once starve one another; and no more than this
   * worker's share of all, unless the others leave them lying.
   */
  async #takeShare(room: number): Promise<void> {
    const { sql, worker, leaseTtlMs } = this.#options
    const { waiting, total, workers } = await census(sql, { worker: worker.id, ttlMs: leaseTtlMs })
    if (waiting === 0) {
      this.#patience = 0
      return
    }
    const share = Math.ceil(total / Math.max(1, workers)) - this.#sessions.size
    this.#patience += 1
    const wanted = share > 0 || this.#patience > patientSteps ? Math.max(1, share) : 0
    const limit = Math.min(room, wanted, atOnce)
    if (limit > 0) await this.#take(limit)
  }

  async #renew(): Promise<LeasedSession[]> {
    const { sql, worker, leaseTtlMs, expiryDays } = this.#options
    // Taken before the statement: the lease cannot end earlier than this plus its length.
    const asked = performance.now()
    const owned = await renewLeases(sql, { worker: worker.id, ttlMs: leaseTtlMs, expiryDays })
    this.#renewedAt = asked
    for (const { id, renewed } of owned) {
      if (renewed) this.#renewals.set(id, asked)
    }
    const fences = new Map(owned.map((leased) => [leased.id, leased.fence]))
    for (const session of this.#sessions.values()) {
      if (fences.get(session.id) !== session.owned.fence) void session.abandon()
    }
    // Abandoned for fear of losing the lease, which then held after all: without this it would be renewed for ever and run by nobody.
    for (const { id, fence } of owned) {
      const held = this.#sessions.get(id)?.owned.fence === fence || this.#waiting.get(id) === fence
      if (held) continue
      this.#renewals.delete(id)
      await releaseLease(sql, { id, fence })
    }
    return owned
  }

  async #take(room: number, only?: 'errands'): Promise<void> {
    const { sql, worker, leaseTtlMs, log } = this.#options
    const asked = performance.now()
    const taken = await takeLeases(sql, {
      worker: worker.id,
      ttlMs: leaseTtlMs,
      limit: room,
      ...(only && { only }),
    })
    for (const leased of taken) {
      const begin = async () => {
        // stop() has handed over what there was: nobody would end this one.
        if (this.#stopping) return releaseLease(sql, leased)
        const session = this.#options.createSession(leased, { isErrand: only === 'errands' })
        this.#sessions.set(leased.id, session)
        // Renewed already, where its former engine took long to close.
        this.#renewals.set(leased.id, Math.max(asked, this.#renewals.get(leased.id) ?? asked))
        log.info('session taken', { sessionId: leased.id, fence: leased.fence })
        void session.ended.then(() => {
          if (this.#sessions.get(leased.id) === session) {
            this.#sessions.delete(leased.id)
            if (!this.#waiting.has(leased.id)) this.#renewals.delete(leased.id)
          }
          this.#wake.ring()
        })
        session.wish(leased)
      }
      // Ours until a moment ago: its old browser must be gone before a new one opens the same login.
      const before = this.#sessions.get(leased.id)
      if (before) {
        this.#waiting.set(leased.id, leased.fence)
        before.ended
          .then(() => {
            this.#waiting.delete(leased.id)
            return begin()
          })
          .catch((error: unknown) =>
            log.error('session not begun', { sessionId: leased.id, error }),
          )
      } else await begin()
    }
  }

  /** Whether the last renewal of the session's lease is so recent that no other worker can have taken over, whatever happened to this process since. */
  ownsLease(sessionId: string): boolean {
    const renewedAt = this.#renewals.get(sessionId) ?? -Infinity
    return performance.now() - renewedAt < this.#options.leaseTtlMs * 0.8
  }

  /** Without a renewal for most of the lease's length another worker may be about to take over: our browsers are killed before that. */
  #abandonWhenStale(): void {
    for (const session of this.#sessions.values()) {
      if (!this.ownsLease(session.id)) void session.abandon()
    }
  }
}
