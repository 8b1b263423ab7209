import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import { actionDone, actionFailed, dueActions } from '../shared/wa-actions.ts'
import type { Action } from '../shared/wa-actions.ts'
import { learnNumber } from '../shared/wa-numbers.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { retryBackoff } from './backoff.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine } from './engine/engine.ts'
import { Wake } from '../shared/wake.ts'

const maxAttempts = 5

interface Desk {
  session: OwnedSession
  engine: Engine
  work: Promise<void> | undefined
}

/**
 * Does on WhatsApp what is wished beside sending: reactions, edits, deletions, "seen", "typing", questions about numbers. One at a time a session, each as soon as it is due.
 * All of them may be done twice without harm, so one that was cut off is simply done again.
 */
export class Actions {
  readonly #sql: Sql
  readonly #worker: string
  readonly #log: Logger
  readonly #pollMs: number
  readonly #desks = new Map<string, Desk>()
  readonly #wake = new Wake()
  #stopped = false

  constructor({
    sql,
    worker,
    log,
    pollMs = 1_000,
  }: {
    sql: Sql
    worker: string
    log: Logger
    pollMs?: number
  }) {
    this.#sql = sql
    this.#worker = worker
    this.#log = log
    this.#pollMs = pollMs
  }

  open(session: OwnedSession, engine: Engine): void {
    this.#desks.set(session.id, { session, engine, work: undefined })
    this.#wake.ring()
  }

  /** Takes a session out. What is under way there ends with its engine, and is done again by the next one. */
  close(sessionId: string): void {
    this.#desks.delete(sessionId)
  }

  /** There may be something to do in these sessions, or in any. */
  nudge(sessionIds?: string[]): void {
    if (sessionIds?.some((id) => this.#desks.has(id)) ?? true) this.#wake.ring()
  }

  async run(): Promise<void> {
    while (!this.#stopped) {
      await this.#take().catch((error: unknown) => {
        this.#log.error('actions not read', { error })
      })
      await this.#wake.wait(this.#pollMs)
    }
  }

  stop(): void {
    this.#stopped = true
    this.#wake.ring()
  }

  async #take(): Promise<void> {
    const idle = [...this.#desks.values()].filter(({ work }) => work === undefined)
    if (idle.length === 0) return
    const due = await dueActions(
      this.#sql,
      this.#worker,
      idle.map(({ session }) => session),
    )
    for (const action of due) {
      const desk = idle.find(({ session }) => session.id === action.sessionId)!
      if (this.#desks.get(action.sessionId) !== desk) continue
      desk.work = this.#do(desk, action)
        .catch((error: unknown) => {
          const fields = { sessionId: action.sessionId, action: action.kind, error }
          if (error instanceof LeaseLost) this.#log.warn('action of a lost session dropped', fields)
          else this.#log.error('action not recorded', fields)
        })
        .then(() => {
          desk.work = undefined
          this.#wake.ring()
        })
    }
  }

  async #do({ session, engine }: Desk, action: Action): Promise<void> {
    const fields = { sessionId: session.id, messageId: action.messageId, action: action.kind }
    try {
      await actionDone(this.#sql, session, action, await this.#perform(session, engine, action))
      this.#log.info('action done', fields)
    } catch (error) {
      if (!(error instanceof EngineError)) throw error
      const hopeless = error.certainty === 'permanent' || action.attempts + 1 >= maxAttempts
      this.#log.warn(hopeless ? 'action given up' : 'action will be tried again', {
        ...fields,
        code: error.code,
        error,
      })
      const delayMs = hopeless ? undefined : retryBackoff(action.attempts + 1)
      await actionFailed(this.#sql, session, action, error, delayMs)
    }
  }

  async #perform(
    session: OwnedSession,
    engine: Engine,
    { kind, payload, waChatId, target }: Action,
  ): Promise<object | undefined> {
    switch (kind) {
      case 'react':
        await engine.react({ target: existing(target), emoji: payload.emoji! })
        return undefined
      case 'edit':
        await engine.edit({ target: existing(target), body: payload.body! })
        return undefined
      case 'revoke':
        await engine.revoke({ target: existing(target) })
        return undefined
      case 'seen':
        await engine.seen(waChatId!)
        return undefined
      case 'typing':
        await engine.typing(waChatId!, payload.on!)
        return undefined
      case 'check_number': {
        const check = await engine.checkNumber(payload.phone!)
        await learnNumber(this.#sql, session, payload.phone!, check.waId)
        return check
      }
    }
  }
}

function existing(target: Action['target']) {
  if (target === null)
    throw new EngineError('permanent', 'MESSAGE_NOT_FOUND', 'The message never was on WhatsApp.')
  return target
}
