import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { notFound } from './errors.ts'
import { appendEvents } from './events.ts'
import type { Label } from './labels.ts'
import { statusOfMessage } from './messages.ts'
import type { Direction, MessageStatus, MessageType } from './messages.ts'
import { decodeCursor, nameKey, noTime, toPage, uuidKey } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'

export interface ChatRow {
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
  assigneeId: string | null
  assigneeName: string | null
  labels: Label[]
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
  assignee: { id: string; fullName: string } | null
  labels: Label[]
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
    assignee:
      row.assigneeId === null ? null : { id: row.assigneeId, fullName: row.assigneeName ?? '' },
    labels: row.labels,
  }
}

/** Everything a ChatRow has; `c` is the chat, the rest as chatJoins has it. */
const chatColumns = fragment`
  c.id, c.workspace_id, c.session_id, c.wa_chat_id, c.name, k.name as contact_name, k.push_name as contact_push_name,
  k.phone as contact_phone, c.is_group, c.contact_id, c.unread_count, c.archived, c.last_message_at,
  c.last_message_at::text as position, m.id as last_id, m.type as last_type, m.body as last_body,
  m.direction as last_direction, ${statusOfMessage} as last_status, m.created_at as last_created_at,
  c.assignee_id, u.full_name as assignee_name,
  (select coalesce(json_agg(json_build_object('id', b.id, 'name', b.name, 'color', b.color) order by lower(b.name)), '[]')
   from chat_labels t join labels b on b.id = t.label_id where t.chat_id = c.id) as labels`
const chatJoins = fragment`
  left join contacts k on k.id = c.contact_id
  left join messages m on m.id = c.last_message_id
  left join outbox o on o.message_id = m.id
  left join profiles u on u.id = c.assignee_id`

export interface ChatFilter {
  limit: number
  cursor?: string | undefined
  sessionId?: string | undefined
  /** Part of a name, or of a number. */
  search?: string | undefined
  unread?: boolean | undefined
  archived?: boolean | undefined
  /** Null: those of nobody. */
  assigneeId?: string | null | undefined
  labelId?: string | undefined
}

/**
 * The chats of a workspace, the one with the latest message first. A chat that gets a message while its pages are read moves to the top, before what was
 * read: it may then be missed or read twice, no other chat is.
 */
export async function listChats(
  sql: Sql,
  workspaceId: string,
  filter: ChatFilter,
): Promise<Page<Chat>> {
  const { limit, cursor, sessionId, search, unread, archived, assigneeId, labelId } = filter
  const after = cursor === undefined ? undefined : decodeCursor(cursor, uuidKey)
  const when = <T>(value: T | undefined, condition: (value: T) => Fragment) =>
    value === undefined ? fragment`` : condition(value)
  // The page is cut out before anything is joined to it.
  const rows = await sql<ChatRow>`
    select ${chatColumns} from (
      select c.* from chats c
      where c.workspace_id = ${workspaceId}
        ${when(sessionId, (id) => fragment`and c.session_id = ${id}`)}
        ${when(unread, (is) => (is ? fragment`and c.unread_count > 0` : fragment`and c.unread_count = 0`))}
        ${when(archived, (is) => (is ? fragment`and c.archived` : fragment`and not c.archived`))}
        ${when(assigneeId, (id) => (id === null ? fragment`and c.assignee_id is null` : fragment`and c.assignee_id = ${id}`))}
        ${when(labelId, (id) => fragment`and exists (select from chat_labels t where t.chat_id = c.id and t.label_id = ${id})`)}
        ${when(search, isNamed)}
        ${when(after, ({ at, key }) => fragment`and (c.last_message_at, c.id) < (${at}::timestamptz, ${key}::uuid)`)}
      order by c.last_message_at desc, c.id desc limit ${limit + 1}) c
    ${chatJoins}
    order by c.last_message_at desc, c.id desc`
  return toPage(rows, limit, (row) => ({ at: row.position, key: row.id }), chatResource)
}

/** Whether the chat, or whom it is with, has `part` in its name, in any capitals, or in its number, however that is written. */
function isNamed(part: string): Fragment {
  const pattern = `%${part.replaceAll(/[\\%_]/g, '\\$&')}%`
  const digits = /^[+\d\s().\-/]+$/.test(part) ? part.replaceAll(/\D/g, '') : ''
  // The collation: whatever the database's own is, É is a capital é.
  const named = fragment`(c.name ilike ${pattern} collate "und-x-icu" or exists (
    select from contacts k where k.id = c.contact_id
      and (k.name ilike ${pattern} collate "und-x-icu" or k.push_name ilike ${pattern} collate "und-x-icu"))`
  return digits === ''
    ? fragment`and ${named})`
    : fragment`and ${named} or c.wa_chat_id like ${`%${digits}%`}
        or exists (select from contacts k where k.id = c.contact_id and k.phone like ${`%${digits}%`}))`
}

/** A chat of this workspace. Undefined if there is no such chat. */
export async function findChat(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<Chat | undefined> {
  const [chat] = await findChats(sql, workspaceId, [id])
  return chat
}

/** Those of these chats that the workspace has. */
export async function findChats(sql: Sql, workspaceId: string, ids: string[]): Promise<Chat[]> {
  const rows = await sql<ChatRow>`
    select ${chatColumns} from chats c ${chatJoins}
    where c.workspace_id = ${workspaceId} and c.id = any(${ids}::uuid[])`
  return rows.map(chatResource)
}

/** Tells of chats that changed: `chat.updated`, in the transaction of the change. Answers what they are now. */
export async function tellChats(tx: Sql, workspaceId: string, ids: string[]): Promise<Chat[]> {
  const chats = await findChats(tx, workspaceId, ids)
  await appendEvents(
    tx,
    chats.map((chat) => ({
      workspaceId,
      sessionId: chat.sessionId,
      type: 'chat.updated',
      payload: chat,
    })),
  )
  return chats
}

/** Tells of a contact's chats, in the transaction that changed how they are called. */
export async function tellChatsOf(tx: Sql, workspaceId: string, contactId: string): Promise<void> {
  const chats = await tx<{ id: string }>`
    select id from chats where workspace_id = ${workspaceId} and contact_id = ${contactId}`
  await tellChats(
    tx,
    workspaceId,
    chats.map(({ id }) => id),
  )
}

/** Changes what is given. Throws 404 when there is no such chat, or no such person in the workspace to assign it to. */
export async function updateChat(
  sql: Sql,
  workspaceId: string,
  id: string,
  { archived, assigneeId }: { archived?: boolean; assigneeId?: string | null },
): Promise<Chat> {
  return sql.begin(async (tx) => {
    if (typeof assigneeId === 'string') {
      // Held until the end: they cannot be removed meanwhile.
      const [member] = await tx`
        select from profiles where workspace_id = ${workspaceId} and id = ${assigneeId} for key share`
      if (!member) throw notFound('Assignee')
    }
    const [chat] = await tx`
      update chats set archived = coalesce(${archived}, archived),
        assignee_id = case when ${assigneeId !== undefined} then ${assigneeId}::uuid else assignee_id end
      where workspace_id = ${workspaceId} and id = ${id} returning id`
    if (!chat) throw notFound('Chat')
    const [now] = await tellChats(tx, workspaceId, [id])
    return now!
  })
}

/** Takes a person who is about to be removed off at most `limit` chats. Answers off how many. */
export async function unassign(
  sql: Sql,
  workspaceId: string,
  profileId: string,
  limit: number,
): Promise<number> {
  return sql.begin(async (tx) => {
    // First the person, as in updateChat(); then the chats in the order in which messages to many take them.
    await tx`select from profiles where workspace_id = ${workspaceId} and id = ${profileId} for update`
    const chats = await tx<{ id: string }>`
      update chats set assignee_id = null
      where id in (
        select id from chats where workspace_id = ${workspaceId} and assignee_id = ${profileId}
        order by wa_chat_id limit ${limit} for no key update)
      returning id`
    await tellChats(
      tx,
      workspaceId,
      chats.map(({ id }) => id),
    )
    return chats.length
  })
}

/** Puts exactly these labels on a chat. Throws 404 when there is no such chat, or no such label in the workspace. */
export async function setLabels(
  sql: Sql,
  workspaceId: string,
  id: string,
  labelIds: string[],
): Promise<Chat> {
  return sql.begin(async (tx) => {
    // Who sets labels at the same time waits: the later set holds, not a mixture.
    const [chat] = await tx`
      select from chats where workspace_id = ${workspaceId} and id = ${id} for no key update`
    if (!chat) throw notFound('Chat')
    const labels = await tx`
      select from labels where workspace_id = ${workspaceId} and id = any(${labelIds}::uuid[]) for key share`
    if (labels.length < labelIds.length) throw notFound('Label')
    await tx`delete from chat_labels where chat_id = ${id} and label_id <> all(${labelIds}::uuid[])`
    await tx`
      insert into chat_labels (chat_id, label_id, workspace_id)
      select ${id}::uuid, label, ${workspaceId}::uuid from unnest(${labelIds}::uuid[]) label
      on conflict do nothing`
    const [now] = await tellChats(tx, workspaceId, [id])
    return now!
  })
}

/** Counts everything in a chat as read. */
export async function markRead(tx: Sql, workspaceId: string, id: string): Promise<void> {
  const read = await tx<{ id: string }>`
    update chats set unread_count = 0
    where workspace_id = ${workspaceId} and id = ${id} and unread_count > 0 returning id`
  if (read.length > 0) await tellChats(tx, workspaceId, [id])
}

/** Somebody in a group. */
export interface Participant {
  waId: string
  /** Null of whom nothing else was heard. */
  contactId: string | null
  name: string | null
  isAdmin: boolean
}

/** What a cursor has in front of the address of an admin. */
const adminMark = '*'

/** Who is in a group, admins first. */
export async function listParticipants(
  sql: Sql,
  workspaceId: string,
  chatId: string,
  { limit, cursor }: PageWish,
): Promise<Page<Participant>> {
  const after = cursor === undefined ? undefined : decodeCursor(cursor, nameKey).key
  const rows = await sql<Participant>`
    select p.wa_id, k.id as contact_id, coalesce(k.name, k.push_name) as name, p.is_admin
    from chat_participants p
    left join contacts a on a.workspace_id = p.workspace_id and a.wa_id = p.wa_id
    left join contacts k on k.id = coalesce(a.merged_into, a.id)
    where p.workspace_id = ${workspaceId} and p.chat_id = ${chatId}
      ${after === undefined ? fragment`` : fragment`and (not p.is_admin, p.wa_id) > (${!after.startsWith(adminMark)}, ${after.slice(1)})`}
    order by not p.is_admin, p.wa_id limit ${limit + 1}`
  const key = ({ isAdmin, waId }: Participant) => (isAdmin ? adminMark : ' ') + waId
  return toPage(
    rows,
    limit,
    (row) => ({ at: noTime, key: key(row) }),
    (row) => row,
  )
}
