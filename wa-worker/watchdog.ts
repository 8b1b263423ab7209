import { errorText } from '../shared/errors.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine } from './engine/engine.ts'

export interface WatchdogOptions {
  /** Milliseconds between two signs of life asked for. */
  everyMs: number
  /** Called once, when the engine no longer does what its state says. */
  onTrouble: (reason: string, detail: string) => void
}

/** After a miss the next question follows at once: one may be chance, two are not. */
const misses = 2
const retryMs = 500

/**
 * Watches a working engine, since a browser that hangs or a page that stopped reporting makes no event: it asks for a sign of life, and
 * compares what WhatsApp shows with what the engine has told of.
 */
export class Watchdog {
  readonly #engine: Engine
  readonly #options: WatchdogOptions
  #timer: NodeJS.Timeout | undefined
  #stopped = false
  #missed = 0
  #unreported = 0

  constructor(engine: Engine, options: WatchdogOptions) {
    this.#engine = engine
    this.#options = options
    this.#schedule(options.everyMs)
  }

  stop(): void {
    this.#stopped = true
    clearTimeout(this.#timer)
  }

  #schedule(ms: number): void {
    if (!this.#stopped) this.#timer = setTimeout(() => void this.#look(), ms)
  }

  async #look(): Promise<void> {
    try {
      const { unreported } = await this.#engine.probe()
      this.#missed = 0
      // Some may be on their way at the moment of asking; the same ones are not on their way for long.
      this.#unreported = unreported > 0 ? this.#unreported + 1 : 0
      if (this.#unreported >= misses) {
        return this.#cry('EVENTS_STALLED', `${unreported} messages on the page were never told of.`)
      }
    } catch (error) {
      // An engine that is not ready has not gone silent; its own deadlines see to it.
      if (!(error instanceof EngineError && error.code === 'SESSION_NOT_READY')) this.#missed += 1
      if (this.#missed >= misses) return this.#cry('PAGE_UNRESPONSIVE', errorText(error))
    }
    this.#schedule(this.#missed > 0 || this.#unreported > 0 ? retryMs : this.#options.everyMs)
  }

  #cry(reason: string, detail: string): void {
    if (this.#stopped) return
    this.stop()
    this.#options.onTrouble(reason, detail)
  }
}
