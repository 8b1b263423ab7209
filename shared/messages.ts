import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import type { EventType, NewEvent } from './events.ts'
import { joinHold } from './hold.ts'
import type { MessageMedia } from './media.ts'
import { opens } from './new-conversations.ts'
import { decodeCursor, numberKey, toPage } from './pagination.ts'
import type { Page } from './pagination.ts'

export const directions = ['inbound', 'outbound'] as const
export const sources = ['api', 'phone', 'live', 'history', 'backfill'] as const
export const messageTypes = [
  'text',
  'image',
  'video',
  'document',
  'audio',
  'voice',
  'sticker',
  'location',
  'contact',
  'poll',
  'system',
  'unknown',
] as const
export const messageStatuses = [
  'queued',
  'sending',
  'sent',
  'delivered',
  'read',
  'played',
  'failed',
  'unknown',
  'cancelled',
  'received',
] as const
export type Direction = (typeof directions)[number]
export type Source = (typeof sources)[number]
export type MessageType = (typeof messageTypes)[number]
export type MessageStatus = (typeof messageStatuses)[number]

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
  content: Record<string, unknown> | null
  mentions: string[]
  media: MessageMedia | null
  status: MessageStatus
  ack: number | null
  errorCode: string | null
  errorMessage: string | null
  attempts: number
  heldBy: string | null
  notBefore: Date | null
  sendAt: Date | null
  optOutOverride: string | null
  authorWaId: string | null
  authorName: string | null
  authorContactId: string | null
  quotedMessageId: string | null
  sentBy: string | null
  sentByName: string | null
  reactions: Reaction[] | null
  votes: PollVote[] | null
  actions: MessageAction[] | null
  createdAt: Date
  position: string
  sentAt: Date | null
  deliveredAt: Date | null
  readAt: Date | null
  editedAt: Date | null
  revokedAt: Date | null
}

export interface Reaction {
  emoji: string
  waId: string
  fromMe: boolean
  at: string
}

/** What a person has chosen in a poll. */
export interface PollVote {
  waId: string
  fromMe: boolean
  options: string[]
  at: string
}

/** What somebody asked to be changed about a message on WhatsApp, and is not done. */
export interface MessageAction {
  kind: 'edit' | 'reaction' | 'deletion'
  /** The new text, or the emoji. */
  value: string | null
  status: 'pending' | 'failed'
  /** Why it failed; while it is pending, why the last try did. */
  error: { code: string; message: string } | null
  /** When it was asked for. */
  at: string
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
  location: Record<string, unknown> | null
  contactCard: Record<string, unknown> | null
  poll: Record<string, unknown> | null
  mentions: string[]
  media: MessageMedia | null
  status: MessageStatus
  ack: number | null
  error: { code: string; message: string } | null
  attempts: number
  notBefore: Date | null
  heldBy: string | null
  sendAt: Date | null
  quotedMessageId: string | null
  author: { waId: string; name: string | null; contactId: string | null } | null
  sentBy: { id: string; fullName: string } | null
  reactions: Reaction[]
  actions: MessageAction[]
  editedAt: Date | null
  revokedAt: Date | null
  createdAt: Date
  sentAt: Date | null
  deliveredAt: Date | null
  readAt: Date | null
}

/** What comes as JSON, with its times written as all others are. */
const dated = <T extends { at: string }>(rows: T[] | null): T[] =>
  (rows ?? []).map((row) => ({ ...row, at: new Date(row.at).toISOString() }))

/** A message as the API answers it, and events tell of it. */
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
    location: row.type === 'location' ? row.content : null,
    contactCard: row.type === 'contact' ? row.content : null,
    poll: row.type === 'poll' ? { ...row.content, votes: dated(row.votes) } : null,
    mentions: row.mentions,
    media: row.media,
    status: row.status,
    ack: row.ack,
    error: row.errorCode === null ? null : { code: row.errorCode, message: row.errorMessage ?? '' },
    attempts: row.attempts,
    notBefore: row.notBefore,
    heldBy: row.heldBy,
    sendAt: row.sendAt,
    quotedMessageId: row.quotedMessageId,
    author:
      row.authorWaId === null
        ? null
        : { waId: row.authorWaId, name: row.authorName, contactId: row.authorContactId },
    sentBy: row.sentBy === null ? null : { id: row.sentBy, fullName: row.sentByName ?? '' },
    reactions: dated(row.reactions),
    actions: dated(row.actions),
    editedAt: row.editedAt,
    revokedAt: row.revokedAt,
    createdAt: row.createdAt,
    sentAt: row.sentAt,
    deliveredAt: row.deliveredAt,
    readAt: row.readAt,
  }
}

const authorContact = fragment`
  (select coalesce(k.merged_into, k.id) from contacts k where k.workspace_id = m.workspace_id and k.wa_id = m.author_wa_id)`
const reactions = fragment`
  (select json_agg(json_build_object('emoji', r.emoji, 'waId', r.wa_id, 'fromMe', r.wa_id = 'me', 'at', r.at) order by r.at, r.wa_id)
   from message_reactions r where r.message_id = m.id and r.emoji <> '')`
const votes = fragment`
  case when m.type = 'poll' then
    (select json_agg(json_build_object('waId', v.wa_id, 'fromMe', v.wa_id = 'me', 'options', v.options, 'at', v.at) order by v.at, v.wa_id)
     from poll_votes v where v.message_id = m.id and v.options <> '{}') end`
// A failure is of no interest any more once somebody has had his way.
const actions = fragment`
  (select json_agg(json_build_object('kind', case a.kind when 'react' then 'reaction' when 'revoke' then 'deletion' else a.kind end,
      'value', coalesce(a.payload ->> 'body', a.payload ->> 'emoji'), 'status', case when a.done_at is null then 'pending' else 'failed' end,
      'error', case when a.error_code is not null then json_build_object('code', a.error_code, 'message', coalesce(a.error_message, '')) end,
      'at', a.created_at) order by a.id)
   from wa_actions a
   where a.message_id = m.id and (a.done_at is null or a.error_code is not null and not exists (
     select from wa_actions b
     where b.message_id = a.message_id and b.kind = a.kind and b.id > a.id and b.done_at is not null and b.error_code is null)))`

/** The file `f` of a message, with its object `fo`; null without one. */
export const mediaColumn = fragment`
  case when f.id is not null then json_build_object('id', f.id, 'kind', f.kind, 'mimeType', f.mime_type,
    'size', f.size, 'filename', f.filename, 'status', case when fo.missing_since is null then f.status else 'failed' end) end`

/** The status of message `m`, with its outbox row `o`: what is claimed is kept as queued. */
export const statusOfMessage = fragment`case when o.state = 's' and m.status = 'queued' then 'sending' else m.status end`

/** Everything a MessageRow has; `m` is the messages row, `c` its chat, `u` who sent it, `f` its file, `fo` its object, `o` its outbox row; `hold` is messageHold. */
export const messageColumns = fragment`
  m.id, m.seq, m.workspace_id, m.session_id, m.chat_id, coalesce(m.addressed_to, c.wa_chat_id) as wa_chat_id, m.wa_message_id, m.direction, m.source, m.type,
  m.body, m.content, m.mentions, ${mediaColumn} as media, ${statusOfMessage} as status, m.ack,
  m.error_code, m.error_message, coalesce(o.attempts, m.attempts) as attempts, m.author_wa_id, m.author_name, ${authorContact} as author_contact_id,
  m.quoted_message_id, m.sent_by, coalesce(u.full_name, (select full_name from former_members where id = m.sent_by)) as sent_by_name, m.send_at, m.opt_out_override, hold.held_by, hold.not_before,
  ${reactions} as reactions, ${votes} as votes, ${actions} as actions,
  m.created_at, m.created_at::text as position, m.sent_at, m.delivered_at, m.read_at, m.edited_at, m.revoked_at`
/** Joins `hold` to a message `m` of the session `s`, with what there is of it in the outbox: its row `o`, its lane `l`, its pace `p`. */
export const messageHold = joinHold({
  // What is confirmed in this very statement is still to be seen in the outbox.
  state: fragment`case when m.status = 'queued' then o.state end`,
  sendAt: fragment`m.send_at`,
  lastInboundAt: fragment`l.last_inbound_at`,
  cold: opens,
})
/** Joins to `m` what messageColumns speaks of. */
export const messageJoins = fragment`
  join chats c on c.id = m.chat_id
  join wa_sessions s on s.id = m.session_id
  left join profiles u on u.id = m.sent_by
  left join media f on f.id = m.media_id
  left join media_objects fo on fo.id = f.object_id
  left join outbox o on o.message_id = m.id
  left join outbox_lanes l on l.chat_id = o.chat_id
  left join wa_session_pacing p on p.session_id = o.session_id
  ${messageHold}`

/** A message of this workspace. Undefined if there is no such message. */
export async function findMessage(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<MessageRow | undefined> {
  const [row] = await sql<MessageRow>`
    select ${messageColumns} from messages m ${messageJoins}
    where m.workspace_id = ${workspaceId} and m.id = ${id}`
  return row
}

/** Those of these messages that the workspace has, newest first. */
export async function findMessages(
  sql: Sql,
  workspaceId: string,
  ids: string[],
): Promise<MessageRow[]> {
  return sql<MessageRow>`
    select ${messageColumns} from messages m ${messageJoins}
    where m.workspace_id = ${workspaceId} and m.id = any(${ids}::uuid[])
    order by m.created_at desc, m.seq desc`
}

/** So many messages are told of at a time: a session may have had any number of them waiting. */
const toldAtOnce = 500

/** The events that tell of these messages as they are. */
export const messageEvents = (type: EventType, rows: MessageRow[]): NewEvent[] =>
  rows.map((row) => ({
    workspaceId: row.workspaceId,
    sessionId: row.sessionId,
    type,
    payload: messageResource(row),
  }))

/** Tells of messages that were changed, in their order and in the transaction of the change. */
export async function tellMessages(tx: Sql, type: EventType, ids: string[]): Promise<void> {
  for (let at = 0; at < ids.length; at += toldAtOnce) {
    const rows = await tx<MessageRow>`
      select ${messageColumns} from messages m ${messageJoins}
      where m.id = any(${ids.slice(at, at + toldAtOnce)}::uuid[]) order by m.seq`
    await appendEvents(tx, messageEvents(type, rows))
  }
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
  // The page is cut out before anything is joined to it, and by the chat alone: no other index looks right for that.
  const rows = await sql<MessageRow>`
    select ${messageColumns} from (
      select * from messages m
      where m.chat_id = ${chatId}
        ${after ? fragment`and (m.created_at, m.seq) < (${after.at}::timestamptz, ${after.key}::bigint)` : fragment``}
      order by m.created_at desc, m.seq desc limit ${limit + 1} offset ${offset}) m
    ${messageJoins}
    where m.workspace_id = ${workspaceId}
    order by m.created_at desc, m.seq desc`
  return toPage(rows, limit, (row) => ({ at: row.position, key: String(row.seq) }), messageResource)
}
