import { randomUUID } from 'node:crypto'
import { auditing } from './audit-log.ts'
import type { Actor } from './audit-log.ts'
import { joinHome } from './chat-homes.ts'
import { fragment, planOnce } from './db.ts'
import type { Fragment, Sql, Tag, Transaction } from './db.ts'
import { notFound } from './errors.ts'
import { columnsOf } from './message-columns.ts'
import type { ContentColumns } from './message-columns.ts'
import type { MessageContent } from './message-content.ts'
import { mediaColumn, messageHold, messageResource } from './messages.ts'
import type { Message, MessageRow } from './messages.ts'
import { enqueuing } from './outbox.ts'
import { guard, isLater, isQuotable } from './refusals.ts'
import type { Refusal } from './refusals.ts'
import { isGroup, keyIdOf } from './wa-id.ts'

export interface NewMessage {
  /**
   * As parseRecipient() returns it. The message goes to the recipient's chat, which is opened if there is none and may be
   * under another address of the same person: see joinHome().
   */
  waChatId: string
  content: MessageContent
  mentions?: string[]
  /** A message of the same chat, none that failed or was cancelled. */
  quotedMessageId?: string | undefined
  /** The message of the chat its author takes for the last: it is refused when there is a later one. */
  ifLastMessageId?: string | undefined
  sendAt?: Date | undefined
  /** Why it is sent although the recipient has opted out; it is told to the audit log. */
  optOutOverride?: string | undefined
}

export interface Submission {
  workspaceId: string
  sessionId: string
  sentBy: string | null
  requestId: string
  /** Who hands it in, for the audit log. Only who is named may override an opt-out. */
  by?: Actor
  batchId?: string
  messages: NewMessage[]
}

/** What became of one message that was handed in. */
export type Outcome = { message: Message } | { refusal: Refusal }

/**
 * Accepts messages for sending, and nudges the workers. Chats, messages, outbox, lanes and events are written in one
 * transaction: either all of it is durable when this resolves, or none of it exists. Returns the outcomes in the order of
 * the messages, which is also the order they leave in. Throws 404 when the session, or a file, is gone.
 */
export async function accept(sql: Sql, submission: Submission): Promise<Outcome[]> {
  const guards = submission.messages.map(({ ifLastMessageId }) => ifLastMessageId)
  return sql.begin(async (tx) => {
    // Also when all are refused, which is not known before the commit is on its way.
    tx.nudge('awfar_outbox', submission.sessionId)
    tx.nudge('awfar_events')
    await holdFiles(tx, submission)
    await planOnce(tx)
    return guards.some((id) => id !== undefined)
      ? await writeGuarded(tx, submission, guards)
      : await write(tx.final, submission)
  })
}

/** Holds the files of new messages: whoever deletes one waits, and finds that it is needed. Throws 404 when one is gone. */
async function holdFiles(tx: Sql, { workspaceId, messages }: Submission): Promise<void> {
  const files = messages.flatMap(({ content }) => columnsOf(content).mediaId ?? [])
  if (files.length === 0) return
  const held = await tx`
    select from media where workspace_id = ${workspaceId} and id = any(${files}::uuid[]) order by id for key share`
  if (held.length < new Set(files).size) throw notFound('Media')
}

async function writeGuarded(
  tx: Transaction,
  submission: Submission,
  guards: (string | undefined)[],
): Promise<Outcome[]> {
  for (;;) {
    await tx`savepoint unguarded`
    const outcomes = await write(tx, submission)
    if (!(await isOvertaken(tx, guards, outcomes))) return outcomes
    // What was committed between the look and the writing is seen by the next look.
    await tx`rollback to savepoint unguarded`
  }
}

/**
 * Whether a message that was just written does not directly follow the one its author took for the last. Writing it has
 * locked its chat, and whatever adds a message to a chat takes that lock: what is not seen here comes later.
 */
async function isOvertaken(
  tx: Sql,
  guards: (string | undefined)[],
  outcomes: Outcome[],
): Promise<boolean> {
  const written = outcomes.flatMap((outcome) => ('message' in outcome ? [outcome.message.id] : []))
  const seen = guards.filter((id, i) => id !== undefined && 'message' in outcomes[i]!)
  const [later] = await tx`
    select from messages g join messages n on ${isLater} and n.id <> all(${written}::uuid[])
    where g.id = any(${seen}::uuid[]) limit 1`
  return later !== undefined
}

/** What only the database can say of a new message; times as in JSON. */
interface Told extends Pick<Message, 'chatId' | 'waChatId' | 'heldBy' | 'sentBy'> {
  media?: Message['media']
  createdAt: string
  notBefore: string | null
}

async function write(run: Tag, submission: Submission): Promise<Outcome[]> {
  const { workspaceId, sessionId, messages, by } = submission
  const ids = messages.map(() => randomUUID())
  const columns = messages.map(({ content }) => columnsOf(content))
  // Most messages quote, guard and override nothing; a plan that could is larger by a quarter.
  const quotes = messages.some(({ quotedMessageId }) => quotedMessageId !== undefined)
  const guards = messages.some(({ ifLastMessageId }) => ifLastMessageId !== undefined)
  const overrides = messages.some(({ optOutOverride }) => optOutOverride !== undefined)
  if (overrides && !by) throw new Error('An opt-out must be overridden by somebody.')
  const attached = columns.some(({ mediaId }) => mediaId !== null)
  const fresh = messages.map((message, i) => newMessage(submission, message, ids[i]!, columns[i]!))
  const home = { sessionId: fragment`session.id`, waChatId: fragment`home.wa_chat_id` }
  const where = { ...home, sendAt: fragment`i.send_at` }
  const rows = await run<{ refusal: Refusal | null; told: Told }>`
    with session as (
      -- As every row that names it locks it in any case, only before: see deleteSession().
      select id, status, lease_until from wa_sessions where id = ${sessionId} and workspace_id = ${workspaceId} and deleted_at is null for key share
    ), input as (
      ${guards ? fragment`select i.*, ${overtakenWithin} as refusal from (` : fragment``}
      select i.*, home.wa_chat_id, c.id is not null as has_chat, coalesce(case
          when k.opted_out and i.override is null then 'RECIPIENT_OPTED_OUT'
          when not ${quotes ? isQuotable(fragment`i.quoted`, where) : fragment`true`} then 'QUOTED_NOT_FOUND' end,
          ${guards ? guard(fragment`i.last`, where) : fragment`null`}) as ${guards ? fragment`fault` : fragment`refusal`}
      from unnest(
        ${ids}::uuid[], ${messages.map(({ waChatId }) => waChatId)}::text[],
        ${messages.map(({ waChatId }) => isGroup(waChatId))}::boolean[],
        ${columns.map(({ type }) => type)}::text[], ${columns.map(({ body }) => body)}::text[],
        ${columns.map(({ content }) => content && JSON.stringify(content))}::jsonb[], ${columns.map(({ mediaId }) => mediaId)}::uuid[],
        ${messages.map(({ mentions = [] }) => JSON.stringify(mentions))}::jsonb[],
        ${messages.map(({ quotedMessageId }) => quotedMessageId ?? null)}::uuid[],
        ${messages.map(({ ifLastMessageId }) => ifLastMessageId ?? null)}::uuid[],
        ${messages.map(({ sendAt }) => sendAt?.toISOString() ?? null)}::timestamptz[],
        ${messages.map(({ optOutOverride }) => optOutOverride ?? null)}::text[], ${ids.map(keyIdOf)}::text[],
        ${fresh.map((message) => JSON.stringify(message))}::jsonb[]
      ) with ordinality i(id, address, is_group, type, body, content, media_id, mentions, quoted, last, send_at, override, key_id, fresh, ord)
      cross join session
      ${joinHome({ workspaceId: fragment`${workspaceId}::uuid`, sessionId: fragment`session.id` }, fragment`i.address`)}
      ${guards ? fragment`) i` : fragment``}
    ), target as (
      -- In one order, so that two batches to the same people wait for each other instead of for ever.
      select wa_chat_id, bool_or(is_group) as is_group, bool_or(has_chat) as has_chat, (array_agg(id order by ord desc))[1] as last_id
      from input where refusal is null group by wa_chat_id order by wa_chat_id
    ), contact as (
      insert into contacts (workspace_id, session_id, wa_id, phone, lid)
      select ${workspaceId}::uuid, ${sessionId}::uuid, wa_chat_id, case when wa_chat_id like '%@c.us' then '+' || split_part(wa_chat_id, '@', 1) end,
        case when wa_chat_id like '%@lid' then wa_chat_id end
      from target where not is_group and not has_chat
      on conflict (workspace_id, wa_id) do update set wa_id = excluded.wa_id
      returning coalesce(merged_into, id) as id, wa_id
    ), chat as (
      insert into chats (workspace_id, session_id, wa_chat_id, is_group, contact_id, last_message_id, last_message_at)
      select ${workspaceId}::uuid, ${sessionId}::uuid, wa_chat_id, is_group, contact.id, last_id, now()
      from target left join contact on contact.wa_id = target.wa_chat_id
      on conflict (session_id, wa_chat_id) do update
      set last_message_id = case when chats.last_message_at <= excluded.last_message_at then excluded.last_message_id else chats.last_message_id end,
          last_message_at = greatest(chats.last_message_at, excluded.last_message_at),
          archived = false
      returning id, wa_chat_id, is_group, last_inbound_at, contacted_at
    ), message as (
      insert into messages (id, workspace_id, session_id, chat_id, direction, source, type, body, content, media_id, mentions, quoted_message_id, status,
        wa_key_id, sent_by, request_id, batch_id, send_at, opt_out_override, addressed_to)
      select i.id, ${workspaceId}::uuid, ${sessionId}::uuid, chat.id, 'outbound', 'api', i.type, i.body, i.content, i.media_id,
        array(select jsonb_array_elements_text(i.mentions)), i.quoted, 'queued', i.key_id, ${submission.sentBy}::uuid, ${submission.requestId}::text,
        ${submission.batchId}::uuid, i.send_at, i.override, ${addressedTo}
      from input i join chat on chat.wa_chat_id = i.wa_chat_id where i.refusal is null order by i.ord
      returning id, chat_id, media_id, seq, status, send_at, created_at
    ), ${enqueuing({ workspaceId, sessionId })}, told as (
      select i.ord, i.refusal, i.fresh, jsonb_build_object('chatId', m.chat_id, 'waChatId', coalesce(${addressedTo}, i.wa_chat_id), 'createdAt', ${isoTime(fragment`m.created_at`)}, 'heldBy', hold.held_by,
          'notBefore', ${isoTime(fragment`hold.not_before`)},
          'sentBy', (select json_build_object('id', id, 'fullName', full_name) from profiles where id = ${submission.sentBy}::uuid)
          ${attached ? fragment`, 'media', ${mediaColumn}` : fragment``}) as told
      from input i
      left join message m on m.id = i.id left join session s on m.id is not null left join queued o on o.message_id = m.id
      left join lane l on l.chat_id = m.chat_id
      ${attached ? fragment`left join media f on f.id = m.media_id left join media_objects fo on fo.id = f.object_id` : fragment``}
      left join lateral (select * from wa_session_pacing where session_id = ${sessionId}) p on true
      ${messageHold}
    ), event as (
      insert into events (workspace_id, session_id, type, payload)
      select ${workspaceId}::uuid, ${sessionId}::uuid, 'message.any', fresh || told from told where refusal is null order by ord
    ) ${overrides ? fragment`, audit as (${auditing(workspaceId, by!, overridden)})` : fragment``}
    select refusal, told from told order by ord`
  if (rows.length === 0) throw notFound('Session')
  return rows.map(({ refusal, told }, i) => {
    if (refusal !== null) return { refusal }
    const createdAt = new Date(told.createdAt)
    const notBefore = told.notBefore === null ? null : new Date(told.notBefore)
    return { message: { ...fresh[i]!, ...told, createdAt, notBefore } }
  })
}

/** The number row `i` was handed in for, where its chat has another address: callers read numbers from where a message goes. */
const addressedTo = fragment`case when i.address like '%@c.us' and i.address <> i.wa_chat_id then i.address end`

/** Why row `i` of a batch is refused: also for what is accepted in front of it, in the same chat. */
const overtakenWithin = fragment`
  case when i.fault is null and i.last is not null
      and bool_or(i.fault is null) over (partition by i.wa_chat_id order by i.ord rows between unbounded preceding and 1 preceding)
    then 'CONVERSATION_MOVED' else i.fault end`

/**
 * Logged even if the recipient has not opted out: the reason also covers an opt-out that arrives before the message is
 * sent.
 */
const overridden = fragment`
  select 'message.opt_out_overridden' as action, 'message' as target_type, id::text as target_id,
    jsonb_build_object('to', wa_chat_id, 'reason', override) as after
  from input where refusal is null and override is not null order by ord`

/** A new message as it is told of, without what only the database can say. */
const newMessage = (
  { workspaceId, sessionId }: Submission,
  { waChatId, mentions = [], quotedMessageId, sendAt }: NewMessage,
  id: string,
  { content, ...columns }: ContentColumns,
): Message =>
  messageResource({
    ...blank,
    ...{ id, workspaceId, sessionId, waChatId, ...columns, mentions },
    content: content as MessageRow['content'],
    quotedMessageId: quotedMessageId ?? null,
    sendAt: sendAt ?? null,
  })

/** What is the same of all new messages, and what is not known of them yet. */
const blank = {
  direction: 'outbound',
  source: 'api',
  status: 'queued',
  attempts: 0,
  chatId: '',
  seq: 0,
  position: '',
  createdAt: new Date(0),
  waMessageId: null,
  ack: null,
  errorCode: null,
  errorMessage: null,
  media: null,
  heldBy: null,
  notBefore: null,
  sentBy: null,
  sentByName: null,
  optOutOverride: null,
  authorWaId: null,
  authorName: null,
  authorContactId: null,
  reactions: null,
  votes: null,
  actions: null,
  sentAt: null,
  deliveredAt: null,
  readAt: null,
  editedAt: null,
  revokedAt: null,
} as const

/** A time as JSON has it. */
const isoTime = (at: Fragment) =>
  fragment`to_char(${at} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`
