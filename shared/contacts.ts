import type { Sql } from './db.ts'

/** What a contact's card shows. Undefined when there is no such contact, or its number is not known. */
export async function findCard(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<{ name: string; phone: string } | undefined> {
  const [row] = await sql<{ name: string; phone: string }>`
    select coalesce(name, push_name, phone) as name, phone from contacts
    where workspace_id = ${workspaceId} and id = ${id} and phone is not null`
  return row
}
