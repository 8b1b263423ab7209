import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import { claim, putBack, unconfirmed } from '../shared/claims.ts'
import { releaseScheduled } from '../shared/outbox.ts'
import type { Claimed, FreshlyClaimed, Outstanding } from '../shared/claims.ts'
import type { PacingConfig } from '../shared/pacing.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { AckBook } from './ack-book.ts'
import type { Attachments } from './attachments.ts'
import { Confirmations } from './confirmations.ts'
import { Delivery } from './delivery.ts'
import type { Line, Outcome } from './delivery.ts'
import { Wake } from '../shared/wake.ts'

export interface SenderOptions {
  sql: Sql
  worker: string
  log: Logger
  acks: Pick<AckBook, 'record'>
  attachments: Pick<Attachments, 'fetch'>
  /** The pace of sessions that have none of their own. */
  pacing: PacingConfig
  /** Whether this worker can still be sure of the session's lease, by its own clock; asked right before each send. */
  ownsLease?: (sessionId: string) => boolean
  /** How often to look for work nobody nudged about. */
  pollMs?: number
  /** How long a session waits for the server's ack before it turns to another chat; the ack still counts when it comes later. */
  ackWaitMs?: number
  /** How long a message may stay unconfirmed before it is looked up again, and how long a session waits for one that cannot be looked up before it turns to another chat. */
  unconfirmedMs?: number
  /** How long until the session itself is suspected, where nothing it sent after that is confirmed. */
  stalledMs?: number
  /** How long until, in a session that works, nobody believes in a confirmation any more. */
  unknownMs?: number
  /** Tries that fail before a message is given up. */
  maxAttempts?: number
  /** Times the page may break down over a message. */
  maxCrashes?: number
}

/** What a session is told of its sending. */
export type OnTrouble = (reason: 'ACKS_STALLED' | 'MODULE_MISSING') => void

/** A session that can send: one message at a time. */
interface OpenLane extends Line {
  confirmations: Confirmations
  closing: boolean
  /** Its engine broke down. */
  broken: boolean
  /** What was left claimed is looked up: nothing is, but what this lane knows of. */
  settled: boolean
  /** When what stays unconfirmed is looked up again, by the clock of performance.now(). */
  sweepAt: number
  /** The message its engine has in its hands: should it break down now, that may be why. */
  inHand: Claimed | undefined
  onTrouble: OnTrouble
  /** Every wait of the lane; rung by an ack and by close(). */
  pause: Wake
  /** What the lane is doing; idle when undefined. */
  work: Promise<void> | undefined
  /** Whether there may be something to claim when that is done and its pace allows it. */
  askAgain: boolean
  /** Rings when the session's pace lets it go on. */
  pacer: NodeJS.Timeout | undefined
}

/** Moves messages from the outbox to the engines: in order, one at a time a session, and looked up before any second try. */
export class Sender {
  readonly #options: Required<SenderOptions>
  readonly #delivery: Delivery
  readonly #lanes = new Map<string, OpenLane>()
  /** What lanes that were closed are still doing. */
  readonly #closing = new Map<string, Promise<void>>()
  /** Lanes that wait for an ack, by the message's id. */
  readonly #awaited = new Map<string, OpenLane>()
  /** By the session's id. */
  readonly #confirmations = new Map<string, Confirmations>()
  readonly #wake = new Wake()
  /** Sessions that may have something to send: a claim costs what it asks for. */
  readonly #asked = new Set<string>()
  /** Any may. */
  #askAll = false
  /** The claim under way. */
  #claiming: Promise<unknown> = Promise.resolve()
  #stopped = false

  constructor(options: SenderOptions) {
    this.#options = {
      ownsLease: () => true,
      pollMs: 1_000,
      ackWaitMs: 10_000,
      unconfirmedMs: 60_000,
      stalledMs: 180_000,
      unknownMs: 900_000,
      maxAttempts: 5,
      maxCrashes: 3,
      ...options,
    }
    this.#delivery = new Delivery(this.#options)
  }

  /** Lets a session send. What an earlier owner left claimed is settled first. */
  open(session: OwnedSession, engine: Line['engine'], onTrouble: OnTrouble): void {
    const lane: OpenLane = {
      session,
      engine,
      broken: false,
      settled: false,
      sweepAt: performance.now() + this.#options.unconfirmedMs,
      inHand: undefined,
      confirmations: this.#confirmationsOf(session.id),
      closing: false,
      onTrouble,
      pause: new Wake(),
      work: undefined,
      askAgain: false,
      pacer: undefined,
    }
    this.#lanes.set(session.id, lane)
    lane.confirmations.opened(performance.now())
    const before = this.#closing.get(session.id)
    this.#occupy(lane, async () => {
      // The lane before it may still have a message in its hands, or be claiming one.
      await before
      await this.#claiming
      await this.#settleLeft(lane)
    })
  }

  /**
   * Takes a session out; resolves when the message in flight is through. `broken`: because its engine broke down, of which that message may be the cause.
   */
  async close(sessionId: string, how?: 'broken'): Promise<void> {
    const lane = this.#lanes.get(sessionId)
    if (!lane) return
    this.#lanes.delete(sessionId)
    clearTimeout(lane.pacer)
    lane.confirmations.closed(performance.now())
    lane.closing = true
    lane.broken = how === 'broken'
    lane.pause.ring()
    if (!lane.work) return
    const work = lane.work.finally(() => {
      if (this.#closing.get(sessionId) === work) this.#closing.delete(sessionId)
    })
    this.#closing.set(sessionId, work)
    await work
  }

  /** Whether its engine has a message in its hands, which is blamed should it break down now. */
  hasInHand(sessionId: string): boolean {
    return this.#lanes.get(sessionId)?.inHand !== undefined
  }

  /** Whether the session has a message in flight. */
  isBusy(sessionId: string): boolean {
    return this.#lanes.get(sessionId)?.work !== undefined
  }

  /** Whether the session is open and has nothing in flight. */
  isIdle(sessionId: string): boolean {
    const lane = this.#lanes.get(sessionId)
    return lane !== undefined && lane.work === undefined
  }

  /** There may be something to send in these sessions, or in any. */
  nudge(sessionIds?: string[]): void {
    if (!sessionIds) this.#askAll = true
    else for (const id of sessionIds) if (this.#lanes.has(id)) this.#asked.add(id)
    if (this.#askAll || this.#asked.size > 0) this.#wake.ring()
  }

  /** WhatsApp confirmed or refused a message: whoever waits for that may go on. */
  acked(keyId: string): void {
    for (const confirmations of this.#confirmations.values()) confirmations.acked(keyId)
    this.#awaited.get(keyId)?.pause.ring()
  }

  /** Sends until stop() is called. */
  async run(): Promise<void> {
    const { sql, log, pollMs } = this.#options
    let pollAt = performance.now()
    while (!this.#stopped) {
      try {
        const polling = performance.now() >= pollAt
        // From when it was to be, not from when it came to be: who waits for a poll waits no longer than its interval.
        if (polling) pollAt = Math.max(pollAt + pollMs, performance.now())
        await this.#claim(polling)
        // Behind the claim, which is what nobody told of waits for.
        if (polling && (await releaseScheduled(sql)) > 0) this.nudge()
      } catch (error) {
        log.error('claim failed', { error })
      }
      await this.#wake.wait(Math.max(0, pollAt - performance.now()))
    }
  }

  stop(): void {
    this.#stopped = true
    this.#wake.ring()
  }

  async #claim(polling: boolean): Promise<void> {
    const all = this.#askAll
    const asked = new Set(this.#asked)
    this.#askAll = false
    this.#asked.clear()
    const isTold = ({ session }: OpenLane) => all || asked.has(session.id)
    for (const lane of this.#idle()) {
      // With each poll: what could not be read from the database cannot now either, unless some time has passed.
      if (!lane.settled) {
        if (all || polling) this.#occupy(lane, () => this.#settleLeft(lane))
      }
      // Before it is given the next message: one that always has a next one has no better time.
      else if (performance.now() >= lane.sweepAt) this.#occupy(lane, () => this.#sweep(lane))
    }
    // Who is at work, or has to keep a pace, is asked after that; of what nobody tells, a later poll will know.
    for (const lane of this.#lanes.values())
      if (isTold(lane)) lane.askAgain ||= lane.work !== undefined || lane.pacer !== undefined
    const idle = this.#idle().filter((lane) => lane.settled && (polling || isTold(lane)))
    if (idle.length === 0) return
    const { pollMs } = this.#options
    const claiming = this.#claimFor(idle)
    this.#claiming = claiming.catch(() => {
      // It may be the answer that was lost.
      for (const lane of idle) lane.settled = false
    })
    for (const [lane, message] of await claiming) {
      // Its next owner looks it up and puts it back.
      if (lane.closing) continue
      clearTimeout(lane.pacer)
      lane.pacer = undefined
      // The poll would find the next one too, but later than the pace asks for.
      if (message.waitMs > 0 && message.waitMs < 60 * pollMs) {
        lane.pacer = setTimeout(() => {
          lane.pacer = undefined
          if (lane.askAgain) this.nudge([lane.session.id])
        }, Math.ceil(message.waitMs))
      }
      this.#occupy(lane, () => this.#deliver(lane, message), message.more)
    }
  }

  async #claimFor(idle: OpenLane[]): Promise<[OpenLane, FreshlyClaimed][]> {
    const { sql, worker, pacing, log } = this.#options
    const sessions = idle.map(({ session }) => session)
    const lanes = new Map(idle.map((lane) => [lane.session.id, lane]))
    const claimed = await claim(sql, worker, sessions, pacing)
    const inHand: [OpenLane, FreshlyClaimed][] = []
    for (const message of claimed) {
      const lane = lanes.get(message.sessionId)!
      if (!lane.closing) inHand.push([lane, message])
      // It closed meanwhile, and nobody has touched the message.
      else
        await putBack(sql, lane.session, message, { delayMs: 0, forgiven: true }).catch(
          (error: unknown) => log.warn('claimed in vain', { sessionId: lane.session.id, error }),
        )
    }
    return inHand
  }

  /** Looks up what has been unconfirmed for long, once: acks get lost. */
  async #sweep(lane: OpenLane): Promise<void> {
    const { unconfirmedMs } = this.#options
    try {
      await this.#settleAll(lane, unconfirmedMs, 0)
      await this.#checkLag(lane)
    } finally {
      lane.sweepAt = performance.now() + unconfirmedMs
    }
  }

  /** Gives up what has had its time. Silence about what WhatsApp Web has taken may also tell of a page that is connected in name only. */
  async #checkLag(lane: OpenLane): Promise<void> {
    const { unconfirmedMs, log } = this.#options
    const outstanding = await this.#unconfirmed(lane, unconfirmedMs)
    if (lane.closing) return
    const { overdue, suspicious } = lane.confirmations.review(outstanding, performance.now())
    for (const message of overdue) {
      await this.#delivery.giveUpUnconfirmed(lane, message)
      lane.confirmations.dropped(message)
    }
    if (suspicious.length === 0 || lane.closing) return
    const messages = suspicious.length
    log.warn('messages stay unconfirmed', { sessionId: lane.session.id, messages })
    lane.onTrouble('ACKS_STALLED')
  }

  #confirmationsOf(sessionId: string): Confirmations {
    // Of sessions that are somebody else's by now, too.
    for (const [id, { isClear }] of this.#confirmations)
      if (isClear && !this.#lanes.has(id)) this.#confirmations.delete(id)
    const confirmations = this.#confirmations.get(sessionId) ?? new Confirmations(this.#options)
    this.#confirmations.set(sessionId, confirmations)
    return confirmations
  }

  #unconfirmed(lane: OpenLane, olderThanMs: number): Promise<Outstanding[]> {
    const { sql, pacing } = this.#options
    return unconfirmed(sql, lane.session, olderThanMs / 1_000, pacing)
  }

  #idle(): OpenLane[] {
    return [...this.#lanes.values()].filter((lane) => lane.work === undefined)
  }

  /**
   * Gives a lane something to do. After that it asks for more where there may be any, was told of some meanwhile, or could not do it: a claim in vain is a third of the
   * work of one that finds something.
   */
  #occupy(lane: OpenLane, work: () => Promise<void>, more = true): void {
    lane.askAgain = more
    lane.work = work()
      .then(() =>
        lane.broken && lane.inHand ? this.#delivery.blame(lane, lane.inHand) : undefined,
      )
      .catch((error: unknown) => {
        lane.askAgain = true
        const fields = { sessionId: lane.session.id, error }
        if (error instanceof LeaseLost) this.#options.log.warn('lane lost', fields)
        else this.#options.log.error('lane stalled', fields)
      })
      .then(() => {
        lane.inHand = undefined
        lane.work = undefined
        // Before its pace lets it go on there is nothing to claim.
        if (lane.askAgain && !lane.pacer) this.nudge([lane.session.id])
      })
  }

  async #deliver(lane: OpenLane, message: FreshlyClaimed): Promise<void> {
    // What rang for the message before is not for this one.
    lane.pause.forget()
    // Before the send: the ack may come before send() resolves.
    this.#awaited.set(message.keyId, lane)
    try {
      lane.inHand = message
      lane.confirmations.handed(message, performance.now())
      const outcome = await this.#delivery.send(lane, message)
      if (outcome !== 'unsettled') lane.inHand = undefined
      this.#note(lane, message, outcome)
      // It may be in the queue again.
      if (!['acked', 'refused', 'handed'].includes(outcome)) lane.askAgain = true
      if (outcome === 'handed' && !lane.closing) await lane.pause.wait(this.#options.ackWaitMs)
      // An engine that broke closes the lane, and the next one settles it.
      if (outcome === 'unsettled') {
        await this.#pause(lane)
        await this.#settle(lane, message, performance.now() + this.#options.unconfirmedMs)
      }
      if (outcome === 'crippled') lane.onTrouble('MODULE_MISSING')
      if (outcome === 'offline' || outcome === 'crippled')
        await lane.pause.wait(this.#options.pollMs)
    } finally {
      this.#awaited.delete(message.keyId)
    }
  }

  /** Settles what an earlier owner left, or a claim that failed. */
  async #settleLeft(lane: OpenLane): Promise<void> {
    await this.#settleAll(lane, 0, performance.now() + this.#options.unconfirmedMs)
    lane.settled = true
  }

  /** Settles what is claimed in this lane, oldest first, since at least `olderThanMs`; as long as #settle(). */
  async #settleAll(lane: OpenLane, olderThanMs: number, until: number): Promise<void> {
    for (const message of await this.#unconfirmed(lane, olderThanMs))
      await this.#settle(lane, message, until)
  }

  /**
   * Looks a message up until it is known what became of it, at least once, and for as long as until `until`: then the session goes on with its other chats, as it does without an ack, and each
   * sweep looks again.
   */
  async #settle(lane: OpenLane, message: Claimed, until: number): Promise<void> {
    do {
      if (lane.closing) return
      lane.inHand = message
      const outcome = await this.#delivery.settle(lane, message)
      this.#note(lane, message, outcome)
      if (outcome !== 'unsettled') {
        lane.inHand = undefined
        return
      }
      await this.#pause(lane)
    } while (performance.now() < until)
    // It was not what broke the engine: that would have shown by now.
    if (!lane.closing) lane.inHand = undefined
  }

  #note({ confirmations }: OpenLane, message: Claimed, outcome: Outcome): void {
    if (outcome === 'acked') confirmations.confirmed(message)
    else if (outcome !== 'handed' && outcome !== 'unsettled') confirmations.dropped(message)
  }

  /** Before a message is looked up again; an engine that broke down over it shows meanwhile. */
  #pause(lane: OpenLane): Promise<void> {
    return lane.pause.wait(Math.min(1_000, this.#options.unconfirmedMs))
  }
}
