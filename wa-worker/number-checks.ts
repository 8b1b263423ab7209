/** How the number checks of one session go: whether refused ones are the session's trouble, or that of one number. */
export class NumberChecks {
  /** So many have worked. */
  #worked = 0
  #refusedInARow = 0
  /** How many had worked when the number of a message was last refused, by the message's id. */
  readonly #refused = new Map<string, number>()

  worked(messageId: string): void {
    this.#worked += 1
    this.#refusedInARow = 0
    this.#refused.delete(messageId)
  }

  /**
   * For how long no other is to be tried, in milliseconds: ever longer while none works. Undefined if others worked
   * since this one was refused before: then they need not wait for it, and it is not to be tried for ever.
   */
  refused(messageId: string): number | undefined {
    const before = this.#refused.get(messageId)
    this.#refused.set(messageId, this.#worked)
    if (before !== undefined && before < this.#worked) return undefined
    const holdMs = Math.min(longestHoldMs, shortestHoldMs * 2 ** this.#refusedInARow)
    this.#refusedInARow += 1
    return holdMs
  }
}

const shortestHoldMs = 60_000
const longestHoldMs = 600_000
