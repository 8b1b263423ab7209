/** Calls of the page that a test makes fail or hang. */

const faults = new Map()
const waiting = new Map()

/**
 * `faults`: { [call]: { kind: 'fail', message, status?, matching? } | { kind: 'hang' } }; calls left out work again. With `matching` a
 * call fails only for what contains this text.
 */
export function setFaults(wanted) {
  faults.clear()
  for (const [name, fault] of Object.entries(wanted)) faults.set(name, fault)
  for (const [name, resume] of [...waiting]) {
    if (faults.get(name)?.kind === 'hang') continue
    waiting.delete(name)
    resume.forEach((go) => go())
  }
}

/** Resolves when the call may go on, rejects when it is to fail; a hung call goes on once restored. */
export async function checkpoint(name, subject = '') {
  const fault = faults.get(name)
  if (fault?.kind === 'hang') {
    await new Promise((go) => waiting.set(name, [...(waiting.get(name) ?? []), go]))
    return checkpoint(name, subject)
  }
  if (fault && subject.includes(fault.matching ?? ''))
    throw Object.assign(new Error(fault.message), { status: fault.status })
}

export const guarded =
  (name, run) =>
  async (...args) => {
    await checkpoint(name)
    return run(...args)
  }
