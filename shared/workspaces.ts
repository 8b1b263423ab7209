import type { Sql } from './db.ts'

/** Founds a workspace; answers its id. */
export async function createWorkspace(sql: Sql, name: string): Promise<string> {
  const [row] = await sql<{ id: string }>`
    insert into workspaces (name) values (${name}) returning id`
  return row!.id
}
