import { setTimeout as sleep } from 'node:timers/promises'
import { isDatabaseAway } from '../shared/db-errors.ts'

/**
 * Does `work` again, once a second, for as long as it fails because the database is away and `worthwhile` holds.
 * Anything else is thrown on: only an outage is waited out.
 */
export async function waitOutOutage<T>(
  work: () => Promise<T>,
  worthwhile: () => boolean,
  pauseMs = 1_000,
): Promise<T> {
  for (;;) {
    try {
      return await work()
    } catch (error) {
      if (!isDatabaseAway(error) || !worthwhile()) throw error
      await sleep(pauseMs)
    }
  }
}

/** Settles as `promise` does, or rejects with `onTimeout()` after `ms`. The promise itself goes on unheard. */
export async function withDeadline<T>(
  promise: Promise<T>,
  ms: number,
  onTimeout: () => Error,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const deadline = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(onTimeout()), ms)
  })
  try {
    return await Promise.race([promise, deadline])
  } finally {
    clearTimeout(timer)
  }
}

/** Settles as `promise` does, or rejects when the signal aborts; what is given after that goes to `late`. */
export async function orAborted<T>(
  promise: Promise<T>,
  signal: AbortSignal,
  late: (value: T) => void = () => {},
): Promise<T> {
  let onAbort!: () => void
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason as Error)
    signal.addEventListener('abort', onAbort, { once: true })
    if (signal.aborted) onAbort()
  })
  try {
    return await Promise.race([promise, aborted])
  } catch (error) {
    if (signal.aborted) promise.then(late, () => {})
    throw error
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}
