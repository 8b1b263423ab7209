import { randomUUID } from 'node:crypto'
import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { notFound } from './errors.ts'
import { decodeCursor, numberKey, toPage } from './pagination.ts'
import type { Page } from './pagination.ts'
import { isGroup, keyIdOf, phoneOf } from './wa-id.ts'
import { statusOf } from './wa-session-leases.ts'
import type { SessionStatus } from './wa-sessions.ts'

export type Direction = 'inbound' | 'outbound'
export type Source = 'api' | 'phone' | 'live' | 'history' | 'backfill'
export type MessageType =
  | 'text'
  | 'image'
  | 'video'
  | 'document'
  | 'audio'
  | 'voice'
  | 'sticker'
  | 'location'
  | 'contact'
  | 'poll'
  | 'system'
  | 'unknown'
export type MessageStatus =
  | 'queued'
  | 'sending'
  | 'sent'
  | 'delivered'
  | 'read'
  | 'played'
  | 'failed'
  | 'unknown'
  | 'cancelled'
  | 'received'

export interface MessageRow {
  id: string
  seq: number
  workspaceId: string
  sessionId: string
  chatId: string
  waChatId: string
  waMessageId: string | null
  direction: Direction
  source: Source
  type: MessageType
  body: string | null
  status: MessageStatus
  ack: number | null
  errorCode: string | null
  errorMessage: string | null
  attempts: number
  authorWaId: string | null
  authorName: string | null
  quotedMessageId: string | null
  sentBy: string | null
  sentByName: string | null
  sessionStatus: SessionStatus
  notBefore: Date | null
  createdAt: Date
  position: string
  sentAt: Date | null
  deliveredAt: Date | null
  readAt: Date | null
  editedAt: Date | null
  revokedAt: Date | null
}

/** A message as the API answers it. */
export interface Message {
  id: string
  sessionId: string
  chatId: string
  waChatId: string
  waMessageId: string | null
  direction: Direction
  source: Source
  type: MessageType
  body: string | null
  media: null
  status: MessageStatus
  ack: number | null
  error: { code: string; message: string } | null
  attempts: number
  notBefore: Date | null
  heldBy: string | null
  sendAt: null
  quotedMessageId: string | null
  author: { waId: string; name: string | null; contactId: null } | null
  sentBy: { id: string; fullName: string } | null
  reactions: []
  editedAt: Date | null
  revokedAt: Date | null
  createdAt: Date
  sentAt: Date | null
  deliveredAt: Date | null
  readAt: Date | null
}

export function messageResource(row: MessageRow): Message {
  return {
    id: row.id,
    sessionId: row.sessionId,
    chatId: row.chatId,
    waChatId: row.waChatId,
    waMessageId: row.waMessageId,
    direction: row.direction,
    source: row.source,
    type: row.type,
    body: row.body,
    media: null,
    status: row.status,
    ack: row.ack,
    error: row.errorCode === null ? null : { code: row.errorCode, message: row.errorMessage ?? '' },
    attempts: row.attempts,
    notBefore: row.notBefore,
    heldBy: heldBy(row),
    sendAt: null,
    quotedMessageId: row.quotedMessageId,
    author:
      row.authorWaId === null
        ? null
        : { waId: row.authorWaId, name: row.authorName, contactId: null },
    sentBy: row.sentBy === null ? null : { id: row.sentBy, fullName: row.sentByName ?? '' },
    reactions: [],
    editedAt: row.editedAt,
    revokedAt: row.revokedAt,
    createdAt: row.createdAt,
    sentAt: row.sentAt,
    deliveredAt: row.deliveredAt,
    readAt: row.readAt,
  }
}

/** Why a queued message is not on its way: the state of a session that cannot send, or a retry that is not yet due. */
function heldBy({ status, sessionStatus, notBefore }: MessageRow): string | null {
  if (status !== 'queued') return null
  if (sessionStatus !== 'WORKING') return `SESSION_${sessionStatus}`
  return notBefore === null ? null : 'RETRY_BACKOFF'
}

/** Everything a MessageRow has; `m` is the messages row. */
const selected = fragment`
  m.id, m.seq, m.workspace_id, m.session_id, m.chat_id, c.wa_chat_id, m.wa_message_id, m.direction, m.source, m.type,
  m.body, m.status, m.ack, m.error_code, m.error_message, m.attempts, m.author_wa_id, m.author_name,
  m.quoted_message_id, m.sent_by, p.full_name as sent_by_name, ${statusOf} as session_status, o.retry_at as not_before,
  m.created_at, m.created_at::text as position, m.sent_at, m.delivered_at, m.read_at, m.edited_at, m.revoked_at`
const joined = fragment`
  join chats c on c.id = m.chat_id
  join wa_sessions s on s.id = m.session_id
  left join profiles p on p.id = m.sent_by
  left join outbox o on o.message_id = m.id`

export interface NewText {
  workspaceId: string
  sessionId: string
  /** As parseRecipient() answers it. */
  waChatId: string
  body: string
  sentBy: string | null
  requestId: string
}

/**
 * Accepts a text for sending: chat, message and outbox row are written in one statement, so either all of it is durable
 * when this resolves, or none of it exists. Throws 404 when the session is gone.
 */
export async function acceptText(sql: Sql, text: NewText): Promise<MessageRow> {
  const id = randomUUID()
  const { workspaceId, sessionId, waChatId } = text
  const [message] = await sql<MessageRow>`
    with session as (
      select * from wa_sessions where id = ${sessionId} and workspace_id = ${workspaceId} and deleted_at is null
    ), contact as (
      insert into contacts (workspace_id, wa_id, phone)
      select ${workspaceId}::uuid, ${waChatId}::text, ${phoneOf(waChatId)}::text from session
      where not ${isGroup(waChatId)}
        and not exists (select from chats where session_id = ${sessionId} and wa_chat_id = ${waChatId})
      on conflict (workspace_id, wa_id) do update set wa_id = excluded.wa_id
      returning id
    ), chat as (
      insert into chats (workspace_id, session_id, wa_chat_id, is_group, contact_id, last_message_id, last_message_at)
      select ${workspaceId}::uuid, session.id, ${waChatId}::text, ${isGroup(waChatId)}::boolean, (select id from contact), ${id}::uuid, now() from session
      on conflict (session_id, wa_chat_id) do update
      set last_message_id = case when chats.last_message_at <= excluded.last_message_at then excluded.last_message_id else chats.last_message_id end,
          last_message_at = greatest(chats.last_message_at, excluded.last_message_at),
          archived = false
      returning *
    ), message as (
      insert into messages (id, workspace_id, session_id, chat_id, direction, source, type, body, status, wa_key_id, sent_by, request_id)
      select ${id}, ${workspaceId}, ${sessionId}, chat.id, 'outbound', 'api', 'text', ${text.body}, 'queued',
             ${keyIdOf(id)}, ${text.sentBy}::uuid, ${text.requestId}
      from chat
      returning *
    ), queued as (
      insert into outbox (message_id, workspace_id, session_id, chat_id)
      select id, workspace_id, session_id, chat_id from message
      returning *
    )
    select ${selected} from message m
    join chat c on c.id = m.chat_id join session s on s.id = m.session_id
    left join profiles p on p.id = m.sent_by left join queued o on o.message_id = m.id`
  if (!message) throw notFound('Session')
  return message
}

export async function findMessage(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<MessageRow | undefined> {
  const [row] = await sql<MessageRow>`
    select ${selected} from messages m ${joined}
    where m.workspace_id = ${workspaceId} and m.id = ${id}`
  return row
}

/** The messages of a chat, newest first: behind a cursor, or from an offset (whose cost grows with its depth). */
export async function listMessages(
  sql: Sql,
  workspaceId: string,
  chatId: string,
  {
    limit,
    cursor,
    offset = 0,
  }: { limit: number; cursor?: string | undefined; offset?: number | undefined },
): Promise<Page<Message>> {
  const after = cursor === undefined ? undefined : decodeCursor(cursor, numberKey)
  const rows = await sql<MessageRow>`
    select ${selected} from messages m ${joined}
    where m.workspace_id = ${workspaceId} and m.chat_id = ${chatId}
      ${after ? fragment`and (m.created_at, m.seq) < (${after.at}::timestamptz, ${after.key}::bigint)` : fragment``}
    order by m.created_at desc, m.seq desc limit ${limit + 1} offset ${offset}`
  return toPage(rows, limit, (row) => ({ at: row.position, key: String(row.seq) }), messageResource)
}
