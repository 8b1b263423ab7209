import { joinHome } from './chat-homes.ts'
import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { joinHold } from './hold.ts'
import {
  answerWindow,
  chatInHand,
  dayOf,
  mayOpen,
  moment,
  openedOn,
  paceOf,
  quietUntilAt,
} from './pacing.ts'
import type { PacingConfig } from './pacing.ts'
import type { NewMessage } from './outbound.ts'
import { guard, isQuotable } from './refusals.ts'
import type { Refusal } from './refusals.ts'
import { isGroup } from './wa-id.ts'
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
  waChatId: string
  working: boolean
  heldBy: string | null
  notBefore: Date | null
  optedOut: boolean
  quotable: boolean
  absent: boolean
  refusal: Refusal | null
  now: Date
  /** When it may leave as far as only it is concerned. */
  ready: Date
  ahead: number
  /** Of these, those that are still there when it is ready, at least. */
  aheadThen: number
  gapMs: number
  /** The quiet hours it does not leave in, in their order, as milliseconds since 1970. */
  quiet: [from: number, to: number][]
}

/** Messages ahead that are counted, and days of quiet hours beyond `ready`; past that the estimate is a lower bound. */
const countedAhead = 10_000
const countedDays = 30

/**
 * When a message leaves that has `behind` others before it: one every gap from `from` on, none in quiet hours.
 * Milliseconds since 1970.
 */
function leavesAt(from: number, behind: number, { gapMs, quiet }: Facts): number {
  let at = from + behind * gapMs
  for (const [began, ended] of quiet) {
    if (began <= at && from < ended) at += ended - Math.max(began, from)
  }
  return at
}

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
  const cold = fragment`coalesce(l.cold, c.last_inbound_at is null and c.contacted_at is null and not ${isGroup(waChatId)}::boolean)`
  const where = { sessionId: fragment`s.id`, waChatId: fragment`home.wa_chat_id`, sendAt }
  const { gapMs, jitterMs, perMinute } = paceOf(defaults)
  /** The other lanes that are due. The message in hand is no longer ahead, and has already opened its chat. */
  const lanes = fragment`
    select b.due_at, b.last_inbound_at, b.waiting - held.here::int as waiting, b.cold and not held.here as cold
    from outbox_lanes b cross join lateral (select coalesce(b.chat_id = hand.chat_id, false) as here) held
    where b.session_id = s.id and b.waiting > 0 and b.due_at <= now() and b.chat_id is distinct from c.id limit ${countedAhead}`
  const [facts] = await sql<Facts>`
    select ${statusOf} = 'WORKING' as working, c.id as chat_id, home.wa_chat_id, now() as now, ready.at as ready,
      coalesce(k.opted_out, false) and ${optOutOverride}::text is null as opted_out,
      ${isQuotable(quotedMessageId, where)} as quotable,
      -- Only strangers are looked up.
      ${cold} and n.wa_id is null and n.phone is not null as absent,
      ${guard(ifLastMessageId, where)} as refusal,
      least(own.waiting + others.waiting, ${countedAhead})::int as ahead,
      case when ${scheduled} then 0 when ${cold} and turn.at > now() then turn.behind else least(own.waiting + others.waiting, ${countedAhead}) end::int as ahead_then,
      coalesce((
        select jsonb_agg(jsonb_build_array(extract(epoch from q.began) * 1000, extract(epoch from q.ended) * 1000) order by q.began)
        from generate_series(${dayOf(fragment`now()`)} - 1, ${dayOf(fragment`ready.at`)} + ${countedDays}::int, interval '1 day') days(day)
        cross join lateral (select ${moment(fragment`days.day::date`, fragment`p.quiet_from`)} as at) quiet
        cross join lateral (select greatest(quiet.at, c.last_inbound_at + ${answerWindow}) as began, ${quietUntilAt(fragment`quiet.at`)} as ended) q
        where q.began < q.ended), '[]') as quiet,
      greatest(${gapMs} + ${jitterMs} / 2, 60000 / nullif(${perMinute}, 0)) as gap_ms,
      hold.held_by, hold.not_before
    from wa_sessions s
    left join wa_session_pacing p on p.session_id = s.id
    ${joinHome({ workspaceId: fragment`s.workspace_id`, sessionId: fragment`s.id` }, fragment`${waChatId}::text`)}
    left join outbox_lanes l on l.chat_id = c.id
    left join wa_numbers n on n.workspace_id = s.workspace_id and coalesce(c.canonical_wa_id, home.wa_chat_id) like '%@c.us'
      and n.phone = split_part(coalesce(c.canonical_wa_id, home.wa_chat_id), '@', 1)
      and n.checked_at > now() - interval '24 hours'
    cross join lateral (select ${chatInHand} as chat_id) hand
    cross join lateral (
      select coalesce(l.waiting, 0) - coalesce(l.due_at = 'infinity' or l.chat_id = hand.chat_id, false)::int as waiting) own
    cross join lateral (select ${mayOpen(defaults, fragment`s.linked_at`)} as may_open) budget
    -- When a stranger's turn to be opened comes, if not now, and behind how many others it is on that day; the first day is the one on which a lock ends, or today.
    cross join lateral (
      select case when strangers.n < first.may_open or budget.may_open = 0 then case when p.cold_at > now() then p.cold_at end
          else ${moment(fragment`first.day + (strangers.n - first.may_open) / budget.may_open + 1`, fragment`time '00:00'`)} end as at,
        case when strangers.n < first.may_open or budget.may_open = 0 then strangers.n else (strangers.n - first.may_open) % budget.may_open end as behind
      from (select count(*)::int as n from (${lanes}) b where b.cold) strangers,
        lateral (select ${dayOf(fragment`greatest(now(), p.cold_at)`)} as day) d,
        lateral (select d.day, greatest(0, budget.may_open - ${openedOn(fragment`d.day`)}) as may_open) first
    ) turn
    ${joinHold({
      state: fragment`case when ${scheduled} then 'z' else 'q' end`,
      sendAt,
      lastInboundAt: fragment`c.last_inbound_at`,
      cold: fragment`(${cold} or l.opening)`,
    })}
    cross join lateral (select greatest(now(), hold.not_before, case when ${cold} then turn.at end) as at) allowed
    -- What is opened once a lock, or a day, is over may be opened into quiet hours: they hold it, too. After them nothing else does.
    cross join lateral (
      select case when coalesce(c.last_inbound_at <= allowed.at - ${answerWindow}, true)
        then coalesce(${quietUntilAt(fragment`allowed.at`)}, allowed.at) else allowed.at end as at) ready
    -- What leaves in quiet hours is an answer, and only answers leave before it; before what opens no conversation only those strangers do that may be opened by then.
    cross join lateral (
      select ${quietUntilAt(fragment`ready.at`)} is not null as quiet,
        case when ${cold} or budget.may_open = 0 and coalesce(p.cold_at <= ready.at, true) then ${countedAhead}
          when p.cold_at > ready.at then 0 else greatest(0, budget.may_open - ${openedOn(dayOf(fragment`ready.at`))}) end as strangers) before
    -- Chats take turns: no other sends more before it than its own does, and one turn. Who backs off does not.
    cross join lateral (
      select coalesce(sum(least(b.waiting, own.waiting + 1)), 0)::bigint as waiting
      from (select b.*, row_number() over (partition by b.cold order by b.due_at) as place from (${lanes}) b) b
      where case when before.quiet then b.last_inbound_at > now() - ${answerWindow} else not b.cold or b.place <= before.strangers end) others
    where s.workspace_id = ${workspaceId} and s.id = ${sessionId} and s.deleted_at is null`
  if (!facts) return undefined
  const { chatId, optedOut, quotable, absent, refusal, now, ready, ahead, aheadThen } = facts
  // Those ahead begin now, whenever it is ready itself.
  const estimate = Math.max(leavesAt(+ready, aheadThen, facts), leavesAt(+now, ahead, facts))
  return {
    sessionId,
    chatId,
    // As the message would say it.
    waChatId: waChatId.endsWith('@c.us') ? waChatId : facts.waChatId,
    blockedBy: [
      optedOut && 'RECIPIENT_OPTED_OUT',
      absent && 'NUMBER_NOT_ON_WHATSAPP',
      !quotable && 'QUOTED_NOT_FOUND',
      refusal,
    ].filter((code) => typeof code === 'string'),
    heldBy: facts.heldBy,
    notBefore: facts.notBefore,
    ahead,
    estimatedSendAt: facts.working ? new Date(estimate) : null,
  }
}
