import { recordAck } from '../shared/acks.ts'
import type { Sql } from '../shared/db.ts'
import { storeReceived } from '../shared/inbox.ts'
import type { Logger } from '../shared/logger.ts'
import {
  recordEdit,
  recordPollVote,
  recordReaction,
  recordRevocation,
} from '../shared/message-changes.ts'
import { serializeKey } from '../shared/wa-id.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { Engine, EngineEvents, IncomingMessage } from './engine/engine.ts'
import { waitOutOutage } from './patience.ts'

/** The events of an engine that are to be written. */
const written = [
  'message',
  'placeholder',
  'ack',
  'edit',
  'revoke',
  'reaction',
  'pollVote',
  'call',
] as const
type Written = {
  [K in (typeof written)[number]]: { kind: K; event: EngineEvents[K][0] }
}[(typeof written)[number]]

/** Writes what the engines report: messages, acknowledgements and changes, in the order they came, each in one transaction. */
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
    for (const kind of written) {
      const listener = (event: unknown) =>
        this.#enqueue(session, engine, { kind, event } as Written)
      engine.on(kind, listener)
    }
  }

  /** Resolves when everything the engine has reported so far is written. */
  async settled(engine: Engine): Promise<void> {
    await this.#chains.get(engine)
    this.#chains.delete(engine)
  }

  /** Whoever waits for the ack of this message may go on: it is written. */
  acked(keyId: string): void {
    this.#onAck(keyId)
  }

  /** Stores a message. Answers its id, or undefined when it is there already. Throws LeaseLost. */
  async store(
    session: OwnedSession,
    message: IncomingMessage,
    source: 'live' | 'backfill' = 'live',
  ): Promise<string | undefined> {
    const { key, contacts, location, poll, ...rest } = message
    const messageId = await storeReceived(this.#sql, session, {
      ...rest,
      source,
      fromMe: key.fromMe,
      waChatId: key.chatId,
      keyId: key.id,
      participant: key.participant,
      content: location ?? poll ?? contentOfCards(contacts),
    })
    if (messageId !== undefined) {
      const { type, pending } = message
      this.#log.info('message received', {
        sessionId: session.id,
        messageId,
        type,
        fromMe: key.fromMe,
        source,
        ...(pending && { pending }),
      })
    }
    return messageId
  }

  async #write(session: OwnedSession, { kind, event }: Written): Promise<void> {
    switch (kind) {
      case 'message':
      case 'placeholder':
        await this.store(session, event)
        return
      case 'ack':
        await recordAck(this.#sql, session, event)
        if (event.ack !== 0) this.#onAck(event.keyId)
        return
      case 'edit':
        await recordEdit(this.#sql, session, event)
        return
      case 'revoke':
        await recordRevocation(this.#sql, session, event)
        return
      case 'reaction':
        await recordReaction(this.#sql, session, event)
        return
      case 'pollVote':
        await recordPollVote(this.#sql, session, event)
        return
      case 'call':
        await this.store(session, callMessage(event))
    }
  }

  /** One chain an engine keeps the order; a failure is logged with what it was about and the chain goes on. */
  #enqueue(session: OwnedSession, engine: Engine, report: Written): void {
    let lost = false
    const chain = (this.#chains.get(engine) ?? Promise.resolve()).then(async () => {
      try {
        await waitOutOutage(
          () => this.#write(session, report),
          () => !lost,
        )
      } catch (error) {
        lost = error instanceof LeaseLost
        const fields = { sessionId: session.id, what: report.kind, error }
        if (lost) this.#log.warn('event of a lost session dropped', fields)
        else this.#log.error('event not stored', fields)
      }
    })
    this.#chains.set(engine, chain)
  }
}

/** One card is told as it is sent; several stand beside the first. */
function contentOfCards(contacts: IncomingMessage['contacts']): object | null {
  const [first] = contacts
  if (!first) return null
  return contacts.length === 1 ? first : { ...first, contacts }
}

/** A call, as it stands in the chat. */
const callMessage = ({ key, video, at }: EngineEvents['call'][0]): IncomingMessage => ({
  key,
  waMessageId: serializeKey(key.fromMe, key.chatId, key.id),
  type: 'system',
  body: video ? 'Video call' : 'Voice call',
  timestamp: Math.floor(at.getTime() / 1_000),
  ack: 1,
  senderName: null,
  chatName: null,
  pending: false,
  revoked: false,
  media: null,
  quoted: null,
  mentions: [],
  location: null,
  contacts: [],
  poll: null,
})
