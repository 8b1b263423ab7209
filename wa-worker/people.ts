import type { Sql } from '../shared/db.ts'
import { learnPerson } from '../shared/identities.ts'
import type { PersonFacts } from '../shared/identities.ts'
import type { Logger } from '../shared/logger.ts'
import { answered, learnGroup, openQuestions, unanswered } from '../shared/people.ts'
import type { Question } from '../shared/people.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine } from './engine/engine.ts'
import { Wake } from '../shared/wake.ts'

interface Desk {
  session: OwnedSession
  engine: Engine
  work: Promise<void> | undefined
}

/**
 * Finds out who people are that sessions hear of: their other address, their names, and who is in a group. It asks WhatsApp Web what it knows already, a session at
 * a time, and never the server: messages do not wait for it.
 */
export class People {
  readonly #sql: Sql
  readonly #worker: string
  readonly #log: Logger
  readonly #pollMs: number
  readonly #desks = new Map<string, Desk>()
  /** What is under way, also of sessions that were closed meanwhile. */
  readonly #work = new Set<Promise<void>>()
  readonly #wake = new Wake()
  #learning: Promise<unknown> = Promise.resolve()
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
  }

  close(sessionId: string): void {
    this.#desks.delete(sessionId)
  }

  async run(): Promise<void> {
    while (!this.#stopped) {
      await this.#ask().catch((error: unknown) => {
        this.#log.error('people not asked about', { error })
      })
      await this.#wake.wait(this.#pollMs)
    }
    await Promise.all(this.#work)
  }

  stop(): void {
    this.#stopped = true
    this.#wake.ring()
  }

  async #ask(): Promise<void> {
    const idle = [...this.#desks.values()].filter(({ work }) => work === undefined)
    if (idle.length === 0) return
    const lanes = idle.map(({ session }) => session)
    const questions = await openQuestions(this.#sql, this.#worker, lanes)
    for (const desk of idle) {
      const own = questions.filter(({ sessionId }) => sessionId === desk.session.id)
      if (own.length === 0) continue
      const work = this.#answer(desk, own)
        .catch((error: unknown) => {
          const fields = { sessionId: desk.session.id, error }
          if (error instanceof LeaseLost) this.#log.warn('people of a lost session dropped', fields)
          else this.#log.error('people not learnt', fields)
        })
        .then(() => {
          desk.work = undefined
          this.#work.delete(work)
        })
      desk.work = work
      this.#work.add(work)
    }
  }

  /** One at a time: they would wait for each other in the database anyway, each with a connection that messages need. */
  #learn(session: OwnedSession, person: PersonFacts): Promise<unknown> {
    const learnt = this.#learning.then(() => learnPerson(this.#sql, session, person))
    this.#learning = learnt.catch(() => {}) // whoever asked for it is told
    return learnt
  }

  async #answer(desk: Desk, questions: Question[]): Promise<void> {
    const { session, engine } = desk
    const isOpen = () => this.#desks.get(session.id) === desk
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
