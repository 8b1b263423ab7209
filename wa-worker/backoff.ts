/** When to try again after `failures` failures in a row (from 1), in milliseconds. */
export type Backoff = (failures: number) => number

/**
 * The owner's rule for sessions: three quick attempts, then ever longer waits up to a limit, with up to 20 % of jitter so that many
 * sessions that broke at once do not come back at once.
 */
export function reconnectBackoff({
  quickMs,
  quickAttempts = 3,
  maxMs = 300_000,
  random = Math.random,
}: {
  quickMs: number
  quickAttempts?: number
  maxMs?: number
  random?: () => number
}): Backoff {
  return (failures) => {
    if (failures <= quickAttempts) return quickMs
    const wait = Math.min(maxMs, quickMs * 2 ** (failures - quickAttempts))
    return Math.round(wait * (1 - 0.2 * random()))
  }
}

/** For one message: 2 s, 4 s, 8 s … up to a minute. */
export const retryBackoff: Backoff = (failures) => Math.min(60_000, 1_000 * 2 ** failures)
