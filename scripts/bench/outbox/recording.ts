import { render } from '../../../shared/db.ts'
import type { Fragment, Sql, Transaction, Value } from '../../../shared/db.ts'

export interface Statement {
  text: string
  parameters: unknown[]
}

/** Runs statements as `sql` does and notes them down, so that another program can run the very same. */
export function recording(sql: Sql): { sql: Sql; statements: Statement[] } {
  const statements: Statement[] = []
  const tag = <Row extends object>(
    strings: TemplateStringsArray,
    ...values: (Value | Fragment)[]
  ): Promise<Row[]> => {
    statements.push(render(strings, values))
    return sql<Row>(strings, ...values)
  }
  const nudge = () => {}
  const recorder: Transaction = Object.assign(tag, {
    begin: <T>(work: (tx: Transaction) => Promise<T>) => work(recorder),
    nudge,
    ahead: tag,
    final: tag,
    last: Object.assign(tag, { nudge }),
  })
  return { sql: recorder, statements }
}
