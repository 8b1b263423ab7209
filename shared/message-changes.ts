import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import type { EventType } from './events.ts'
import { findMessage, messageResource } from './messages.ts'
import { assertFence } from './wa-session-leases.ts'

interface Owned {
  id: string
  workspaceId: string
  fence: number
}

/** Which message: the address it is seen under may differ from the one it was stored under. */
export interface Target {
  fromMe: boolean
  id: string
  participant: string
}

/**
 * Records that a text or caption was changed. An older change, or the same once more, changes nothing. Answers the message's id, or undefined when
 * nothing changed. Throws LeaseLost.
 */
export function recordEdit(
  sql: Sql,
  session: Owned,
  { key, body, at }: { key: Target; body: string; at: Date },
): Promise<string | undefined> {
  return change(sql, session, key, 'message.edited', async (tx, id) => {
    // The clock of whoever changed it may be ahead.
    const rows = await tx`
      update messages set body = ${body}, edited_at = least(now(), ${at}::timestamptz)
      where id = ${id} and body is distinct from ${body} and revoked_at is null
        and coalesce(edited_at, '-infinity') <= least(now(), ${at}::timestamptz)
        -- The name of what cannot be read is no edit of it.
        and not (type = 'unknown' and body is null)
      returning id`
    return rows.length > 0
  })
}

/** Records that a message was deleted for everyone; what it said stays. Answers as recordEdit() does. Throws LeaseLost. */
export function recordRevocation(
  sql: Sql,
  session: Owned,
  { key, at }: { key: Target; at: Date },
): Promise<string | undefined> {
  return change(sql, session, key, 'message.revoked', async (tx, id) => {
    const rows = await tx`
      update messages set revoked_at = least(now(), ${at}::timestamptz) where id = ${id} and revoked_at is null returning id`
    return rows.length > 0
  })
}

/**
 * Records a reaction: one a person and message, the latest counts, in whatever order they are told; an empty emoji takes it back. Answers as
 * recordEdit() does. Throws LeaseLost.
 */
export function recordReaction(
  sql: Sql,
  session: Owned,
  {
    target,
    emoji,
    waId,
    fromMe,
    at,
  }: { target: Target; emoji: string; waId: string; fromMe: boolean; at: Date },
): Promise<string | undefined> {
  return change(sql, session, target, 'message.reaction', async (tx, id) => {
    // One that was taken back stays as an empty one: an older report of it must not bring it back.
    const rows = await tx`
      insert into message_reactions as r (message_id, wa_id, workspace_id, emoji, at)
      values (${id}, ${fromMe ? 'me' : waId}, ${session.workspaceId}, ${emoji}, ${at})
      on conflict (message_id, wa_id) do update set emoji = excluded.emoji, at = excluded.at
      where r.at <= excluded.at and r.emoji <> excluded.emoji
      returning message_id`
    return rows.length > 0
  })
}

/** Records what a person has chosen in a poll; the latest choice counts. Answers as recordEdit() does. Throws LeaseLost. */
export function recordPollVote(
  sql: Sql,
  session: Owned,
  {
    poll,
    options,
    waId,
    fromMe,
    at,
  }: { poll: Target; options: string[]; waId: string; fromMe: boolean; at: Date },
): Promise<string | undefined> {
  return change(sql, session, poll, 'message.reaction', async (tx, id) => {
    const rows = await tx`
      insert into poll_votes as v (message_id, wa_id, workspace_id, options, at)
      values (${id}, ${fromMe ? 'me' : waId}, ${session.workspaceId}, ${options}, ${at})
      on conflict (message_id, wa_id) do update set options = excluded.options, at = excluded.at
      where v.at <= excluded.at and v.options <> excluded.options
      returning message_id`
    return rows.length > 0
  })
}

async function change(
  sql: Sql,
  session: Owned,
  { fromMe, id, participant }: Target,
  type: EventType,
  write: (tx: Sql, messageId: string) => Promise<boolean>,
): Promise<string | undefined> {
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    const [message] = await tx<{ id: string }>`
      select id from messages
      where session_id = ${session.id} and (direction = 'outbound') = ${fromMe} and wa_key_id = ${id}
      order by wa_participant = ${participant} desc limit 1 for update`
    if (!message || !(await write(tx, message.id))) return undefined
    const row = (await findMessage(tx, session.workspaceId, message.id))!
    await appendEvents(tx, [
      {
        workspaceId: session.workspaceId,
        sessionId: session.id,
        type,
        payload: messageResource(row),
      },
    ])
    return message.id
  })
}
