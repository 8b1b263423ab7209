import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import { countCrash, giveUp, hasOptedOut, putBack } from '../shared/claims.ts'
import type { Claimed, Ending, FreshlyClaimed } from '../shared/claims.ts'
import { refusals } from '../shared/refusals.ts'
import { phoneOf } from '../shared/wa-id.ts'
import { knownNumber, learnNumber, redirectChat } from '../shared/wa-numbers.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { readUnknownPolicy } from '../shared/workspaces.ts'
import type { AckBook } from './ack-book.ts'
import type { Attachment, Attachments } from './attachments.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine, OutgoingContent, Receipt } from './engine/engine.ts'
import { NumberChecks } from './number-checks.ts'
import { beforeLookUp, onAbsence, onFailure, onUnchecked, outcomeUnknown } from './rulings.ts'
import type { Limits, Ruling } from './rulings.ts'

export interface DeliveryOptions extends Limits {
  sql: Sql
  log: Logger
  acks: Pick<AckBook, 'record'>
  attachments: Pick<Attachments, 'fetch'>
  /** Whether this worker can still be sure of the session's lease, by its own clock; asked right before each send. */
  ownsLease: (sessionId: string) => boolean
}

/** A session that is connected, and what it is connected by. */
export interface Line {
  session: OwnedSession
  engine: Pick<Engine, 'send' | 'find' | 'typing' | 'checkNumber'>
}

/**
 * What came of a claimed message. acked: the server has confirmed it. refused: the server, or WhatsApp Web itself, has refused it. handed: WhatsApp has it and has not confirmed it. over: recorded otherwise, given up or back in the
 * queue. unsettled: nobody knows, it must be looked up. offline, crippled: the session cannot send now, or lacks what sending needs; the message waits.
 */
export type Outcome = 'acked' | 'refused' | 'over' | 'handed' | 'unsettled' | 'offline' | 'crippled'

/** Brings one claimed message to WhatsApp, or finds out what became of it, and records that. */
export class Delivery {
  readonly #options: DeliveryOptions
  /** By the session's id. */
  readonly #checks = new Map<string, NumberChecks>()
  /** Why nobody knows what became of a message: told if it is given up before anybody does. */
  readonly #doubts = new WeakMap<Claimed, EngineError>()

  constructor(options: DeliveryOptions) {
    this.#options = options
  }

  /** Sends a message that was just claimed. Throws LeaseLost when the session may be somebody else's by now. */
  async send(line: Line, message: FreshlyClaimed): Promise<Outcome> {
    const { acks, log, ownsLease } = this.#options
    const { session, engine } = line
    if (message.optedOut) return this.#refuse(line, message, recipientOptedOut)
    const { waChatId: dialled } = message
    let asked = false
    let attachment: Attachment | undefined
    try {
      const chatId = await this.#address(line, message)
      if (chatId === null) return await this.#refuse(line, message, notOnWhatsApp)
      // Where it goes it is looked for afterwards.
      message.waChatId = chatId
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
        return await this.#refuse(line, message, recipientOptedOut)
      // A process that was stopped between its claim and this line wakes up in a world where the session may be somebody else's: it stays
      // claimed, and its owner looks it up.
      if (!ownsLease(session.id)) throw new LeaseLost(message.sessionId)
      const { keyId, mentions, quoted } = message
      const content = attachment?.content ?? (message.content as OutgoingContent)
      asked = true
      const receipt = await engine.send({
        chatId,
        keyId,
        content,
        mentions,
        ...(quoted && { quoted }),
      })
      await acks.record(session, { keyId, ...receipt })
      log.info('message handed to WhatsApp', fieldsOf(message, { ack: receipt.ack }))
      return outcomeOf(receipt)
    } catch (error) {
      if (!(error instanceof EngineError)) throw error
      if (asked && error.code === notOnWhatsApp.code) await this.#miss(line, dialled)
      const ruling =
        error.code === numberNotChecked
          ? onUnchecked(
              message,
              error,
              this.#checksOf(session).refused(message.messageId),
              this.#options,
            )
          : onFailure(message, error, asked, this.#options)
      return this.#carryOut(line, message, ruling, error)
    } finally {
      await attachment?.remove()
    }
  }

  /**
   * Finds out what became of a message that was claimed before, and records it: confirmed, back in the queue, or given up. `unsettled` when the
   * engine cannot tell now. One that the page broke down over too often is given up without asking.
   */
  async settle(line: Line, message: Claimed): Promise<Outcome> {
    const { acks, log } = this.#options
    const { session, engine } = line
    const { waChatId: chatId, keyId } = message
    const hopeless = beforeLookUp(message, this.#options)
    if (hopeless) return this.#carryOut(line, message, hopeless)
    try {
      const receipt = await engine.find({ chatId, keyId })
      if (receipt === null) return await this.#absent(line, message)
      await acks.record(session, { keyId, ...receipt })
      log.info('message found on WhatsApp', fieldsOf(message, { ack: receipt.ack }))
      return outcomeOf(receipt)
    } catch (error) {
      if (!(error instanceof EngineError)) throw error
      log.warn('message could not be looked up', fieldsOf(message, { error }))
      return 'unsettled'
    }
  }

  /** WhatsApp does not know the message. */
  async #absent(line: Line, message: Claimed): Promise<Outcome> {
    const policy = message.sameLogin
      ? 'reconcile_then_resend_same_id'
      : await readUnknownPolicy(this.#options.sql, message.workspaceId)
    const cause = this.#doubts.get(message)
    return this.#carryOut(line, message, onAbsence(message, policy, this.#options, cause), cause)
  }

  /** The engine broke down with the message in its hands: the message may be why. */
  async blame({ session }: Line, message: Claimed): Promise<void> {
    await countCrash(this.#options.sql, session, message)
  }

  /** WhatsApp has had the message for long and does not confirm it: nobody can say whether it will arrive. An ack that still comes counts. */
  async giveUpUnconfirmed(line: Line, message: Claimed): Promise<void> {
    await this.#carryOut(line, message, {
      is: 'end',
      ending: { status: 'unknown', ...outcomeUnknown },
    })
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
        this.#checksOf(session).worked(message.messageId)
      } catch (error) {
        if (!(error instanceof EngineError)) throw error
        if (error.code === 'ACTION_FAILED' || error.code === 'ACTION_TIMEOUT') {
          const text = `Whether this number is on WhatsApp could not be asked. ${error.message}`
          throw new EngineError('transient', numberNotChecked, text, { cause: error })
        }
        // Only a convenience where WhatsApp Web has lost it: the send itself says so too, if late.
        if (error.code !== 'MODULE_MISSING') throw error
        log.warn('number not checked', fieldsOf(message, { error }))
        return waChatId
      }
      await learnNumber(sql, session, phone, known.waId)
    }
    if (known.waId === null) return null
    // Known by a lid only: the number that was dialled stays the address.
    if (!known.waId.endsWith('@c.us')) return waChatId
    await redirectChat(sql, session, chatId, known.waId)
    return known.waId
  }

  #checksOf({ id }: OwnedSession): NumberChecks {
    const checks = this.#checks.get(id) ?? new NumberChecks()
    this.#checks.set(id, checks)
    return checks
  }

  /** WhatsApp does not have it after all, whatever was known of the number. */
  async #miss({ session }: Line, dialled: string): Promise<void> {
    const phone = phoneOf(dialled)?.slice(1)
    if (phone !== undefined) await learnNumber(this.#options.sql, session, phone, null)
  }

  /** Has a ruling done. `error`: what led to it. */
  async #carryOut(
    { session }: Line,
    message: Claimed,
    ruling: Ruling,
    error?: EngineError,
  ): Promise<Outcome> {
    const { sql, log } = this.#options
    if (ruling.is === 'end') {
      const { status, code } = ruling.ending
      await giveUp(sql, session, message, ruling.ending)
      log[status === 'unknown' ? 'error' : 'warn'](
        'message given up',
        fieldsOf(message, { status, code, error }),
      )
      return 'over'
    }
    const fields = fieldsOf(message, { certainty: error?.certainty, code: error?.code, error })
    if (ruling.is === 'lookUp') {
      if (error) this.#doubts.set(message, error)
      log.warn('outcome of a message unknown', fields)
      return 'unsettled'
    }
    await putBack(sql, session, message, ruling.back)
    log.warn('message not sent, queued again', { ...fields, ...ruling.back })
    return ruling.outcome
  }

  #refuse(line: Line, message: Claimed, why: { code: string; message: string }): Promise<Outcome> {
    const ending: Ending = { status: 'failed', unasked: true, ...why }
    return this.#carryOut(line, message, { is: 'end', ending })
  }
}

const outcomeOf = ({ ack }: Pick<Receipt, 'ack'>): Outcome =>
  ack === 0 ? 'handed' : ack > 0 ? 'acked' : 'refused'

const recipientOptedOut = {
  code: 'RECIPIENT_OPTED_OUT',
  message: refusals.RECIPIENT_OPTED_OUT.message,
}

const notOnWhatsApp = {
  code: 'NUMBER_NOT_ON_WHATSAPP',
  message: 'This number is not on WhatsApp.',
}

/** WhatsApp's server limits these questions, and the page does not always answer them: that says nothing of who was asked about. */
const numberNotChecked = 'NUMBER_NOT_CHECKED'

/** As a person would take to write it, within reason: 40 ms a character, from one to eight seconds. */
const typingMs = ({ content }: Claimed) =>
  content.type === 'text' ? Math.min(8_000, 1_000 + 40 * content.body.length) : 1_000

const fieldsOf = (message: Claimed, more: Record<string, unknown>) => ({
  sessionId: message.sessionId,
  messageId: message.messageId,
  requestId: message.requestId,
  attempts: message.attempts,
  ...more,
})
