import { isKept, percentile } from './trials.ts'
import type { Row } from './trials.ts'

export interface Report {
  seed: number
  quick: boolean
  date: string
  machine: string
  seconds: number
  rows: Row[]
}

const heads = ['Fault', 'Promise', 'N', 'Kept', 'p50 ms', 'p95 ms', 'max ms', 'Verdict']
/** Where the table stands in a file that has other things to say as well. */
const place = /(<!-- faults: begin -->\n)[^]*(<!-- faults: end -->)/

export function plain(report: Report): string {
  const lines = [heads, ...report.rows.map(cells)]
  const widths = heads.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)))
  const table = lines.map((line) =>
    line
      .map((cell, column) =>
        isNumber(column) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!),
      )
      .join('  '),
  )
  return ['', introduction(report), '', ...table, '', ...notes(report), ...failures(report)].join(
    '\n',
  )
}

export function markdown(report: Report): string {
  const line = (parts: string[]) =>
    `| ${parts.map((part) => part.replaceAll('|', '\\|')).join(' | ')} |`
  return [
    introduction(report),
    '',
    line(heads),
    line(heads.map((_, column) => (isNumber(column) ? '---:' : '---'))),
    ...report.rows.map((row) => line(cells(row))),
    '',
    ...notes(report).map((note) => `- ${note}`),
    ...failures(report).map((failure) => `- ${failure.trim()}`),
    '',
  ].join('\n')
}

/** The text with the table in its place; the table alone when it has no place for one. */
export function placeIn(text: string, table: string): string {
  return place.test(text)
    ? text.replace(place, (_, begin, end) => `${begin}\n${table}\n${end}`)
    : table
}

/** Every figure below is one of the emulated page: said in the same breath as the figures. */
function introduction({ date, seed, seconds, machine, quick }: Report): string {
  return [
    `${date}, seed ${seed}, ${machine}, ${seconds} s in all${quick ? ', a short run' : ''}.`,
    'Real processes and a real Chromium on an emulated WhatsApp Web, or the simulator where a note says so: not figures of WhatsApp.',
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

const isNumber = (column: number) => column > 1 && column < heads.length - 1

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
