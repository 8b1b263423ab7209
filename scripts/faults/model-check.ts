/** The model check: every order of the steps of two workers, a client and WhatsApp over two messages. */
import type { Family, Lab } from './lab.ts'
import { builtParts } from './model-parts.ts'
import { describe, explore } from './model.ts'
import type { Promised, Scenario } from './model.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'

export const modelCheck: Family = { id: 'MODEL', run: check }

const resend = { policy: 'reconcile_then_resend_same_id' } as const
const kept = { store: 'kept', ...resend } as const
const scenarios: Scenario[] = [
  { chats: 1, loses: 'dies', times: 2, ...kept },
  { chats: 1, loses: 'stalls', times: 1, ...kept, offlineOnce: true },
  { chats: 1, loses: 'dies', times: 1, ...kept, client: 'cancel' },
  { chats: 1, loses: 'stalls', times: 1, ...kept, client: 'edit' },
  { chats: 1, loses: 'dies', times: 2, store: 'older', ...resend },
  { chats: 1, loses: 'dies', times: 2, store: 'older', policy: 'at_most_once' },
  { chats: 2, loses: 'dies', times: 2, ...kept },
  { chats: 2, loses: 'stalls', times: 1, ...kept },
  { chats: 2, loses: 'dies', times: 1, ...kept, client: 'edit' },
  { chats: 2, loses: 'dies', times: 1, store: 'older', policy: 'at_most_once' },
]

const promises: Record<Promised, string> = {
  'lost 0': 'nothing lost, nothing taken back that went out, no edit half done',
  'transmitted once':
    'transmitted once, twice only after an older snapshot where the policy wants it',
  order: 'within a chat in the order of acceptance',
  lanes: 'in every state each lane counts what waits, and is busy while one is on its way',
  'stale writes 0': 'who lost the session changes nothing any more',
}

async function check(lab: Lab): Promise<Row[]> {
  const parts = await builtParts(lab.root)
  const trials = new Map<Promised, Trials>()
  for (const [promise, what] of Object.entries(promises) as [Promised, string][])
    trials.set(promise, new Trials('model', what))
  let states = 0
  let ends = 0
  let interleavings = 0n
  for (const scenario of scenarios.slice(0, lab.scaled(scenarios.length))) {
    lab.signal.throwIfAborted()
    const sql = parts.connect(await lab.createDatabase(), { applicationName: 'faults', max: 2 })
    try {
      const explored = await explore(parts, sql, scenario)
      states += explored.states
      ends += explored.ends
      interleavings += explored.interleavings
      lab.say(`${describe(scenario)}: ${explored.states} states, ${explored.ends} ends`)
      for (const [promise, of] of trials) {
        const broken = explored.violations.find((violation) => violation.promise === promise)
        of.check(
          broken === undefined,
          () => `${describe(scenario)}: ${broken!.what} (${broken!.path.join('; ')})`,
        )
      }
    } finally {
      await sql.close()
    }
  }
  const rows = [...trials.values()].map((of) => of.row())
  const note = `N is scenarios; ${interleavings} orders of steps over ${states} states to ${ends} ends; the product's SQL and Delivery, a WhatsApp in memory`
  return rows.map((row, index) => (index === 0 ? { ...row, note } : row))
}
