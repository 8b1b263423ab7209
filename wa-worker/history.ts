import { knownMessages } from '../shared/backfill.ts'
import type { Sql } from '../shared/db.ts'
import { chatImported, pendingImport, planImport } from '../shared/history-imports.ts'
import type { Logger } from '../shared/logger.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine } from './engine/engine.ts'
import type { Receiver } from './receiver.ts'

export interface HistoryOptions {
  sql: Sql
  log: Logger
  receiver: Receiver
  /** Days to read at the first link of sessions that do not say themselves; 0 for none. */
  days: number
  maxChats?: number
  limitPerChat?: number
}

interface Run {
  session: OwnedSession
  engine: Engine
  closed: boolean
  work: Promise<void>
}

/**
 * Reads once, after its first link, what was said in a session before: chat by chat, beside everything else, and on after a break where it was. It is no news: nothing
 * is told of it and nothing counts as unread.
 */
export class History {
  readonly #options: Required<HistoryOptions>
  readonly #runs = new Map<string, Run>()

  constructor(options: HistoryOptions) {
    this.#options = { maxChats: 500, limitPerChat: 1_000, ...options }
  }

  /** The session works. */
  open(session: OwnedSession, engine: Engine): void {
    const before = this.close(session.id)
    const run: Run = { session, engine, closed: false, work: before }
    this.#runs.set(session.id, run)
    run.work = before
      .then(() => this.#import(run))
      .catch((error: unknown) => {
        if (run.closed) return
        this.#options.log.warn('import of history broken off', { sessionId: session.id, error })
      })
  }

  /** The session does not work any more. Resolves when nothing more of it is written. */
  close(sessionId: string): Promise<void> {
    const run = this.#runs.get(sessionId)
    if (!run) return Promise.resolve()
    run.closed = true
    return run.work.then(() => {
      if (this.#runs.get(sessionId) === run) this.#runs.delete(sessionId)
    })
  }

  async #import(run: Run): Promise<void> {
    const { sql, log, days, maxChats } = this.#options
    const { session, engine } = run
    if (run.closed) return
    const wanted = await pendingImport(sql, session, days)
    if (!wanted) return
    const { from, to } = wanted
    let { waiting } = wanted
    if (waiting === null) {
      const chats = await engine.chatsSince(seconds(from))
      waiting = chats.slice(0, maxChats).map(({ chatId }) => chatId)
      if (run.closed) return
      await planImport(sql, session, waiting)
    }
    let total = 0
    for (const chatId of waiting) {
      if (run.closed) return
      const read = await this.#chat(run, chatId, from, to)
      if (run.closed) return
      total += read.messages
      await chatImported(sql, session, chatId, read)
    }
    log.info('history imported', { sessionId: session.id, messages: total })
  }

  async #chat(
    run: Run,
    chatId: string,
    from: Date,
    to: Date,
  ): Promise<{ messages: number; complete: boolean }> {
    const { sql, log, receiver, limitPerChat } = this.#options
    const { session, engine } = run
    try {
      const chat = await engine.history(chatId, {
        sinceSeconds: seconds(from),
        limit: limitPerChat,
      })
      // What came since is told as it happens, or read again as what was missed.
      const past = chat.messages.filter(({ timestamp }) => timestamp < seconds(to))
      const known = await knownMessages(
        sql,
        session,
        past.map(({ key }) => key),
      )
      const seen = new Set(known.map(({ fromMe, keyId }) => `${fromMe}_${keyId}`))
      const missing = past
        .filter(({ key, ack }) => !seen.has(`${key.fromMe}_${key.id}`) && !(key.fromMe && ack < 1))
        .map((message) => ({ ...message, chatName: message.chatName ?? chat.name }))
      const read = await receiver.storeRead(session, missing, 'history', () => !run.closed)
      return { messages: read.stored, complete: chat.complete && read.failed === 0 }
    } catch (error) {
      if (!(error instanceof EngineError) || error.code === 'SESSION_NOT_READY') throw error
      log.warn('chat not imported', { sessionId: session.id, error })
      return { messages: 0, complete: false }
    }
  }
}

const seconds = (at: Date) => Math.floor(at.getTime() / 1_000)
