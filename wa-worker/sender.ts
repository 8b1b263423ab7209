import { recordAck } from '../shared/acks.ts'
import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import { claim, giveUp, putBack, unconfirmed } from '../shared/outbox.ts'
import type { Claimed } from '../shared/outbox.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { retryBackoff } from './backoff.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine } from './engine/engine.ts'
import { Wake } from './wake.ts'

export interface SenderOptions {
  sql: Sql
  worker: string
  log: Logger
  /** Whether this worker can still be sure of its leases, by its own clock; asked right before each send. */
  ownsLeases?: () => boolean
  /** How often to look for work nobody nudged about. */
  pollMs?: number
  /** How long a lane waits for the server's ack before its next message; the ack still counts when it comes later. */
  ackWaitMs?: number
  /** How long a message may stay unconfirmed before it is looked up again. */
  unconfirmedMs?: number
  /** How long until the session itself is suspected. */
  stalledMs?: number
  /** Tries before a message is given up. */
  maxAttempts?: number
}

/** A session that can send: one message at a time. */
interface OpenLane {
  session: OwnedSession
  engine: Engine
  closing: boolean
  /** Called when sends stay unconfirmed although the engine says that it is connected. */
  onStalled: () => void
  /** Every wait of the lane; rung by an ack and by close(). */
  pause: Wake
  /** What the lane is doing; idle when undefined. */
  work: Promise<void> | undefined
}

/** Moves messages from the outbox to the engines: in order, one at a time a session, and looked up before any second try. */
export class Sender {
  readonly #options: Required<SenderOptions>
  readonly #lanes = new Map<string, OpenLane>()
  /** What lanes that were closed are still doing. */
  readonly #closing = new Map<string, Promise<void>>()
  /** Lanes that wait for an ack, by the message's id. */
  readonly #awaited = new Map<string, OpenLane>()
  /** Messages that have made their session suspect once. */
  readonly #stuck = new Set<string>()
  readonly #wake = new Wake()
  #stopped = false

  constructor(options: SenderOptions) {
    this.#options = {
      ownsLeases: () => true,
      pollMs: 1_000,
      ackWaitMs: 10_000,
      unconfirmedMs: 60_000,
      stalledMs: 180_000,
      maxAttempts: 5,
      ...options,
    }
  }

  /** Lets a session send. What an earlier owner left claimed is settled first. */
  open(session: OwnedSession, engine: Engine, onStalled: () => void): void {
    const lane: OpenLane = {
      session,
      engine,
      closing: false,
      onStalled,
      pause: new Wake(),
      work: undefined,
    }
    this.#lanes.set(session.id, lane)
    const before = this.#closing.get(session.id)
    this.#occupy(lane, async () => {
      // The lane before it may still have a message in its hands.
      await before
      await this.#settleAll(lane, 0)
    })
  }

  /** Takes a session out; resolves when the message in flight is through. */
  async close(sessionId: string): Promise<void> {
    const lane = this.#lanes.get(sessionId)
    if (!lane) return
    this.#lanes.delete(sessionId)
    lane.closing = true
    lane.pause.ring()
    if (!lane.work) return
    const work = lane.work.finally(() => {
      if (this.#closing.get(sessionId) === work) this.#closing.delete(sessionId)
    })
    this.#closing.set(sessionId, work)
    await work
  }

  /** Whether the session is open and has nothing in flight. */
  isIdle(sessionId: string): boolean {
    const lane = this.#lanes.get(sessionId)
    return lane !== undefined && lane.work === undefined
  }

  /** There may be something to send. */
  nudge(): void {
    this.#wake.ring()
  }

  /** WhatsApp confirmed or refused a message: whoever waits for that may go on. */
  acked(keyId: string): void {
    this.#awaited.get(keyId)?.pause.ring()
  }

  /** Sends until stop() is called. */
  async run(): Promise<void> {
    let sweepAt = Date.now() + this.#options.unconfirmedMs
    while (!this.#stopped) {
      await this.#claim().catch((error: unknown) => {
        this.#options.log.error('claim failed', { error })
      })
      if (Date.now() >= sweepAt) {
        this.#sweep()
        sweepAt = Date.now() + this.#options.unconfirmedMs
      }
      await this.#wake.wait(this.#options.pollMs)
    }
  }

  stop(): void {
    this.#stopped = true
    this.#wake.ring()
  }

  async #claim(): Promise<void> {
    const idle = this.#idle()
    if (idle.length === 0) return
    const claimed = await claim(
      this.#options.sql,
      this.#options.worker,
      idle.map(({ session }) => session),
    )
    for (const message of claimed) {
      const lane = idle.find(({ session }) => session.id === message.sessionId)
      // A lane that closed meanwhile leaves the message claimed: its next owner looks it up and puts it back.
      if (lane && !lane.closing) this.#occupy(lane, () => this.#deliver(lane, message))
    }
  }

  /** Looks up what has been unconfirmed for long: acks get lost. */
  #sweep(): void {
    for (const lane of this.#idle()) {
      this.#occupy(lane, async () => {
        await this.#settleAll(lane, this.#options.unconfirmedMs / 1_000)
        await this.#checkLag(lane)
      })
    }
  }

  /** What WhatsApp Web has taken and the server does not confirm tells of a page that is connected in name only. Each message tells once. */
  async #checkLag(lane: OpenLane): Promise<void> {
    const { sql, log, stalledMs } = this.#options
    const stuck = await unconfirmed(sql, lane.session, stalledMs / 1_000)
    const news = stuck.filter(({ messageId }) => !this.#stuck.has(messageId))
    if (news.length === 0 || lane.closing) return
    for (const { messageId } of news) this.#stuck.add(messageId)
    log.warn('messages stay unconfirmed', { sessionId: lane.session.id, messages: stuck.length })
    lane.onStalled()
  }

  #idle(): OpenLane[] {
    return [...this.#lanes.values()].filter((lane) => lane.work === undefined)
  }

  #occupy(lane: OpenLane, work: () => Promise<void>): void {
    lane.work = work()
      .catch((error: unknown) => {
        const fields = { sessionId: lane.session.id, error }
        if (error instanceof LeaseLost) this.#options.log.warn('lane lost', fields)
        else this.#options.log.error('lane stalled', fields)
      })
      .then(() => {
        lane.work = undefined
        this.#wake.ring()
      })
  }

  async #deliver(lane: OpenLane, message: Claimed): Promise<void> {
    const { waChatId: chatId, keyId, body } = message
    // A process that was stopped between its claim and this line wakes up in a world where the session may be somebody else's: it stays
    // claimed, and its owner looks it up.
    if (!this.#options.ownsLeases()) throw new LeaseLost(message.sessionId)
    // Before the send: the ack may come before send() resolves.
    this.#awaited.set(keyId, lane)
    try {
      const receipt = await lane.engine.send({ chatId, keyId, body })
      await recordAck(this.#options.sql, lane.session, { keyId, ...receipt })
      this.#options.log.info('message handed to WhatsApp', fieldsOf(message, { ack: receipt.ack }))
      if (receipt.ack === 0 && !lane.closing) await lane.pause.wait(this.#options.ackWaitMs)
    } catch (error) {
      if (!(error instanceof EngineError)) throw error
      await this.#failed(lane, message, error)
    } finally {
      this.#awaited.delete(keyId)
    }
  }

  async #failed(lane: OpenLane, message: Claimed, error: EngineError): Promise<void> {
    const { sql, log, maxAttempts } = this.#options
    const fields = fieldsOf(message, { code: error.code, certainty: error.certainty, error })
    if (error.certainty === 'unknown') {
      log.warn('outcome of a message unknown', fields)
      // The lane goes no further before it is known: what comes behind must not overtake. An engine that broke closes the lane,
      // and the next one settles it.
      await this.#settleLater(lane, message)
      return
    }
    if (error.certainty === 'permanent' || message.attempts >= maxAttempts) {
      await giveUp(sql, lane.session, message, { code: error.code, message: error.message })
      log.warn('message given up', fields)
      return
    }
    await putBack(sql, lane.session, message, retryBackoff(message.attempts))
    log.warn('message not sent, will be tried again', fields)
  }

  /** Settles what is claimed in this lane, oldest first, since at least `olderThanSeconds`. */
  async #settleAll(lane: OpenLane, olderThanSeconds: number): Promise<void> {
    const left = await unconfirmed(this.#options.sql, lane.session, olderThanSeconds)
    for (const message of left) {
      if (lane.closing) return
      if (!(await this.#settle(lane, message))) await this.#settleLater(lane, message)
    }
  }

  async #settleLater(lane: OpenLane, message: Claimed): Promise<void> {
    while (!lane.closing) {
      await lane.pause.wait(Math.min(1_000, this.#options.unconfirmedMs))
      if (!lane.closing && (await this.#settle(lane, message))) return
    }
  }

  /** Finds out what became of a message and records it. False when the engine cannot tell now. */
  async #settle(lane: OpenLane, message: Claimed): Promise<boolean> {
    const { sql, log, maxAttempts } = this.#options
    const { waChatId: chatId, keyId } = message
    let receipt
    try {
      receipt = await lane.engine.find({ chatId, keyId })
    } catch (error) {
      log.warn('message could not be looked up', fieldsOf(message, { error }))
      return false
    }
    if (receipt) {
      await recordAck(sql, lane.session, { keyId, ...receipt })
      log.info('message found on WhatsApp', fieldsOf(message, { ack: receipt.ack }))
    } else if (message.attempts >= maxAttempts) {
      await giveUp(sql, lane.session, message, {
        code: 'ATTEMPTS_EXHAUSTED',
        message: `Not sent after ${message.attempts} attempts.`,
      })
      log.warn('message given up', fieldsOf(message, {}))
    } else {
      await putBack(sql, lane.session, message, 0)
      log.info('message had not gone out, queued again', fieldsOf(message, {}))
    }
    return true
  }
}

const fieldsOf = (message: Claimed, more: Record<string, unknown>) => ({
  sessionId: message.sessionId,
  messageId: message.messageId,
  requestId: message.requestId,
  attempts: message.attempts,
  ...more,
})
