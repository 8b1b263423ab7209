import type { Sql } from './db.ts'
import { learnPerson } from './identities.ts'
import type { Hearer } from './identities.ts'

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

/** Remembers what WhatsApp says of a number. Whoever is known by the number is known by the address it has there, too. */
export async function learnNumber(
  sql: Sql,
  hearer: Hearer,
  phone: string,
  waId: string | null,
): Promise<void> {
  const { workspaceId } = hearer
  const dialled = `${phone}@c.us`
  const [row] = await sql<{ known: boolean; at: Date }>`
    insert into wa_numbers (workspace_id, phone, wa_id) values (${workspaceId}, ${phone}, ${waId})
    on conflict (workspace_id, phone) do update set wa_id = excluded.wa_id, checked_at = now()
    returning checked_at as at, exists (select from contacts where workspace_id = ${workspaceId} and wa_id = ${dialled}) as known`
  if (waId === null || waId === dialled || !row!.known) return
  await learnPerson(sql, hearer, {
    addresses: [dialled, waId],
    source: 'number_check',
    at: row!.at,
    ...(waId.endsWith('@c.us') && { alternate: dialled }),
  })
}

/** The chat was opened under the number that was dialled; WhatsApp has it, and the person, under another one (Brazil, Mexico). */
export async function redirectChat(
  sql: Sql,
  hearer: Hearer,
  chatId: string,
  waId: string,
): Promise<void> {
  const [redirected] = await sql<{ waChatId: string }>`
    update chats set canonical_wa_id = ${waId}
    where id = ${chatId} and wa_chat_id <> ${waId} and canonical_wa_id is distinct from ${waId}
    returning wa_chat_id`
  if (!redirected) return
  const dialled = redirected.waChatId
  await learnPerson(sql, hearer, {
    addresses: [dialled, waId],
    alternate: dialled,
    source: 'number_check',
    at: new Date(),
  })
}
