import { render } from '../../../shared/db.ts'
import type { Fragment, Sql, Value } from '../../../shared/db.ts'

export interface Statement {
  text: string
  parameters: unknown[]
}

/** Runs statements as `sql` does and notes them down, so that another program can run the very same. */
export function recording(sql: Sql): { sql: Sql; statements: Statement[] } {
  const statements: Statement[] = []
  const tag = (strings: TemplateStringsArray, ...values: (Value | Fragment)[]) => {
    statements.push(render(strings, values))
    return sql(strings, ...values)
  }
  const recorder = Object.assign(tag, {
    begin: <T>(work: (sql: Sql) => Promise<T>) => work(recorder),
  }) as Sql
  return { sql: recorder, statements }
}
