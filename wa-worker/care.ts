import type { Sql } from '../shared/db.ts'
import { writeMemory } from '../shared/wa-session-transitions.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { Engine } from './engine/engine.ts'
import type { Logins } from './logins.ts'
import { Watchdog } from './watchdog.ts'

export interface CareTimes {
  /** How long after it became ready a login has settled on the disk. */
  settleMs: number
  /** How often a snapshot of the login is taken. */
  snapshotMs: number
  /** How often a working engine is asked for a sign of life. */
  probeMs: number
  /** How often its memory is measured. */
  memoryMs: number
}

export interface CareOptions extends CareTimes {
  sql: Sql
  session: OwnedSession
  engine: Engine
  logins: Logins
  /** The engine no longer does what its state says. */
  onTrouble: (reason: string, detail: string) => void
  /** Its processes use this many bytes. */
  onWeighed: (bytes: number) => void
  /** A write found that the session has another owner. */
  onLost: () => void
}

/** What a linked engine needs while it runs: it is asked for signs of life, its memory is measured, and snapshots of its login are taken. */
export class Care {
  readonly #options: CareOptions
  #watchdog: Watchdog | undefined
  #scales: NodeJS.Timeout
  #snapshot: NodeJS.Timeout | undefined
  #stopped = false

  constructor(options: CareOptions) {
    this.#options = options
    this.#scales = setInterval(() => void this.#weigh(), options.memoryMs)
    this.#plan('SETTLED', options.settleMs)
  }

  /** (Re)starts the asking for signs of life; it ends by itself when it has told of trouble. */
  watch(): void {
    const { engine, probeMs, onTrouble } = this.#options
    this.#watchdog?.stop()
    this.#watchdog = new Watchdog(engine, { everyMs: probeMs, onTrouble })
  }

  stop(): void {
    this.#stopped = true
    this.#watchdog?.stop()
    clearInterval(this.#scales)
    clearTimeout(this.#snapshot)
  }

  /** A first snapshot as soon as the login has settled, then one after the other, never two at once. */
  #plan(reason: 'SETTLED' | 'PERIODIC', ms: number): void {
    const { logins, session, snapshotMs, onLost } = this.#options
    this.#snapshot = setTimeout(() => {
      logins.keep(session, reason).then(
        () => {
          if (!this.#stopped) this.#plan('PERIODIC', snapshotMs)
        },
        () => onLost(), // the only failure that is not logged and left to the next one
      )
    }, ms)
  }

  async #weigh(): Promise<void> {
    const { engine, sql, session, onWeighed } = this.#options
    try {
      const bytes = await engine.memory()
      if (bytes === null || this.#stopped) return
      await writeMemory(sql, session, bytes)
      onWeighed(bytes)
    } catch {
      // A figure that could not be written now is written the next time.
    }
  }
}
