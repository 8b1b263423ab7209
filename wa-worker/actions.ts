import type { Sql } from '../shared/db.ts'
import type { Logger } from '../shared/logger.ts'
import { refusals } from '../shared/refusals.ts'
import {
  actionDone,
  actionFailed,
  dueActions,
  expireActions,
  saysSomething,
} from '../shared/wa-actions.ts'
import type { Action } from '../shared/wa-actions.ts'
import { learnNumber } from '../shared/wa-numbers.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { Wake } from '../shared/wake.ts'
import { retryBackoff } from './backoff.ts'
import { Desks } from './desks.ts'
import type { Desk } from './desks.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine } from './engine/engine.ts'

const maxAttempts = 5

/**
 * Does on WhatsApp what is wished beside sending: reactions, edits, deletions, "seen", "typing", questions about numbers. One at a time a session, each as soon as it is due.
 * All of them may be done twice without harm, so one that was cut off is simply done again.
 */
export class Actions {
  readonly #sql: Sql
  readonly #log: Logger
  readonly #desks: Desks<Action>
  readonly #expireMs: number
  readonly #pause = new Wake()
  #stopped = false

  constructor({
    sql,
    worker,
    log,
    pollMs = 1_000,
    expireMs = 10_000,
  }: {
    sql: Sql
    worker: string
    log: Logger
    pollMs?: number
    /** How often to look for what has become of no use. */
    expireMs?: number
  }) {
    this.#sql = sql
    this.#log = log
    this.#expireMs = expireMs
    this.#desks = new Desks({
      pollMs,
      due: (sessions) => dueActions(sql, worker, sessions),
      work: async (desk, actions) => {
        for (const action of actions) await this.#do(desk, action)
      },
      onUnread: (error) => log.error('actions not read', { error }),
      onFailure: ([action], error) => {
        const fields = { sessionId: action?.sessionId, action: action?.kind, error }
        if (error instanceof LeaseLost) log.warn('action of a lost session dropped', fields)
        else log.error('action not recorded', fields)
      },
    })
  }

  open(session: OwnedSession, engine: Engine): void {
    this.#desks.open(session, engine)
  }

  /** Takes a session out. What is under way there ends with its engine, and is done again by the next one. */
  close(sessionId: string): void {
    this.#desks.close(sessionId)
  }

  /** There may be something to do in these sessions, or in any. */
  nudge(sessionIds?: string[]): void {
    this.#desks.nudge(sessionIds)
  }

  /** Resolves once it is stopped and nothing is under way any more. */
  async run(): Promise<void> {
    await Promise.all([this.#desks.run(), this.#expire()])
  }

  stop(): void {
    this.#stopped = true
    this.#pause.ring()
    this.#desks.stop()
  }

  /** Of all sessions: those that cannot work now are nobody's. */
  async #expire(): Promise<void> {
    while (!this.#stopped) {
      try {
        const expired = await expireActions(this.#sql)
        if (expired > 0) this.#log.warn('actions expired', { actions: expired })
      } catch (error) {
        this.#log.error('actions not expired', { error })
      }
      await this.#pause.wait(this.#expireMs)
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
    action: Action,
  ): Promise<object | undefined> {
    const { kind, payload, waChatId, target } = action
    // Since it was asked for, or the API would have refused it.
    if (action.optedOut && saysSomething(action))
      throw new EngineError(
        'permanent',
        'RECIPIENT_OPTED_OUT',
        refusals.RECIPIENT_OPTED_OUT.message,
      )
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
