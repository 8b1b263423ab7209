import Joi from 'joi'
import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'

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

export const today = dayOf(fragment`now()`)

/** A time of day on a day there. */
export const moment = (day: Fragment, time: Fragment) =>
  fragment`((${day} + ${time}) at time zone p.time_zone)`

/** When the quiet hours end that it is for `p` at a moment; null when it is not. */
export const quietUntilAt = (at: Fragment) =>
  fragment`case when p.quiet_from is not null then quiet_until(p.quiet_from, p.quiet_to, p.time_zone, ${at}) end`
export const quietUntil = quietUntilAt(fragment`now()`)

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
    (n.claimed_at + (${gapMs}
      + ('x' || left(n.message_id::text, 6))::bit(24)::int % (${jitterMs} + 1)) * interval '1 ms')`
  // The last so many, this one included; null where there were not so many yet, or any number may be sent.
  const afterMinute = fragment`((p.recent || n.claimed_at)[cardinality(p.recent) + 2 - ${perMinute}] + interval '1 minute')`
  const opened = fragment`(${openedOn(today)} + 1)`
  const usedUp = fragment`n.opens and ${mayOpen(defaults, fragment`n.linked_at`)} between 1 and ${opened}`
  return fragment`
  update wa_session_pacing p
  set in_flight = n.id,
      recent = (p.recent || n.claimed_at)[greatest(1, cardinality(p.recent) + 2 - greatest(1, ${perMinute})):],
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

/** The pace of a session, and where it stands. Undefined if there is no such session. */
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
