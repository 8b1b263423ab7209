import type { Claimed, Outstanding } from '../shared/claims.ts'

export interface ConfirmationTimes {
  /** How long a message may stay unconfirmed before it is looked up again. */
  unconfirmedMs: number
  /** How long until the session itself is suspected. */
  stalledMs: number
  /** How long until, in a session that works, nobody believes in a confirmation any more. */
  unknownMs: number
}

/** Reloading the page and replacing the browser: there is no other cure. */
const cures = 2

/**
 * How the server confirms what a session sends. Outlives the session's lanes, as what is counted here must outlive the
 * cures it leads to. All times are of performance.now(), but those of claims: these are only compared with one another.
 */
export class Confirmations {
  readonly #times: ConfirmationTimes
  #openedAt: number | undefined
  /** How long it was open before. */
  #openMs = 0
  /** What was handed over, by its key: when it was claimed, and when that was noted. */
  readonly #handed = new Map<string, { claimedAt: Date; notedAt: number }>()
  /** When the last of those that are confirmed was claimed: the server was there after that. */
  #confirmed = -Infinity
  /**
   * What stays unconfirmed, by the message's id: since when, in time the session was open, and whether it has made the
   * session suspect.
   */
  #watched = new Map<string, { since: number; told: boolean }>()
  /** Suspicions since anything was confirmed. */
  #suspicions = 0
  #suspectedAt = -Infinity

  constructor(times: ConfirmationTimes) {
    this.#times = times
  }

  /** The session is connected, as far as it says. */
  opened(now: number): void {
    this.#openedAt = now
  }

  closed(now: number): void {
    this.#openMs = this.#clock(now)
    this.#openedAt = undefined
  }

  /** Whether nothing of it is worth keeping once the session is closed. */
  get isClear(): boolean {
    return this.#handed.size === 0 && this.#watched.size === 0
  }

  /** A message is about to be handed to WhatsApp: its ack may come before the page has answered. */
  handed({ keyId, claimedAt }: Pick<Claimed, 'keyId' | 'claimedAt'>, now: number): void {
    this.#handed.set(keyId, { claimedAt, notedAt: now })
  }

  /** It waits for no confirmation any more, and has had none. */
  dropped({ keyId, messageId }: Pick<Claimed, 'keyId' | 'messageId'>): void {
    this.#handed.delete(keyId)
    this.#watched.delete(messageId)
  }

  confirmed(message: Pick<Claimed, 'keyId' | 'messageId' | 'claimedAt'>): void {
    this.dropped(message)
    this.#confirmedAt(message.claimedAt)
  }

  /** As confirmed(), of a message of which only the key is known; it need not be one of this session's. */
  acked(keyId: string): void {
    const handed = this.#handed.get(keyId)
    if (!handed) return
    this.#handed.delete(keyId)
    this.#confirmedAt(handed.claimedAt)
  }

  /**
   * Judges what has stayed unconfirmed for `unconfirmedMs`. `overdue` are messages that have had their time while the
   * session was open, whatever it was closed for in between. `suspicious` are those that speak against the session: it
   * was open for `stalledMs`, and nothing that was handed over after them was confirmed; else it is only their
   * recipients who are not reached. Each of them is so once, and when both cures were in vain, no session is suspected
   * more often than messages are given up.
   */
  review(
    outstanding: Outstanding[],
    now: number,
  ): { overdue: Outstanding[]; suspicious: Outstanding[] } {
    const { unconfirmedMs, stalledMs, unknownMs } = this.#times
    const clock = this.#clock(now)
    const watched = new Map<string, { since: number; told: boolean }>()
    for (const { messageId, ageMs } of outstanding) {
      const { since = this.#openMs, told = false } = this.#watched.get(messageId) ?? {}
      // Claimed anew since, or in this opening.
      watched.set(messageId, { since: Math.max(since, clock - ageMs), told })
    }
    this.#watched = watched
    const keyIds = new Set(outstanding.map(({ keyId }) => keyId))
    for (const [keyId, { notedAt }] of this.#handed) {
      if (!keyIds.has(keyId) && now - notedAt > 2 * unconfirmedMs) this.#handed.delete(keyId)
    }

    const isOverdue = ({ messageId }: Outstanding) =>
      clock - watched.get(messageId)!.since >= unknownMs
    const overdue = outstanding.filter(isOverdue)
    const isOpenForLong = clock - this.#openMs >= stalledMs
    const isCurable = this.#suspicions < cures || now - this.#suspectedAt >= unknownMs
    if (!isOpenForLong || !isCurable) return { overdue, suspicious: [] }
    const stalled = outstanding.filter(
      (message) =>
        message.ageMs >= stalledMs &&
        message.claimedAt.getTime() > this.#confirmed &&
        !isOverdue(message),
    )
    const suspicious = stalled.filter(({ messageId }) => !watched.get(messageId)!.told)
    if (suspicious.length > 0) {
      this.#suspicions += 1
      this.#suspectedAt = now
      for (const { messageId } of stalled) watched.get(messageId)!.told = true
    }
    return { overdue, suspicious }
  }

  #confirmedAt(claimedAt: Date): void {
    this.#confirmed = Math.max(this.#confirmed, claimedAt.getTime())
    this.#suspicions = 0
  }

  /** How long the session has been open. */
  #clock(now: number): number {
    return this.#openMs + (this.#openedAt === undefined ? 0 : now - this.#openedAt)
  }
}
