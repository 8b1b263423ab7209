export type AckMode = 'normal' | 'hold' | 'lose' | 'fail' | 'duplicate' | 'reorder'

export interface AckPlan {
  /**
   * `hold` keeps them until `releaseAcks`, `lose` forgets them, `fail` answers -1, `duplicate` says
   * each twice, `reorder` says 3, 2, 1.
   */
  mode?: AckMode
  /** Milliseconds from the stanza to ack 1, 2 and 3; null: that one never comes. */
  serverMs?: number | null
  deliveredMs?: number | null
  readMs?: number | null
  /** With `fail`: the reason the page is told, e.g. 463 (a reach-out lock); null: none. */
  errorCode?: number | null
  /** With `fail`: until when, in seconds since the epoch. */
  lockedUntil?: number | null
}

export interface AckRule extends AckPlan {
  account?: string
  recipient?: string
}

interface Ack {
  level: number
  again: boolean
  refusal: Pick<Required<AckPlan>, 'errorCode' | 'lockedUntil'>
}

const DEFAULT = {
  mode: 'normal',
  serverMs: 10,
  deliveredMs: 20,
  readMs: 30,
  errorCode: null,
  lockedUntil: null,
} as const

/** When which acknowledgement goes back; the last rule that fits a message wins. */
export class Acks {
  #rules: AckRule[] = []
  #held: { account: string; send: () => void }[] = []
  readonly #timers = new Set<NodeJS.Timeout>()

  rule(rule: AckRule): void {
    const same = ({ account, recipient }: AckRule) =>
      account === rule.account && recipient === rule.recipient
    this.#rules = [...this.#rules.filter((other) => !same(other)), rule]
  }

  planFor(account: string, recipient: string): Required<AckPlan> {
    const fits = (rule: AckRule) =>
      (rule.account ?? account) === account && (rule.recipient ?? recipient) === recipient
    return { ...DEFAULT, ...this.#rules.filter(fits).at(-1) }
  }

  schedule(account: string, plan: Required<AckPlan>, send: (ack: Ack) => void): void {
    if (plan.mode === 'lose') return
    const { errorCode, lockedUntil } = plan
    for (const { level, ms } of steps(plan)) {
      const say = () => {
        const ack = { level, again: false, refusal: { errorCode, lockedUntil } }
        send(ack)
        if (plan.mode === 'duplicate') send({ ...ack, again: true })
      }
      if (plan.mode === 'hold') this.#held.push({ account, send: say })
      else this.#after(ms, say)
    }
  }

  release(account: string | undefined): void {
    const released = this.#held.filter((held) => held.account === (account ?? held.account))
    this.#held = this.#held.filter((held) => !released.includes(held))
    for (const { send } of released) send()
  }

  stop(): void {
    for (const timer of this.#timers) clearTimeout(timer)
  }

  #after(ms: number, act: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      act()
    }, ms)
    this.#timers.add(timer)
  }
}

function steps({ mode, serverMs, deliveredMs, readMs }: Required<AckPlan>) {
  if (mode === 'fail') return [{ level: -1, ms: serverMs ?? 0 }]
  const levels = mode === 'reorder' ? [3, 2, 1] : [1, 2, 3]
  return [serverMs, deliveredMs, readMs].flatMap((ms, index) =>
    ms === null ? [] : [{ level: levels[index] ?? 1, ms }],
  )
}
