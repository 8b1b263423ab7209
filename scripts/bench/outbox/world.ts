import type { Db, Sql } from '../../../shared/db.ts'
import type { Submission } from './contestant.ts'
import type { PacingConfig } from '../../../shared/pacing.ts'
import { createWorkspace } from '../../../shared/workspaces.ts'

/** No pace: what is measured is the outbox, not its manners. */
export const atOnce: PacingConfig = {
  WA_SEND_MIN_GAP_MS: 0,
  WA_SEND_JITTER_MS: 0,
  WA_SENDS_PER_MINUTE: 0,
  WA_NEW_CONTACTS_PER_DAY: 0,
  WA_TYPING: false,
}
export const workers = 2
const chatsPerSession = 4
const chatIds = Array.from({ length: chatsPerSession }, (_, i) => `${120255500001 + i}@c.us`)

/** The chat of the nth message where sessions take turns: a session goes through its chats. */
export const chatIdOf = (nth: number, sessions: BenchSession[]) =>
  chatIds[Math.floor(nth / sessions.length) % chatIds.length]!

export interface BenchSession {
  id: string
  workspaceId: string
  fence: number
  worker: string
}

/** Sessions that work, half of them owned by each worker, with people they have written to before. */
export async function createSessions(sql: Db, count: number): Promise<BenchSession[]> {
  const workspaceId = await createWorkspace(sql, `Bench ${count}`)
  return sql.begin(async (tx) => {
    const sessions = await tx<BenchSession>`
      insert into wa_sessions (workspace_id, name, engine, status, owner, fence, lease_until, linked_at)
      select ${workspaceId}::uuid, 's' || i, 'simulator', 'WORKING', 'bench-' || i % ${workers}::int, 1, now() + interval '1 day', now()
      from generate_series(1, ${count}::int) i
      returning id, workspace_id, fence, owner as worker`
    await tx`
      insert into wa_session_pacing (session_id, workspace_id)
      select id, workspace_id from wa_sessions where workspace_id = ${workspaceId}`
    await tx`
      with contact as (
        insert into contacts (workspace_id, wa_id, phone)
        select ${workspaceId}::uuid, wa_id, '+' || split_part(wa_id, '@', 1) from unnest(${chatIds}::text[]) wa_id
        returning id, wa_id
      )
      insert into chats (workspace_id, session_id, wa_chat_id, contact_id, contacted_at)
      select s.workspace_id, s.id, contact.wa_id, contact.id, now() from contact cross join wa_sessions s where s.workspace_id = ${workspaceId}`
    return sessions
  })
}

/**
 * Tops the queue of each session up to so many messages, as accept() would have written them. Each says its place in the order of all. Ids by chance are the
 * real thing; a million of them `inOrder` is loaded faster.
 */
export async function fill(
  sql: Sql,
  { workspaceId }: BenchSession,
  perSession: number,
  ids: 'byChance' | 'inOrder' = 'byChance',
): Promise<void> {
  await sql.begin(async (tx) => {
    // Only the loading goes without its foreign keys, which here are right by construction.
    await tx`set local session_replication_role = replica`
    await tx`
      with base as (
        select coalesce(max(seq), 0) as seq from messages
      ), waiting as (
        select session_id, count(*) as n from outbox where workspace_id = ${workspaceId} group by session_id
      ), chat as (
        select c.id, c.session_id, c.workspace_id, row_number() over (partition by c.session_id order by c.wa_chat_id) as nth,
          ${perSession}::int - coalesce(w.n, 0) as missing
        from chats c left join waiting w on w.session_id = c.session_id where c.workspace_id = ${workspaceId}
      ), place as (
        select chat.*, base.seq + row_number() over (order by i, chat.id) as n
        from chat cross join base cross join generate_series(1, chat.missing) i where i % ${chatsPerSession}::int = chat.nth - 1
      ), message as (
        insert into messages (id, workspace_id, session_id, chat_id, direction, source, type, body, status, wa_key_id)
        select case when ${ids === 'inOrder'} then lpad(to_hex(n), 32, '0')::uuid else gen_random_uuid() end, workspace_id, session_id, id,
          'outbound', 'api', 'text', n, 'queued', '3EB0' || upper(substr(replace(gen_random_uuid()::text, '-', ''), 1, 18))
        from place order by n
        returning *
      ), queued as (
        insert into outbox (message_id, workspace_id, session_id, chat_id)
        select id, workspace_id, session_id, chat_id from message order by body::bigint
        returning chat_id, session_id, workspace_id
      )
      insert into outbox_lanes (chat_id, workspace_id, session_id, waiting, cold)
      select chat_id, workspace_id, session_id, count(*), false from queued group by chat_id, session_id, workspace_id
      on conflict (chat_id) do update
      set waiting = outbox_lanes.waiting + excluded.waiting, due_at = case when outbox_lanes.waiting = 0 then now() else outbox_lanes.due_at end`
  })
}

/** Writes messages that are in no queue yet. */
export function writeMessages(
  sql: Sql,
  submissions: Submission[],
  sessions: BenchSession[],
): Promise<{ id: string; chatId: string; body: string }[]> {
  return sql<{ id: string; chatId: string; body: string }>`
    insert into messages (workspace_id, session_id, chat_id, direction, source, type, body, status, wa_key_id)
    select c.workspace_id, c.session_id, c.id, 'outbound', 'api', 'text', s.body, 'queued', '3EB0' || upper(substr(replace(gen_random_uuid()::text, '-', ''), 1, 18))
    from unnest(
      ${submissions.map(({ session }) => session.id)}::uuid[], ${submissions.map(({ body }) => body)}::text[],
      ${submissions.map((_, i) => chatIdOf(i, sessions))}::text[]) with ordinality s(session_id, body, wa_chat_id, ord)
    join chats c on c.session_id = s.session_id and c.wa_chat_id = s.wa_chat_id
    order by s.ord
    returning id, chat_id, body`
}

/** Milliseconds on a clock all processes of this machine share. */
export const clock = () => Number(process.hrtime.bigint()) / 1e6
