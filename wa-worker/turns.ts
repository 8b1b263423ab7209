import { orAborted } from './patience.ts'

/** Work that must not overlap, by key: each begins when what was asked for before it is over. */
export class Turns {
  readonly #last = new Map<string, Promise<unknown>>()

  /** Does the work in its turn; whoever cannot wait that long aborts, and then it is not done at all. */
  async take<T>(key: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const before = this.#last.get(key) ?? Promise.resolve()
    let begun = false
    const begin = () => {
      signal.throwIfAborted()
      begun = true
    }
    const turn = before.then(begin, begin).then(work)
    this.#last.set(key, turn)
    const forget = () => {
      if (this.#last.get(key) === turn) this.#last.delete(key)
    }
    turn.then(forget, forget)
    await orAborted(
      before.catch(() => {}),
      signal,
    ).catch((error: unknown) => {
      if (!begun) throw error
    })
    return turn
  }
}
