import { recordAck } from '../shared/acks.ts'
import type { Sql } from '../shared/db.ts'
import { storeReceived } from '../shared/inbox.ts'
import type { Logger } from '../shared/logger.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { Engine, IncomingMessage } from './engine/engine.ts'
import { waitOutOutage } from './patience.ts'

/** Writes what the engines report: messages and acknowledgements, in the order they came, each in one transaction. */
export class Receiver {
  readonly #sql: Sql
  readonly #log: Logger
  readonly #onAck: (keyId: string) => void
  readonly #chains = new Map<Engine, Promise<void>>()

  constructor(sql: Sql, log: Logger, onAck: (keyId: string) => void) {
    this.#sql = sql
    this.#log = log
    this.#onAck = onAck
  }

  /** Listens to an engine of a session this worker owns. */
  attach(session: OwnedSession, engine: Engine): void {
    engine.on('message', (message) => {
      this.#enqueue(session, engine, 'message', () => this.#store(session, message))
    })
    engine.on('ack', (receipt) => {
      this.#enqueue(session, engine, 'acknowledgement', async () => {
        await recordAck(this.#sql, session, receipt)
        if (receipt.ack !== 0) this.#onAck(receipt.keyId)
      })
    })
  }

  /** Resolves when everything the engine has reported so far is written. */
  async settled(engine: Engine): Promise<void> {
    await this.#chains.get(engine)
    this.#chains.delete(engine)
  }

  async #store(session: OwnedSession, message: IncomingMessage): Promise<void> {
    const { key, waMessageId, type, body, timestamp, ack, senderName, chatName } = message
    const messageId = await storeReceived(this.#sql, session, {
      fromMe: key.fromMe,
      waChatId: key.chatId,
      keyId: key.id,
      participant: key.participant,
      waMessageId,
      type,
      body,
      timestamp,
      ack,
      senderName,
      chatName,
    })
    if (messageId !== undefined) {
      this.#log.info('message received', {
        sessionId: session.id,
        messageId,
        type,
        fromMe: key.fromMe,
      })
    }
  }

  /** One chain an engine keeps the order; a failure is logged with what it was about and the chain goes on. */
  #enqueue(session: OwnedSession, engine: Engine, what: string, work: () => Promise<void>): void {
    let lost = false
    const chain = (this.#chains.get(engine) ?? Promise.resolve()).then(async () => {
      try {
        await waitOutOutage(work, () => !lost)
      } catch (error) {
        lost = error instanceof LeaseLost
        const fields = { sessionId: session.id, what, error }
        if (lost) this.#log.warn('event of a lost session dropped', fields)
        else this.#log.error('event not stored', fields)
      }
    })
    this.#chains.set(engine, chain)
  }
}
