import type { Db, Sql } from '../../../shared/db.ts'

class Undo<T> extends Error {
  readonly result: T

  constructor(result: T) {
    super('undone')
    this.result = result
  }
}

/** Does something in a transaction, and takes it back. */
export async function undone<T>(sql: Db, work: (tx: Sql) => Promise<T>): Promise<T> {
  try {
    return await sql.begin(async (tx) => {
      throw new Undo(await work(tx))
    })
  } catch (error) {
    if (error instanceof Undo) return error.result as T
    throw error
  }
}
