import { EventEmitter, once } from 'node:events'

export interface UntilOptions {
  timeoutMs?: number
  /** What is waited for, in words: the error message when it does not come. */
  what?: string
}

/** Tells that something changed on the server, and waits for conditions on it. */
export class Changes {
  readonly #emitter = new EventEmitter()

  constructor() {
    this.#emitter.setMaxListeners(0)
  }

  tell(): void {
    this.#emitter.emit('change')
  }

  /**
   * Resolves with the first truthy answer of `predicate`. It is asked at each change of the server
   * and every 50 ms besides, because it may look at things the server knows nothing of.
   */
  async until<T>(predicate: () => T | Promise<T>, options: UntilOptions = {}): Promise<T> {
    const { timeoutMs = 10_000, what = 'condition' } = options
    const deadline = performance.now() + timeoutMs
    for (;;) {
      const answer = await predicate()
      if (answer) return answer
      if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms for: ${what}`)
      await once(this.#emitter, 'change', { signal: AbortSignal.timeout(50) }).catch(
        () => undefined,
      )
    }
  }
}
