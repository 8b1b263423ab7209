import { isDatabaseAway } from '../shared/db.ts'
import type { Sql } from '../shared/db.ts'
import { storeReceived } from '../shared/inbox.ts'
import type { Logger } from '../shared/logger.ts'
import {
  recordEdit,
  recordPollVote,
  recordReaction,
  recordRevocation,
} from '../shared/message-changes.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { AckBook } from './ack-book.ts'
import type { Engine, EngineEvents, IncomingMessage } from './engine/engine.ts'
import { plainMessage } from './engine/plain-message.ts'
import { waitOutOutage } from './patience.ts'
import type { Spool } from './spool.ts'

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

/** What an engine has reported and is yet to be written, oldest first. */
interface Line {
  session: OwnedSession
  waiting: Written[]
  chain: Promise<void>
  /** The database was away, and all that waits is in the spool too. */
  spooled: boolean
  /** The spool took no more. */
  full: boolean
  /** The session is somebody else's. */
  lost: boolean
}

/**
 * Writes what the engines report: messages, acknowledgements and changes, in the order they came, each in one transaction. While the database is
 * away it is kept on the disk too: a worker that dies, or loses the session over it, leaves it to the next one on this machine.
 */
export class Receiver {
  readonly #sql: Sql
  readonly #log: Logger
  readonly #onAck: (keyId: string) => void
  readonly #spool: Spool
  readonly #acks: Pick<AckBook, 'record'>
  readonly #lines = new Map<Engine, Line>()
  /** The latest line of each session: the spool is its. */
  readonly #current = new Map<string, Line>()

  constructor(
    sql: Sql,
    log: Logger,
    onAck: (keyId: string) => void,
    spool: Spool,
    acks: Pick<AckBook, 'record'>,
  ) {
    this.#sql = sql
    this.#log = log
    this.#onAck = onAck
    this.#spool = spool
    this.#acks = acks
  }

  /** Listens to an engine of a session this worker owns. What the spool has of the session is written first. */
  attach(session: OwnedSession, engine: Engine): void {
    const kept = this.#spool.read(session.id) as Written[]
    const chain = Promise.resolve()
    const line: Line = {
      ...{ session, chain, waiting: [], full: false, lost: false },
      spooled: kept.length > 0,
    }
    this.#lines.set(engine, line)
    this.#current.set(session.id, line)
    if (kept.length > 0) {
      this.#log.info('reports taken from the spool', {
        sessionId: session.id,
        reports: kept.length,
      })
    }
    for (const report of kept) this.#enqueue(line, report)
    for (const kind of written) {
      engine.on(kind, (event: unknown) => {
        const report = { kind, event } as Written
        if (line.spooled) this.#keep(line, [report])
        this.#enqueue(line, report)
      })
    }
  }

  /** Resolves when everything the engine has reported so far is written. */
  async settled(engine: Engine): Promise<void> {
    const line = this.#lines.get(engine)
    await line?.chain
    this.#lines.delete(engine)
    if (line && this.#current.get(line.session.id) === line) this.#current.delete(line.session.id)
  }

  /** Whoever waits for the ack of this message may go on: it is written. */
  acked(keyId: string): void {
    this.#onAck(keyId)
  }

  /** Stores a message. Answers its id, or undefined when it is there already. Throws LeaseLost. */
  async store(
    session: OwnedSession,
    message: IncomingMessage,
    source: 'live' | 'backfill' | 'history' = 'live',
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
        await this.#acks.record(session, event)
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
  #enqueue(line: Line, report: Written): void {
    const { session } = line
    line.waiting.push(report)
    line.chain = line.chain.then(async () => {
      try {
        await waitOutOutage(
          () => this.#writeOrKeep(line, report),
          () => !line.lost,
        )
      } catch (error) {
        line.lost ||= error instanceof LeaseLost
        const fields = { sessionId: session.id, what: report.kind, error }
        if (line.lost) this.#log.warn('event of a lost session dropped', fields)
        else this.#log.error('event not stored', fields)
      }
      line.waiting.shift()
      // Of a lost session it is left to whoever has the session next.
      if (line.waiting.length > 0 || line.lost || !this.#ownsSpool(line)) return
      if (line.spooled) this.#spool.clear(session.id)
      line.spooled = line.full = false
    })
  }

  async #writeOrKeep(line: Line, report: Written): Promise<void> {
    try {
      await this.#write(line.session, report)
    } catch (error) {
      if (isDatabaseAway(error) && !line.spooled && this.#ownsSpool(line)) {
        line.spooled = true
        this.#keep(line, line.waiting)
      }
      throw error
    }
  }

  /** An engine that came later has read the spool: it is in charge of it. */
  #ownsSpool(line: Line): boolean {
    return this.#current.get(line.session.id) === line
  }

  #keep(line: Line, reports: Written[]): void {
    const { id: sessionId } = line.session
    if (line.full || !this.#ownsSpool(line)) return
    try {
      line.full = !reports.every((report) => this.#spool.append(sessionId, report))
      if (line.full) this.#log.error('spool full, later reports are in memory only', { sessionId })
    } catch (error) {
      this.#log.error('report not spooled', { sessionId, error })
    }
  }
}

/** One card is told as it is sent; several stand beside the first. */
function contentOfCards(contacts: IncomingMessage['contacts']): object | null {
  const [first] = contacts
  if (!first) return null
  return contacts.length === 1 ? first : { ...first, contacts }
}

/** A call, as it stands in the chat. */
const callMessage = ({ key, video, at }: EngineEvents['call'][0]): IncomingMessage =>
  plainMessage(key, {
    type: 'system',
    body: video ? 'Video call' : 'Voice call',
    timestamp: Math.floor(at.getTime() / 1_000),
  })
