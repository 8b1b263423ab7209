import type { Sql } from './db.ts'
import { learnPerson } from './identities.ts'
import { assertFence, LeaseLost } from './wa-session-leases.ts'
import type { SessionLease } from './wa-session-leases.ts'

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

/** Remembers what WhatsApp says of a number. Whoever is known by the number is known by the address it has there, too. Throws LeaseLost. */
export async function learnNumber(
  sql: Sql,
  hearer: SessionLease,
  phone: string,
  waId: string | null,
): Promise<void> {
  const { workspaceId } = hearer
  const dialled = `${phone}@c.us`
  const [row] = await sql<{ known: boolean; at: Date }>`
    with held as (select from wa_sessions where id = ${hearer.id} and fence = ${hearer.fence} for share)
    insert into wa_numbers (workspace_id, phone, wa_id) select ${workspaceId}, ${phone}, ${waId} from held
    on conflict (workspace_id, phone) do update set wa_id = excluded.wa_id, checked_at = now()
    returning checked_at as at, exists (select from contacts where workspace_id = ${workspaceId} and wa_id = ${dialled}) as known`
  if (!row) throw new LeaseLost(hearer.id)
  if (waId === null || waId === dialled || !row.known) return
  await learnPerson(sql, hearer, {
    addresses: [dialled, waId],
    source: 'number_check',
    at: row.at,
    ...(waId.endsWith('@c.us') && { alternate: dialled }),
  })
}

/**
 * The chat was opened under the number that was dialled; WhatsApp has it, and the person, under another one (Brazil, Mexico). Both are learnt before the promise is
 * fulfilled, or this is to be called again. Throws LeaseLost.
 */
export async function redirectChat(
  sql: Sql,
  hearer: SessionLease,
  chatId: string,
  waId: string,
): Promise<void> {
  const [chat] = await sql<{ dialled: string }>`
    select wa_chat_id as dialled from chats
    where id = ${chatId} and wa_chat_id <> ${waId} and canonical_wa_id is distinct from ${waId}`
  if (!chat) return
  const { dialled } = chat
  // The person first: a chat that is redirected already is not asked about again, and whoever is meant by the other address may have opted out.
  await learnPerson(sql, hearer, {
    addresses: [dialled, waId],
    alternate: dialled,
    source: 'number_check',
    at: new Date(),
  })
  await sql.begin(async (tx) => {
    await assertFence(tx, hearer)
    await tx`update chats set canonical_wa_id = ${waId} where id = ${chatId}`
  })
}
