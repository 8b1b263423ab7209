import { keptAck } from './acks.ts'
import { findChats } from './chats.ts'
import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { appendEvents } from './events.ts'
import type { NewEvent } from './events.ts'
import { announceMedia } from './media-fetches.ts'
import { makeEarlyChanges } from './message-changes.ts'
import { findMessages, messageResource } from './messages.ts'
import { areOne, holdPeople, learnPerson, mayBeOne } from './identities.ts'
import { heedOptOuts, mayOptOut } from './opt-outs.ts'
import { openChats } from './received-chats.ts'
import { authorOf } from './received.ts'
import type { Received } from './received.ts'
import { assertFence } from './wa-session-leases.ts'
import type { SessionLease } from './wa-session-leases.ts'
import { isGroup, phoneOf } from './wa-id.ts'

/** Stores one message, as storeAllReceived() does. Answers its id, or undefined when it was there already. */
export async function storeReceived(
  sql: Sql,
  session: SessionLease,
  message: Received,
): Promise<string | undefined> {
  const [id] = await storeAllReceived(sql, session, [message])
  return id
}

/**
 * Stores messages in the order they came, their chats and their people, and tells of them, in one transaction; in more than one only where they repeat or answer each
 * other. However often and under whichever address the same message is reported, it is stored once: undefined means it was there already. One that could not be read
 * at first is completed when its content comes, and is a `message` event then. What was said before the session was linked (`history`) is no news: nothing is told
 * of it, and nothing counts as unread for it. Answers their ids in the order of the messages. Throws LeaseLost.
 */
export async function storeAllReceived(
  sql: Sql,
  session: SessionLease,
  messages: Received[],
): Promise<(string | undefined)[]> {
  const ids = messages.map((): string | undefined => undefined)
  let waiting = messages.map((message, index) => ({ message, index }))
  while (waiting.length > 0) {
    const { now, later } = nextRound(waiting)
    const stored = await storeRound(
      sql,
      session,
      now.map(({ message }) => message),
    )
    for (const { message, index } of now) ids[index] = stored.get(message)
    waiting = later
  }
  return ids
}

/** What can be stored at once: repeats find the first report in the database, an answer finds the message it answers. */
function nextRound<T extends { message: Received }>(waiting: T[]): { now: T[]; later: T[] } {
  const slots = new Set<string>()
  const now: T[] = []
  const later: T[] = []
  for (const [index, report] of waiting.entries()) {
    const { fromMe, keyId, quoted } = report.message
    if (quoted && slots.has(`${quoted.fromMe}_${quoted.id}`)) {
      later.push(...waiting.slice(index))
      break
    }
    const slot = `${fromMe}_${keyId}`
    if (slots.has(slot)) later.push(report)
    else now.push(report)
    slots.add(slot)
  }
  return { now, later }
}

/** Answers the ids of what was stored or completed. */
async function storeRound(
  sql: Sql,
  session: SessionLease,
  messages: Received[],
): Promise<Map<Received, string>> {
  // Most repeats have nothing to add: they cost one look.
  const repeated = await knownAs(sql, session, messages)
  for (const [message, known] of repeated) await heedEcho(sql, session, message, known)
  const open = messages.filter((message) => {
    const known = repeated.get(message)
    return !known || (known.placeholder && isReadable(message))
  })
  if (open.length === 0) return new Map()
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    await holdPeople(tx, session.workspaceId, 'keep')
    // Before the chats are opened: the same message under another address must not leave an empty chat behind.
    const known = await knownAs(tx, session, open)
    const fresh = open.filter((message) => !known.has(message))
    const { stored, awaited } = await insertMessages(tx, session, fresh)
    for (const [message, { id }] of known) {
      if (await complete(tx, session, id, message)) stored.set(message, id)
    }
    // In the order they came.
    const changed = open.filter((message) => stored.has(message))
    for (const message of changed) {
      const { media, source } = message
      if (media) await announceMedia(tx, session, stored.get(message)!, media, source === 'history')
    }
    await heedOptOuts(
      tx,
      session.workspaceId,
      changed.filter(mayOptOut).map((message) => stored.get(message)!),
    )
    const news = changed.filter((message) => known.has(message) || message.source !== 'history')
    await tell(
      tx,
      session,
      news.map((message) => ({
        id: stored.get(message)!,
        // What cannot be read is no message yet to whoever answers messages.
        isMessage: !message.fromMe && !message.pending && !message.revoked,
      })),
    )
    if (awaited.length > 0) await makeEarlyChanges(tx, session, awaited)
    return stored
  })
}

/** Stores what is not there, and what it changes in chats and lanes. Answers their ids, and those for which there may be changes that were told before. */
async function insertMessages(
  tx: Sql,
  session: SessionLease,
  messages: Received[],
): Promise<{ stored: Map<Received, string>; awaited: string[] }> {
  if (messages.length === 0) return { stored: new Map(), awaited: [] }
  const chatIds = await openChats(tx, session, messages)
  const column = <T>(of: (message: Received) => T) => messages.map(of)
  const rows = await tx<{ id: string; index: number; awaited: boolean }>`
    with input as (
      select x.* from unnest(
        ${column(({ fromMe }) => fromMe)}::boolean[], ${column(({ waChatId }) => chatIds.get(waChatId))}::uuid[],
        ${column(({ fromMe, source = 'live' }) => (fromMe && source === 'live' ? 'phone' : source))}::text[],
        ${column(({ type }) => type)}::text[], ${column(({ body }) => body)}::text[],
        ${column(({ fromMe, ack }) => (fromMe ? statuses[keptAck(ack)] : 'received'))}::text[], ${column(({ fromMe, ack }) => (fromMe ? keptAck(ack) : null))}::smallint[],
        ${column(({ keyId }) => keyId)}::text[], ${column(({ participant }) => participant)}::text[], ${column(({ waMessageId }) => waMessageId)}::text[],
        ${column((message) => authorOf(message) ?? null)}::text[], ${column((message) => (authorOf(message) === undefined ? null : message.senderName))}::text[],
        ${column(({ content = null }) => content && JSON.stringify(content))}::jsonb[], ${column(({ mentions = [] }) => JSON.stringify(mentions))}::jsonb[],
        ${column(({ quoted }) => quoted?.fromMe ?? null)}::boolean[], ${column(({ quoted }) => quoted?.id ?? null)}::text[],
        ${column(({ revoked = false }) => revoked)}::boolean[], ${column(({ timestamp }) => timestamp)}::float8[]
      ) with ordinality x(from_me, chat_id, source, type, body, status, ack, key_id, participant, wa_message_id, author, author_name,
        content, mentions, quoted_from_me, quoted_id, revoked, at, ord)
    ), stored as (
      insert into messages (workspace_id, session_id, chat_id, direction, source, type, body, status, ack,
        wa_key_id, wa_participant, wa_message_id, author_wa_id, author_name, content, mentions, quoted_message_id, revoked_at, created_at, sent_at)
      select ${session.workspaceId}::uuid, ${session.id}::uuid, chat_id, case when from_me then 'outbound' else 'inbound' end, source, type, body, status, ack,
        key_id, participant, wa_message_id, author, author_name, content, array(select jsonb_array_elements_text(i.mentions)),
        ${quotedIn(session, fragment`i.quoted_from_me`, fragment`i.quoted_id`)}, case when revoked then now() end,
        -- WhatsApp counts whole seconds; within that second the order of arrival decides. A sender's clock that is ahead counts for nothing.
        least(clock_timestamp(), to_timestamp(at) + interval '999999 microseconds'), to_timestamp(at)
      from input i order by ord
      on conflict do nothing
      returning id, direction = 'outbound' as from_me, wa_key_id
    )
    select s.id, i.ord::int - 1 as index,
      exists (select from early_changes e where e.session_id = ${session.id} and e.wa_key_id = s.wa_key_id) as awaited
    from stored s join input i on i.from_me = s.from_me and i.key_id = s.wa_key_id`
  await moveChatsOn(
    tx,
    rows.map(({ id }) => id),
  )
  return {
    stored: new Map(rows.map(({ id, index }) => [messages[index]!, id])),
    awaited: rows.flatMap(({ id, awaited }) => (awaited ? id : [])),
  }
}

/** What new messages change in their chats, which are locked, and in what waits there to be sent. */
async function moveChatsOn(tx: Sql, ids: string[]): Promise<void> {
  await tx`
    with fresh as (
      select m.chat_id, count(*) filter (where m.direction = 'inbound' and m.source <> 'history')::int as unread, bool_or(m.source <> 'history') as news,
        max(m.created_at) filter (where m.direction = 'inbound') as inbound_at,
        (array_agg(m.created_at order by m.seq) filter (where m.direction = 'outbound'))[1] as contacted_at,
        max(m.created_at) as last_at, (array_agg(m.id order by m.created_at desc, m.seq desc))[1] as last_id
      from messages m where m.id = any(${ids}::uuid[]) group by m.chat_id
    ), lane as (
      select l.chat_id from outbox_lanes l where l.chat_id in (select chat_id from fresh) order by l.chat_id for no key update
    ), opened as (
      -- The conversation is open: what waits there needs no budget, and an answer no daytime.
      update outbox_lanes l set cold = false, opening = false, last_inbound_at = greatest(l.last_inbound_at, f.inbound_at)
      from lane join fresh f on f.chat_id = lane.chat_id where l.chat_id = lane.chat_id
    )
    update chats c set unread_count = c.unread_count + f.unread, archived = c.archived and not f.news,
      last_inbound_at = greatest(c.last_inbound_at, f.inbound_at),
      contacted_at = coalesce(c.contacted_at, f.contacted_at),
      last_message_id = case when f.last_at >= c.last_message_at or c.last_message_id is null then f.last_id else c.last_message_id end,
      last_message_at = case when c.last_message_id is null then f.last_at else greatest(c.last_message_at, f.last_at) end
    from fresh f where c.id = f.chat_id`
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
  session: SessionLease,
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
 * The rows of messages that were reported before. The author of one in a group may have been seen under their other address then: it is the same message when
 * the two are known to be one person, or when moment and text agree.
 */
async function knownAs(
  sql: Sql,
  session: SessionLease,
  messages: Received[],
): Promise<Map<Received, Known>> {
  const column = <T>(of: (message: Received) => T) => messages.map(of)
  const rows = await sql<Known & { index: number }>`
    select x.ord::int - 1 as index, m.id, m.type = 'unknown' and m.body is null as placeholder, c.wa_chat_id, c.contact_id,
      (select coalesce(k.merged_into, k.id) from contacts k where k.workspace_id = ${session.workspaceId} and k.wa_id = x.wa_chat_id) as seen_as
    from unnest(
      ${column(({ fromMe }) => fromMe)}::boolean[], ${column(({ keyId }) => keyId)}::text[], ${column(({ waChatId }) => waChatId)}::text[],
      ${column(({ participant }) => participant)}::text[], ${column(({ timestamp }) => timestamp)}::float8[], ${column(({ body }) => body)}::text[]
    ) with ordinality x(from_me, key_id, wa_chat_id, participant, at, body, ord)
    cross join lateral (
      select m.id, m.type, m.body, m.chat_id from messages m
      where m.session_id = ${session.id} and (m.direction = 'outbound') = x.from_me and m.wa_key_id = x.key_id
        and (m.wa_participant = x.participant
          or ${areOne(session.workspaceId, fragment`x.participant`, fragment`m.wa_participant`)}
          or m.sent_at = to_timestamp(x.at) and (m.body = x.body or m.body is null or x.body is null)
            and ${mayBeOne(session.workspaceId, fragment`x.participant`, fragment`m.wa_participant`)})
      order by m.wa_participant = x.participant desc limit 1) m
    join chats c on c.id = m.chat_id`
  return new Map(rows.map(({ index, ...known }) => [messages[index]!, known]))
}

/** A message that is there: its content may have been missing. Answers whether it was. */
async function complete(
  tx: Sql,
  session: SessionLease,
  id: string,
  message: Received,
): Promise<boolean> {
  if (!isReadable(message)) return false
  const { type, body, content = null, mentions = [], quoted } = message
  const completed = await tx`
    update messages
    set type = ${type}, body = ${body}, content = ${content}, mentions = ${mentions},
      quoted_message_id = ${quotedIn(session, quoted?.fromMe ?? null, quoted?.id ?? null)}
    where id = ${id} and type = 'unknown' and body is null and revoked_at is null returning id`
  return completed.length > 0
}

/** Our id of the message that is answered, whatever address it was stored under. */
const quotedIn = (
  session: SessionLease,
  fromMe: Fragment | boolean | null,
  keyId: Fragment | string | null,
) => fragment`(
  select q.id from messages q where q.session_id = ${session.id} and (q.direction = 'outbound') = ${fromMe}::boolean and q.wa_key_id = ${keyId}::text limit 1)`

/** Tells of messages, and of their chats as they are after all of them. */
async function tell(
  tx: Sql,
  { id: sessionId, workspaceId }: SessionLease,
  told: { id: string; isMessage: boolean }[],
): Promise<void> {
  if (told.length === 0) return
  const rows = await findMessages(
    tx,
    workspaceId,
    told.map(({ id }) => id),
  )
  const byId = new Map(rows.map((row) => [row.id, row]))
  const events = told.flatMap(({ id, isMessage }): NewEvent[] => {
    const payload = messageResource(byId.get(id)!)
    const types = isMessage ? (['message', 'message.any'] as const) : (['message.any'] as const)
    return types.map((type) => ({ workspaceId, sessionId, type, payload }))
  })
  const chatIds = [...new Set(told.map(({ id }) => byId.get(id)!.chatId))]
  const chats = await findChats(tx, workspaceId, chatIds)
  await appendEvents(tx, [
    ...events,
    ...chats.map((payload): NewEvent => ({
      workspaceId,
      sessionId,
      type: 'chat.updated',
      payload,
    })),
  ])
}

const statuses = {
  [-1]: 'failed',
  0: 'sending',
  1: 'sent',
  2: 'delivered',
  3: 'read',
  4: 'played',
} as const
