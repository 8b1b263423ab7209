import { setTimeout as sleep } from 'node:timers/promises'
import { isDatabaseAway } from '../shared/db.ts'

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
