import { fragment } from './db.ts'
import type { Fragment, Sql, Tag } from './db.ts'
import { appendEvents } from './events.ts'
import { contentOf } from './message-columns.ts'
import type { MessageContent } from './message-content.ts'
import { findMessage, messageResource, tellMessages } from './messages.ts'
import type { MessageStatus } from './messages.ts'
import { chatInHand, giveBackOpening, isQuiet, keepClosed, movePace } from './pacing.ts'
import type { PacingConfig } from './pacing.ts'
import { assertFence } from './wa-session-leases.ts'

/** A session whose messages a worker may send now. */
export interface Lane {
  id: string
  fence: number
}

/** A message a worker has claimed: it is `sending` from here on, and must be looked up before it is ever sent again. */
export interface Claimed {
  outboxId: number
  messageId: string
  sessionId: string
  workspaceId: string
  chatId: string
  /** Where it goes: the chat's address, or the one WhatsApp has for that number. */
  waChatId: string
  keyId: string
  content: MessageContent
  mentions: string[]
  quoted: { fromMe: boolean; chatId: string; id: string; participant: string } | null
  /** Claims so far, without those that were no fault of the message. */
  attempts: number
  /** Of these: how often the page broke down meanwhile. */
  crashes: number
  /** How often it was sent again although nobody could know whether the time before had worked. */
  doubts: number
  /** The login it was claimed under is the one the session has now. */
  sameLogin: boolean
  /** The recipient has asked for no more messages. */
  optedOut: boolean
  /** It opens a conversation, however often it is tried. */
  cold: boolean
  /** Whether to show "typing…" first. */
  typing: boolean
  requestId: string | null
}

/** A message that has just been claimed. */
export interface FreshlyClaimed extends Claimed {
  /** How long its session's pace asks for until the next one, in milliseconds. */
  waitMs: number
  /** Its session has others: they may wait, or be on their way. What is accepted from here on is told by a nudge. */
  more: boolean
}

interface ClaimedRow extends Omit<Claimed, 'content' | 'quoted'> {
  type: string
  body: string | null
  content: object | null
  mediaId: string | null
  quotedId: string | null
  quotedFromMe: boolean
  quotedChatId: string
  quotedParticipant: string
}

/** What a ClaimedRow has, beside sameLogin and typing; `o` is the outbox row, the rest is joined. */
const selected = fragment`
  o.id as outbox_id, m.id as message_id, m.session_id, m.workspace_id, m.chat_id, coalesce(c.canonical_wa_id, c.wa_chat_id) as wa_chat_id,
  m.wa_key_id as key_id, m.type, m.body, m.content, m.media_id, m.mentions, q.wa_key_id as quoted_id, q.direction = 'outbound' as quoted_from_me,
  q.wa_participant as quoted_participant, c.wa_chat_id as quoted_chat_id, o.attempts, o.crashes, o.doubts,
  coalesce(k.opted_out, false) and m.opt_out_override is null as opted_out, o.cold, m.request_id`
const joined = fragment`
  join messages m on m.id = o.message_id
  join chats c on c.id = o.chat_id
  left join contacts k on k.id = c.contact_id
  left join messages q on q.id = m.quoted_message_id`

function claimedOf(row: ClaimedRow): Claimed {
  const { quotedId: id, quotedFromMe, quotedChatId, quotedParticipant } = row
  return {
    // All of it, since leaving out what it is not asked for takes longer than all the rest that is done with a row here.
    ...row,
    content: contentOf(row),
    quoted:
      id === null
        ? null
        : { fromMe: quotedFromMe, chatId: quotedChatId, id, participant: quotedParticipant },
  }
}

/** The first message of each lane of `s` that is due; of none whose chat is in the session's `hand`. By an index of its own: see migration 0030. */
const laneHeads = fragment`
  select o.id, o.revision, l.cold, l.due_at
  from outbox_lanes l
  cross join lateral (
    select o.id, o.revision from outbox o where o.chat_id = l.chat_id and o.send_at is null and o.state = 'q' order by o.id + 0 limit 1) o
  where l.session_id = s.id and l.waiting > 0 and l.due_at <= now() and l.chat_id is distinct from hand.chat_id`

/**
 * Claims, for each of these idle sessions whose pace allows it, the oldest due message, in one round trip. Only a session whose fence still holds
 * and that is WORKING gives one, so a worker that lost a session claims nothing of it. The cost depends on the number of sessions, not
 * on what waits: a chat that backs off, waits for an ack or may not be opened today lies ahead in its lane and is not visited.
 *
 * What is on its way is named by its session's pace, which changes with each claim anyway. Its lane is put aside only when the session goes on to another chat
 * before that ack: written with every claim, the lane and its indexes would add a third to its work.
 */
export async function claim(
  sql: Tag,
  worker: string,
  lanes: Lane[],
  defaults: PacingConfig,
): Promise<FreshlyClaimed[]> {
  const rows = await sql<ClaimedRow & Pick<FreshlyClaimed, 'waitMs' | 'more'>>`
    with head as (
      select h.id, h.revision, h.cold, s.login_epoch, s.linked_at, p.in_flight, hand.chat_id is not null as in_hand
      from unnest(${lanes.map((lane) => lane.id)}::uuid[], ${lanes.map((lane) => lane.fence)}::bigint[]) u(id, fence)
      join wa_sessions s on s.id = u.id and s.fence = u.fence and s.owner = ${worker} and s.status = 'WORKING'
      join wa_session_pacing p on p.session_id = s.id and p.next_send_at <= now()
      cross join lateral (select ${isQuiet} as quiet offset 0) hours
      cross join lateral (select ${chatInHand} as chat_id offset 0) hand
      cross join lateral (
        (${laneHeads} and not hours.quiet and not l.cold order by l.due_at limit 1)
        union all
        (${laneHeads} and not hours.quiet and l.cold and p.cold_at <= now() order by l.due_at limit 1)
        union all
        (${laneHeads} and hours.quiet and l.last_inbound_at > now() - interval '24 hours' order by l.last_inbound_at limit 1)
        order by due_at limit 1
      ) h
      -- In the order of renewLeases, so that the two cannot wait for each other.
      order by s.id
      for share of s
      offset 0
    ), hand as (
      -- Whoever is at it (an ack, a giving up) wants what is locked here, and is not waited for: the session is asked again after that.
      select b.id, b.chat_id from head join outbox b on b.id = head.in_flight where head.in_hand and b.state = 's' for no key update of b skip locked
    ), claimed as (
      update outbox o
      set state = 's', claimed_by = ${worker}, claimed_at = now(), attempts = o.attempts + 1, login_epoch = head.login_epoch, cold = o.cold or head.cold
      -- The revision: a message that was edited or taken back in this very moment is read anew by the next claim.
      from head where o.id = head.id and o.state = 'q' and o.revision = head.revision
        and (not head.in_hand or exists (select from hand where hand.id = head.in_flight))
      returning o.*, head.linked_at, head.cold as opens, head.in_flight
    ), aside as (
      update outbox_lanes l set due_at = 'infinity' from claimed join hand on hand.id = claimed.in_flight where l.chat_id = hand.chat_id
    ), pace as (
      ${movePace(defaults)}
      -- All that was claimed, so that nothing has to be joined to it again.
      returning n.*, coalesce(p.typing, ${defaults.WA_TYPING}::boolean) as typing, extract(epoch from p.next_send_at - now()) * 1000 as wait_ms
    )
    select ${selected}, true as same_login, o.typing, o.wait_ms::float8,
      exists (select from outbox_lanes l where l.session_id = o.session_id and l.waiting > 0 and (l.waiting > 1 or l.chat_id <> o.chat_id)) as more
    from pace o ${joined}`
  return rows.map((row) => ({ ...claimedOf(row), waitMs: row.waitMs, more: row.more }))
}

/** What is left claimed: by a worker that died, or handed to WhatsApp and not yet confirmed for `olderThanSeconds`. */
export async function unconfirmed(
  sql: Sql,
  lane: Lane,
  olderThanSeconds: number,
  defaults: PacingConfig,
): Promise<Claimed[]> {
  const rows = await sql<ClaimedRow>`
    select ${selected}, o.login_epoch = s.login_epoch as same_login, coalesce(p.typing, ${defaults.WA_TYPING}::boolean) as typing
    from wa_session_pacing p
    join wa_sessions s on s.id = p.session_id
    -- One at the most is on its way in a chat: of the chat the session is at, or of one that it has put aside.
    cross join lateral (
      select p.in_flight as id
      union
      select o.id from outbox_lanes l
      cross join lateral (select o.id from outbox o where o.chat_id = l.chat_id and o.send_at is null and o.state = 's' limit 1) o
      where l.session_id = p.session_id and l.waiting > 0 and l.cold = any('{f,t}') and l.due_at = 'infinity') out
    join outbox o on o.id = out.id ${joined}
    where p.session_id = ${lane.id} and o.state = 's' and o.claimed_at <= now() - ${olderThanSeconds} * interval '1 second'
    order by o.id`
  return rows.map(claimedOf)
}

/** What a try that came to nothing says about the message. */
export interface Verdict {
  /** How long it, and what is behind it in its chat, waits. */
  delayMs: number
  /** It was no fault of the message: the attempt does not count. */
  forgiven?: boolean
  /** The page broke down over it. */
  crashed?: boolean
  /** Nobody can know whether it went out. */
  doubted?: boolean
}

/** Puts a message back at the head of its chat. Throws LeaseLost. */
export async function putBack(
  sql: Sql,
  lane: Lane,
  { outboxId }: Claimed,
  { delayMs, forgiven = false, crashed = false, doubted = false }: Verdict,
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, lane)
    // Not there any more: it was confirmed after all.
    await tx`
      with back as (
        update outbox
        set state = 'q', claimed_by = null, claimed_at = null, attempts = attempts - ${forgiven}::boolean::int,
            crashes = crashes + ${crashed}::boolean::int, doubts = doubts + ${doubted}::boolean::int
        where id = ${outboxId} and state = 's' returning chat_id)
      update outbox_lanes l set due_at = now() + ${delayMs}::int * interval '1 ms', cold = false from back where l.chat_id = back.chat_id`
  })
}

/** Gives a message up: `failed` when it certainly did not go out, `unknown` when nobody can tell. Throws LeaseLost. */
export async function giveUp(
  sql: Sql,
  lane: Lane,
  { workspaceId, messageId }: Claimed,
  { status, code, message }: { status: 'failed' | 'unknown'; code: string; message: string },
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, lane)
    const [left] = await takeOut(tx, fragment`o.message_id = ${messageId}`)
    if (!left) return
    await tx`
      update messages set status = ${status}, attempts = ${left.attempts}, error_code = ${code}, error_message = ${message}
      where id = ${messageId}`
    if (left.cold && status === 'failed') {
      await keepClosed(tx, left.chatId)
      if (code === 'NUMBER_NOT_ON_WHATSAPP') await giveBackOpening(tx, lane.id)
    }
    const row = await findMessage(tx, workspaceId, messageId)
    if (!row) return
    await appendEvents(tx, [
      { workspaceId, sessionId: lane.id, type: 'message.ack', payload: messageResource(row) },
    ])
  })
}

export interface TakenOut {
  messageId: string
  chatId: string
  state: 'z' | 'q' | 's'
  attempts: number
  cold: boolean
}

/** The engine broke down while it had the message in its hands. */
export async function countCrash(sql: Sql, lane: Lane, { outboxId }: Claimed): Promise<void> {
  await sql`
    update outbox o set crashes = o.crashes + 1 from wa_sessions s
    where o.id = ${outboxId} and o.state = 's' and s.id = o.session_id and s.fence = ${lane.fence}`
}

/** What the workspace wants done when nobody can know whether a message went out. */
export async function unknownPolicy(
  sql: Sql,
  workspaceId: string,
): Promise<'reconcile_then_resend_same_id' | 'at_most_once'> {
  const [row] = await sql<{ unknownPolicy: 'reconcile_then_resend_same_id' | 'at_most_once' }>`
    select unknown_policy from workspaces where id = ${workspaceId}`
  return row!.unknownPolicy
}

/**
 * The statements that put messages into the outbox (`queued`) and count them in the lanes of their chats (`lane`): those in `message`, in the order of their seq; their chats are in
 * `chat`, and locked.
 */
export const enqueuing = ({
  workspaceId,
  sessionId,
}: {
  workspaceId: string
  sessionId: string
}) => fragment`
  queued as (
    insert into outbox (message_id, workspace_id, session_id, chat_id, state, send_at)
    select id, ${workspaceId}::uuid, ${sessionId}::uuid, chat_id, case when send_at > now() then 'z' else 'q' end::"char",
      case when send_at > now() then send_at end
    from message order by seq
    returning message_id, state
  ), lane as (
    insert into outbox_lanes (chat_id, workspace_id, session_id, waiting, due_at, cold, last_inbound_at)
    select chat.id, ${workspaceId}::uuid, ${sessionId}::uuid, count(*) filter (where m.send_at is null or m.send_at <= now()),
      -- Chats that are opened together take their turns in the order of their messages.
      now() - ((select max(seq) from message) - min(m.seq)) * interval '1 microsecond',
      chat.last_inbound_at is null and chat.contacted_at is null and not chat.is_group, chat.last_inbound_at
    from message m join chat on chat.id = m.chat_id
    group by chat.id, chat.last_inbound_at, chat.contacted_at, chat.is_group
    order by chat.id
    on conflict (chat_id) do update
    set waiting = outbox_lanes.waiting + excluded.waiting,
        due_at = case when outbox_lanes.waiting = 0 then excluded.due_at else outbox_lanes.due_at end
    returning chat_id, due_at, cold, last_inbound_at
  )`

/**
 * The statements that take messages out of the outbox (`gone`), and let what is behind each of them in its chat go. `which` speaks of `o`. Rows are
 * locked in one order everywhere, outbox before lane, so that none of this can deadlock with a claim.
 */
export const takingOut = (which: Fragment, lanes = fragment`gone`) => fragment`
  gone as (
    delete from outbox o where ${which} returning o.id, o.message_id, o.chat_id, o.state, o.attempts, o.cold
  ), freed as (
    update outbox_lanes l
    set waiting = l.waiting - g.n,
        due_at = case
          -- The chat is the last of its session now.
          when g.sent then now()
          when l.due_at <= now() or l.due_at = 'infinity' then l.due_at
          -- It waits for the sake of its first message: what leaves from behind that one changes nothing.
          when exists (select from outbox o where o.chat_id = l.chat_id and o.send_at is null and o.id + 0 < g.first) or g.first is null then l.due_at
          else now() end,
        cold = l.cold and not g.sent
    from (select chat_id, count(*) filter (where state <> 'z')::int as n, bool_or(state = 's') as sent,
        min(id) filter (where state <> 'z') as first from ${lanes} group by chat_id) g
    where l.chat_id = g.chat_id
  )`

/** Takes messages out of the outbox; see takingOut(). They may be of many chats: their lanes are locked in the order in which a batch is accepted. */
export async function takeOut(tx: Sql, which: Fragment): Promise<TakenOut[]> {
  const inOrder = fragment`(
    select gone.* from gone
    join (select chat_id from outbox_lanes where chat_id in (select chat_id from gone) order by chat_id for no key update) l on l.chat_id = gone.chat_id) gone`
  return tx<TakenOut>`with ${takingOut(which, inOrder)} select * from gone`
}

/**
 * Lets scheduled messages whose time has come queue up, in the order of their time, behind what waits in their chats; at most `limit` of them, any worker may. Answers how many. It takes the lanes of many chats, of all
 * sessions, so it waits for none of them: where somebody is at work, the next call finds the message.
 */
export async function releaseScheduled(sql: Sql, limit = 500): Promise<number> {
  const [released] = await sql<{ n: number }>`
    with due as (
      select id, chat_id, send_at from outbox where send_at <= now() order by send_at limit ${limit} for update skip locked
    ), free as (
      select chat_id from outbox_lanes where chat_id in (select chat_id from due) for no key update skip locked
    ), placed as (
      select d.id, nextval(pg_get_serial_sequence('outbox', 'id')) as place
      from (select due.id from due join free on free.chat_id = due.chat_id order by due.send_at, due.id) d
    ), released as (
      update outbox o set state = 'q', send_at = null, id = placed.place from placed where o.id = placed.id
      returning o.chat_id
    ), lanes as (
      update outbox_lanes l set waiting = l.waiting + r.n, due_at = case when l.waiting = 0 then now() else l.due_at end
      from (select chat_id, count(*)::int as n from released group by chat_id) r where l.chat_id = r.chat_id
    )
    select count(*)::int as n from released`
  return released!.n
}

/** Cancels everything of a session that nobody has begun to send. */
export async function cancelQueued(sql: Sql, sessionId: string): Promise<void> {
  await sql.begin(async (tx) => {
    const taken = await takeOut(tx, fragment`o.session_id = ${sessionId} and o.state in ('q', 'z')`)
    await endTaken(tx, taken, { status: 'cancelled' })
  })
}

/** What became of messages that were taken out: it is written with the number of their attempts, and told. */
export async function endTaken(
  tx: Sql,
  taken: TakenOut[],
  { status, code, message }: { status: MessageStatus; code?: string; message?: string },
): Promise<void> {
  const ids = taken.map(({ messageId }) => messageId)
  await tx`
    update messages m set status = ${status}, attempts = t.attempts, error_code = ${code}, error_message = ${message}
    from unnest(${ids}::uuid[], ${taken.map(({ attempts }) => attempts)}::int[]) t(id, attempts) where m.id = t.id`
  await tellMessages(tx, 'message.ack', ids)
}

/**
 * Ends all sending from a number that is no longer this session's: what waits has failed, and of what was on its way nobody will ever know.
 * Throws LeaseLost.
 */
export async function endOutbox(
  sql: Sql,
  session: Lane,
  why: { code: string; message: string },
): Promise<number> {
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    const taken = await takeOut(tx, fragment`o.session_id = ${session.id}`)
    const gone = (sent: boolean) => taken.filter(({ state }) => (state === 's') === sent)
    await endTaken(tx, gone(true), { ...why, status: 'unknown', code: 'OUTCOME_UNKNOWN' })
    await endTaken(tx, gone(false), { ...why, status: 'failed' })
    return taken.length
  })
}

/** How many messages wait, at most `cap`, and for how long the oldest one has: for health checks, cheap whatever the backlog. */
export async function backlog(
  sql: Sql,
  cap = 10_000,
): Promise<{ queued: number; oldestSeconds: number }> {
  const [row] = await sql<{ queued: number; oldestSeconds: number }>`
    select (select count(*)::int from (select from outbox where send_at is null and state = 'q' limit ${cap}) capped) as queued,
      coalesce(extract(epoch from now() - (select created_at from outbox where send_at is null and state = 'q' order by id limit 1))::int, 0) as oldest_seconds`
  return row!
}
