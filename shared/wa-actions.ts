import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { AppError } from './errors.ts'
import type { EventType } from './events.ts'
import { tellMessages } from './messages.ts'
import { optedOut } from './opt-outs.ts'
import { refused } from './refusals.ts'
import type { MessageKey } from './wa-id.ts'
import type { Lease } from './wa-session-leases.ts'
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
  target: MessageKey | null
  /** The recipient has asked for no more messages, nor has the one it is about been sent in spite of that. */
  optedOut: boolean
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

/** Whether an action tells the recipient something new, as a message does. What takes something back does not, and is always possible. */
export const saysSomething = ({
  kind,
  payload,
}: {
  kind: ActionWish['kind']
  payload: Action['payload']
}): boolean =>
  kind === 'edit' ||
  (kind === 'react' && payload.emoji !== '') ||
  (kind === 'typing' && payload.on === true)

/**
 * Asks the worker of a session for an action, and nudges it. Returns the action's id. Throws 409 SESSION_GONE when the session is deleted, and 403 RECIPIENT_OPTED_OUT when it would say
 * something to whoever wants to hear nothing.
 */
export async function askAction(
  sql: Sql,
  {
    workspaceId,
    sessionId,
    chatId,
  }: { workspaceId: string; sessionId: string; chatId?: string | undefined },
  wish: ActionWish,
): Promise<number> {
  const messageId = 'messageId' in wish ? wish.messageId : null
  if (saysSomething(wish) && chatId !== undefined) {
    const [recipient] = await sql<{ optedOut: boolean }>`
      select ${optedOut} as opted_out
      from chats c left join contacts k on k.id = c.contact_id left join messages m on m.id = ${messageId}::uuid
      where c.workspace_id = ${workspaceId} and c.id = ${chatId}`
    if (recipient?.optedOut) throw refused('RECIPIENT_OPTED_OUT')
  }
  const [row] = await sql<{ id: number }>`
    insert into wa_actions (workspace_id, session_id, chat_id, message_id, kind, payload, expires_at)
    select s.workspace_id, s.id, ${chatId}::uuid, ${messageId}::uuid, ${wish.kind}, ${wish.payload}::jsonb,
      now() + ${usefulSeconds[wish.kind]} * interval '1 second'
    from wa_sessions s where s.workspace_id = ${workspaceId} and s.id = ${sessionId} and s.deleted_at is null
    returning id`
  if (!row) throw new AppError(409, 'SESSION_GONE', 'The session is deleted.')
  sql.nudge('awfar_outbox', sessionId)
  return row.id
}

/**
 * Until when action `d` is of use; `m` is its message. What was asked for before its message was sent counts from there: nobody can know how long that waits.
 */
const usefulUntil = fragment`greatest(d.expires_at, m.sent_at + (d.expires_at - d.created_at))`

/** Its message has not been confirmed. Here as below "offset 0" keeps the look a probe for each action, however few Postgres expects: as a join it reads all there is. */
const isAhead = fragment`exists (select from outbox o where o.message_id = d.message_id offset 0)`

/**
 * The next action of each of these sessions. What waits for its message to be confirmed, or for a retry, lets others pass, but not the same of the same message
 * (or chat): what was asked for last must be done last.
 */
export async function dueActions(sql: Sql, worker: string, leases: Lease[]): Promise<Action[]> {
  return sql<Action>`
    select a.id, a.workspace_id, a.session_id, a.chat_id, a.message_id, a.kind, a.payload, a.attempts,
      coalesce(c.canonical_wa_id, c.wa_chat_id) as wa_chat_id,
      case when m.wa_key_id is not null then json_build_object('fromMe', m.direction = 'outbound',
        'chatId', coalesce(c.canonical_wa_id, c.wa_chat_id), 'id', m.wa_key_id, 'participant', m.wa_participant) end as target,
      ${optedOut} as opted_out
    from unnest(${leases.map(({ id }) => id)}::uuid[], ${leases.map(({ fence }) => fence)}::bigint[]) x(id, fence)
    join wa_sessions s on s.id = x.id and s.fence = x.fence and s.owner = ${worker} and s.status = 'WORKING'
    cross join lateral (
      select d.* from wa_actions d left join messages m on m.id = d.message_id
      where d.session_id = s.id and d.done_at is null and d.due_at <= now() and ${usefulUntil} > now() and not ${isAhead}
        and not exists (
          select from wa_actions e
          where e.session_id = s.id and e.done_at is null and e.kind = d.kind and e.id < d.id
            and e.chat_id = d.chat_id and e.message_id is not distinct from d.message_id
          offset 0)
      order by d.due_at, d.id limit 1) a
    left join chats c on c.id = a.chat_id
    left join contacts k on k.id = c.contact_id
    left join messages m on m.id = a.message_id`
}

/** Records that an action is done, with what it changes. Also when it counted as expired meanwhile. Throws LeaseLost. */
export async function actionDone(
  sql: Sql,
  lease: Lease,
  action: Action,
  result?: object,
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, lease)
    const [done] = await tx`
      update wa_actions set done_at = now(), result = ${result}, attempts = attempts + 1, error_code = null, error_message = null
      where id = ${action.id} and (done_at is null or error_code = ${expired.code}) returning id`
    if (done) await apply(tx, action)
  })
}

/** Makes the change, and tells of it unless it was heard of before, as it often is by the page's own report. */
async function apply(tx: Sql, { kind, workspaceId, messageId, payload }: Action): Promise<void> {
  const tell = async (type: EventType, changed: object[]) => {
    if (changed.length > 0) await tellMessages(tx, type, [messageId!])
  }
  switch (kind) {
    case 'react':
      // One that is taken back stays as an empty one: an older report of it must not bring it back.
      return tell(
        'message.reaction',
        await tx`
          insert into message_reactions as r (message_id, wa_id, workspace_id, emoji) values (${messageId}, 'me', ${workspaceId}, ${payload.emoji})
          on conflict (message_id, wa_id) do update set emoji = excluded.emoji, at = now() where r.emoji <> excluded.emoji
          returning message_id`,
      )
    case 'edit':
      return tell(
        'message.edited',
        await tx`
          update messages set body = ${payload.body}, edited_at = now()
          where id = ${messageId} and (body is distinct from ${payload.body} or edited_at is null) returning id`,
      )
    case 'revoke':
      return tell(
        'message.revoked',
        await tx`
          update messages set revoked_at = now() where id = ${messageId} and revoked_at is null returning id`,
      )
    default:
  }
}

/** An action failed: it is tried again after `delayMs`, or, without one, given up, which is told with its message. Throws LeaseLost. */
export async function actionFailed(
  sql: Sql,
  lease: Lease,
  { id, messageId }: Action,
  { code, message }: { code: string; message: string },
  delayMs?: number,
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, lease)
    const [failed] = await tx`
      update wa_actions
      set attempts = attempts + 1, error_code = ${code}, error_message = ${message},
        ${delayMs === undefined ? fragment`done_at = now()` : fragment`due_at = now() + ${delayMs}::int * interval '1 ms'`}
      where id = ${id} and done_at is null returning id`
    if (failed && delayMs === undefined && messageId !== null)
      await tellMessages(tx, 'message.action', [messageId])
  })
}

const expired = {
  code: 'EXPIRED',
  message: 'The session could not do it while it was still of use.',
}
const sessionDeleted = { code: 'SESSION_DELETED', message: 'The session was deleted.' }

/** Closes actions that are not wanted any more, as if they had been done: nobody is told. `which` speaks of `a`. */
export async function closeActions(tx: Sql, which: Fragment): Promise<void> {
  await tx`
    update wa_actions a set done_at = now(), error_code = null, error_message = null where a.done_at is null and ${which}`
}

/** Gives up what nobody has done in its time, at most `limit` at once, and tells of the messages it was about. Any worker may. Answers how many. */
export async function expireActions(sql: Sql, limit = 500): Promise<number> {
  return sql.begin(async (tx) => {
    const late = await tx<{ messageId: string | null }>`
      with late as (
        select d.id, s.deleted_at is not null as deleted
        from wa_actions d join wa_sessions s on s.id = d.session_id left join messages m on m.id = d.message_id
        where d.done_at is null
          and (s.deleted_at is not null or d.expires_at <= now() and ${usefulUntil} <= now() and not ${isAhead})
        order by d.id limit ${limit} for update of d skip locked
      )
      update wa_actions a
      set done_at = now(),
        error_code = case when late.deleted then ${sessionDeleted.code} else ${expired.code} end,
        error_message = case when late.deleted then ${sessionDeleted.message} else ${expired.message} end
      from late where a.id = late.id returning a.message_id`
    const ids = new Set(late.flatMap(({ messageId }) => messageId ?? []))
    await tellMessages(tx, 'message.action', [...ids])
    return late.length
  })
}

/** What came of an action. */
export interface ActionAnswer {
  /** Of a number that was checked. */
  result: { exists: boolean; waId: string | null } | null
  errorCode: string | null
  errorMessage: string | null
}

/** What came of an action. Undefined while nothing has. */
export async function actionAnswer(
  sql: Sql,
  workspaceId: string,
  id: number,
): Promise<ActionAnswer | undefined> {
  const [row] = await sql<ActionAnswer>`
    select result, error_code, error_message from wa_actions where workspace_id = ${workspaceId} and id = ${id} and done_at is not null`
  return row
}
