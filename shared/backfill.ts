import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { highestFirst, numberedPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'
import { assertFence, LeaseLost } from './wa-session-leases.ts'
import type { SessionLease } from './wa-session-leases.ts'

/** A stretch of time of which something may be missing. */
export interface Stretch {
  from: Date
  to: Date
}

/** What is outstanding. */
export interface Missed extends Stretch {
  /** How often something had been noted as missed. */
  notes: number
}

/**
 * From when until now a session may have missed something, or undefined when nothing is outstanding. It begins ten minutes before the session was last
 * known to listen: clocks differ, and a phone hands things on late. Throws LeaseLost.
 */
export async function missedStretch(sql: Sql, session: SessionLease): Promise<Missed | undefined> {
  const [row] = await sql<{ from: Date | null; to: Date; notes: number }>`
    select backfill_from - interval '10 minutes' as "from", clock_timestamp() as "to", backfill_notes as notes
    from wa_sessions where id = ${session.id} and fence = ${session.fence}`
  if (!row) throw new LeaseLost(session.id)
  const { from, to, notes } = row
  return from === null ? undefined : { from, to, notes }
}

/** Something since then may be missing, and is to be read again. Throws LeaseLost. */
export async function noteMissed(sql: Sql, session: SessionLease, since: Date): Promise<void> {
  const noted = await sql`
    update wa_sessions set backfill_from = least(backfill_from, ${since}::timestamptz), backfill_notes = backfill_notes + 1
    where id = ${session.id} and fence = ${session.fence} returning id`
  if (noted.length === 0) throw new LeaseLost(session.id)
}

/** All that was missed has been read again, as far as it is to be had; what was noted while it was read is still outstanding. */
export async function endStretch(
  sql: Sql,
  session: SessionLease,
  { notes }: Missed,
): Promise<void> {
  await sql`
    update wa_sessions set backfill_from = null
    where id = ${session.id} and fence = ${session.fence} and backfill_notes = ${notes}`
}

/** What is known here of a message that WhatsApp still has. */
export interface KnownMessage {
  keyId: string
  fromMe: boolean
  ack: number | null
  /** Its content was not to be read when it came. */
  placeholder: boolean
  body: string | null
  revoked: boolean
}

/** Which of these messages are stored, whatever address they were stored under. */
export async function knownMessages(
  sql: Sql,
  session: SessionLease,
  keys: { fromMe: boolean; id: string }[],
): Promise<KnownMessage[]> {
  return sql<KnownMessage>`
    select m.wa_key_id as key_id, u.from_me, m.ack, m.type = 'unknown' and m.body is null as placeholder, m.body,
      m.revoked_at is not null as revoked
    from unnest(${keys.map(({ fromMe }) => fromMe)}::boolean[], ${keys.map(({ id }) => id)}::text[]) u(from_me, key_id)
    join messages m on m.session_id = ${session.id} and (m.direction = 'outbound') = u.from_me and m.wa_key_id = u.key_id`
}

/** Where the messages that were asked for end. */
export interface UnreadCursor {
  at: string
  seq: number
}

interface Unread extends UnreadCursor {
  keyId: string
  chatId: string
  ack: number | null
}

/**
 * Messages of ours, newest first, that WhatsApp may know more of than we do: confirmed but not read, or of unknown fate. What the sender still has in its
 * hands is left to it.
 */
export async function unreadOfOurs(
  sql: Sql,
  session: SessionLease,
  limit: number,
  after?: UnreadCursor,
): Promise<Unread[]> {
  return sql<Unread>`
    select m.wa_key_id as key_id, coalesce(c.canonical_wa_id, c.wa_chat_id) as chat_id, m.ack, m.created_at::text as at, m.seq
    from messages m join chats c on c.id = m.chat_id
    where m.workspace_id = ${session.workspaceId} and m.session_id = ${session.id} and m.direction = 'outbound'
      and m.created_at > now() - interval '3 days' and m.wa_key_id is not null
      and (m.ack in (1, 2) or m.status = 'unknown')
      and not exists (select from outbox o where o.message_id = m.id)
      ${after ? fragment`and (m.created_at, m.seq) < (${after.at}::timestamptz, ${after.seq}::bigint)` : fragment``}
    order by m.created_at desc, m.seq desc limit ${limit}`
}

/** What was read again of one chat: `waChatId` is empty for all chats that were not read. */
export interface ChatReport extends Stretch {
  waChatId: string
  /** Ids of messages of it. */
  keyIds: string[]
  complete: boolean
}

/** Writes what is proven of a chat; a later word on the same stretch takes the place of an earlier one. Throws LeaseLost. */
export async function reportChat(
  sql: Sql,
  session: SessionLease,
  report: ChatReport,
): Promise<void> {
  const { waChatId, keyIds, from, to, complete } = report
  await sql.begin(async (tx) => {
    await assertFence(tx, session)
    await tx`
      insert into wa_gaps (workspace_id, session_id, wa_chat_id, chat_id, from_at, to_at, complete)
      values (${session.workspaceId}, ${session.id}, ${waChatId}, (
        select m.chat_id from unnest(${keyIds}::text[]) u(id), (values (true), (false)) d(outbound), messages m
        where m.session_id = ${session.id} and (m.direction = 'outbound') = d.outbound and m.wa_key_id = u.id limit 1),
        ${from}, ${to}, ${complete})
      on conflict (session_id, from_at, wa_chat_id) do update
      set chat_id = coalesce(excluded.chat_id, wa_gaps.chat_id), to_at = excluded.to_at, complete = excluded.complete, at = now()`
    await tx`delete from wa_gaps where session_id = ${session.id} and at < now() - interval '30 days'`
  })
}

/** A stretch of time a session did not listen in, and what is proven of a chat for it. */
export interface Gap {
  /** Null for the chats that were too many to be read. */
  chatId: string | null
  waChatId: string | null
  from: Date
  to: Date
  /** No message of that time is missing. */
  complete: boolean
  at: Date
}

interface GapRow extends Gap {
  id: number
}

/** What was read again of the chats of a session, newest first, for 30 days. A chat without news in a stretch has no entry. */
export async function listGaps(
  sql: Sql,
  workspaceId: string,
  sessionId: string,
  page: PageWish,
): Promise<Page<Gap>> {
  const rows = await sql<GapRow>`
    select g.id, g.chat_id, coalesce(c.wa_chat_id, nullif(g.wa_chat_id, '')) as wa_chat_id, g.from_at as "from", g.to_at as "to",
      g.complete, g.at
    from wa_gaps g left join chats c on c.id = g.chat_id
    where g.workspace_id = ${workspaceId} and g.session_id = ${sessionId}
      ${highestFirst(page, fragment`g.id`)}`
  return numberedPage(
    rows,
    page,
    ({ id }) => id,
    ({ chatId, waChatId, from, to, complete, at }) => ({
      chatId,
      waChatId,
      from,
      to,
      complete,
      at,
    }),
  )
}
