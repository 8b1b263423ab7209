import type { Test } from 'tap'

/**
 * As t.match(), but what is found may have no more elements than the pattern, in whatever depth: t.match() takes an
 * array as the beginning of another.
 */
export function matchWhole(
  t: Pick<Test, 'match' | 'strictSame'>,
  found: unknown,
  pattern: unknown,
  what = 'no further elements',
): void {
  t.match(found, pattern, what)
  t.strictSame(lengths(found, pattern), lengths(pattern, pattern), what)
}

/** How many elements there are wherever the pattern has an array. */
function lengths(found: unknown, pattern: unknown, path = ''): string[] {
  if (typeof pattern !== 'object' || pattern === null) return []
  const own = Array.isArray(pattern)
    ? [`${path}[${Array.isArray(found) ? found.length : typeof found}]`]
    : []
  const inner = Object.entries(pattern).flatMap(([key, value]) =>
    lengths((found as Record<string, unknown> | null | undefined)?.[key], value, `${path}.${key}`),
  )
  return [...own, ...inner]
}
