import { setTimeout as sleep } from 'node:timers/promises'

/** Asks every `pauseMs` until the answer is neither undefined, null nor false, and gives it; rejects after the deadline. */
export async function until<T>(
  what: string,
  ask: () => T | Promise<T>,
  timeoutMs = 20_000,
  pauseMs = 25,
): Promise<Exclude<T, false | null | undefined>> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const answer = await ask()
    if (answer !== undefined && answer !== null && answer !== false) {
      return answer as Exclude<T, false | null | undefined>
    }
    if (performance.now() > deadline) throw new Error(`Not within ${timeoutMs} ms: ${what}.`)
    await sleep(pauseMs)
  }
}
