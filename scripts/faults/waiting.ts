import { until } from '../../shared/test/until.ts'

/**
 * A minute, by default: a fault takes its time to be noticed and mended. Asked less often than in tests: what is measured has its times from the database, and
 * looking on must not take a fifth of the machine.
 */
export const eventually: typeof until = (what, ask, timeoutMs = 60_000, pauseMs = 150) =>
  until(what, ask, timeoutMs, pauseMs)

/** Runs `work` on every item, at most `width` at a time. */
export async function inParallel<T>(
  items: readonly T[],
  width: number,
  work: (item: T, index: number) => Promise<void>,
): Promise<void> {
  let next = 0
  const lane = async () => {
    while (next < items.length) {
      const index = next++
      await work(items[index]!, index)
    }
  }
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, lane))
}
