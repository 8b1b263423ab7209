import type { Sql } from '../shared/db.ts'
import { learnPerson } from '../shared/identities.ts'
import type { PersonFacts } from '../shared/identities.ts'
import type { Logger } from '../shared/logger.ts'
import { answered, learnGroup, openQuestions, unanswered } from '../shared/people.ts'
import type { Question } from '../shared/people.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { Desks } from './desks.ts'
import type { Desk } from './desks.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine } from './engine/engine.ts'

/**
 * Finds out who people are that sessions hear of: their other address, their names, and who is in a group. It asks WhatsApp Web what it knows already, a session at
 * a time, and never the server: messages do not wait for it.
 */
export class People {
  readonly #sql: Sql
  readonly #log: Logger
  readonly #desks: Desks<Question>
  #learning: Promise<unknown> = Promise.resolve()

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
    this.#log = log
    this.#desks = new Desks({
      pollMs,
      due: (sessions) => openQuestions(sql, worker, sessions),
      work: (desk, questions) => this.#answer(desk, questions),
      onUnread: (error) => log.error('people not asked about', { error }),
      onFailure: ([question], error) => {
        const fields = { sessionId: question?.sessionId, error }
        if (error instanceof LeaseLost) log.warn('people of a lost session dropped', fields)
        else log.error('people not learnt', fields)
      },
    })
  }

  open(session: OwnedSession, engine: Engine): void {
    this.#desks.open(session, engine)
  }

  close(sessionId: string): void {
    this.#desks.close(sessionId)
  }

  /** Resolves once it is stopped and nothing is under way any more. */
  run(): Promise<void> {
    return this.#desks.run()
  }

  stop(): void {
    this.#desks.stop()
  }

  /** One at a time: they would wait for each other in the database anyway, each with a connection that messages need. */
  #learn(session: OwnedSession, person: PersonFacts): Promise<unknown> {
    const learnt = this.#learning.then(() => learnPerson(this.#sql, session, person))
    this.#learning = learnt.catch(() => {}) // whoever asked for it is told
    return learnt
  }

  async #answer(desk: Desk, questions: Question[]): Promise<void> {
    const { session, engine } = desk
    const isOpen = () => this.#desks.isOpen(desk)
    const groups = questions.flatMap(({ waId, chatId }) =>
      chatId === null ? [] : { waId, chatId },
    )
    const waIds = questions.flatMap(({ waId, chatId }) => (chatId === null ? waId : []))
    try {
      const at = new Date()
      for (const { asked, waId, lid, ...names } of await engine.people(waIds)) {
        if (!isOpen()) return
        const addresses = [asked, waId, ...(lid === null ? [] : [lid])]
        await this.#learn(session, { ...names, addresses, source: 'page', at })
      }
      await answered(this.#sql, session, waIds)
    } catch (error) {
      if (!(error instanceof EngineError)) throw error
      this.#log.warn('WhatsApp could not be asked about people', { sessionId: session.id, error })
      await unanswered(this.#sql, session, waIds)
    }
    for (const { waId, chatId } of groups) {
      if (!isOpen()) return
      const group = await engine.chat(waId).catch((error: unknown) => {
        if (!(error instanceof EngineError)) throw error
        this.#log.warn('group not read', { sessionId: session.id, error })
        return null
      })
      await learnGroup(this.#sql, session, chatId, group)
    }
  }
}
