import { findChat } from './chats.ts'
import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import type { EventType } from './events.ts'
import { announceMedia } from './media-fetches.ts'
import type { ReceivedMedia } from './media-fetches.ts'
import { findMessage, messageResource } from './messages.ts'
import type { MessageType } from './messages.ts'
import { assertFence } from './wa-session-leases.ts'
import { isGroup, phoneOf } from './wa-id.ts'

/** A message WhatsApp told us of: one that came in, or one of ours that was typed on another device. */
export interface Received {
  fromMe: boolean
  waChatId: string
  keyId: string
  /** Who wrote it, in a group; empty elsewhere and for our own. */
  participant: string
  waMessageId: string
  type: MessageType
  body: string | null
  /** Seconds since 1970, as WhatsApp gives it. */
  timestamp: number
  ack: number
  senderName: string | null
  chatName: string | null
  /** Whether it was heard as it happened, or read again afterwards. Live when absent. */
  source?: 'live' | 'backfill'
  /** Its content is not to be read yet; it follows under the same id. */
  pending?: boolean
  /** It was deleted before we saw it. */
  revoked?: boolean
  /** What a text cannot hold: a place, a card, a poll. */
  content?: object | null
  mentions?: string[]
  /** The file that came with it. */
  media?: ReceivedMedia | null
  /** The message it answers. */
  quoted?: { fromMe: boolean; id: string } | null
}

/**
 * Stores a message, its chat and its contact, and tells of it, in one transaction. However often and under whichever address the
 * same message is reported, it is stored once: undefined means it was there already. One that could not be read at first is completed
 * when its content comes, and is a `message` event then. Throws LeaseLost.
 */
export async function storeReceived(
  sql: Sql,
  session: { id: string; workspaceId: string; fence: number },
  message: Received,
): Promise<string | undefined> {
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    // Before the chat is opened: the same message under another address must not leave an empty chat behind.
    const [known] = await tx<{ id: string }>`
      select id from messages
      where session_id = ${session.id} and (direction = 'outbound') = ${message.fromMe}
        and wa_key_id = ${message.keyId} and wa_participant = ${message.participant}`
    if (known) return complete(tx, session, known.id, message)
    const chatId = await openChat(tx, session, message)
    const group = isGroup(message.waChatId)
    const { source = 'live', revoked = false, content = null, mentions = [] } = message
    const [stored] = await tx<{ id: string }>`
      insert into messages (workspace_id, session_id, chat_id, direction, source, type, body, status, ack,
        wa_key_id, wa_participant, wa_message_id, author_wa_id, author_name, content, mentions, quoted_message_id, revoked_at, created_at, sent_at)
      values (${session.workspaceId}, ${session.id}, ${chatId},
        ${message.fromMe ? 'outbound' : 'inbound'}, ${message.fromMe && source === 'live' ? 'phone' : source}, ${message.type}, ${message.body},
        ${message.fromMe ? statusOf(message.ack) : 'received'}, ${message.fromMe ? message.ack : null}::smallint,
        ${message.keyId}, ${message.participant}, ${message.waMessageId},
        ${group && !message.fromMe ? message.participant : null}, ${group && !message.fromMe ? message.senderName : null},
        ${content}, ${mentions}, ${quotedIn(session, message)}, case when ${revoked} then now() end,
        -- WhatsApp counts whole seconds; within that second the order of arrival decides. A sender's clock that is ahead counts for nothing.
        least(clock_timestamp(), to_timestamp(${message.timestamp}) + interval '999999 microseconds'),
        to_timestamp(${message.timestamp}))
      on conflict do nothing
      returning id`
    if (!stored) return undefined
    if (message.media) await announceMedia(tx, session, stored.id, message.media)

    await tx`
      update chats c set unread_count = c.unread_count + ${message.fromMe ? 0 : 1}, archived = false,
        last_inbound_at = case when ${message.fromMe} then c.last_inbound_at else greatest(c.last_inbound_at, m.created_at) end,
        contacted_at = case when ${message.fromMe} then coalesce(c.contacted_at, m.created_at) else c.contacted_at end,
        last_message_id = case when m.created_at >= c.last_message_at or c.last_message_id is null then m.id else c.last_message_id end,
        last_message_at = case when c.last_message_id is null then m.created_at else greatest(c.last_message_at, m.created_at) end
      from messages m where m.id = ${stored.id} and c.id = m.chat_id`
    // The conversation is open: what waits there needs no budget, and an answer no daytime.
    await tx`
      update outbox_lanes l
      set cold = false, last_inbound_at = case when ${message.fromMe} then l.last_inbound_at else greatest(l.last_inbound_at, m.created_at) end
      from messages m where m.id = ${stored.id} and l.chat_id = ${chatId}`
    await heedOptOut(tx, session.workspaceId, stored.id, message)
    // What cannot be read is no message yet to whoever answers messages.
    const readable = !message.pending && !revoked
    await tell(
      tx,
      session,
      stored.id,
      message.fromMe || !readable ? ['message.any'] : ['message', 'message.any'],
    )
    return stored.id
  })
}

/** A message that is there: its content may have been missing. Answers its id if so, else undefined. */
async function complete(
  tx: Sql,
  session: { id: string; workspaceId: string },
  id: string,
  message: Received,
): Promise<string | undefined> {
  if (message.pending || message.revoked || message.type === 'unknown') return undefined
  const { type, body, content = null, mentions = [] } = message
  const [completed] = await tx`
    update messages
    set type = ${type}, body = ${body}, content = ${content}, mentions = ${mentions}, quoted_message_id = ${quotedIn(session, message)}
    where id = ${id} and type = 'unknown' and body is null and revoked_at is null returning id`
  if (!completed) return undefined
  if (message.media) await announceMedia(tx, session, id, message.media)
  await heedOptOut(tx, session.workspaceId, id, message)
  await tell(tx, session, id, message.fromMe ? ['message.any'] : ['message', 'message.any'])
  return id
}

/** Our id of the message that is answered, whatever address it was stored under. */
const quotedIn = (session: { id: string }, { quoted }: Received) =>
  quoted
    ? fragment`(select q.id from messages q where q.session_id = ${session.id} and (q.direction = 'outbound') = ${quoted.fromMe}
        and q.wa_key_id = ${quoted.id} limit 1)`
    : fragment`null::uuid`

async function tell(
  tx: Sql,
  { id: sessionId, workspaceId }: { id: string; workspaceId: string },
  messageId: string,
  types: EventType[],
): Promise<void> {
  const payload = messageResource((await findMessage(tx, workspaceId, messageId))!)
  const chat = (await findChat(tx, workspaceId, payload.chatId))!
  await appendEvents(tx, [
    ...types.map((type) => ({ workspaceId, sessionId, type, payload })),
    { workspaceId, sessionId, type: 'chat.updated', payload: chat },
  ])
}

/** A message that is nothing but one of the workspace's words for it opts its sender out, START opts in again: the latest such word counts. */
async function heedOptOut(
  tx: Sql,
  workspaceId: string,
  messageId: string,
  { fromMe, waChatId, body }: Received,
): Promise<void> {
  if (fromMe || isGroup(waChatId)) return
  const word = (body ?? '')
    .trim()
    .replace(/[.!]+$/, '')
    .toUpperCase()
  if (word === '' || word.length > 40) return
  await tx`
    update contacts k set opted_out = w.out, opted_out_at = case when w.out then now() end
    from (
      select case when ${word} in ('START', 'UNSTOP') then false when ${word} = any(words) then true end as out, words
      from (select array(select upper(x) from unnest(opt_out_words) x) as words from workspaces where id = ${workspaceId}) o) w, messages m, chats c
    where m.id = ${messageId} and c.id = m.chat_id and k.id = c.contact_id and w.out is not null and k.opted_out <> w.out
      -- Read again afterwards, it may be older than a word that was heard.
      and not exists (
        select from messages n
        where n.chat_id = m.chat_id and n.direction = 'inbound' and n.created_at > m.created_at and length(n.body) <= 60
          and upper(rtrim(btrim(n.body, E' \\t\\r\\n'), '.!')) = any(w.words || array['START', 'UNSTOP']))`
}

/** Finds or creates the chat and its contact, and learns the sender's name. */
async function openChat(
  tx: Sql,
  session: { id: string; workspaceId: string },
  { waChatId, fromMe, senderName, chatName }: Received,
): Promise<string> {
  const group = isGroup(waChatId)
  // What was sent to a number may be answered from the address WhatsApp has for it.
  const [dialled] = await tx<{ id: string; waChatId: string }>`
    select id, wa_chat_id from chats where session_id = ${session.id} and canonical_wa_id = ${waChatId} limit 1`
  if (dialled && dialled.waChatId !== waChatId) {
    await tx`
      update contacts k set push_name = coalesce(${fromMe ? null : senderName}, k.push_name)
      from chats c where c.id = ${dialled.id} and k.id = c.contact_id`
    return dialled.id
  }
  const pushName = fromMe || group ? null : senderName
  const [contact] = group
    ? []
    : await tx<{ id: string }>`
        insert into contacts (workspace_id, wa_id, phone, lid, push_name)
        values (${session.workspaceId}, ${waChatId}, ${phoneOf(waChatId)},
          ${waChatId.endsWith('@lid') ? waChatId : null}, ${pushName})
        on conflict (workspace_id, wa_id) do update set push_name = coalesce(excluded.push_name, contacts.push_name)
        returning id`
  const [chat] = await tx<{ id: string }>`
    insert into chats (workspace_id, session_id, wa_chat_id, is_group, contact_id, name)
    values (${session.workspaceId}, ${session.id}, ${waChatId}, ${group}, ${contact?.id}, ${group ? chatName : null})
    on conflict (session_id, wa_chat_id) do update set name = coalesce(excluded.name, chats.name)
    returning id`
  return chat!.id
}

const statusOf = (ack: number) =>
  ack < 0 ? 'failed' : (['sending', 'sent', 'delivered', 'read', 'played'][ack] ?? 'sent')
