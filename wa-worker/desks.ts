import { Wake } from '../shared/wake.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { Engine } from './engine/engine.ts'

/** A session of this worker and the engine that serves it. */
export interface Desk {
  readonly session: OwnedSession
  readonly engine: Engine
}

export interface DesksOptions<Job extends { sessionId: string }> {
  pollMs: number
  /** What there is to do at these sessions, none of which is at work. */
  due(sessions: OwnedSession[]): Promise<Job[]>
  /** Does what is due at one session. */
  work(desk: Desk, jobs: Job[]): Promise<void>
  /** Asking what is due failed. */
  onUnread(error: unknown): void
  /** Work failed: what is still due is done again. */
  onFailure(jobs: Job[], error: unknown): void
}

/** Looks, again and again and whenever it is nudged, what is due at the sessions that do nothing, and has it done: at many sessions at a time, at each one after the other. */
export class Desks<Job extends { sessionId: string }> {
  readonly #options: DesksOptions<Job>
  readonly #open = new Map<string, Desk>()
  /** What is under way, also at desks that were closed meanwhile. */
  readonly #work = new Map<Desk, Promise<void>>()
  readonly #wake = new Wake()
  #stopped = false

  constructor(options: DesksOptions<Job>) {
    this.#options = options
  }

  open(session: OwnedSession, engine: Engine): void {
    this.#open.set(session.id, { session, engine })
    this.#wake.ring()
  }

  /** What is under way there ends with its engine. */
  close(sessionId: string): void {
    this.#open.delete(sessionId)
  }

  isOpen(desk: Desk): boolean {
    return this.#open.get(desk.session.id) === desk
  }

  /** There may be something to do in these sessions, or in any. */
  nudge(sessionIds?: string[]): void {
    if (sessionIds?.some((id) => this.#open.has(id)) ?? true) this.#wake.ring()
  }

  /** Resolves once it is stopped and nothing is under way any more. */
  async run(): Promise<void> {
    while (!this.#stopped) {
      await this.#look().catch((error: unknown) => this.#options.onUnread(error))
      await this.#wake.wait(this.#options.pollMs)
    }
    await Promise.all(this.#work.values())
  }

  stop(): void {
    this.#stopped = true
    this.#wake.ring()
  }

  async #look(): Promise<void> {
    const idle = [...this.#open.values()].filter((desk) => !this.#work.has(desk))
    if (idle.length === 0) return
    const due = await this.#options.due(idle.map(({ session }) => session))
    for (const desk of idle) {
      const jobs = due.filter(({ sessionId }) => sessionId === desk.session.id)
      if (jobs.length > 0 && this.isOpen(desk)) this.#work.set(desk, this.#do(desk, jobs))
    }
  }

  async #do(desk: Desk, jobs: Job[]): Promise<void> {
    let done = true
    try {
      await this.#options.work(desk, jobs)
    } catch (error) {
      done = false
      this.#options.onFailure(jobs, error)
    }
    this.#work.delete(desk)
    // There may be more. What failed is left to the next look: it might fail again at once.
    if (done) this.#wake.ring()
  }
}
