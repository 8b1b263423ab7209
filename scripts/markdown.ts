import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { format, resolveConfig } from 'prettier'
import { root } from '../shared/root.ts'

/**
 * Writes figures into their place in a file that has other things to say as well, between `<!-- name: begin -->` and `<!-- name: end -->`, or
 * into a file of their own; formatted as the rest of the repository.
 */
export async function writeFigures(file: string, name: string, figures: string): Promise<void> {
  const before = await readFile(file, 'utf8').catch(() => '') // a new file
  const style = await resolveConfig(join(root, 'README.md'))
  const text = placeIn(before, name, figures)
  await writeFile(file, await format(text, { ...style, parser: 'markdown' }))
}

/** The text with the figures in their place; the figures alone when it has no place for them. */
export function placeIn(text: string, name: string, figures: string): string {
  const place = new RegExp(`(<!-- ${name}: begin -->\n)[^]*(<!-- ${name}: end -->)`)
  return place.test(text)
    ? text.replace(place, (_, begin, end) => `${begin}\n${figures}\n${end}`)
    : figures
}

/** A table; `numbers` are the columns that are aligned to the right. */
export function markdownTable(heads: string[], rows: string[][], numbers: Set<number>): string[] {
  const line = (parts: string[]) =>
    `| ${parts.map((part) => part.replaceAll('|', '\\|')).join(' | ')} |`
  return [
    line(heads),
    line(heads.map((_, column) => (numbers.has(column) ? '---:' : '---'))),
    ...rows.map(line),
  ]
}

/** The same for a terminal. */
export function plainTable(heads: string[], rows: string[][], numbers: Set<number>): string[] {
  const lines = [heads, ...rows]
  const widths = heads.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)))
  return lines.map((line) =>
    line
      .map((cell, column) =>
        numbers.has(column) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!),
      )
      .join('  '),
  )
}
