import { isKept, percentile } from './trials.ts'
import type { Row } from './trials.ts'

export interface Report {
  seed: number
  quick: boolean
  date: string
  machine: string
  seconds: number
  /** `seconds` is what the whole family took. */
  rows: (Row & { seconds: number })[]
}

const heads = ['Fault', 'What', 'N', 'Result', 'p50 ms', 'p95 ms', 'max ms', 's']

export function plain(report: Report): string {
  const lines = [heads, ...report.rows.map(cells)]
  const widths = heads.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)))
  const table = lines.map((line) =>
    line
      .map((cell, column) =>
        column > 1 ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!),
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
    line(heads.map((_, column) => (column > 1 ? '---:' : '---'))),
    ...report.rows.map((row) => line(cells(row))),
    '',
    ...notes(report).map((note) => `- ${note}`),
    ...failures(report).map((failure) => `- ${failure.trim()}`),
    '',
  ].join('\n')
}

/** Every figure below is one of the emulated page: said in the same breath as the figures. */
function introduction({ date, seed, seconds, machine, quick }: Report): string {
  return `${date}, seed ${seed}, ${machine}, ${seconds} s in all${quick ? ', a short run' : ''}; real processes and Chromium on an emulated WhatsApp Web: figures of the emulator, not of WhatsApp.`
}

function cells(row: Report['rows'][number]): string[] {
  const time = (share: number) => String(percentile(row.times, share) ?? '')
  const result = `${row.kept}/${row.n}${isKept(row) ? '' : ' BROKEN'}`
  return [
    row.fault,
    row.what,
    String(row.n),
    result,
    time(0.5),
    time(0.95),
    time(1),
    String(row.seconds),
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
