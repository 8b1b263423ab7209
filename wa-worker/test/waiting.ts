import type { Engine, EngineEvents } from '../engine/engine.ts'

export { until } from '../../shared/test/until.ts'

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
