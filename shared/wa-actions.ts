import { tellChat } from './chats.ts'
import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import type { EventType } from './events.ts'
import { findMessage, messageResource } from './messages.ts'
import type { Lane } from './outbox.ts'
import { assertFence } from './wa-session-leases.ts'

/** What is to be done on WhatsApp beside sending. */
export type ActionWish =
  | { kind: 'react'; messageId: string; payload: { emoji: string } }
  | { kind: 'edit'; messageId: string; payload: { body: string } }
  | { kind: 'revoke'; messageId: string; payload: Record<never, never> }
  | { kind: 'seen'; payload: Record<never, never> }
  | { kind: 'typing'; payload: { on: boolean } }
  | { kind: 'check_number'; payload: { phone: string } }

/** An action whose turn it is. */
export interface Action {
  id: number
  workspaceId: string
  sessionId: string
  chatId: string | null
  messageId: string | null
  kind: ActionWish['kind']
  payload: { emoji?: string; body?: string; on?: boolean; phone?: string }
  attempts: number
  /** The chat's address on WhatsApp. */
  waChatId: string | null
  /** The message it is about. */
  target: { fromMe: boolean; chatId: string; id: string; participant: string } | null
}

/** Until when an action is of use to anybody, in seconds: nobody wants to have been typing a minute ago. */
const usefulSeconds: Record<ActionWish['kind'], number> = {
  react: 86_400,
  // WhatsApp lets a message be edited for 15 minutes and deleted for two days.
  edit: 1_800,
  revoke: 2 * 86_400,
  seen: 86_400,
  typing: 30,
  check_number: 30,
}

/** Asks the worker of the session for an action. Answers its id. */
export async function askAction(
  sql: Sql,
  {
    workspaceId,
    sessionId,
    chatId,
  }: { workspaceId: string; sessionId: string; chatId?: string | undefined },
  wish: ActionWish,
): Promise<number> {
  const [row] = await sql<{ id: number }>`
    insert into wa_actions (workspace_id, session_id, chat_id, message_id, kind, payload, expires_at)
    values (${workspaceId}, ${sessionId}, ${chatId}, ${'messageId' in wish ? wish.messageId : null}, ${wish.kind}, ${wish.payload},
      now() + ${usefulSeconds[wish.kind]} * interval '1 second')
    returning id`
  return row!.id
}

/** The next action of each of these sessions. What waits for its message to be confirmed, or for a retry, lets others pass. */
export async function dueActions(sql: Sql, worker: string, lanes: Lane[]): Promise<Action[]> {
  return sql<Action>`
    select a.id, a.workspace_id, a.session_id, a.chat_id, a.message_id, a.kind, a.payload, a.attempts,
      coalesce(c.canonical_wa_id, c.wa_chat_id) as wa_chat_id,
      case when m.wa_key_id is not null then json_build_object('fromMe', m.direction = 'outbound',
        'chatId', coalesce(c.canonical_wa_id, c.wa_chat_id), 'id', m.wa_key_id, 'participant', m.wa_participant) end as target
    from unnest(${lanes.map((lane) => lane.id)}::uuid[], ${lanes.map((lane) => lane.fence)}::bigint[]) x(id, fence)
    join wa_sessions s on s.id = x.id and s.fence = x.fence and s.owner = ${worker} and s.status = 'WORKING'
    cross join lateral (
      select * from wa_actions d
      where d.session_id = s.id and d.done_at is null and d.due_at <= now() and d.expires_at > now()
        and not exists (select from outbox o where o.message_id = d.message_id)
      order by d.due_at, d.id limit 1) a
    left join chats c on c.id = a.chat_id
    left join messages m on m.id = a.message_id`
}

/** Records that an action is done, with what it changes. Throws LeaseLost. */
export async function actionDone(
  sql: Sql,
  lane: Lane,
  action: Action,
  result?: object,
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, lane)
    const [done] = await tx`
      update wa_actions set done_at = now(), result = ${result}, attempts = attempts + 1 where id = ${action.id} and done_at is null returning id`
    if (!done) return
    await apply(tx, action)
  })
}

async function apply(
  tx: Sql,
  { kind, workspaceId, chatId, messageId, payload }: Action,
): Promise<void> {
  switch (kind) {
    case 'react':
      if (payload.emoji === '')
        await tx`delete from message_reactions where message_id = ${messageId} and wa_id = 'me'`
      else {
        await tx`
          insert into message_reactions (message_id, wa_id, workspace_id, emoji) values (${messageId}, 'me', ${workspaceId}, ${payload.emoji})
          on conflict (message_id, wa_id) do update set emoji = excluded.emoji, at = now()`
      }
      return tell(tx, workspaceId, messageId!, 'message.reaction')
    case 'edit':
      await tx`update messages set body = ${payload.body}, edited_at = now() where id = ${messageId}`
      return tell(tx, workspaceId, messageId!, 'message.edited')
    case 'revoke':
      await tx`update messages set revoked_at = coalesce(revoked_at, now()) where id = ${messageId}`
      return tell(tx, workspaceId, messageId!, 'message.revoked')
    case 'seen':
      await tx`update chats set unread_count = 0 where id = ${chatId}`
      return tellChat(tx, workspaceId, chatId!)
    case 'typing':
    case 'check_number':
      return
  }
}

/** An action failed: it is tried again after `delayMs`, or, without one, given up. A message that could not be changed says so. Throws LeaseLost. */
export async function actionFailed(
  sql: Sql,
  lane: Lane,
  { id, workspaceId, messageId, kind }: Action,
  error: { code: string; message: string },
  delayMs?: number,
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, lane)
    if (delayMs !== undefined) {
      await tx`
        update wa_actions set attempts = attempts + 1, due_at = now() + ${delayMs}::int * interval '1 ms',
          error_code = ${error.code}, error_message = ${error.message}
        where id = ${id} and done_at is null`
      return
    }
    await tx`
      update wa_actions set done_at = now(), attempts = attempts + 1, error_code = ${error.code}, error_message = ${error.message}
      where id = ${id} and done_at is null`
    if (messageId === null || (kind !== 'edit' && kind !== 'revoke')) return
    await tx`update messages set error_code = ${error.code}, error_message = ${error.message} where id = ${messageId}`
    await tell(tx, workspaceId, messageId, kind === 'edit' ? 'message.edited' : 'message.revoked')
  })
}

/** What came of an action. Undefined while nothing has. */
export async function actionAnswer(
  sql: Sql,
  workspaceId: string,
  id: number,
): Promise<
  | {
      result: { exists: boolean; waId: string | null } | null
      errorCode: string | null
      errorMessage: string | null
    }
  | undefined
> {
  const [row] = await sql<{
    result: { exists: boolean; waId: string | null } | null
    errorCode: string | null
    errorMessage: string | null
  }>`
    select result, error_code, error_message from wa_actions where workspace_id = ${workspaceId} and id = ${id} and done_at is not null`
  return row
}

async function tell(
  tx: Sql,
  workspaceId: string,
  messageId: string,
  type: EventType,
): Promise<void> {
  const row = await findMessage(tx, workspaceId, messageId)
  if (row)
    await appendEvents(tx, [
      { workspaceId, sessionId: row.sessionId, type, payload: messageResource(row) },
    ])
}
