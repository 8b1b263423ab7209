import pg from 'pg'

/** Postgres's own error code of a failure, for example 23505 for a unique violation. */
export function pgCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
    ? error.code
    : undefined
}

/** The name of the constraint a statement ran into, if it did. */
export function violated(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? error.constraint : undefined
}

/** Whether a failure says that the database is away, or could not do it just now, and not that the statement was wrong: later it can. */
export function isDatabaseAway(error: unknown): boolean {
  if (error instanceof AggregateError) return error.errors.some(isDatabaseAway)
  const code = pgCode(error)
  if (code !== undefined) {
    // Class 08 connection, 57P0x shutdown and crash, 57014 a statement that took too long, 25P03 a transaction that was left alone too long, 53300 too many connections; 40001 and 40P01: another transaction came first.
    return /^(08...|57P0[1-5]|57014|25P03|53300|40001|40P01|ECONNREFUSED|ECONNRESET|EPIPE|ETIMEDOUT|ENOTFOUND|EAI_AGAIN)$/.test(
      code,
    )
  }
  return (
    error instanceof Error &&
    /^(Connection terminated|timeout exceeded when trying to connect|timeout expired|Query read timeout|Client has encountered a connection error|Cannot use a pool after)/.test(
      error.message,
    )
  )
}
