import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { AppError } from './errors.ts'
import { appendEvents } from './events.ts'
import { findMessage, messageEvents } from './messages.ts'
import type { MessageRow } from './messages.ts'
import { optedOut } from './opt-outs.ts'
import { takeBack } from './outbox.ts'
import { refused } from './refusals.ts'
import { closeActions } from './wa-actions.ts'
import { keyIdOf } from './wa-id.ts'

/**
 * Cancels a message that is not being sent. If an earlier attempt may have gone out, its error says so: see takeBack().
 * Returns the message as it is now, or undefined if there is none. Its rows stay locked until the transaction ends, so
 * an attempt that fails sees whatever else the transaction asks for.
 */
export async function cancel(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<MessageRow | undefined> {
  return sql.begin(async (tx) => {
    const which = fragment`o.message_id = ${id} and o.workspace_id = ${workspaceId}`
    await tx`select from outbox o where ${which} for no key update`
    await takeBack(tx, which)
    // Last of all: see retry().
    await tx`select from messages where id = ${id} and workspace_id = ${workspaceId} for no key update`
    return findMessage(tx, workspaceId, id)
  })
}

/**
 * Changes the text, or caption, of a message that is waiting and certainly not out. Returns undefined if there is no such
 * message, if it is being sent, or if an earlier attempt may have worked: WhatsApp keeps the first text it got under an
 * id. Pending edits are older than this one and are dropped. Its outbox row stays locked until the transaction ends:
 * nobody cancels it or ends an attempt before that, and whoever does so afterwards sees what the transaction asked for.
 */
export async function editQueued(
  sql: Sql,
  workspaceId: string,
  id: string,
  body: string,
): Promise<MessageRow | undefined> {
  return sql.begin(async (tx) => {
    await tx`select from outbox where message_id = ${id} and workspace_id = ${workspaceId} for no key update`
    const [waiting] = await tx`
      update outbox set revision = revision + 1
      where message_id = ${id} and workspace_id = ${workspaceId} and state in ('q', 'z') and doubts = 0 returning id`
    if (!waiting) return undefined
    await closeActions(tx, fragment`a.message_id = ${id} and a.kind = 'edit'`)
    await tx`update messages set body = ${body} where id = ${id}`
    const row = (await findMessage(tx, workspaceId, id))!
    await appendEvents(tx, messageEvents('message.edited', [row]))
    return row
  })
}

/**
 * Queues a message again that failed, was cancelled, or whose outcome is unknown; for its `sendAt`, if
 * that is still ahead. It keeps its WhatsApp id, so that what did go out is found and not sent twice; only after a refusal, which WhatsApp keeps under the old id, it gets a new one.
 * What may be out starts with a doubt, as when a worker queues it again. A pending deletion is dropped; a message already
 * deleted for everyone cannot be retried. Returns undefined if there is no such message. Throws 409, and 403
 * RECIPIENT_OPTED_OUT.
 */
export async function retry(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<MessageRow | undefined> {
  return sql.begin(async (tx) => {
    // Before the message, in the order of actionDone().
    await tx`
      select from wa_actions where message_id = ${id} and workspace_id = ${workspaceId} and done_at is null order by id for no key update`
    const message = await retryable(tx, workspaceId, id)
    if (!message) return undefined
    await closeActions(tx, fragment`a.message_id = ${id} and a.kind = 'revoke'`)
    await queueAgain(tx, id, message)
    const row = (await findMessage(tx, workspaceId, id))!
    tx.nudge('awfar_outbox', row.sessionId)
    await appendEvents(tx, messageEvents('message.ack', [row]))
    return row
  })
}

interface Retryable {
  ack: number | null
  retries: number
  mayBeOut: boolean
}

/** Locks a message, with its session, and throws when it cannot be queued again. */
async function retryable(tx: Sql, workspaceId: string, id: string): Promise<Retryable | undefined> {
  const [message] = await tx<
    Retryable & {
      status: string
      ours: boolean
      deleted: boolean
      revoked: boolean
      fileGone: boolean
      optedOut: boolean
    }
  >`
    select m.status, m.ack, m.retries, m.direction = 'outbound' and m.source = 'api' as ours, s.deleted_at is not null as deleted,
      m.revoked_at is not null as revoked, f.id is null and m.type <> all('{text,location,contact,poll}') as file_gone,
      m.status = 'unknown' or m.error_code is not distinct from 'OUTCOME_UNKNOWN' as may_be_out, ${optedOut} as opted_out
    from messages m join wa_sessions s on s.id = m.session_id join chats c on c.id = m.chat_id left join contacts k on k.id = c.contact_id left join media f on f.id = m.media_id
    where m.id = ${id} and m.workspace_id = ${workspaceId}
    -- Not for update: who accepts a message that quotes this one holds the lane that is wanted next, and wants to see this one stay.
    for no key update of m for key share of s`
  if (!message) return undefined
  if (message.deleted)
    throw new AppError(409, 'SESSION_GONE', 'The session it was to leave from is deleted.')
  if (!message.ours || !['failed', 'unknown', 'cancelled'].includes(message.status))
    throw notRetryable(
      'Only a message from here that failed, was cancelled or is unknown can be sent again.',
    )
  if (message.revoked) throw notRetryable('The message was deleted for everyone.')
  if (message.fileGone)
    throw new AppError(409, 'MEDIA_GONE', 'The file of the message was deleted.')
  if (message.optedOut) throw refused('RECIPIENT_OPTED_OUT')
  return message
}

const notRetryable = (sentence: string) => new AppError(409, 'NOT_RETRYABLE', sentence)

async function queueAgain(tx: Sql, id: string, { ack, retries, mayBeOut }: Retryable) {
  const keyId = ack === -1 ? keyIdOf(`${id}:${retries + 1}`) : undefined
  await tx`
    with again as (
      update messages set status = 'queued', ack = null, error_code = null, error_message = null, attempts = 0,
        send_at = case when send_at > now() then send_at end,
        retries = retries + 1, wa_key_id = coalesce(${keyId}, wa_key_id), wa_message_id = case when ${keyId}::text is null then wa_message_id end
      where id = ${id} returning *
    ), lane as (
      insert into outbox_lanes (chat_id, workspace_id, session_id, waiting, cold)
      select chat_id, workspace_id, session_id, (send_at is null)::int, false from again
      on conflict (chat_id) do update
      set waiting = outbox_lanes.waiting + excluded.waiting, due_at = case when outbox_lanes.waiting = 0 then now() else outbox_lanes.due_at end
      returning chat_id
    )
    insert into outbox (message_id, workspace_id, session_id, chat_id, doubts, state, send_at)
    select again.id, again.workspace_id, again.session_id, again.chat_id, ${mayBeOut}::boolean::int,
      case when again.send_at is null then 'q' else 'z' end::"char", again.send_at
    from again join lane on lane.chat_id = again.chat_id`
}
