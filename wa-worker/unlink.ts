import { errorText } from '../shared/errors.ts'
import type { Engine } from './engine/engine.ts'

/** Unlinks the device of an engine that is ready. Undefined when WhatsApp confirmed, else why not; the engine is stopped in any case. */
export async function unlink(engine: Engine): Promise<string | undefined> {
  try {
    await engine.logout()
    return undefined
  } catch (error) {
    return errorText(error)
  }
}

/** Starts an engine only to unlink its device. Undefined when it is unlinked, or was already. Throws what the signal aborts with. */
export async function startAndUnlink(
  engine: Engine,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<string | undefined> {
  const state = await untilKnown(engine, timeoutMs, signal)
  if (state === 'unlinked') return undefined
  return state === 'linked' ? unlink(engine) : state.failure
}

async function untilKnown(
  engine: Engine,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<'linked' | 'unlinked' | { failure: string }> {
  signal.throwIfAborted()
  let timer: NodeJS.Timeout | undefined
  try {
    return await new Promise((resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
      timer = setTimeout(() => resolve({ failure: 'START_TIMEOUT' }), timeoutMs)
      engine.once('ready', () => resolve('linked'))
      engine.once('qr', () => resolve('unlinked'))
      engine.once('loggedOut', () => resolve('unlinked'))
      engine.once('closed', ({ reason }) => resolve({ failure: reason }))
      engine.start().catch((error: unknown) => resolve({ failure: errorText(error) }))
    })
  } finally {
    clearTimeout(timer)
  }
}
