import type { Sql } from './db.ts'
import type { OwnedSession } from './wa-session-transitions.ts'

/** What is to be read of the time before a session was linked. */
export interface PendingImport {
  from: Date
  to: Date
  /** Chats that are yet to be read; null: nobody has asked which there are. */
  waiting: string[] | null
}

/**
 * What is yet to be imported, begun here when the session was linked within the last hour to a number it has not imported from. Undefined when nothing is to be done, or the
 * session is somebody else's.
 */
export async function pendingImport(
  sql: Sql,
  session: OwnedSession,
  defaultDays: number,
): Promise<PendingImport | undefined> {
  await sql`
    insert into wa_history_imports as i (session_id, workspace_id, wa_id, from_at, to_at)
    select id, workspace_id, wa_id, linked_at - d.days * interval '1 day', linked_at
    from wa_sessions, lateral (select coalesce(import_history_days, ${defaultDays}::int) as days) d
    where id = ${session.id} and fence = ${session.fence} and d.days > 0 and wa_id is not null and linked_at > now() - interval '1 hour'
    on conflict (session_id) do update
    set wa_id = excluded.wa_id, from_at = excluded.from_at, to_at = excluded.to_at, waiting = null, total = 0, messages = 0,
        incomplete = 0, started_at = now(), finished_at = null
    where i.wa_id <> excluded.wa_id`
  const [row] = await sql<PendingImport>`
    select i.from_at as "from", i.to_at as "to", i.waiting
    from wa_history_imports i join wa_sessions s on s.id = i.session_id and s.wa_id = i.wa_id
    where s.id = ${session.id} and s.fence = ${session.fence} and i.finished_at is null`
  return row
}

/** These are the chats to be read. */
export async function planImport(
  sql: Sql,
  session: OwnedSession,
  chatIds: string[],
): Promise<void> {
  await sql`
    update wa_history_imports i
    set waiting = ${chatIds}, total = ${chatIds.length}, finished_at = case when ${chatIds.length} = 0 then now() end
    from wa_sessions s where s.id = ${session.id} and s.fence = ${session.fence} and i.session_id = s.id`
}

/** A chat has been read, with so many messages that were not known. */
export async function chatImported(
  sql: Sql,
  session: OwnedSession,
  chatId: string,
  { messages, complete }: { messages: number; complete: boolean },
): Promise<void> {
  await sql`
    update wa_history_imports i
    set waiting = array_remove(i.waiting, ${chatId}), messages = i.messages + ${messages},
        incomplete = i.incomplete + ${complete ? 0 : 1},
        finished_at = case when array_remove(i.waiting, ${chatId}) = '{}' then now() end
    from wa_sessions s where s.id = ${session.id} and s.fence = ${session.fence} and i.session_id = s.id`
}

/** How far the import of a session is. */
export interface HistoryImport {
  status: 'none' | 'running' | 'done'
  from: Date | null
  to: Date | null
  /** Chats that have been read, of all that are to be. */
  done: number
  total: number
  messages: number
  incomplete: number
  startedAt: Date | null
  finishedAt: Date | null
}

export async function findImport(
  sql: Sql,
  workspaceId: string,
  sessionId: string,
): Promise<HistoryImport> {
  const [row] = await sql<HistoryImport>`
    select case when finished_at is null then 'running' else 'done' end as status, from_at as "from", to_at as "to",
      total - coalesce(cardinality(waiting), 0) as done, total, messages, incomplete, started_at, finished_at
    from wa_history_imports where workspace_id = ${workspaceId} and session_id = ${sessionId}`
  return (
    row ?? {
      ...{ status: 'none', from: null, to: null, done: 0, total: 0, messages: 0, incomplete: 0 },
      ...{ startedAt: null, finishedAt: null },
    }
  )
}
