import { fork } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { root } from '../../../shared/root.ts'
import type { ConsumerOptions } from './contestant.ts'
import type { Name, Order, Result } from './worker.ts'
import { workers } from './world.ts'

interface Answer {
  result?: Result
  error?: string
}

/** The worker processes: they do the same thing at the same time. */
export class Workers {
  readonly #children = Array.from({ length: workers }, () =>
    fork(join(root, 'scripts/bench/outbox/worker.ts')),
  )

  /** Opens a consumer in each, lets them work until `meanwhile` resolves, and answers what each of them did, since `count` was called where it was. */
  async run(
    options: { name: Name } & Omit<ConsumerOptions, 'onMessage' | 'worker'>,
    meanwhile: (count: () => Promise<unknown>) => Promise<unknown>,
  ): Promise<Result[]> {
    await this.#all((index) => ({ do: 'open', ...options, worker: `bench-${index}` }))
    await this.#all(() => ({ do: 'start' }))
    await meanwhile(() => this.#all(() => ({ do: 'count' })))
    return (await this.#all(() => ({ do: 'stop' }))) as Result[]
  }

  async close(): Promise<void> {
    await Promise.all(
      this.#children.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null) return
        const exit = once(child, 'exit')
        child.disconnect()
        await exit
      }),
    )
  }

  #all(order: (index: number) => Order): Promise<(Result | undefined)[]> {
    return Promise.all(this.#children.map((child, index) => ask(child, order(index))))
  }
}

async function ask(child: ChildProcess, order: Order): Promise<Result | undefined> {
  const gone = new AbortController()
  const ended = once(child, 'exit', { signal: gone.signal }).then(() => {
    throw new Error('A worker ended.')
  })
  child.send(order)
  try {
    const [{ result, error }] = (await Promise.race([once(child, 'message'), ended])) as [Answer]
    if (error !== undefined) throw new Error(error)
    return result
  } finally {
    gone.abort()
    ended.catch(() => {}) // the abort just above
  }
}
