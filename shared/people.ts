import { tellChats } from './chats.ts'
import type { Sql } from './db.ts'
import { assertFence } from './wa-session-leases.ts'
import type { Lease } from './wa-session-leases.ts'
import type { OwnedSession } from './wa-session-transitions.ts'

/** Somebody, or a group, of whom WhatsApp is to be asked. */
export interface Question {
  sessionId: string
  waId: string
  /** Of a group. */
  chatId: string | null
}

/** Whom these sessions heard of, and what WhatsApp has not been asked about yet, or not for long; some of each session. */
export async function openQuestions(
  sql: Sql,
  worker: string,
  leases: Lease[],
): Promise<Question[]> {
  return sql<Question>`
    select s.id as session_id, q.wa_id, q.chat_id
    from unnest(${leases.map(({ id }) => id)}::uuid[], ${leases.map(({ fence }) => fence)}::bigint[]) x(id, fence)
    join wa_sessions s on s.id = x.id and s.fence = x.fence and s.owner = ${worker} and s.status = 'WORKING'
    cross join lateral (
      (select k.wa_id, null::uuid as chat_id from contacts k
       where k.session_id = s.id and k.merged_into is null and k.ask_at <= now() order by k.ask_at limit 100)
      union all
      -- Who is in a group changes; asked for when it is talked in.
      (select c.wa_chat_id, c.id from chats c
       where c.session_id = s.id and c.is_group
         and (c.asked_at is null or c.asked_at < now() - interval '1 day' and c.last_message_at > c.asked_at) limit 5)) q`
}

/** WhatsApp was asked about these people; who it knows in part only is asked about again tomorrow. */
export async function answered(
  sql: Sql,
  { workspaceId }: OwnedSession,
  waIds: string[],
): Promise<void> {
  await sql`
    update contacts k
    set ask_at = now() + case when k.phone is not null and k.lid is not null then interval '30 days' else interval '1 day' end
    where k.id in (
      select coalesce(a.merged_into, a.id) from contacts a where a.workspace_id = ${workspaceId} and a.wa_id = any(${waIds}::text[]))`
}

/** WhatsApp could not be asked: later, then. */
export async function unanswered(
  sql: Sql,
  { workspaceId }: OwnedSession,
  waIds: string[],
): Promise<void> {
  await sql`
    update contacts set ask_at = now() + interval '10 minutes' where workspace_id = ${workspaceId} and wa_id = any(${waIds}::text[])`
}

/** What is known of a group now: its subject, of which it tells when it is another, and who is in it. Null: WhatsApp does not know it; it is asked for again when it is talked in tomorrow. Throws LeaseLost. */
export async function learnGroup(
  sql: Sql,
  session: OwnedSession,
  chatId: string,
  group: { name: string | null; participants: { waId: string; isAdmin: boolean }[] } | null,
): Promise<void> {
  const { workspaceId } = session
  await sql.begin(async (tx) => {
    await assertFence(tx, session)
    const [chat] = await tx<{ renamed: boolean }>`
      with before as (
        select id, name from chats where workspace_id = ${workspaceId} and id = ${chatId} for no key update)
      update chats c set asked_at = now(), name = coalesce(${group?.name}, c.name) from before where c.id = before.id
      returning c.name is distinct from before.name as renamed`
    if (chat?.renamed) await tellChats(tx, workspaceId, [chatId])
    if (!group || group.participants.length === 0) return
    await tx`delete from chat_participants where chat_id = ${chatId}`
    await tx`
      insert into chat_participants (chat_id, workspace_id, wa_id, is_admin)
      select ${chatId}, ${workspaceId}, p.wa_id, bool_or(p.is_admin)
      from unnest(${group.participants.map(({ waId }) => waId)}::text[], ${group.participants.map(({ isAdmin }) => isAdmin)}::boolean[]) p(wa_id, is_admin)
      group by p.wa_id`
  })
}
