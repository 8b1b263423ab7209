import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import type { EventType } from './events.ts'
import { holdPeople, mayBeOne } from './identities.ts'
import { tellMessages } from './messages.ts'
import { heedOptOuts, mayOptOut } from './opt-outs.ts'
import type { MessageKey } from './wa-id.ts'
import { assertFence } from './wa-session-leases.ts'
import type { SessionLease } from './wa-session-leases.ts'

/** A change, as it is kept until its message comes. */
interface Change {
  kind: 'edit' | 'revocation' | 'reaction' | 'vote'
  /** Who reacted or voted; 'me' for the session's own account. */
  waId: string | null
  /** The new text, or the emoji. */
  body: string | null
  options: string[] | null
  at: Date
}

const events: Record<Change['kind'], EventType> = {
  edit: 'message.edited',
  revocation: 'message.revoked',
  reaction: 'message.reaction',
  vote: 'message.reaction',
}

const nobody = { waId: null, body: null, options: null }

/**
 * Records that a text or caption was changed. An older change, or the same once more, changes nothing; one of a message that is not there is made when that comes.
 * Answers the message's id, or undefined when nothing changed. Throws LeaseLost.
 */
export const recordEdit = (
  sql: Sql,
  session: SessionLease,
  { key, body, at }: { key: MessageKey; body: string; at: Date },
): Promise<string | undefined> => record(sql, session, key, { ...nobody, kind: 'edit', body, at })

/** Records that a message was deleted for everyone; what it said stays. Answers as recordEdit() does. Throws LeaseLost. */
export const recordRevocation = (
  sql: Sql,
  session: SessionLease,
  { key, at }: { key: MessageKey; at: Date },
): Promise<string | undefined> => record(sql, session, key, { ...nobody, kind: 'revocation', at })

/**
 * Records a reaction: one a person and message, the latest counts, in whatever order they are told; an empty emoji takes it back. Answers as
 * recordEdit() does. Throws LeaseLost.
 */
export const recordReaction = (
  sql: Sql,
  session: SessionLease,
  {
    target,
    emoji,
    waId,
    fromMe,
    at,
  }: { target: MessageKey; emoji: string; waId: string; fromMe: boolean; at: Date },
): Promise<string | undefined> =>
  record(sql, session, target, {
    ...{ kind: 'reaction', waId: fromMe ? 'me' : waId, body: emoji, options: null, at },
  })

/** Records what a person has chosen in a poll; the latest choice counts. Answers as recordEdit() does. Throws LeaseLost. */
export const recordPollVote = (
  sql: Sql,
  session: SessionLease,
  {
    poll,
    options,
    waId,
    fromMe,
    at,
  }: { poll: MessageKey; options: string[]; waId: string; fromMe: boolean; at: Date },
): Promise<string | undefined> =>
  record(sql, session, poll, {
    ...{ kind: 'vote', waId: fromMe ? 'me' : waId, body: null, options, at },
  })

/** Makes the changes that were told before these messages were stored, and tells of them, in the transaction that stores them. */
export async function makeEarlyChanges(
  tx: Sql,
  session: Omit<SessionLease, 'fence'>,
  messageIds: string[],
): Promise<void> {
  const early = await tx<Change & { messageId: string }>`
    with gone as (
      delete from early_changes e using messages m join chats c on c.id = m.chat_id
      where m.id = any(${messageIds}::uuid[]) and e.session_id = m.session_id and e.wa_key_id = m.wa_key_id and e.from_me = (m.direction = 'outbound')
        and ${isSame(session.workspaceId, fragment`e.wa_participant`, fragment`e.wa_chat_id`)}
      returning e.*, m.id as message_id
    )
    select message_id, kind, wa_id, body, options, at from gone order by id`
  for (const { messageId, ...change } of early)
    await make(tx, session.workspaceId, messageId, change)
}

/**
 * Whether message `m` of chat `c` is the one that is meant: whoever knows the id of another's message must not change that. So the chat must be the same and its
 * author, too, unless who tells of it left the author out; a person may be told of under any of their addresses, a group has but one.
 */
const isSame = (workspaceId: string, participant: Fragment | string, chatId: Fragment | string) =>
  fragment`
  (${chatId} in (c.wa_chat_id, c.canonical_wa_id)
    or not c.is_group and ${chatId} not like '%@g.us' and ${mayBeOne(workspaceId, chatId, fragment`c.wa_chat_id`)})
  and (m.wa_participant = ${participant} or '' in (m.wa_participant, ${participant})
    or ${mayBeOne(workspaceId, participant, fragment`m.wa_participant`)})`

async function record(
  sql: Sql,
  session: SessionLease,
  target: MessageKey,
  change: Change,
): Promise<string | undefined> {
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    const { fromMe, chatId: waChatId } = target
    const wish = change.kind === 'edit' && mayOptOut({ fromMe, waChatId, body: change.body })
    // Whose wish it is must not change. Not only kept: a lock that is shared could not be had for oneself below.
    if (wish) await holdPeople(tx, session.workspaceId, 'change')
    let id = await find(tx, session, target)
    if (id === undefined && !wish) {
      // Once nobody is storing messages: those who did have committed, those who will see what is kept for them.
      await holdPeople(tx, session.workspaceId, 'change')
      id = await find(tx, session, target)
    }
    if (id !== undefined) return (await make(tx, session.workspaceId, id, change)) ? id : undefined
    await keep(tx, session, target, change)
    return undefined
  })
}

async function find(
  tx: Sql,
  session: SessionLease,
  { fromMe, chatId, id, participant }: MessageKey,
): Promise<string | undefined> {
  const [message] = await tx<{ id: string }>`
    select m.id from messages m join chats c on c.id = m.chat_id
    where m.session_id = ${session.id} and (m.direction = 'outbound') = ${fromMe} and m.wa_key_id = ${id}
      and ${isSame(session.workspaceId, fragment`${participant}::text`, fragment`${chatId}::text`)}
    order by m.wa_participant = ${participant} desc limit 1 for no key update of m`
  return message?.id
}

async function keep(
  tx: Sql,
  session: SessionLease,
  target: MessageKey,
  change: Change,
): Promise<void> {
  const { fromMe, chatId, id, participant } = target
  const { kind, waId, body, options, at } = change
  await tx`
    with told as (
      select ${fromMe}::boolean as from_me, ${id}::text as wa_key_id, ${participant}::text as wa_participant, ${chatId}::text as wa_chat_id, ${kind}::text as kind,
        ${waId}::text as wa_id, ${body}::text as body, ${options}::text[] as options, ${at}::timestamptz as at
    )
    insert into early_changes (workspace_id, session_id, from_me, wa_key_id, wa_participant, wa_chat_id, kind, wa_id, body, options, at)
    select ${session.workspaceId}::uuid, ${session.id}::uuid, t.* from told t
    where not exists (
      select from early_changes e
      where e.session_id = ${session.id} and e.wa_key_id = t.wa_key_id and (e.from_me, e.wa_participant, e.wa_chat_id, e.kind) = (t.from_me, t.wa_participant, t.wa_chat_id, t.kind)
        and (e.wa_id, e.body, e.options) is not distinct from (t.wa_id, t.body, t.options))`
}

/** Makes a change, and tells of it when it is one. Needs holdPeople() where it may be a wish to be sent no more. */
async function make(
  tx: Sql,
  workspaceId: string,
  messageId: string,
  change: Change,
): Promise<boolean> {
  const changed = await write(tx, workspaceId, messageId, change)
  if (changed.length === 0) return false
  if (change.kind === 'edit') await heedOptOuts(tx, workspaceId, [messageId])
  await tellMessages(tx, events[change.kind], [messageId])
  return true
}

function write(
  tx: Sql,
  workspaceId: string,
  id: string,
  { kind, waId, body, options, at }: Change,
): Promise<object[]> {
  switch (kind) {
    case 'edit':
      // The clock of whoever changed it may be ahead.
      return tx`
        update messages set body = ${body}, edited_at = least(now(), ${at}::timestamptz)
        where id = ${id} and body is distinct from ${body} and revoked_at is null
          and coalesce(edited_at, '-infinity') <= least(now(), ${at}::timestamptz)
          -- The name of what cannot be read is no edit of it.
          and not (type = 'unknown' and body is null)
        returning id`
    case 'revocation':
      return tx`
        update messages set revoked_at = least(now(), ${at}::timestamptz) where id = ${id} and revoked_at is null returning id`
    case 'reaction':
      // One that was taken back stays as an empty one: an older report of it must not bring it back.
      return tx`
        insert into message_reactions as r (message_id, wa_id, workspace_id, emoji, at)
        values (${id}, ${waId}, ${workspaceId}, ${body}, ${at})
        on conflict (message_id, wa_id) do update set emoji = excluded.emoji, at = excluded.at
        where r.at <= excluded.at and r.emoji <> excluded.emoji
        returning message_id`
    case 'vote':
      return tx`
        insert into poll_votes as v (message_id, wa_id, workspace_id, options, at)
        values (${id}, ${waId}, ${workspaceId}, ${options}, ${at})
        on conflict (message_id, wa_id) do update set options = excluded.options, at = excluded.at
        where v.at <= excluded.at and v.options <> excluded.options
        returning message_id`
  }
}
