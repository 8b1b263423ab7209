import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import { findMessage, messageResource } from './messages.ts'
import { takeOut } from './outbox.ts'
import { countColdRefusal, lockReachOut } from './pacing.ts'
import { fragment } from './db.ts'
import { assertFence } from './wa-session-leases.ts'

/** What WhatsApp says of a message of ours: −1 refused, 0 taken by the page, 1 server, 2 device, 3 read, 4 played. */
export interface Ack {
  keyId: string
  ack: number
  /** The serialized id, when it is known. */
  waMessageId?: string | undefined
  /** Why it was refused, where WhatsApp says so. */
  code?: string | undefined
  /** Until when, of a refusal that will pass. */
  until?: Date | undefined
}

/**
 * Records an acknowledgement. Acks only rise: a late or repeated one changes nothing, and a refusal counts only while the server has
 * not confirmed. From the server's ack on (or a refusal) the message leaves the outbox. Answers the message's id, or undefined
 * when the message is not ours or nothing changed. Throws LeaseLost.
 */
export async function recordAck(
  sql: Sql,
  session: { id: string; workspaceId: string; fence: number },
  { keyId, ack, waMessageId, code = 'REFUSED_BY_WHATSAPP', until }: Ack,
): Promise<string | undefined> {
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    const [changed] = await tx<{ id: string; cold: boolean | null }>`
      update messages m
      set ack = ${ack}::smallint,
          wa_message_id = coalesce(m.wa_message_id, ${waMessageId}),
          status = case ${ack}::smallint
            when -1 then 'failed' when 0 then m.status when 1 then 'sent' when 2 then 'delivered' when 3 then 'read' else 'played' end,
          error_code = case when ${ack}::smallint = -1 then ${code} end,
          attempts = coalesce((select o.attempts from outbox o where o.message_id = m.id), m.attempts),
          error_message = case when ${ack}::smallint = -1 then 'WhatsApp refused the message.' end,
          sent_at = case when ${ack}::smallint >= 1 then coalesce(m.sent_at, now()) else m.sent_at end,
          delivered_at = case when ${ack}::smallint >= 2 then coalesce(m.delivered_at, now()) else m.delivered_at end,
          read_at = case when ${ack}::smallint >= 3 then coalesce(m.read_at, now()) else m.read_at end
      where m.session_id = ${session.id} and m.direction = 'outbound' and m.wa_key_id = ${keyId}
        and case ${ack}::smallint when -1 then coalesce(m.ack, 0) = 0 when 0 then m.ack is null else coalesce(m.ack, 0) < ${ack}::smallint end
      returning m.id, (select o.cold from outbox o where o.message_id = m.id) as cold`
    if (!changed) return undefined
    if (ack !== 0) await takeOut(tx, fragment`o.message_id = ${changed.id}`)
    if (code === 'REACHOUT_LOCKED') await lockReachOut(tx, session.id, until ?? null)
    else if (changed.cold && ack !== 0) await countColdRefusal(tx, session.id, ack === -1)
    const row = await findMessage(tx, session.workspaceId, changed.id)
    if (row) {
      const { workspaceId, sessionId } = row
      await appendEvents(tx, [
        { workspaceId, sessionId, type: 'message.ack', payload: messageResource(row) },
      ])
    }
    return changed.id
  })
}
