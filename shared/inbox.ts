import { findChat } from './chats.ts'
import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import type { EventType } from './events.ts'
import { announceMedia } from './media-fetches.ts'
import type { ReceivedMedia } from './media-fetches.ts'
import { findMessage, messageResource } from './messages.ts'
import type { MessageType } from './messages.ts'
import { callThemselves, contactOf, holdPeople, learnPerson } from './identities.ts'
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
  /** Whether it was heard as it happened, read again afterwards, or is from before the session was linked. Live when absent. */
  source?: 'live' | 'backfill' | 'history'
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
 * Stores a message, its chat and its people, and tells of it, in one transaction. However often and under whichever address the
 * same message is reported, it is stored once: undefined means it was there already. One that could not be read at first is completed
 * when its content comes, and is a `message` event then. What was said before the session was linked (`history`) is no news: nothing is told of it, and
 * nothing counts as unread for it. Throws LeaseLost.
 */
export async function storeReceived(
  sql: Sql,
  session: { id: string; workspaceId: string; fence: number },
  message: Received,
): Promise<string | undefined> {
  // Most repeats have nothing to add: they cost one look.
  const repeated = await knownAs(sql, session, message)
  if (repeated) await heedEcho(sql, session, message, repeated)
  if (repeated && !(repeated.placeholder && isReadable(message))) return undefined
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    await holdPeople(tx, session.workspaceId, 'keep')
    // Before the chat is opened: the same message under another address must not leave an empty chat behind.
    const known = await knownAs(tx, session, message)
    if (known) return complete(tx, session, known.id, message)
    const { source = 'live', revoked = false, content = null, mentions = [] } = message
    const author = isGroup(message.waChatId) && !message.fromMe ? message.participant : ''
    // Contacts are locked before chats, everywhere.
    if (author !== '') await meet(tx, session, author, message)
    const chatId = await openChat(tx, session, message)
    const [stored] = await tx<{ id: string }>`
      insert into messages (workspace_id, session_id, chat_id, direction, source, type, body, status, ack,
        wa_key_id, wa_participant, wa_message_id, author_wa_id, author_name, content, mentions, quoted_message_id, revoked_at, created_at, sent_at)
      values (${session.workspaceId}, ${session.id}, ${chatId},
        ${message.fromMe ? 'outbound' : 'inbound'}, ${message.fromMe && source === 'live' ? 'phone' : source}, ${message.type}, ${message.body},
        ${message.fromMe ? statusOf(message.ack) : 'received'}, ${message.fromMe ? message.ack : null}::smallint,
        ${message.keyId}, ${message.participant}, ${message.waMessageId},
        ${author || null}, ${author === '' ? null : message.senderName},
        ${content}, ${mentions}, ${quotedIn(session, message)}, case when ${revoked} then now() end,
        -- WhatsApp counts whole seconds; within that second the order of arrival decides. A sender's clock that is ahead counts for nothing.
        least(clock_timestamp(), to_timestamp(${message.timestamp}) + interval '999999 microseconds'),
        to_timestamp(${message.timestamp}))
      on conflict do nothing
      returning id`
    if (!stored) return undefined
    if (message.media)
      await announceMedia(tx, session, stored.id, message.media, source === 'history')
    await heedOptOut(tx, session.workspaceId, stored.id, message)

    const isNews = source !== 'history'
    await tx`
      update chats c set unread_count = c.unread_count + ${message.fromMe || !isNews ? 0 : 1}, archived = c.archived and not ${isNews}::boolean,
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
    if (!isNews) return stored.id
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

interface Known {
  id: string
  /** Its content was not to be read when it came. */
  placeholder: boolean
  /** Its chat, and whose that is. */
  waChatId: string
  contactId: string | null
  /** The contact of the address it is reported under now. */
  seenAs: string | null
}

/**
 * What we sent to one address and see again under another tells that both are of one person. Only of ours: the id of what comes in was chosen by its sender, who
 * could claim to be somebody else.
 */
async function heedEcho(
  sql: Sql,
  session: { id: string; workspaceId: string; fence: number },
  { fromMe, waChatId, timestamp }: Received,
  known: Known,
): Promise<void> {
  if (!fromMe || isGroup(waChatId) || known.contactId === null) return
  if (known.waChatId === waChatId || known.contactId === known.seenAs) return
  const bothNumbers = [waChatId, known.waChatId].every((address) => phoneOf(address) !== null)
  await learnPerson(sql, session, {
    addresses: [known.waChatId, waChatId],
    source: 'echo',
    at: new Date(timestamp * 1_000),
    ...(bothNumbers && { alternate: known.waChatId }),
  })
}

const isReadable = ({ pending, revoked, type }: Received) =>
  !pending && !revoked && type !== 'unknown'

/**
 * The row of a message that was reported before. The author of one in a group may have been seen under their other address then: it is the same message when
 * the two are known to be one person, or when moment and text agree.
 */
async function knownAs(
  sql: Sql,
  session: { id: string; workspaceId: string },
  { fromMe, keyId, waChatId, participant, timestamp, body }: Received,
): Promise<Known | undefined> {
  const [known] = await sql<Known>`
    select m.id, m.type = 'unknown' and m.body is null as placeholder, c.wa_chat_id, c.contact_id,
      (select coalesce(k.merged_into, k.id) from contacts k where k.workspace_id = ${session.workspaceId} and k.wa_id = ${waChatId}) as seen_as
    from messages m join chats c on c.id = m.chat_id
    where m.session_id = ${session.id} and (m.direction = 'outbound') = ${fromMe} and m.wa_key_id = ${keyId}
      and (m.wa_participant = ${participant}
        or split_part(m.wa_participant, '@', 2) <> split_part(${participant}, '@', 2) and (
          m.sent_at = to_timestamp(${timestamp}) and (m.body = ${body} or m.body is null or ${body}::text is null)
          or exists (
            select from contacts a join contacts b on coalesce(a.merged_into, a.id) = coalesce(b.merged_into, b.id)
            where a.workspace_id = ${session.workspaceId} and a.wa_id = m.wa_participant
              and b.workspace_id = ${session.workspaceId} and b.wa_id = ${participant})))
    order by m.wa_participant = ${participant} desc limit 1`
  return known
}

/** A message that is there: its content may have been missing. Answers its id if so, else undefined. */
async function complete(
  tx: Sql,
  session: { id: string; workspaceId: string },
  id: string,
  message: Received,
): Promise<string | undefined> {
  if (!isReadable(message)) return undefined
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
  const [wish] = await tx<{ out: boolean; contactId: string }>`
    select w.out, c.contact_id
    from (
      select case when ${word} in ('START', 'UNSTOP') then false when ${word} = any(words) then true end as out, words
      from (select array(select upper(x) from unnest(opt_out_words) x) as words from workspaces where id = ${workspaceId}) o) w, messages m, chats c
    where m.id = ${messageId} and c.id = m.chat_id and c.contact_id is not null and w.out is not null
      -- Read again afterwards, it may be older than a word that was heard.
      and not exists (
        select from messages n
        where n.chat_id in (select o.id from chats o where o.contact_id = c.contact_id) and n.direction = 'inbound' and n.created_at > m.created_at and length(n.body) <= 60
          and upper(rtrim(btrim(n.body, E' \\t\\r\\n'), '.!')) = any(w.words || array['START', 'UNSTOP']))`
  if (!wish) return
  await tx`
    update contacts set opted_out = ${wish.out}, opted_out_at = case when ${wish.out}::boolean then now() end
    where id = ${wish.contactId} and opted_out <> ${wish.out}`
}

/** Whoever wrote is a contact from now on. */
const meet = (
  tx: Sql,
  session: { id: string; workspaceId: string },
  waId: string,
  { fromMe, senderName, timestamp }: Received,
) => contactOf(tx, session, waId, fromMe ? null : senderName, new Date(timestamp * 1_000))

/** Finds or creates the chat and its contact, and learns the sender's name. */
async function openChat(
  tx: Sql,
  session: { id: string; workspaceId: string },
  message: Received,
): Promise<string> {
  const { waChatId, fromMe, senderName, chatName } = message
  const group = isGroup(waChatId)
  // What was sent to a number may be answered from the address WhatsApp has for it.
  const [chat] = await tx<{
    id: string
    waChatId: string
    name: string | null
    contactId: string | null
  }>`
    select id, wa_chat_id, name, contact_id from chats
    where session_id = ${session.id} and (wa_chat_id = ${waChatId} or canonical_wa_id = ${waChatId})
    order by canonical_wa_id is not distinct from ${waChatId} desc limit 1`
  if (chat && (group ? chatName === null || chatName === chat.name : chat.contactId !== null)) {
    if (!group && !fromMe && senderName !== null) {
      await callThemselves(tx, chat.contactId!, senderName, new Date(message.timestamp * 1_000))
    }
    return chat.id
  }
  const contactId = group ? null : await meet(tx, session, chat?.waChatId ?? waChatId, message)
  const [opened] = await tx<{ id: string }>`
    insert into chats (workspace_id, session_id, wa_chat_id, is_group, contact_id, name)
    values (${session.workspaceId}, ${session.id}, ${chat?.waChatId ?? waChatId}, ${group}, ${contactId}, ${group ? chatName : null})
    on conflict (session_id, wa_chat_id) do update set name = coalesce(excluded.name, chats.name)
    returning id`
  return opened!.id
}

const statusOf = (ack: number) =>
  ack < 0 ? 'failed' : (['sending', 'sent', 'delivered', 'read', 'played'][ack] ?? 'sent')
