/** F15: weeks of sending at random paces; no cap is ever exceeded, and nobody who wrote waits for strangers. */
import type { Family, Lab } from './lab.ts'
import { builtParts } from './model-parts.ts'
import { liveThrough, setOwnClock } from './pacing-month.ts'
import type { Outcome } from './pacing-month.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'

export const paces: Family = { id: 'F15', run }

const months = 5
const month = { messages: 2_000, days: 30 }

const promises = {
  gaps: 'minimum gap kept',
  minutes: 'no 60 s with more than the cap',
  budgets: 'no local day with more new contacts than the budget',
  quiet: 'in quiet hours only who wrote within a day is answered',
  starved: 'replies never wait for the budget of new contacts',
} as const satisfies Partial<Record<keyof Outcome, string>>

async function run(lab: Lab): Promise<Row[]> {
  const parts = await builtParts(lab.root)
  const trials = Object.entries(promises).map(([of, what]) => ({
    of: of as keyof typeof promises,
    row: new Trials('F15', what),
  }))
  let sent = 0
  let opened = 0
  let left = 0
  for (let index = 0; index < lab.scaled(months); index++) {
    lab.signal.throwIfAborted()
    const url = await lab.createDatabase()
    await setOwnClock(url)
    const sql = parts.connect(url, { applicationName: 'faults', max: 1 })
    try {
      const size = { ...month, messages: lab.scaled(month.messages) }
      const outcome = await liveThrough(parts, sql, lab.random(`F15 ${index}`), size)
      sent += outcome.sent
      opened += outcome.opened
      left += outcome.left
      for (const { of, row } of trials) {
        const broken = outcome[of]
        for (let kept = broken.length; kept < outcome.sent; kept++) row.kept()
        for (const why of broken) row.failed(why)
      }
    } finally {
      await sql.close()
    }
  }
  const rows = trials.map(({ row }) => row.row())
  const note = `${sent} messages over ${lab.scaled(months)} times ${month.days} days of the database's own clock set by us, ${opened} to strangers; ${left} strangers still waited at the end`
  return rows.map((row, index) => (index === 0 ? { ...row, note } : row))
}
