import { isDay } from './days.ts'
import { fragment } from './db.ts'
import type { Fragment } from './db.ts'
import { AppError } from './errors.ts'

/** Which page of a list somebody wants. */
export interface PageWish {
  limit: number
  /** The `nextCursor` of the page before; the first page when absent. */
  cursor?: string | undefined
}

/** One page of a list, newest first, and the cursor of the next one (null at the end). */
export interface Page<T> {
  data: T[]
  nextCursor: string | null
}

/** Where a page starts: behind the row with this time and, among rows of the same time, this key. */
export interface Position {
  /** Postgres's text of a timestamptz: a JavaScript Date would lose the microseconds and skip or repeat rows. */
  at: string
  key: string
}

export function encodeCursor({ at, key }: Position): string {
  return Buffer.from(JSON.stringify([at, key])).toString('base64url')
}

/** Throws 400 VALIDATION_FAILED when the cursor is not one of ours; `key` must match the pattern, it goes to SQL as that type. */
export function decodeCursor(cursor: string, key: RegExp): Position {
  try {
    const parts: unknown = JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8'))
    if (Array.isArray(parts) && parts.length === 2) {
      const [at, id] = parts as unknown[]
      if (typeof at === 'string' && isTimestamp(at) && typeof id === 'string' && key.test(id)) {
        return { at, key: id }
      }
    }
  } catch {
    // not JSON: not ours either
  }
  const message = '"cursor" must be the nextCursor of an earlier answer'
  throw new AppError(400, 'VALIDATION_FAILED', message, [{ path: 'query.cursor', message }])
}

/** Cuts a page out of the `limit + 1` rows that were read. */
export function toPage<Row, T>(
  rows: Row[],
  limit: number,
  position: (row: Row) => Position,
  resource: (row: Row) => T,
): Page<T> {
  const page = rows.slice(0, limit)
  const last = page.at(-1)
  return {
    data: page.map(resource),
    nextCursor: rows.length > limit && last !== undefined ? encodeCursor(position(last)) : null,
  }
}

/**
 * The end of a statement that reads a list, newest first: what lies behind the cursor, and one row more than the page has. It follows a `where`;
 * `table` is what must stand before the names of columns, such as `n.`. The rows are for newestPage().
 */
export function newestFirst({ limit, cursor }: PageWish, table: Fragment = fragment``): Fragment {
  const after = cursor === undefined ? undefined : decodeCursor(cursor, uuidKey)
  return fragment`
    ${after ? fragment`and (${table}created_at, ${table}id) < (${after.at}::timestamptz, ${after.key}::uuid)` : fragment``}
    order by ${table}created_at desc, ${table}id desc limit ${limit + 1}`
}

/** The page of rows that were read so; `position` is their `created_at::text`. */
export const newestPage = <Row extends { id: string; position: string }, T>(
  rows: Row[],
  { limit }: PageWish,
  resource: (row: Row) => T,
): Page<T> => toPage(rows, limit, ({ position, id }) => ({ at: position, key: id }), resource)

/** The same for a list that a number orders alone, the highest first. The rows are for numberedPage(). */
export function highestFirst({ limit, cursor }: PageWish, column: Fragment): Fragment {
  const after = cursor === undefined ? undefined : decodeCursor(cursor, numberKey)
  return fragment`
    ${after ? fragment`and ${column} < ${after.key}::bigint` : fragment``}
    order by ${column} desc limit ${limit + 1}`
}

/** The page of rows that were read so. */
export const numberedPage = <Row, T>(
  rows: Row[],
  { limit }: PageWish,
  number: (row: Row) => number,
  resource: (row: Row) => T,
): Page<T> => toPage(rows, limit, (row) => ({ at: noTime, key: String(number(row)) }), resource)

/** Every cursor has a time; where something else orders alone it says nothing. */
export const noTime = '2000-01-01 00:00:00+00'

export const uuidKey = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
export const numberKey = /^\d{1,18}$/
export const nameKey = /^[\x20-\x7e]{1,100}$/
const timestamp =
  /^(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,6})?)([+-](?:0\d|1[0-5])(?::\d\d){0,2})$/

/** Postgres's own form, and a day and time that it takes: no clock is sixteen hours away. */
function isTimestamp(text: string): boolean {
  const [, day = '', time = '', zone = ''] = timestamp.exec(text) ?? []
  return isDay(day) && !Number.isNaN(Date.parse(`1970-01-01T${time}Z`)) && !/:[6-9]\d/.test(zone)
}
