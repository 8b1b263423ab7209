import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import type { LeasedSession } from '../shared/wa-session-leases.ts'
import { closeRequest, dismissRequests, writeTransition } from '../shared/wa-session-transitions.ts'
import type { OwnedSession, Transition } from '../shared/wa-session-transitions.ts'
import type { SessionRequest, SessionStatus } from '../shared/wa-sessions.ts'
import { next } from './lifecycle.ts'
import type { LifecycleEvent } from './lifecycle.ts'
import { waitOutOutage } from './patience.ts'

/** How a wish ended. */
export interface Answer {
  error?: string | undefined
  result?: object | undefined
  /** That wish only, not one of its kind that came later. */
  id?: number | undefined
}

/** The state of a session as its owner knows it, and what its owner writes of it: under the fence, and after the database has come back if it is away. */
export class SessionState {
  readonly owned: OwnedSession
  readonly #sql: Sql
  readonly #log: Logger
  #status: SessionStatus
  #reason: string | null = null
  #detail: string | undefined
  #isLost = false

  constructor(
    leased: LeasedSession,
    { sql, log, worker }: { sql: Sql; log: Logger; worker: string },
  ) {
    const { id, workspaceId, fence } = leased
    this.owned = { id, workspaceId, fence, worker }
    this.#sql = sql
    this.#log = log
    this.#status = leased.status
  }

  get status(): SessionStatus {
    return this.#status
  }

  /** Why it is in this state. */
  get reason(): string | null {
    return this.#reason
  }

  /** What the row says is only true while an engine runs. */
  get needsEngine(): boolean {
    return ['WORKING', 'SCAN_QR_CODE', 'PASSKEY_REQUIRED'].includes(this.#status)
  }

  /** The session has another owner, or may have one any moment: nothing is written of it any more. */
  get isLost(): boolean {
    return this.#isLost
  }

  lose(): void {
    this.#isLost = true
  }

  /** What happened, and the state that follows; nothing where it means nothing in this state. Throws LeaseLost. */
  async happened(
    event: LifecycleEvent,
    more: Pick<Transition, 'detail' | 'account' | 'qr'> = {},
  ): Promise<void> {
    const from = this.#status
    const change = next(from, event)
    if (!change) return
    const { detail = this.#detail } = more
    // The same state for the same reason is no news, unless there is more to say about it.
    const isOld = change.to === from && change.reason === this.#reason && detail === this.#detail
    if (isOld) return
    const transition = { from, ...change, ...more }
    await this.write(() => writeTransition(this.#sql, this.owned, transition))
    this.#status = change.to
    this.#reason = change.reason
    this.#detail = detail
    this.#log.info('session changed', {
      sessionId: this.owned.id,
      from,
      to: change.to,
      reason: change.reason,
      ...(more.detail !== undefined && { detail: more.detail }),
    })
  }

  /** Marks a wish as fulfilled, or as tried in vain. */
  close(kind: SessionRequest, answer: Answer = {}): Promise<void> {
    return this.write(() => closeRequest(this.#sql, this.owned, kind, answer))
  }

  /** Ends wishes that something else has overtaken: left open, they would have the session taken and let go of again and again. */
  dismiss(...kinds: SessionRequest[]): Promise<void> {
    return this.write(() => dismissRequests(this.#sql, this.owned, kinds))
  }

  /** Does a write, waiting for the database if it is away. */
  write<T>(work: () => Promise<T>): Promise<T> {
    return waitOutOutage(work, () => !this.#isLost)
  }
}
