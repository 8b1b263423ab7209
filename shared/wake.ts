/** Lets a loop sleep until somebody has something for it, or until it is time to look by itself. */
export class Wake {
  #rung = false
  #resume: (() => void) | undefined

  /** Ends the wait under way, or the next one. */
  ring(): void {
    this.#rung = true
    this.#resume?.()
  }

  /** Forgets that it was rung, when nobody has waited for that. */
  forget(): void {
    this.#rung = false
  }

  /** Resolves after `ms`, or as soon as it is rung (also when it was rung before the call). */
  async wait(ms: number): Promise<void> {
    if (!this.#rung) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms)
        this.#resume = () => {
          clearTimeout(timer)
          resolve()
        }
      })
      this.#resume = undefined
    }
    this.#rung = false
  }
}
