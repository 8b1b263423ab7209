import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import { countCrash, giveUp, hasOptedOut, putBack, unknownPolicy } from '../shared/claims.ts'
import type { Claimed, Ending, FreshlyClaimed } from '../shared/claims.ts'
import { knownNumber, learnNumber, redirectChat } from '../shared/wa-numbers.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { AckBook } from './ack-book.ts'
import type { Attachment, Attachments } from './attachments.ts'
import { retryBackoff } from './backoff.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine, OutgoingContent } from './engine/engine.ts'

export interface DeliveryOptions {
  sql: Sql
  log: Logger
  acks: Pick<AckBook, 'record'>
  attachments: Pick<Attachments, 'fetch'>
  /** Whether this worker can still be sure of the session's lease, by its own clock; asked right before each send. */
  ownsLease: (sessionId: string) => boolean
  /** Tries that fail before a message is given up. */
  maxAttempts: number
  /** Times the page may break down over a message. */
  maxCrashes: number
}

/** A session that is connected, and what it is connected by. */
export interface Line {
  session: OwnedSession
  engine: Pick<Engine, 'send' | 'find' | 'typing' | 'checkNumber'>
}

/**
 * What came of a claimed message. acked: the server has confirmed or refused it. handed: WhatsApp has it and has not confirmed it. over: recorded otherwise, given up or back in the
 * queue. unsettled: nobody knows, it must be looked up. offline, crippled: the session cannot send now, or lacks what sending needs; the message waits.
 */
export type Outcome = 'acked' | 'over' | 'handed' | 'unsettled' | 'offline' | 'crippled'

/** Brings one claimed message to WhatsApp, or finds out what became of it, and records that. */
export class Delivery {
  readonly #options: DeliveryOptions

  constructor(options: DeliveryOptions) {
    this.#options = options
  }

  /** Sends a message that was just claimed. Throws LeaseLost when the session may be somebody else's by now. */
  async send(line: Line, message: FreshlyClaimed): Promise<Outcome> {
    const { acks, log, ownsLease } = this.#options
    const { session, engine } = line
    if (message.optedOut)
      return this.#refuse(line, message, { ...recipientOptedOut, unasked: true })
    let unasked = true
    let attachment: Attachment | undefined
    try {
      const chatId = await this.#address(line, message)
      if (chatId === null) {
        return await this.#refuse(line, message, { ...notOnWhatsApp, unasked })
      }
      if ('mediaId' in message.content) {
        attachment = await this.#options.attachments.fetch(message.workspaceId, message.content)
      }
      if (message.typing) {
        // For show only: where it fails, the send will tell what is wrong.
        await engine.typing(chatId, typingMs(message)).catch((error: unknown) => {
          log.warn('typing not shown', fieldsOf(message, { error }))
        })
      }
      // They may have written so meanwhile, or turned out to be somebody who had.
      if (
        (message.cold || message.typing || attachment) &&
        (await hasOptedOut(this.#options.sql, message))
      )
        return await this.#refuse(line, message, { ...recipientOptedOut, unasked })
      // A process that was stopped between its claim and this line wakes up in a world where the session may be somebody else's: it stays
      // claimed, and its owner looks it up.
      if (!ownsLease(session.id)) throw new LeaseLost(message.sessionId)
      const { keyId, mentions, quoted } = message
      const content = attachment?.content ?? (message.content as OutgoingContent)
      unasked = false
      const receipt = await engine.send({
        chatId,
        keyId,
        content,
        mentions,
        ...(quoted && { quoted }),
      })
      await acks.record(session, { keyId, ...receipt })
      log.info('message handed to WhatsApp', fieldsOf(message, { ack: receipt.ack }))
      return receipt.ack === 0 ? 'handed' : 'acked'
    } catch (error) {
      if (!(error instanceof EngineError)) throw error
      return this.#failed(line, message, error, unasked)
    } finally {
      await attachment?.remove()
    }
  }

  /**
   * Finds out what became of a message that was claimed before, and records it: confirmed, back in the queue, or given up. `unsettled` when the
   * engine cannot tell now.
   */
  async settle(line: Line, message: Claimed): Promise<Outcome> {
    const { acks, log } = this.#options
    const { session, engine } = line
    const { waChatId: chatId, keyId } = message
    try {
      const receipt = await engine.find({ chatId, keyId })
      if (receipt === null) return await this.#absent(line, message)
      await acks.record(session, { keyId, ...receipt })
      log.info('message found on WhatsApp', fieldsOf(message, { ack: receipt.ack }))
      return receipt.ack === 0 ? 'handed' : 'acked'
    } catch (error) {
      if (!(error instanceof EngineError)) throw error
      log.warn('message could not be looked up', fieldsOf(message, { error }))
      return 'unsettled'
    }
  }

  /** The engine broke down with the message in its hands: the message may be why. */
  async blame({ session }: Line, message: Claimed): Promise<void> {
    await countCrash(this.#options.sql, session, message)
  }

  /** WhatsApp has had the message for long and does not confirm it: nobody can say whether it will arrive. An ack that still comes counts. */
  async giveUpUnconfirmed({ session }: Line, message: Claimed): Promise<void> {
    await giveUp(this.#options.sql, session, message, { status: 'unknown', ...outcomeUnknown })
    this.#options.log.error('message never confirmed', fieldsOf(message, {}))
  }

  /** Where the message goes; null when nobody is there. Strangers are looked up first: WhatsApp punishes sending to numbers it does not have. */
  async #address({ session, engine }: Line, message: Claimed): Promise<string | null> {
    const { sql, log } = this.#options
    const { workspaceId, waChatId, chatId } = message
    if (!message.cold || !waChatId.endsWith('@c.us')) return waChatId
    const phone = waChatId.slice(0, -'@c.us'.length)
    let known = await knownNumber(sql, workspaceId, phone)
    if (!known) {
      try {
        known = await engine.checkNumber(phone)
      } catch (error) {
        // Only a convenience where WhatsApp Web has lost it: the send itself says so too, if late.
        if (!(error instanceof EngineError) || error.code !== 'MODULE_MISSING') throw error
        log.warn('number not checked', fieldsOf(message, { error }))
        return waChatId
      }
      await learnNumber(sql, session, phone, known.waId)
    }
    if (known.waId !== null && known.waId.endsWith('@c.us'))
      await redirectChat(sql, session, chatId, known.waId)
    return known.waId === null || known.waId.endsWith('@c.us') ? known.waId : waChatId
  }

  async #failed(
    line: Line,
    message: FreshlyClaimed,
    error: EngineError,
    unasked: boolean,
  ): Promise<Outcome> {
    const { sql, log, maxAttempts } = this.#options
    const { session } = line
    const { code } = error
    const ending = { code, message: error.message, unasked }
    const fields = fieldsOf(message, { code, certainty: error.certainty, error })
    if (error.certainty === 'unknown') {
      log.warn('outcome of a message unknown', fields)
      return 'unsettled'
    }
    if (error.certainty === 'permanent') return this.#refuse(line, message, ending)
    if (code === 'SESSION_NOT_READY' || code === 'MODULE_MISSING') {
      await putBack(sql, session, message, { delayMs: 0, forgiven: true })
      log.warn('session cannot send', fields)
      return code === 'MODULE_MISSING' ? 'crippled' : 'offline'
    }
    if (code === 'MEDIA_STORE_UNAVAILABLE') {
      // No fault of the message, however long it lasts.
      await putBack(sql, session, message, { delayMs: storeDelayMs, forgiven: true })
      log.warn('media store away, message waits', fields)
      return 'over'
    }
    if (message.attempts >= maxAttempts) return this.#refuse(line, message, ending)
    await putBack(sql, session, message, { delayMs: retryBackoff(message.attempts) })
    log.warn('message not sent, will be tried again', fields)
    return 'over'
  }

  /** WhatsApp does not know the message. */
  async #absent(line: Line, message: Claimed): Promise<Outcome> {
    const { sql, log, maxAttempts, maxCrashes } = this.#options
    const { session } = line
    const { attempts, crashes, doubts } = message
    if (crashes >= maxCrashes) {
      return this.#refuse(line, message, {
        code: 'PAGE_CRASHED',
        message: `WhatsApp Web broke down ${crashes} times over this message.`,
      })
    }
    // Deaths of workers count here too, which are seldom a message's fault: hence the longer rope.
    if (attempts >= 2 * maxAttempts) {
      return this.#refuse(line, message, {
        code: 'ATTEMPTS_EXHAUSTED',
        message: `Not sent after ${attempts} attempts.`,
      })
    }
    // The login it was sent by is not the one that was asked: that one has its word for it only where it was not sent at all.
    const doubted = !message.sameLogin
    if (
      doubted &&
      (doubts > 0 || (await unknownPolicy(sql, message.workspaceId)) === 'at_most_once')
    ) {
      await giveUp(sql, session, message, { status: 'unknown', ...outcomeUnknown })
      log.error('outcome of a message unknown for good', fieldsOf(message, {}))
      return 'over'
    }
    await putBack(sql, session, message, { delayMs: crashes > 1 ? suspectDelayMs : 0, doubted })
    log.info('message had not gone out, queued again', fieldsOf(message, { doubted }))
    return 'over'
  }

  async #refuse(
    { session }: Line,
    message: Claimed,
    ending: Omit<Ending, 'status'>,
  ): Promise<Outcome> {
    await giveUp(this.#options.sql, session, message, { status: 'failed', ...ending })
    this.#options.log.warn('message given up', fieldsOf(message, { code: ending.code }))
    return 'over'
  }
}

const recipientOptedOut = {
  code: 'RECIPIENT_OPTED_OUT',
  message: 'The recipient has asked for no more messages.',
}

const notOnWhatsApp = {
  code: 'NUMBER_NOT_ON_WHATSAPP',
  message: 'This number is not on WhatsApp.',
}

const outcomeUnknown = {
  code: 'OUTCOME_UNKNOWN',
  message: 'Nobody can know whether this was sent. Ask the recipient, or send it again.',
}

/** A message the page broke down over twice lets the others go first. */
const suspectDelayMs = 15_000

const storeDelayMs = 10_000

/** As a person would take to write it, within reason: 40 ms a character, from one to eight seconds. */
const typingMs = ({ content }: Claimed) =>
  content.type === 'text' ? Math.min(8_000, 1_000 + 40 * content.body.length) : 1_000

export const fieldsOf = (message: Claimed, more: Record<string, unknown>) => ({
  sessionId: message.sessionId,
  messageId: message.messageId,
  requestId: message.requestId,
  attempts: message.attempts,
  ...more,
})
