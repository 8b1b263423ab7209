import Joi from 'joi'
import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { statusOf } from './wa-session-leases.ts'

/** The pace of sessions that have none of their own. */
export interface PacingConfig {
  WA_SEND_MIN_GAP_MS: number
  WA_SEND_JITTER_MS: number
  WA_SENDS_PER_MINUTE: number
  WA_NEW_CONTACTS_PER_DAY?: number
  WA_TYPING: boolean
}

const integer = (fallback: number, max: number) =>
  Joi.number().integer().min(0).max(max).default(fallback)

export const pacingSchema: Joi.PartialSchemaMap<PacingConfig> = {
  WA_SEND_MIN_GAP_MS: integer(1_000, 3_600_000),
  WA_SEND_JITTER_MS: integer(1_000, 3_600_000),
  WA_SENDS_PER_MINUTE: integer(30, 1_000),
  WA_NEW_CONTACTS_PER_DAY: Joi.number().integer().min(0).max(1_000_000),
  WA_TYPING: Joi.boolean().truthy('on').falsy('off').default(false),
}

/** What was set for one session; null: as the worker's settings say. */
export interface Pacing {
  minGapMs: number | null
  jitterMs: number | null
  perMinute: number | null
  newContactsPerDay: number | null
  typing: boolean | null
  /** YYYY-MM-DD */
  numberSince: string | null
  quietHours: { from: string; to: string } | null
  timeZone: string
}

/** Where a session's pace stands. */
export interface PacingState {
  nextSendAt: Date | null
  newContactsToday: number
  newContactsHeldBy: string | null
  newContactsHeldUntil: Date | null
}

/**
 * Conversations a number may open a day, by its age in days: what vendors of this channel advise. Numbers that write to many strangers in their
 * first days are the ones that get blocked.
 */
const warmUp = fragment`
  case when age < interval '3 days' then 20 when age < interval '7 days' then 50 when age < interval '14 days' then 100 else 200 end`

/** `p` is the wa_session_pacing row; the day there. */
export const dayOf = (at: Fragment) => fragment`(${at} at time zone p.time_zone)::date`

const today = dayOf(fragment`now()`)

/** A time of day on a day there. */
export const moment = (day: Fragment, time: Fragment) =>
  fragment`((${day} + ${time}) at time zone p.time_zone)`

/** When the quiet hours end that it is for `p` at a moment; null when it is not. */
export const quietUntilAt = (at: Fragment) =>
  fragment`case when p.quiet_from is not null then quiet_until(p.quiet_from, p.quiet_to, p.time_zone, ${at}) end`
const quietUntil = quietUntilAt(fragment`now()`)

/** How many conversations `p` may open a day; 0: any number. `linkedAt`: since when its session is linked. */
export const mayOpen = (defaults: PacingConfig, linkedAt: Fragment) => fragment`
  (select coalesce(p.new_contacts_per_day, ${defaults.WA_NEW_CONTACTS_PER_DAY}::int, ${warmUp})
   from (select now() - coalesce(p.number_since::timestamp at time zone p.time_zone, ${linkedAt}, now()) as age) number)`

/** Who wrote within it is answered in quiet hours, too. */
export const answerWindow = fragment`interval '24 hours'`

/** Whether it is quiet hours for `p`. */
export const isQuiet = fragment`(${quietUntil} is not null)`

/** How many conversations `p` has opened on a day there. */
export const openedOn = (day: Fragment) =>
  fragment`case when p.new_on = ${day} then p.new_contacts else 0 end`

const tomorrow = moment(fragment`(${today} + 1)`, fragment`time '00:00'`)

/** The pace of `p`, which is the default where it has none of its own. */
export const paceOf = (defaults: PacingConfig) => ({
  gapMs: fragment`coalesce(p.min_gap_ms, ${defaults.WA_SEND_MIN_GAP_MS}::int)`,
  jitterMs: fragment`coalesce(p.jitter_ms, ${defaults.WA_SEND_JITTER_MS}::int)`,
  /** Messages within a minute; 0: any number. */
  perMinute: fragment`coalesce(p.per_minute, ${defaults.WA_SENDS_PER_MINUTE}::int)`,
  typing: fragment`coalesce(p.typing, ${defaults.WA_TYPING}::boolean)`,
})

/**
 * The statement that moves the pace of each session in `claimed` (id, session_id, message_id, opens, linked_at) on by the message it has just claimed. The jitter is drawn from
 * the message's own id: the same message always waits as long. `n` is `claimed`.
 */
export function movePace(defaults: PacingConfig): Fragment {
  const { gapMs, jitterMs, perMinute } = paceOf(defaults)
  const afterGap = fragment`
    (now() + (${gapMs}
      + ('x' || left(n.message_id::text, 6))::bit(24)::int % (${jitterMs} + 1)) * interval '1 ms')`
  // The last so many, this one included; null where there were not so many yet, or any number may be sent.
  const afterMinute = fragment`((p.recent || now())[cardinality(p.recent) + 2 - ${perMinute}] + interval '1 minute')`
  const opened = fragment`(${openedOn(today)} + 1)`
  const usedUp = fragment`n.opens and ${mayOpen(defaults, fragment`n.linked_at`)} between 1 and ${opened}`
  return fragment`
  update wa_session_pacing p
  set in_flight = n.id,
      recent = (p.recent || now())[greatest(1, cardinality(p.recent) + 2 - greatest(1, ${perMinute})):],
      next_send_at = greatest(${afterGap}, ${afterMinute}),
      held_by = case when ${afterMinute} > ${afterGap} then 'SENDS_PER_MINUTE' else 'MIN_GAP' end,
      new_on = case when n.opens then ${today} else p.new_on end,
      new_contacts = case when n.opens then ${opened} else p.new_contacts end,
      cold_at = case when ${usedUp} then greatest(p.cold_at, ${tomorrow}) else p.cold_at end,
      cold_held_by = case when ${usedUp} and p.cold_at < ${tomorrow} then 'NEW_CONTACTS_PER_DAY' else p.cold_held_by end
  from claimed n
  where p.session_id = n.session_id`
}

/** The chat whose message the session of `p` has in its hands; null when it has none. */
export const chatInHand = fragment`(select b.chat_id from outbox b where b.id = p.in_flight and b.state = 's')`

/** Whether the messages of lane `l` are openings of a conversation. */
export const opens = fragment`(l.cold or l.opening)`

/**
 * Until when `p` opens no conversation, if not now, and why, for lane `l`, which need not be there. An opening that was counted, and is
 * tried again, needs no budget; a lock holds it all the same.
 */
const closed = {
  until: fragment`case when l.opening is true and p.locked_at > now() then p.locked_at when l.opening is not true and p.cold_at > now() then p.cold_at end`,
  by: fragment`case when l.opening then p.locked_by else p.cold_held_by end`,
}

/** What joinHold() is told of a message, beside what stands in `s` (wa_sessions), `l` (outbox_lanes) and `p` (wa_session_pacing). */
export interface Waiting {
  /** As outbox.state; null when it does not wait. */
  state: Fragment
  sendAt: Fragment | Date | undefined
  lastInboundAt: Fragment
  /** It would open a conversation. */
  cold: Fragment
}

/**
 * Joins `hold`: why a message waits (held_by), and until when where that is known (not_before); of several reasons the one that lasts longest. Any of `s`, `l` and `p` may be missing.
 */
export const joinHold = (of: Waiting) => fragment`
  cross join lateral (
    select
      case when w.state = 'z' then 'SCHEDULED' when w.state is distinct from 'q' then null when w.status <> 'WORKING' then 'SESSION_' || w.status
        when w.busy then 'PREVIOUS_UNCONFIRMED' when w.until = w.retry_at then 'RETRY_BACKOFF' when w.until = w.cold_until then w.cold_held_by
        when w.until = w.quiet_until then 'QUIET_HOURS' when w.until = w.paced_until then w.paced_by end as held_by,
      case when w.state = 'z' then w.send_at when w.state = 'q' and w.status = 'WORKING' and not w.busy then w.until end as not_before
    from (
      select w.*, greatest(w.retry_at, w.cold_until, w.quiet_until, w.paced_until) as until
      from (
        select ${of.state} as state, ${of.sendAt}::timestamptz as send_at, ${statusOf} as status,
          coalesce(l.due_at = 'infinity' or l.chat_id = ${chatInHand}, false) as busy,
          case when l.due_at > now() and l.due_at < 'infinity' then l.due_at end as retry_at,
          case when ${of.cold} then ${closed.until} end as cold_until, ${closed.by} as cold_held_by,
          case when coalesce(${of.lastInboundAt} < now() - ${answerWindow}, true) then ${quietUntil} end as quiet_until,
          case when p.next_send_at > now() then p.next_send_at end as paced_until, p.held_by as paced_by
        offset 0) w) w) hold`

/** A lock does not shorten what holds new conversations already, and is still there when that is over. */
const lockedUntil = (until: Fragment, by: string) => fragment`
  cold_at = greatest(cold_at, ${until}), cold_held_by = case when cold_at >= ${until} then cold_held_by else ${by} end,
  locked_at = greatest(locked_at, ${until}), locked_by = case when locked_at >= ${until} then locked_by else ${by} end`

/** Where `condition` holds, new conversations are held by a lock at the most. */
const onlyLocked = (condition: Fragment) => fragment`
  cold_at = case when ${condition} then locked_at else cold_at end, cold_held_by = case when ${condition} then locked_by else cold_held_by end`

/**
 * WhatsApp lets this number open no conversations until then; for a day where it does not say until when, and for half an hour at the least: it has refused one just now, so
 * an end that has passed by our clock has not passed by its own. What was open goes on.
 */
export async function lockReachOut(sql: Sql, sessionId: string, until: Date | null): Promise<void> {
  const end = fragment`greatest(coalesce(${until}::timestamptz, now() + interval '24 hours'), now() + interval '30 minutes')`
  await sql`
    update wa_session_pacing
    set ${lockedUntil(end, 'REACHOUT_LOCKED')}, cold_refusals = 0
    where session_id = ${sessionId}`
}

/** A first message was refused, or confirmed. Three refused in a row look like a lock nobody told us of: no conversation is opened for six hours. */
export async function countColdRefusal(
  sql: Sql,
  sessionId: string,
  refused: boolean,
): Promise<void> {
  const [suspected] = await sql<{ suspected: boolean }>`
    update wa_session_pacing
    set cold_refusals = case when ${refused} and cold_refusals < 2 then cold_refusals + 1 else 0 end
    where session_id = ${sessionId}
    returning ${refused}::boolean and cold_refusals = 0 as suspected`
  if (!suspected?.suspected) return
  await sql`
    update wa_session_pacing set ${lockedUntil(fragment`now() + interval '6 hours'`, 'REACHOUT_SUSPECTED')} where session_id = ${sessionId}`
}

/** The messages that were to open these conversations did not: the next ones are first ones again, unless they have met meanwhile. */
export async function keepClosed(tx: Sql, chatIds: string[]): Promise<void> {
  await tx`
    update outbox_lanes l set cold = true, opening = false from chats c
    where l.chat_id = any(${chatIds}::uuid[]) and c.id = l.chat_id and c.last_inbound_at is null and c.contacted_at is null and not c.is_group`
}

/** A message to this chat has arrived after all: what is sent there next opens no conversation. */
export async function keepOpen(tx: Sql, chatId: string): Promise<void> {
  await tx`update outbox_lanes set cold = false, opening = false where chat_id = ${chatId}`
}

/** A conversation that was counted then was not opened, and WhatsApp has seen nothing of it: when that was today, another may be. */
export async function giveBackOpening(
  tx: Sql,
  sessionId: string,
  countedAt: Date | null,
): Promise<void> {
  await tx`
    update wa_session_pacing p
    set new_contacts = new_contacts - 1, ${onlyLocked(fragment`cold_held_by = 'NEW_CONTACTS_PER_DAY'`)}
    where session_id = ${sessionId} and new_on = ${today} and new_on = ${dayOf(fragment`${countedAt}::timestamptz`)} and new_contacts > 0`
}

/**
 * The session has another number: whoever knew the one before is a stranger to it, and what that one had opened, was locked for, or had behind it in years is not its own.
 * Holds the session's row before it locks chats and lanes, as whoever receives does.
 */
export async function beginWarmUp(tx: Sql, sessionId: string): Promise<void> {
  await tx`
    with chat as (
      select id from chats where session_id = ${sessionId} and (last_inbound_at is not null or contacted_at is not null)
      order by wa_chat_id for no key update
    )
    update chats c set last_inbound_at = null, contacted_at = null from chat where c.id = chat.id`
  // After the chats: whoever accepts into one holds it until its lane is there.
  await tx`
    with lane as (
      select l.chat_id, c.is_group from outbox_lanes l join chats c on c.id = l.chat_id
      where l.session_id = ${sessionId} order by l.chat_id for no key update of l
    )
    update outbox_lanes l set cold = not lane.is_group, opening = false, last_inbound_at = null from lane where l.chat_id = lane.chat_id`
  await tx`
    update wa_session_pacing
    set number_since = null, new_on = null, new_contacts = 0, cold_refusals = 0,
        cold_at = '-infinity', cold_held_by = null, locked_at = '-infinity', locked_by = null
    where session_id = ${sessionId}`
}

interface PacingRow extends Omit<Pacing, 'quietHours'> {
  quietFrom: string | null
  quietTo: string | null
  nextSendAt: Date | null
  newContactsToday: number
  coldUntil: Date | null
  coldHeldBy: string | null
}

const columns = fragment`
  p.min_gap_ms, p.jitter_ms, p.per_minute, p.new_contacts_per_day, p.typing, p.number_since::text as number_since,
  to_char(p.quiet_from, 'HH24:MI') as quiet_from, to_char(p.quiet_to, 'HH24:MI') as quiet_to, p.time_zone,
  case when p.next_send_at > now() then p.next_send_at end as next_send_at,
  ${openedOn(today)} as new_contacts_today,
  case when p.cold_at > now() then p.cold_at end as cold_until, p.cold_held_by`

function pacingResource(row: PacingRow): Pacing & { state: PacingState } {
  const { quietFrom, quietTo } = row
  return {
    minGapMs: row.minGapMs,
    jitterMs: row.jitterMs,
    perMinute: row.perMinute,
    newContactsPerDay: row.newContactsPerDay,
    typing: row.typing,
    numberSince: row.numberSince,
    quietHours: quietFrom === null || quietTo === null ? null : { from: quietFrom, to: quietTo },
    timeZone: row.timeZone,
    state: {
      nextSendAt: row.nextSendAt,
      newContactsToday: row.newContactsToday,
      newContactsHeldBy: row.coldUntil && row.coldHeldBy,
      newContactsHeldUntil: row.coldUntil,
    },
  }
}

export async function findPacing(
  sql: Sql,
  workspaceId: string,
  sessionId: string,
): Promise<(Pacing & { state: PacingState }) | undefined> {
  const [row] = await sql<PacingRow>`
    select ${columns} from wa_session_pacing p where p.workspace_id = ${workspaceId} and p.session_id = ${sessionId}`
  return row && pacingResource(row)
}

/**
 * Sets the pace of a session. What has left within the minute, or been opened today, counts for the new pace, also where the new time zone has another date; what is not
 * changed goes on as it was; a lock of WhatsApp's stays. Undefined when there is no such session.
 */
export async function setPacing(
  sql: Sql,
  workspaceId: string,
  sessionId: string,
  pacing: Pacing,
  defaults: PacingConfig,
): Promise<(Pacing & { state: PacingState }) | undefined> {
  const { gapMs, perMinute } = paceOf(defaults)
  return sql.begin(async (tx) => {
    const [changed] = await tx<{ pace: boolean; unlimited: boolean; budget: boolean }>`
      update wa_session_pacing n
      set min_gap_ms = ${pacing.minGapMs}, jitter_ms = ${pacing.jitterMs}, per_minute = ${pacing.perMinute},
          new_contacts_per_day = ${pacing.newContactsPerDay}, typing = ${pacing.typing}, number_since = ${pacing.numberSince}::date,
          quiet_from = ${pacing.quietHours?.from}::time, quiet_to = ${pacing.quietHours?.to}::time, time_zone = ${pacing.timeZone},
          -- What was opened today stays what was opened today, whatever the date is in the new zone.
          new_on = (now() at time zone ${pacing.timeZone}::text)::date, new_contacts = ${openedOn(today)}
      from (select * from wa_session_pacing where workspace_id = ${workspaceId} and session_id = ${sessionId} for update) p
      where n.session_id = p.session_id
      returning (n.min_gap_ms, n.jitter_ms, n.per_minute) is distinct from (p.min_gap_ms, p.jitter_ms, p.per_minute) as pace, ${perMinute} = 0 as unlimited,
        (n.new_contacts_per_day, n.number_since, n.time_zone) is distinct from (p.new_contacts_per_day, p.number_since, p.time_zone) as budget`
    if (!changed) return undefined
    const gap = fragment`${gapMs} * interval '1 ms'`
    const gapAfterLast = fragment`(p.recent[cardinality(p.recent)] + ${gap})`
    // Of those that left while any number might, only the last is known.
    const firstOfMinute = changed.unlimited
      ? fragment`case when ${perMinute} > 0 then cardinality(p.recent) end`
      : fragment`cardinality(p.recent) + 1 - ${perMinute}`
    const minuteAfterFirst = fragment`(p.recent[${firstOfMinute}] + interval '1 minute')`
    const usedUp = fragment`${mayOpen(defaults, fragment`s.linked_at`)} between 1 and ${openedOn(today)}`
    const counted = fragment`p.cold_held_by = 'NEW_CONTACTS_PER_DAY'`
    const [row] = await tx<PacingRow>`
      update wa_session_pacing p
      set next_send_at = case when ${changed.pace} then coalesce(greatest(${gapAfterLast}, ${minuteAfterFirst}), least(p.next_send_at, now() + ${gap})) else p.next_send_at end,
          held_by = case when not ${changed.pace} then p.held_by when ${minuteAfterFirst} > ${gapAfterLast} then 'SENDS_PER_MINUTE' else 'MIN_GAP' end,
          cold_at = case when not ${changed.budget} then p.cold_at when ${usedUp} then greatest(p.locked_at, ${tomorrow}) when ${counted} then p.locked_at else p.cold_at end,
          cold_held_by = case when not ${changed.budget} then p.cold_held_by when ${usedUp} and p.locked_at < ${tomorrow} then 'NEW_CONTACTS_PER_DAY'
                              when ${usedUp} or ${counted} then p.locked_by else p.cold_held_by end
      from wa_sessions s
      where s.id = p.session_id and p.session_id = ${sessionId}
      returning ${columns}`
    return row && pacingResource(row)
  })
}
