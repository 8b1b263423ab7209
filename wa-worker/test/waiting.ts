import type { Engine, EngineEvents } from '../engine/engine.ts'

/** The next event of this kind that fits; rejects, saying what it waited for, when none comes in time. */
export function nextEvent<K extends keyof EngineEvents>(
  engine: Engine,
  event: K,
  fits: (...args: EngineEvents[K]) => boolean = () => true,
  timeoutMs = 20_000,
): Promise<EngineEvents[K]> {
  return new Promise((resolve, reject) => {
    const listener = (...args: EngineEvents[K]) => {
      if (!fits(...args)) return
      clearTimeout(timer)
      engine.off(event, listener as never)
      resolve(args)
    }
    const timer = setTimeout(() => {
      engine.off(event, listener as never)
      reject(new Error(`No event "${event}" within ${timeoutMs} ms.`))
    }, timeoutMs)
    engine.on(event, listener as never)
  })
}

/** Asks again and again until the answer is neither undefined, null nor false, and gives it; rejects after the deadline. */
export async function until<T>(
  what: string,
  ask: () => T | Promise<T>,
  timeoutMs = 20_000,
): Promise<Exclude<T, false | null | undefined>> {
  const deadline = Date.now() + timeoutMs
  for (;;) {
    const answer = await ask()
    if (answer !== undefined && answer !== null && answer !== false) {
      return answer as Exclude<T, false | null | undefined>
    }
    if (Date.now() > deadline) throw new Error(`Not within ${timeoutMs} ms: ${what}.`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}
