import { recordAck } from '../shared/acks.ts'
import {
  endStretch,
  knownMessages,
  missedStretch,
  reportChat,
  unreadOfOurs,
} from '../shared/backfill.ts'
import type { KnownMessage, Missed, UnreadCursor } from '../shared/backfill.ts'
import { isDatabaseAway } from '../shared/db-errors.ts'
import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import { recordEdit, recordRevocation } from '../shared/message-changes.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { Engine, IncomingMessage, RecentChat } from './engine/engine.ts'
import { withDeadline } from './patience.ts'
import type { Receiver } from './receiver.ts'

export interface BackfillOptions {
  sql: Sql
  log: Logger
  receiver: Receiver
  /** When to read, counted from the moment the session works: a phone hands some things on late. */
  afterMs?: number[]
  maxChats?: number
  limitPerChat?: number
  /** How long one reading may take. */
  deadlineMs?: number
  /** Messages of ours whose acks are asked for at a time. */
  maxAcks?: number
  /** How often acks are asked for while the session works, since some are never told; and what is outstanding by then is read. */
  acksEveryMs?: number
}

interface Run {
  session: OwnedSession
  engine: Engine
  closed: boolean
  timers: NodeJS.Timeout[]
  /** Where asking for acks goes on. */
  acksFrom: UnreadCursor | undefined
  /** What all readings of this run are about. */
  stretch: Missed | undefined
  work: Promise<void>
}

/**
 * Reads again what came while nobody listened, whenever a session works (again), and stores what is missing as if it had been heard. It waits for nobody
 * and nobody waits for it: a reading that fails is left to the next occasion.
 */
export class Backfill {
  readonly #options: Required<BackfillOptions>
  readonly #runs = new Map<string, Run>()

  constructor(options: BackfillOptions) {
    this.#options = {
      afterMs: [0, 30_000, 300_000],
      maxChats: 100,
      limitPerChat: 200,
      deadlineMs: 120_000,
      maxAcks: 200,
      acksEveryMs: 300_000,
      ...options,
    }
  }

  /** The session works: reads what it missed. */
  open(session: OwnedSession, engine: Engine): void {
    const before = this.close(session.id)
    const run: Run = {
      session,
      engine,
      closed: false,
      timers: [],
      acksFrom: undefined,
      stretch: undefined,
      work: before,
    }
    this.#runs.set(session.id, run)
    for (const ms of this.#options.afterMs) {
      const read = () => {
        run.work = run.work.then(() => this.#try(run))
      }
      if (ms === 0) read()
      else run.timers.push(setTimeout(read, ms))
    }
    const again = () => {
      run.work = run.work.then(() => {
        // What was read is over; what could not be, or was missed since, is not.
        run.stretch = undefined
        return this.#try(run)
      })
    }
    run.timers.push(setInterval(again, this.#options.acksEveryMs))
  }

  /** The session does not work any more. Resolves when nothing more of it is written. */
  close(sessionId: string): Promise<void> {
    const run = this.#runs.get(sessionId)
    if (!run) return Promise.resolve()
    run.closed = true
    for (const timer of run.timers) clearTimeout(timer)
    return run.work.then(() => {
      if (this.#runs.get(sessionId) === run) this.#runs.delete(sessionId)
    })
  }

  async #try(run: Run): Promise<void> {
    await this.#guard(run, async () => {
      const stored = await this.#read(run)
      await this.#askForAcks(run)
      const { id: sessionId } = run.session
      if (stored > 0)
        this.#options.log.info('missed messages stored', { sessionId, messages: stored })
    })
  }

  async #guard(run: Run, work: () => Promise<void>): Promise<void> {
    if (run.closed) return
    const { log } = this.#options
    const { id: sessionId } = run.session
    try {
      await work()
    } catch (error) {
      if (run.closed) return
      if (error instanceof LeaseLost) log.warn('backfill of a lost session dropped', { sessionId })
      else log.warn('backfill failed, to be tried again', { sessionId, error })
    }
  }

  async #read(run: Run): Promise<number> {
    const { sql, limitPerChat, maxChats, deadlineMs } = this.#options
    const { session, engine } = run
    run.stretch ??= await missedStretch(sql, session)
    if (!run.stretch) return 0
    const { from } = run.stretch
    const to = new Date()
    const recent = await withDeadline(
      engine.recent({
        sinceSeconds: Math.floor(from.getTime() / 1_000),
        limitPerChat,
        maxChats,
      }),
      deadlineMs,
      () => new Error('WhatsApp Web did not give its messages in time.'),
    )
    let stored = 0
    for (const chat of recent.chats) {
      const { missed, failed } = await this.#readChat(run, chat)
      if (run.closed) return stored
      stored += missed
      const { chatId: waChatId, messages } = chat
      const keyIds = messages.map(({ key }) => key.id)
      const complete = chat.complete && failed === 0
      await reportChat(sql, session, { waChatId, keyIds, from, to, complete })
    }
    if (recent.truncated) {
      await reportChat(sql, session, { waChatId: '', keyIds: [], from, to, complete: false })
    }
    await endStretch(sql, session, run.stretch)
    return stored
  }

  async #readChat(run: Run, chat: RecentChat): Promise<{ missed: number; failed: number }> {
    const { sql, log, receiver } = this.#options
    const slot = (fromMe: boolean, id: string) => `${fromMe}_${id}`
    const rows = await knownMessages(
      sql,
      run.session,
      chat.messages.map(({ key }) => key),
    )
    const known = new Map(rows.map((row) => [slot(row.fromMe, row.keyId), row]))
    const missing: IncomingMessage[] = []
    const changed: [IncomingMessage, KnownMessage][] = []
    for (const message of chat.messages) {
      const { key, ack, pending, revoked } = message
      const there = known.get(slot(key.fromMe, key.id))
      if (there && !(there.placeholder && !pending && !revoked)) changed.push([message, there])
      // One of ours that never got to the server is nothing anybody said: what we accepted is known, and its sender sees to it.
      else if (!key.fromMe || ack >= 1) {
        missing.push({ ...message, chatName: message.chatName ?? chat.name })
      }
    }
    const goesOn = () => !run.closed
    const read = await receiver.storeRead(run.session, missing, 'backfill', goesOn)
    const count = { missed: read.stored, failed: read.failed }
    for (const [message, there] of changed) {
      if (run.closed) break
      try {
        await this.#catchUp(run, message, there)
      } catch (error) {
        if (error instanceof LeaseLost || isDatabaseAway(error)) throw error
        count.failed += 1
        log.error('missed change not stored', { sessionId: run.session.id, error })
      }
    }
    return count
  }

  /** Records what has become of a message that is there. */
  async #catchUp({ session }: Run, message: IncomingMessage, known: KnownMessage): Promise<void> {
    const { sql, receiver } = this.#options
    const { key, ack, body } = message
    if (key.fromMe && ack >= 1 && ack > (known.ack ?? 0)) {
      const { id: keyId } = key
      await recordAck(sql, session, { keyId, ack, waMessageId: message.waMessageId })
      receiver.acked(keyId)
    }
    if (message.revoked) {
      if (!known.revoked) await recordRevocation(sql, session, { key, at: new Date() })
    } else if (!key.fromMe && !message.pending && body !== null && body !== known.body) {
      await recordEdit(sql, session, { key, body, at: new Date() })
    }
  }

  /** Acks that came while nobody listened, or that got lost, are not told again. Round by round all of them are asked for that are not final. */
  async #askForAcks(run: Run): Promise<void> {
    const { sql, receiver, maxAcks } = this.#options
    const { session, engine } = run
    const unread = await unreadOfOurs(sql, session, maxAcks, run.acksFrom)
    const last = unread.at(-1)
    run.acksFrom = unread.length === maxAcks && last ? last : undefined
    for (const { keyId, chatId, ack } of unread) {
      if (run.closed) return
      const receipt = await engine.find({ chatId, keyId })
      // Most say what is known already, and cost no transaction.
      if (receipt === null || receipt.ack <= (ack ?? 0)) continue
      await recordAck(sql, session, { keyId, ...receipt })
      receiver.acked(keyId)
    }
  }
}
