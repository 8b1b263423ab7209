import { fragment, planOnce } from './db.ts'
import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import { messageColumns, messageEvents, messageJoins } from './messages.ts'
import type { MessageRow } from './messages.ts'
import { takeOut, takingOut } from './outbox.ts'
import { countColdRefusal, keepClosed, keepOpen, lockReachOut } from './new-conversations.ts'
import { LeaseLost } from './wa-session-leases.ts'
import type { SessionLease } from './wa-session-leases.ts'

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

/** As it is kept. WhatsApp Web knows more of them: kinds of refusal below −1, and above 4 what went to the account's own devices only. */
export const keptAck = (ack: number): -1 | 0 | 1 | 2 | 3 | 4 =>
  (ack < 0 ? -1 : ack > 4 ? 1 : ack) as -1 | 0 | 1 | 2 | 3 | 4

/** An acknowledgement, and the session that was told. */
export interface AckReport {
  session: SessionLease
  ack: Ack
}

interface Acked extends MessageRow {
  held: boolean
  cold: boolean | null
  /** It is confirmed after it had left the outbox, and its chat is taken for one that nobody has opened. */
  reopens: boolean
  /** It was queued again in this very moment, and must not be sent. */
  requeued: boolean
}

/** Records one acknowledgement, as recordAcks() does. Throws LeaseLost. */
export async function recordAck(
  sql: Sql,
  session: SessionLease,
  ack: Ack,
): Promise<string | undefined> {
  const [outcome] = await recordAcks(sql, [{ session, ack }])
  if (outcome instanceof LeaseLost) throw outcome
  return outcome
}

/**
 * Records acknowledgements in one transaction, at most one of each session. Acks only rise: a late or repeated one changes nothing, and a refusal
 * counts only while the server has not confirmed. From the server's ack on (or a refusal) the message leaves the outbox. Returns, in the order of the
 * reports: the message's id, undefined when the message is not ours or nothing changed, LeaseLost when the session has another owner by now.
 */
export async function recordAcks(
  sql: Sql,
  reports: AckReport[],
): Promise<(string | undefined | LeaseLost)[]> {
  const acks = reports.map(({ ack }) => ({ ...ack, ack: keptAck(ack.ack) }))
  return sql.begin(async (tx) => {
    await planOnce(tx)
    const rows = await tx<Acked>`
      with report as (
        select * from unnest(
          ${reports.map(({ session }) => session.id)}::uuid[], ${reports.map(({ session }) => session.fence)}::bigint[],
          ${acks.map(({ keyId }) => keyId)}::text[], ${acks.map(({ ack }) => ack)}::smallint[], ${acks.map(({ waMessageId }) => waMessageId ?? null)}::text[],
          ${acks.map(({ code = 'REFUSED_BY_WHATSAPP' }) => code)}::text[]
        ) with ordinality r(session_id, fence, key_id, ack, wa_message_id, code, ord)
      ), held as (
        select s.id from report r join wa_sessions s on s.id = r.session_id and s.fence = r.fence
        -- In the order of claim(), and against it: what either locks of a session after this comes in no order.
        order by s.id
        for no key update of s
      ), queued as (
        -- Before the messages: whoever takes one back has locked what stands in the outbox, and wants the message next.
        select r.ord, o.attempts, o.cold
        from report r join held on held.id = r.session_id
        join messages m on m.session_id = r.session_id and m.direction = 'outbound' and m.wa_key_id = r.key_id
        join outbox o on o.message_id = m.id
        for update of o
      ), changed as (
        update messages m
        set ack = r.ack,
            wa_message_id = coalesce(m.wa_message_id, r.wa_message_id),
            status = case r.ack when -1 then 'failed' when 0 then m.status when 1 then 'sent' when 2 then 'delivered' when 3 then 'read' else 'played' end,
            -- That the page has it says nothing of how the server will decide, or has.
            error_code = case r.ack when -1 then r.code when 0 then m.error_code end,
            error_message = case r.ack when -1 then 'WhatsApp refused the message.' when 0 then m.error_message end,
            attempts = coalesce(q.attempts, m.attempts),
            sent_at = case when r.ack >= 1 then coalesce(m.sent_at, now()) else m.sent_at end,
            delivered_at = case when r.ack >= 2 then coalesce(m.delivered_at, now()) else m.delivered_at end,
            read_at = case when r.ack >= 3 then coalesce(m.read_at, now()) else m.read_at end
        from report r join held on held.id = r.session_id left join queued q on q.ord = r.ord
        where m.session_id = r.session_id and m.direction = 'outbound' and m.wa_key_id = r.key_id
          and case r.ack when -1 then coalesce(m.ack, 0) = 0 when 0 then m.ack is null else coalesce(m.ack, 0) < r.ack end
        returning m.*, r.ord, q.cold, q.ord is null and m.sent_at = now() as late
      ), ${takingOut(
        fragment`o.message_id in (select id from changed where ack <> 0)`,
        // Also by one that waits for its next try: the one before has arrived. What was refused is seen to below.
        { opened: fragment`true` },
      )}
      select held.id is not null as held, m.cold, ${messageColumns},
        -- Who queues a message again holds it until its place is there, which this statement was too early to see.
        m.id is not null and m.ack <> 0 and m.retries > 0 and not exists (select from queued where queued.ord = r.ord) as requeued,
        m.late and exists (select from outbox_lanes h where h.chat_id = m.chat_id and h.cold) as reopens
      from report r left join held on held.id = r.session_id left join (changed m ${messageJoins}) on m.ord = r.ord
      order by r.ord`
    const changed: Acked[] = []
    for (const [index, row] of rows.entries()) {
      if (row.id === null) continue
      changed.push(row)
      const { ack, code, until } = acks[index]!
      if (code === 'REACHOUT_LOCKED') await lockReachOut(tx, row.sessionId, until ?? null)
      else if (row.cold && ack !== 0) await countColdRefusal(tx, row.sessionId, ack === -1)
      if (row.cold && ack === -1) await keepClosed(tx, [row.chatId])
      if (row.requeued) await takeOut(tx, fragment`o.message_id = ${row.id}`)
      if (row.reopens) await keepOpen(tx, row.chatId)
    }
    await appendEvents(tx.last, messageEvents('message.ack', changed))
    return rows.map(({ held, id }, index) =>
      held ? (id ?? undefined) : new LeaseLost(reports[index]!.session.id),
    )
  })
}
