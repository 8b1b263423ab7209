import type { Sql } from './db.ts'

/** What was learnt of a number; `waId` is null when it is not on WhatsApp. Undefined when it was never asked, or too long ago. */
export async function knownNumber(
  sql: Sql,
  workspaceId: string,
  phone: string,
): Promise<{ waId: string | null } | undefined> {
  const [row] = await sql<{ waId: string | null }>`
    select wa_id from wa_numbers
    where workspace_id = ${workspaceId} and phone = ${phone}
      -- People join more often than they leave.
      and checked_at > now() - case when wa_id is null then interval '24 hours' else interval '30 days' end`
  return row
}

/** Remembers what WhatsApp says of a number. */
export async function learnNumber(
  sql: Sql,
  workspaceId: string,
  phone: string,
  waId: string | null,
): Promise<void> {
  await sql`
    insert into wa_numbers (workspace_id, phone, wa_id) values (${workspaceId}, ${phone}, ${waId})
    on conflict (workspace_id, phone) do update set wa_id = excluded.wa_id, checked_at = now()`
}

/** The chat was opened under the number that was dialled; WhatsApp has it under another one (Brazil, Mexico). */
export async function redirectChat(sql: Sql, chatId: string, waId: string): Promise<void> {
  await sql`update chats set canonical_wa_id = ${waId} where id = ${chatId} and wa_chat_id <> ${waId} and canonical_wa_id is distinct from ${waId}`
}
