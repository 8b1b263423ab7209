import { errorText } from '../../shared/errors.ts'
import { withDeadline } from '../patience.ts'
import { EngineError } from './engine.ts'

/** Milliseconds each call to the browser may take before it counts as hung. */
export const deadlines = {
  call: 10_000,
  probe: 4_000,
  send: 30_000,
  find: 30_000,
  launch: 40_000,
  close: 8_000,
  exit: 5_000,
}

/** A call into the browser with a deadline. Whether a call that failed on the way did its work is unknown. */
export async function within<T>(ms: number, code: string, call: Promise<T>): Promise<T> {
  const late = () => new EngineError('unknown', code, `No answer from the browser within ${ms} ms.`)
  try {
    return await withDeadline(call, ms, late)
  } catch (error) {
    if (error instanceof EngineError) throw error
    throw new EngineError('unknown', 'BROWSER_GONE', errorText(error), { cause: error })
  }
}
