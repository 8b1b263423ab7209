import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { isGroup, phoneOf } from './wa-id.ts'
import { chatInHand, coldUntil, joinHold, mayOpen, quietUntilAt, today } from './pacing.ts'
import type { PacingConfig } from './pacing.ts'
import { guard, isQuotable } from './outbound.ts'
import type { NewMessage, Refusal } from './outbound.ts'
import { statusOf } from './wa-session-leases.ts'

/** What would become of a message, as far as can be told without sending it. */
export interface Forecast {
  sessionId: string
  /** Null: the message would open the chat. */
  chatId: string | null
  waChatId: string
  /** Why it would not be sent at all. */
  blockedBy: string[]
  /** Why it would wait at first, and until when where that is known. */
  heldBy: string | null
  notBefore: Date | null
  /** Messages of the session that would leave before it, where nothing else comes in between. */
  ahead: number
  /** Null while the session cannot send: nobody knows when it will. */
  estimatedSendAt: Date | null
}

interface Facts {
  chatId: string | null
  working: boolean
  scheduled: boolean
  heldBy: string | null
  notBefore: Date | null
  optedOut: boolean
  quotable: boolean
  absent: boolean
  refusal: Refusal | null
  ahead: number
  gapMs: number
  /** Until when it is quiet at the time it is scheduled for. */
  quietThen: Date | null
}

/** Messages ahead that are counted; beyond it the estimate is a lower bound. */
const countedAhead = 10_000

/** Foretells, and writes nothing. Undefined when there is no such session. */
export async function foresee(
  sql: Sql,
  workspaceId: string,
  {
    sessionId,
    waChatId,
    sendAt,
    ifLastMessageId,
    quotedMessageId,
    optOutOverride,
  }: Omit<NewMessage, 'content' | 'mentions'> & { sessionId: string },
  defaults: PacingConfig,
): Promise<Forecast | undefined> {
  const scheduled = fragment`coalesce(${sendAt}::timestamptz > now(), false)`
  // When its turn to be opened comes, if not today.
  const opensAt = fragment`
    case when others.may_open > 0 and others.strangers >= others.may_open - others.opened
      then (${today} + (others.strangers - others.may_open + others.opened) / others.may_open + 1)::timestamp at time zone p.time_zone end`
  const [facts] = await sql<Facts>`
    select ${statusOf} = 'WORKING' as working, c.id as chat_id, ${scheduled} as scheduled,
      coalesce(k.opted_out, false) and ${optOutOverride}::text is null as opted_out,
      ${isQuotable(quotedMessageId, { sessionId: fragment`s.id`, waChatId })} as quotable, coalesce(n.wa_id is null and n.phone is not null, false) as absent,
      ${guard(ifLastMessageId, { sessionId: fragment`s.id`, waChatId })} as refusal,
      least(own.waiting + others.waiting, ${countedAhead})::int as ahead,
      case when coalesce(c.last_inbound_at < ${sendAt}::timestamptz - interval '24 hours', true) then ${quietUntilAt(fragment`${sendAt}::timestamptz`)} end as quiet_then,
      greatest(coalesce(p.min_gap_ms, ${defaults.WA_SEND_MIN_GAP_MS}::int) + coalesce(p.jitter_ms, ${defaults.WA_SEND_JITTER_MS}::int) / 2,
        60000 / nullif(coalesce(p.per_minute, ${defaults.WA_SENDS_PER_MINUTE}::int), 0)) as gap_ms,
      hold.held_by, hold.not_before
    from wa_sessions s
    left join wa_session_pacing p on p.session_id = s.id
    left join chats c on c.session_id = s.id and c.wa_chat_id = ${waChatId}
    left join outbox_lanes l on l.chat_id = c.id
    left join contacts a on a.workspace_id = s.workspace_id and a.wa_id = ${waChatId}
    left join contacts k on k.id = coalesce(a.merged_into, a.id)
    left join wa_numbers n on n.workspace_id = s.workspace_id and n.phone = ${phoneOf(waChatId)?.slice(1)}
      and n.checked_at > now() - interval '24 hours'
    cross join lateral (select ${chatInHand} as chat_id) hand
    cross join lateral (
      select coalesce(l.waiting, 0) - coalesce(l.due_at = 'infinity' or l.chat_id = hand.chat_id, false)::int as waiting) own
    -- Chats take turns: no other sends more before it than its own does, and one turn. Who backs off, or may not be opened today, does not.
    cross join lateral (
      select coalesce(sum(least(b.waiting - coalesce(b.chat_id = hand.chat_id, false)::int, own.waiting + 1)) filter (where not b.cold or p.cold_at <= now()), 0)::bigint as waiting,
        count(*) filter (where b.cold)::int as strangers, ${mayOpen(defaults, fragment`s.linked_at`)} as may_open,
        case when p.new_on = ${today} then p.new_contacts else 0 end as opened
      from (
        select b.chat_id, b.waiting, b.cold from outbox_lanes b
        where b.session_id = s.id and b.waiting > 0 and b.due_at <= now() and b.chat_id is distinct from c.id limit ${countedAhead}) b) others
    ${joinHold({
      state: fragment`case when ${scheduled} then 'z' else 'q' end`,
      sendAt,
      lastInboundAt: fragment`c.last_inbound_at`,
      cold: fragment`coalesce(l.cold, c.last_inbound_at is null and c.contacted_at is null and not ${isGroup(waChatId)}::boolean)`,
      coldUntil: fragment`greatest(${coldUntil}, ${opensAt})`,
      coldHeldBy: fragment`coalesce(p.cold_held_by, 'NEW_CONTACTS_PER_DAY')`,
    })}
    where s.workspace_id = ${workspaceId} and s.id = ${sessionId} and s.deleted_at is null`
  if (!facts) return undefined
  const { chatId, optedOut, quotable, absent, refusal, ahead, gapMs, heldBy, notBefore } = facts
  const earliest = Math.max(Date.now(), +(notBefore ?? 0), +(facts.quietThen ?? 0))
  return {
    sessionId,
    chatId,
    waChatId,
    blockedBy: [
      optedOut && 'RECIPIENT_OPTED_OUT',
      absent && 'NUMBER_NOT_ON_WHATSAPP',
      !quotable && 'QUOTED_NOT_FOUND',
      refusal,
    ].filter((code) => typeof code === 'string'),
    heldBy,
    notBefore,
    ahead,
    estimatedSendAt: facts.working
      ? new Date(earliest + (facts.scheduled ? 0 : ahead * gapMs))
      : null,
  }
}
