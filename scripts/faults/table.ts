import { markdownTable, plainTable } from '../markdown.ts'
import { isKept, percentile } from './trials.ts'
import type { Row } from './trials.ts'

export interface Report {
  seed: number
  quick: boolean
  date: string
  machine: string
  seconds: number
  /** Which families ran sessions on which browser; one may have used both. */
  browsers: { name: string; families: string[] }[]
  rows: Row[]
}

const heads = ['Fault', 'Promise', 'N', 'Kept', 'p50 ms', 'p95 ms', 'max ms', 'Verdict']
const numbers = new Set([2, 3, 4, 5, 6])

export function plain(report: Report): string {
  const table = plainTable(heads, report.rows.map(cells), numbers)
  return ['', introduction(report), '', ...table, '', ...notes(report), ...failures(report)].join(
    '\n',
  )
}

export function markdown(report: Report): string {
  return [
    introduction(report),
    '',
    ...markdownTable(heads, report.rows.map(cells), numbers),
    '',
    ...notes(report).map((note) => `- ${note}`),
    ...failures(report).map((failure) => `- ${failure.trim()}`),
    '',
  ].join('\n')
}

/** Every figure below is one of the emulated page: said in the same breath as the figures. */
function introduction({ date, seed, seconds, machine, quick, browsers }: Report): string {
  const ran = browsers
    .filter(({ families }) => families.length > 0)
    .map(({ name, families }) => `${families.join(', ')} on ${name}`)
  return [
    `${date}, seed ${seed}, ${machine}, ${seconds} s in all${quick ? ', a short run' : ''}.`,
    'Real processes and real browsers on an emulated WhatsApp Web, or the simulator where a note says so: not figures of WhatsApp.',
    ...(ran.length > 0 ? [`${ran.join('; ')}.`] : []),
    'What was kept N of N times fails, with 95 % confidence, in less than 3/N of such cases.',
  ].join(' ')
}

function cells(row: Row): string[] {
  const time = (share: number) => String(percentile(row.times, share) ?? '')
  return [
    row.fault,
    row.what,
    String(row.n),
    String(row.kept),
    time(0.5),
    time(0.95),
    time(1),
    isKept(row) ? 'kept' : 'BROKEN',
  ]
}

const notes = ({ rows }: Report) =>
  rows.filter(({ note }) => note !== '').map(({ fault, what, note }) => `${fault} ${what}: ${note}`)

/** Each reason once, with how often it was one. */
function failures({ rows }: Report): string[] {
  return rows.flatMap(({ fault, what, failures }) => {
    const counts = new Map<string, number>()
    for (const failure of failures) counts.set(failure, (counts.get(failure) ?? 0) + 1)
    return [...counts].map(([failure, count]) => `BROKEN ${fault} ${what}: ${count} × ${failure}`)
  })
}
