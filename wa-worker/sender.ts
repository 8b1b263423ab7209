import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import { claim, putBack, unconfirmed } from '../shared/claims.ts'
import { releaseScheduled } from '../shared/outbox.ts'
import type { Claimed, FreshlyClaimed } from '../shared/claims.ts'
import type { PacingConfig } from '../shared/pacing.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { AckBook } from './ack-book.ts'
import type { Attachments } from './attachments.ts'
import { Delivery } from './delivery.ts'
import type { Line } from './delivery.ts'
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
  /** How long a message may stay unconfirmed before it is looked up again. */
  unconfirmedMs?: number
  /** How long until the session itself is suspected. */
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
  openedAt: number
  closing: boolean
  /** Its engine broke down. */
  broken: boolean
  /** What was left claimed is looked up: nothing is, but what this lane knows of. */
  settled: boolean
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
  /** Messages that have made their session suspect once. */
  readonly #stuck = new Set<string>()
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
      openedAt: performance.now(),
      closing: false,
      onTrouble,
      pause: new Wake(),
      work: undefined,
      askAgain: false,
      pacer: undefined,
    }
    this.#lanes.set(session.id, lane)
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
    this.#awaited.get(keyId)?.pause.ring()
  }

  /** Sends until stop() is called. */
  async run(): Promise<void> {
    const { sql, log, pollMs, unconfirmedMs } = this.#options
    let sweepAt = Date.now() + unconfirmedMs
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
      if (Date.now() >= sweepAt) {
        this.#sweep()
        sweepAt = Date.now() + unconfirmedMs
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
    // With each poll: what could not be looked up cannot now either, unless some time has passed.
    if (all || polling)
      for (const lane of this.#idle())
        if (!lane.settled) this.#occupy(lane, () => this.#settleLeft(lane))
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

  /** Looks up what has been unconfirmed for long: acks get lost. */
  #sweep(): void {
    for (const lane of this.#idle()) {
      this.#occupy(lane, async () => {
        await this.#settleAll(lane, this.#options.unconfirmedMs)
        await this.#checkLag(lane)
      })
    }
  }

  /** What WhatsApp Web has taken and the server does not confirm tells of a page that is connected in name only. Each message tells once. */
  async #checkLag(lane: OpenLane): Promise<void> {
    const { stalledMs, unknownMs, log } = this.#options
    if (performance.now() - lane.openedAt > unknownMs) {
      for (const message of await this.#unconfirmed(lane, unknownMs))
        await this.#delivery.giveUpUnconfirmed(lane, message)
    }
    const stuck = await this.#unconfirmed(lane, stalledMs)
    const news = stuck.filter(({ messageId }) => !this.#stuck.has(messageId))
    if (news.length === 0 || lane.closing) return
    for (const { messageId } of news) this.#stuck.add(messageId)
    log.warn('messages stay unconfirmed', { sessionId: lane.session.id, messages: stuck.length })
    lane.onTrouble('ACKS_STALLED')
  }

  #unconfirmed(lane: OpenLane, olderThanMs: number): Promise<Claimed[]> {
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
      .catch((error: unknown) => {
        lane.askAgain = true
        const fields = { sessionId: lane.session.id, error }
        if (error instanceof LeaseLost) this.#options.log.warn('lane lost', fields)
        else this.#options.log.error('lane stalled', fields)
      })
      .then(() => {
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
      const outcome = await this.#delivery.send(lane, message)
      // It may be in the queue again.
      if (outcome !== 'acked' && outcome !== 'handed') lane.askAgain = true
      if (outcome === 'handed' && !lane.closing) await lane.pause.wait(this.#options.ackWaitMs)
      // The lane goes no further before it is known. An engine that broke closes the lane, and the next one settles it.
      if (outcome === 'unsettled') {
        await this.#settleLater(lane, message)
        if (lane.broken) await this.#delivery.blame(lane, message)
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
    await this.#settleAll(lane, 0)
    lane.settled = true
  }

  /** Settles what is claimed in this lane, oldest first, since at least `olderThanMs`. */
  async #settleAll(lane: OpenLane, olderThanMs: number): Promise<void> {
    for (const message of await this.#unconfirmed(lane, olderThanMs)) {
      if (lane.closing) return
      if ((await this.#delivery.settle(lane, message)) === 'unsettled')
        await this.#settleLater(lane, message)
    }
  }

  async #settleLater(lane: OpenLane, message: Claimed): Promise<void> {
    while (!lane.closing) {
      await lane.pause.wait(Math.min(1_000, this.#options.unconfirmedMs))
      if (!lane.closing && (await this.#delivery.settle(lane, message)) !== 'unsettled') return
    }
  }
}
