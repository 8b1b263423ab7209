import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { AppError } from './errors.ts'
import { findMessages, messageResource } from './messages.ts'
import type { Message } from './messages.ts'

/** Why a new message is not accepted. */
export type Refusal =
  'RECIPIENT_OPTED_OUT' | 'QUOTED_NOT_FOUND' | 'LAST_MESSAGE_NOT_FOUND' | 'CONVERSATION_MOVED'

/** What a caller is told of each. The status is that of a message that was handed in alone. */
export const refusals: Record<Refusal, { statusCode: number; message: string }> = {
  RECIPIENT_OPTED_OUT: {
    statusCode: 403,
    message:
      'The recipient has asked for no more messages. An admin may override that with "optOutOverride" in a new message.',
  },
  QUOTED_NOT_FOUND: {
    statusCode: 422,
    message: 'The quoted message is not one of this chat, or was not sent.',
  },
  LAST_MESSAGE_NOT_FOUND: {
    statusCode: 422,
    message: 'The "ifLastMessageId" is no message of this chat.',
  },
  CONVERSATION_MOVED: {
    statusCode: 409,
    message: 'There are later messages in the chat: read them, then decide anew.',
  },
}

/** A refusal for the sake of a message that is not there at all: as that of anything else. */
export const notThere = (refusal: Refusal): AppError =>
  new AppError(404, refusal, 'There is no such message.')

/** A refusal as an error; `more`: what its answer holds besides. */
export function refused(refusal: Refusal, more?: object): AppError {
  const { statusCode, message } = refusals[refusal]
  return new AppError(statusCode, refusal, message, undefined, more)
}

/** `n` comes after `g` in the same chat, in the order in which its messages are listed. */
export const isLater = fragment`n.chat_id = g.chat_id and (n.created_at, n.seq) > (g.created_at, g.seq)`

interface Where {
  sessionId: Fragment | string
  waChatId: Fragment | string
  sendAt: Fragment | Date | undefined
}

/**
 * Whether a message to `waChatId` may quote `quoted` (null: it quotes nothing). A message that waits ahead of it will be
 * on WhatsApp by then; one that failed, was cancelled, or leaves later will not.
 */
export const isQuotable = (
  quoted: Fragment | string | undefined,
  { sessionId, waChatId, sendAt }: Where,
) => fragment`
  (${quoted}::uuid is null or exists (
    select from messages q join chats c on c.id = q.chat_id
    where q.id = ${quoted} and q.status <> all('{failed,cancelled}') and c.session_id = ${sessionId} and ${waChatId} in (c.wa_chat_id, c.canonical_wa_id)
      and not exists (select from outbox o where o.message_id = q.id and o.send_at > greatest(${sendAt}::timestamptz, now()))))`

/**
 * Why a message to `waChatId` is refused if its author takes `last` for the chat's last message. Null if that is right,
 * or if `last` is null.
 */
export const guard = (
  last: Fragment | string | undefined,
  { sessionId, waChatId }: Omit<Where, 'sendAt'>,
) => fragment`
  case when ${last}::uuid is null then null
    when not exists (
      select from messages g join chats c on c.id = g.chat_id
      where g.id = ${last} and c.session_id = ${sessionId} and c.wa_chat_id = ${waChatId})
    then 'LAST_MESSAGE_NOT_FOUND'
    when exists (select from messages g join messages n on ${isLater} where g.id = ${last}) then 'CONVERSATION_MOVED' end`

/** The messages that came after this one in its chat, newest first, at most `limit`. */
export async function messagesAfter(
  sql: Sql,
  workspaceId: string,
  id: string,
  limit = 20,
): Promise<Message[]> {
  const later = await sql<{ id: string }>`
    select n.id from messages g join messages n on ${isLater}
    where g.workspace_id = ${workspaceId} and g.id = ${id}
    order by n.created_at desc, n.seq desc limit ${limit}`
  const rows = await findMessages(
    sql,
    workspaceId,
    later.map((message) => message.id),
  )
  return rows.map(messageResource)
}
