import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { dayOf, today } from './pacing.ts'

/** Whether the messages of lane `l` are openings of a conversation. */
export const opens = fragment`(l.cold or l.opening)`

/**
 * Why `p` may not open a conversation in lane `l` (may be null) now, and until when. An opening that was counted and is
 * tried again needs no budget; a lock holds it all the same.
 */
export const closed = {
  until: fragment`case when l.opening is true and p.locked_at > now() then p.locked_at when l.opening is not true and p.cold_at > now() then p.cold_at end`,
  by: fragment`case when l.opening then p.locked_by else p.cold_held_by end`,
}

/** Does not shorten what holds new conversations already. */
const heldUntil = (until: Fragment, by: string) => fragment`
  cold_at = greatest(cold_at, ${until}), cold_held_by = case when cold_at >= ${until} then cold_held_by else ${by} end`

/** A lock is still there when what holds new conversations already is over. */
const lockedUntil = (until: Fragment, by: string) => fragment`
  ${heldUntil(until, by)},
  locked_at = greatest(locked_at, ${until}), locked_by = case when locked_at >= ${until} then locked_by else ${by} end`

/** Where `condition` holds, new conversations are held by a lock at the most. */
const onlyLocked = (condition: Fragment) => fragment`
  cold_at = case when ${condition} then locked_at else cold_at end, cold_held_by = case when ${condition} then locked_by else cold_held_by end`

/**
 * WhatsApp lets this number open no conversations until then: for a day if it does not say until when, and for at least
 * half an hour, since it has refused one just now and so its own clock has not passed that end, whatever ours says.
 * Conversations that are open go on.
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

/** The messages that were to open these conversations did not: the next ones are openings again, unless the two have met meanwhile. */
export async function keepClosed(tx: Sql, chatIds: string[]): Promise<void> {
  await tx`
    update outbox_lanes l set cold = true, opening = false from chats c
    where l.chat_id = any(${chatIds}::uuid[]) and c.id = l.chat_id and c.last_inbound_at is null and c.contacted_at is null and not c.is_group`
}

/** A message to this chat has arrived after all: what is sent there next opens no conversation. */
export async function keepOpen(tx: Sql, chatId: string): Promise<void> {
  await tx`update outbox_lanes set cold = false, opening = false where chat_id = ${chatId}`
}

/** A conversation counted at `countedAt` was not opened, and WhatsApp has seen nothing of it: if that was today, another may be opened. */
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

/** No conversation is opened for a while. One that was counted before, and is tried again, is not held by this. */
export async function holdOpenings(
  tx: Sql,
  sessionId: string,
  { ms, by }: { ms: number; by: 'NUMBER_NOT_CHECKED' },
): Promise<void> {
  const until = fragment`(now() + ${ms}::int * interval '1 ms')`
  await tx`update wa_session_pacing set ${heldUntil(until, by)} where session_id = ${sessionId}`
}

/**
 * The session has another number. Everyone counts as a new contact again, and the openings, locks and age of the number
 * before do not carry over. The caller holds the session's row before this locks chats and lanes, as whoever receives does.
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
