/** One line of the table. */
export interface Row {
  fault: string
  what: string
  /** Trials, and how many of them kept the promise. */
  n: number
  kept: number
  /** Milliseconds, where a time is published; `limit` is what was promised of their p95 (or of all of them). */
  times: number[]
  limit?: { ms: number; of: 'p95' | 'max' } | undefined
  /** What was measured besides, without a promise. */
  note: string
  /** Why trials failed. */
  failures: string[]
}

/** Counts the trials of one promise. */
export class Trials {
  readonly #fault: string
  readonly #what: string
  readonly #limit: Row['limit']
  readonly #times: number[] = []
  readonly #failures: string[] = []
  #kept = 0
  note = ''

  constructor(fault: string, what: string, limit?: Row['limit']) {
    this.#fault = fault
    this.#what = what
    this.#limit = limit
  }

  kept(ms?: number): void {
    this.#kept += 1
    if (ms !== undefined) this.#times.push(ms)
  }

  failed(why: string): void {
    this.#failures.push(why)
  }

  /** A trial that is kept when `holds`. */
  check(holds: boolean, why: string | (() => string)): void {
    if (holds) this.kept()
    else this.failed(typeof why === 'string' ? why : why())
  }

  /** A trial that is kept when `work` resolves; a number it resolves to is its time. */
  async attempt(work: () => Promise<number | void>): Promise<boolean> {
    try {
      this.kept((await work()) ?? undefined)
      return true
    } catch (error) {
      this.failed((error as Error).message)
      return false
    }
  }

  row(): Row {
    const failures = [...this.#failures]
    const exceeded = this.#limit && percentile(this.#times, this.#limit.of === 'p95' ? 0.95 : 1)
    if (this.#limit && exceeded !== undefined && exceeded > this.#limit.ms) {
      failures.push(`${this.#limit.of} ${exceeded} ms, promised ${this.#limit.ms} ms`)
    }
    return {
      fault: this.#fault,
      what: this.#what,
      n: this.#kept + this.#failures.length,
      kept: this.#kept,
      times: this.#times,
      limit: this.#limit,
      note: this.note,
      failures,
    }
  }
}

/** Nothing is promised by no trial. */
export const isKept = ({ n, kept, failures }: Row) => n > 0 && kept === n && failures.length === 0

export function percentile(values: number[], share: number): number | undefined {
  const sorted = values.toSorted((a, b) => a - b)
  const index = Math.ceil(share * sorted.length) - 1
  return sorted.length === 0 ? undefined : Math.round(sorted[Math.max(0, index)]!)
}
