/** Calls of the page that a test makes fail or hang. */

const faults = new Map()
const waiting = new Map()

/** `faults`: { [call]: { kind: 'fail', message, status? } | { kind: 'hang' } }; calls left out work again. */
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
export async function checkpoint(name) {
  const fault = faults.get(name)
  if (fault?.kind === 'hang') {
    await new Promise((go) => waiting.set(name, [...(waiting.get(name) ?? []), go]))
    return checkpoint(name)
  }
  if (fault) throw Object.assign(new Error(fault.message), { status: fault.status })
}

export const guarded =
  (name, run) =>
  async (...args) => {
    await checkpoint(name)
    return run(...args)
  }
