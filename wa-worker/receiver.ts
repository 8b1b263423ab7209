import { setImmediate as nextTurn } from 'node:timers/promises'
import { noteMissed } from '../shared/backfill.ts'
import { isDatabaseAway } from '../shared/db-errors.ts'
import type { Sql } from '../shared/db.ts'
import { storeAllReceived } from '../shared/inbox.ts'
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
  /** Resolves when nothing waits any more. */
  written: Promise<void>
  writing: boolean
  /** All that waits is in the spool too, as far as that took it. */
  spooled: boolean
  /** Where in the spool begins what does not wait in memory. */
  spoolRead: number
  /** The spool took no more. */
  full: boolean
  /** Reports that neither memory nor spool has, and since when. */
  leftOut: { reports: number; since: Date } | undefined
  /** The session is somebody else's. */
  lost: boolean
}

export interface ReceiverOptions {
  /** Reports of a session that wait in memory; more lie in the spool only. */
  maxWaiting?: number | undefined
}

/** So many messages are written at a time: their chats and people are locked meanwhile. */
const maxBatch = 250
/** Fewer of what was read again, which is in less of a hurry than what happens in the same chats. */
const maxRead = 50

/**
 * Writes what the engines report: messages, acknowledgements and changes, in the order they came. A single message is written at once; those that came while it was
 * are the next transaction, so that many at a time cost little more than one. While the database is away, or more wait than memory is to hold, everything is kept on the
 * disk too: a worker that dies, or loses the session over it, leaves it to the next one on this machine. What the disk does not hold either is left out and named in the
 * log; messages, edits, deletions and acks of that time are read again once the rest is written, reactions and votes are not.
 */
export class Receiver {
  readonly #sql: Sql
  readonly #log: Logger
  readonly #onAck: (keyId: string) => void
  readonly #spool: Spool
  readonly #acks: Pick<AckBook, 'record'>
  readonly #maxWaiting: number
  readonly #lines = new Map<Engine, Line>()
  /** The latest line of each session: the spool is its. */
  readonly #current = new Map<string, Line>()

  constructor(
    sql: Sql,
    log: Logger,
    onAck: (keyId: string) => void,
    spool: Spool,
    acks: Pick<AckBook, 'record'>,
    { maxWaiting = 5_000 }: ReceiverOptions = {},
  ) {
    this.#sql = sql
    this.#log = log
    this.#onAck = onAck
    this.#spool = spool
    this.#acks = acks
    this.#maxWaiting = maxWaiting
  }

  /** Listens to an engine of a session this worker owns. What the spool has of the session is written first. */
  attach(session: OwnedSession, engine: Engine): void {
    const spooledBytes = this.#spool.size(session.id)
    const line: Line = {
      ...{ session, waiting: [], written: Promise.resolve(), writing: false },
      ...{ full: false, leftOut: undefined, lost: false },
      ...{ spooled: spooledBytes > 0, spoolRead: 0 },
    }
    this.#lines.set(engine, line)
    this.#current.set(session.id, line)
    if (line.spooled) {
      this.#log.info('reports taken from the spool', {
        sessionId: session.id,
        bytes: spooledBytes,
      })
      this.#startWriting(line)
    }
    for (const kind of written) {
      engine.on(kind, (event: unknown) => this.#take(line, { kind, event } as Written))
    }
  }

  /** Resolves when everything the engine has reported so far is written. */
  async settled(engine: Engine): Promise<void> {
    const line = this.#lines.get(engine)
    await line?.written
    this.#lines.delete(engine)
    if (line && this.#current.get(line.session.id) === line) this.#current.delete(line.session.id)
  }

  /** The engine was killed. What it had reported is kept on the disk at once, since a write may hang for as long as a statement does; then as settled(). */
  async killed(engine: Engine): Promise<void> {
    const line = this.#lines.get(engine)
    if (line && !line.spooled && line.waiting.length > 0) this.#spoolAll(line)
    await this.settled(engine)
  }

  /** Whoever waits for the ack of this message may go on: it is written. */
  acked(keyId: string): void {
    this.#onAck(keyId)
  }

  /**
   * Stores messages that were read, not heard, some at a time, for as long as `goesOn` holds. One that cannot be written takes no other with it. Answers how many
   * were not there, and how many could not be written. Throws LeaseLost, and when the database is away.
   */
  async storeRead(
    session: OwnedSession,
    messages: IncomingMessage[],
    source: 'backfill' | 'history',
    goesOn: () => boolean,
  ): Promise<{ stored: number; failed: number }> {
    const count = { stored: 0, failed: 0 }
    const store = async (some: IncomingMessage[]): Promise<void> => {
      if (!goesOn()) return
      try {
        const ids = await this.#storeAll(session, some, source)
        count.stored += ids.filter((id) => id !== undefined).length
      } catch (error) {
        if (error instanceof LeaseLost || isDatabaseAway(error)) throw error
        if (some.length > 1) return inHalves(some, store)
        count.failed += 1
        const { type } = some[0]!
        this.#log.error('message not stored', { sessionId: session.id, source, type, error })
      }
    }
    for (let at = 0; at < messages.length; at += maxRead) {
      await store(messages.slice(at, at + maxRead))
    }
    return count
  }

  async #storeAll(
    session: OwnedSession,
    messages: IncomingMessage[],
    source: 'live' | 'backfill' | 'history',
  ): Promise<(string | undefined)[]> {
    const ids = await storeAllReceived(
      this.#sql,
      session,
      messages.map(({ key, contacts, location, poll, ...rest }) => ({
        ...rest,
        source,
        fromMe: key.fromMe,
        waChatId: key.chatId,
        keyId: key.id,
        participant: key.participant,
        content: location ?? poll ?? contentOfCards(contacts),
      })),
    )
    for (const [index, messageId] of ids.entries()) {
      if (messageId === undefined) continue
      const { key, type, pending } = messages[index]!
      this.#log.info('message received', {
        sessionId: session.id,
        messageId,
        type,
        fromMe: key.fromMe,
        source,
        ...(pending && { pending }),
      })
    }
    return ids
  }

  #take(line: Line, report: Written): void {
    const { waiting, session } = line
    if (!line.spooled && waiting.length >= this.#maxWaiting) this.#spoolAll(line)
    // What lies in the spool only comes first.
    const inTurn = !line.spooled || line.spoolRead === this.#spool.size(session.id)
    const kept = line.spooled && this.#keep(line, [report])
    if (!this.#ownsSpool(line) || (inTurn && waiting.length < this.#maxWaiting)) {
      waiting.push(report)
      if (kept) line.spoolRead = this.#spool.size(session.id)
    } else if (!kept) {
      line.leftOut ??= { reports: 0, since: new Date() }
      line.leftOut.reports += 1
    }
    this.#startWriting(line)
  }

  #startWriting(line: Line): void {
    if (!line.writing) line.written = this.#writeAll(line)
  }

  async #writeAll(line: Line): Promise<void> {
    const { waiting, session } = line
    line.writing = true
    // What this turn of the event loop brings comes along.
    await nextTurn()
    while (waiting.length > 0 || this.#readOn(line) || (await this.#ownUp(line))) {
      const batch = nextBatch(waiting)
      if (batch.length === 0) continue
      await this.#writeBatch(line, batch)
      waiting.splice(0, batch.length)
    }
    line.writing = false
    // Of a lost session it is left to whoever has the session next.
    if (line.lost || !this.#ownsSpool(line)) return
    if (line.spooled) this.#spool.clear(session.id)
    line.spooled = line.full = false
    line.spoolRead = 0
  }

  /** Takes more from the spool. False when it has no more. */
  #readOn(line: Line): boolean {
    if (!line.spooled || line.lost || !this.#ownsSpool(line)) return false
    const { session, waiting } = line
    try {
      const page = this.#spool.page(session.id, line.spoolRead)
      if (!page) return false
      waiting.push(...(page.reports as Written[]))
      line.spoolRead = page.end
      return true
    } catch (error) {
      this.#log.error('spool not read, left to the next start', { sessionId: session.id, error })
      line.spooled = false
      return false
    }
  }

  /** Says what was left out, and has messages of that time read again. False when nothing was. */
  async #ownUp(line: Line): Promise<boolean> {
    const { leftOut, session } = line
    if (!leftOut) return false
    line.leftOut = undefined
    const fields = { sessionId: session.id, ...leftOut }
    this.#log.error('reports left out, messages are read again', fields)
    try {
      await waitOutOutage(
        () => noteMissed(this.#sql, session, leftOut.since),
        () => !line.lost,
      )
    } catch (error) {
      this.#log.error('not noted that messages are to be read again', { ...fields, error })
    }
    return true
  }

  /** A failure is logged with what it was about; it takes nothing else with it. */
  async #writeBatch(line: Line, batch: Written[]): Promise<void> {
    try {
      await waitOutOutage(
        () => this.#writeOrKeep(line, batch),
        () => !line.lost,
      )
    } catch (error) {
      const fields = { sessionId: line.session.id, what: batch[0]!.kind, error }
      if (error instanceof LeaseLost) {
        line.lost = true
        this.#log.warn('events of a lost session dropped', { ...fields, reports: batch.length })
      } else if (batch.length === 1) {
        this.#log.error('event not stored', fields)
      } else {
        await inHalves(batch, (half) => this.#writeBatch(line, half))
      }
    }
  }

  async #writeOrKeep(line: Line, batch: Written[]): Promise<void> {
    try {
      await this.#write(line.session, batch)
    } catch (error) {
      if (isDatabaseAway(error) && !line.spooled) this.#spoolAll(line)
      throw error
    }
  }

  /** Messages, or one change. */
  async #write(session: OwnedSession, batch: Written[]): Promise<void> {
    const { kind, event } = batch[0]!
    switch (kind) {
      case 'message':
      case 'placeholder':
      case 'call': {
        const messages = batch.flatMap((report) => messageIn(report) ?? [])
        await this.#storeAll(session, messages, 'live')
        return
      }
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
    }
  }

  /** An engine that came later has read the spool: it is in charge of it. */
  #ownsSpool(line: Line): boolean {
    return this.#current.get(line.session.id) === line
  }

  /** From here on the spool has what waits, too. */
  #spoolAll(line: Line): void {
    if (!this.#ownsSpool(line)) return
    line.spooled = true
    this.#keep(line, line.waiting)
    line.spoolRead = this.#spool.size(line.session.id)
  }

  /** Answers whether all of it is in the spool. */
  #keep(line: Line, reports: Written[]): boolean {
    const { id: sessionId } = line.session
    if (line.full || !this.#ownsSpool(line)) return false
    let error: unknown
    try {
      line.full = !reports.every((report) => this.#spool.append(sessionId, report))
    } catch (reason) {
      error = reason
      line.full = true
    }
    if (line.full) this.#log.error('spool takes no more reports', { sessionId, error })
    return !line.full
  }
}

/** One of them cannot be written; which one is found by halves. What is written already is there already. */
async function inHalves<T>(items: T[], write: (half: T[]) => Promise<void>): Promise<void> {
  const half = items.length >> 1
  await write(items.slice(0, half))
  await write(items.slice(half))
}

/** The messages that come first, or the one report that is none. */
function nextBatch(waiting: Written[]): Written[] {
  const end = waiting.findIndex((report, n) => n === maxBatch || messageIn(report) === undefined)
  return waiting.slice(0, end === -1 ? waiting.length : Math.max(1, end))
}

/** The message a report tells of, unless it tells of a change to one. */
function messageIn({ kind, event }: Written): IncomingMessage | undefined {
  if (kind === 'message' || kind === 'placeholder') return event
  return kind === 'call' ? callMessage(event) : undefined
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
