import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import type { Direction, MessageStatus, MessageType } from './messages.ts'
import { decodeCursor, toPage, uuidKey } from './pagination.ts'
import type { Page } from './pagination.ts'

interface ChatRow {
  id: string
  workspaceId: string
  sessionId: string
  waChatId: string
  name: string | null
  contactName: string | null
  contactPushName: string | null
  contactPhone: string | null
  isGroup: boolean
  contactId: string | null
  unreadCount: number
  archived: boolean
  lastMessageAt: Date
  position: string
  lastId: string | null
  lastType: MessageType
  lastBody: string | null
  lastDirection: Direction
  lastStatus: MessageStatus
  lastCreatedAt: Date
}

/** A chat as the API answers it. */
export interface Chat {
  id: string
  sessionId: string
  waChatId: string
  name: string | null
  isGroup: boolean
  contactId: string | null
  unreadCount: number
  lastMessage: {
    id: string
    type: MessageType
    body: string | null
    direction: Direction
    status: MessageStatus
    createdAt: Date
  } | null
  lastMessageAt: Date
  archived: boolean
  assignee: null
  labels: []
}

function chatResource(row: ChatRow): Chat {
  return {
    id: row.id,
    sessionId: row.sessionId,
    waChatId: row.waChatId,
    name: row.name ?? row.contactName ?? row.contactPushName ?? row.contactPhone,
    isGroup: row.isGroup,
    contactId: row.contactId,
    unreadCount: row.unreadCount,
    lastMessage:
      row.lastId === null
        ? null
        : {
            id: row.lastId,
            type: row.lastType,
            body: row.lastBody,
            direction: row.lastDirection,
            status: row.lastStatus,
            createdAt: row.lastCreatedAt,
          },
    lastMessageAt: row.lastMessageAt,
    archived: row.archived,
    assignee: null,
    labels: [],
  }
}

const selected = fragment`
  c.id, c.workspace_id, c.session_id, c.wa_chat_id, c.name, k.name as contact_name, k.push_name as contact_push_name,
  k.phone as contact_phone, c.is_group, c.contact_id, c.unread_count, c.archived, c.last_message_at,
  c.last_message_at::text as position, m.id as last_id, m.type as last_type, m.body as last_body,
  m.direction as last_direction, case when o.state = 's' and m.status = 'queued' then 'sending' else m.status end as last_status, m.created_at as last_created_at`
const joined = fragment`
  left join contacts k on k.id = c.contact_id
  left join messages m on m.id = c.last_message_id
  left join outbox o on o.message_id = m.id`

/** The chats of a workspace, the one with the latest message first. */
export async function listChats(
  sql: Sql,
  workspaceId: string,
  filter: {
    limit: number
    cursor?: string | undefined
    sessionId?: string | undefined
    unread?: boolean | undefined
    archived?: boolean | undefined
  },
): Promise<Page<Chat>> {
  const after = filter.cursor === undefined ? undefined : decodeCursor(filter.cursor, uuidKey)
  const rows = await sql<ChatRow>`
    select ${selected} from chats c ${joined}
    where c.workspace_id = ${workspaceId}
      ${filter.sessionId === undefined ? fragment`` : fragment`and c.session_id = ${filter.sessionId}`}
      ${filter.unread === undefined ? fragment`` : fragment`and (c.unread_count > 0) = ${filter.unread}`}
      ${filter.archived === undefined ? fragment`` : fragment`and c.archived = ${filter.archived}`}
      ${after ? fragment`and (c.last_message_at, c.id) < (${after.at}::timestamptz, ${after.key}::uuid)` : fragment``}
    order by c.last_message_at desc, c.id desc limit ${filter.limit + 1}`
  return toPage(rows, filter.limit, (row) => ({ at: row.position, key: row.id }), chatResource)
}

export async function findChat(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<Chat | undefined> {
  const [row] = await sql<ChatRow>`
    select ${selected} from chats c ${joined} where c.workspace_id = ${workspaceId} and c.id = ${id}`
  return row && chatResource(row)
}

/** Tells of a chat that was changed, in the transaction of the change. */
export async function tellChat(tx: Sql, workspaceId: string, id: string): Promise<void> {
  const payload = await findChat(tx, workspaceId, id)
  if (!payload) return
  const { sessionId } = payload
  await appendEvents(tx, [{ workspaceId, sessionId, type: 'chat.updated', payload }])
}
