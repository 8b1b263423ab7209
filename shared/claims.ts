import { fragment } from './db.ts'
import type { Sql, Tag } from './db.ts'
import { contentOf } from './message-columns.ts'
import type { MessageContent } from './message-content.ts'
import { tellMessages } from './messages.ts'
import { optedOut } from './opt-outs.ts'
import { mayBeOut, takeBack, takeOut } from './outbox.ts'
import { giveBackOpening, holdOpenings, keepClosed } from './new-conversations.ts'
import { answerWindow, chatInHand, isQuiet, movePace, paceOf } from './pacing.ts'
import type { PacingConfig } from './pacing.ts'
import type { MessageKey } from './wa-id.ts'
import { assertFence } from './wa-session-leases.ts'
import type { Lease } from './wa-session-leases.ts'

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
  quoted: MessageKey | null
  claimedAt: Date
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
  /** This claim has counted it as a conversation opened today. A later one of the same message does not count it again. */
  opens: boolean
  /** Its session has others: they may wait, or be on their way. What is accepted from here on is told by a nudge. */
  more: boolean
}

/** A message that was claimed a while ago. */
export interface Outstanding extends Claimed {
  /** How long ago, in milliseconds. */
  ageMs: number
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
  q.wa_participant as quoted_participant, coalesce(c.canonical_wa_id, c.wa_chat_id) as quoted_chat_id, o.claimed_at, o.attempts, o.crashes, o.doubts,
  ${optedOut} as opted_out, o.cold, m.request_id`
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
  leases: Lease[],
  defaults: PacingConfig,
): Promise<FreshlyClaimed[]> {
  const rows = await sql<ClaimedRow & Pick<FreshlyClaimed, 'waitMs' | 'opens' | 'more'>>`
    with head as (
      select h.id, h.revision, h.cold, s.login_epoch, s.linked_at, p.in_flight, hand.chat_id is not null as in_hand
      from unnest(${leases.map(({ id }) => id)}::uuid[], ${leases.map(({ fence }) => fence)}::bigint[]) u(id, fence)
      join wa_sessions s on s.id = u.id and s.fence = u.fence and s.owner = ${worker} and s.status = 'WORKING'
      join wa_session_pacing p on p.session_id = s.id and p.next_send_at <= now()
      cross join lateral (select ${isQuiet} as quiet offset 0) hours
      cross join lateral (select ${chatInHand} as chat_id offset 0) hand
      cross join lateral (
        (${laneHeads} and not hours.quiet and not l.cold and not (l.opening and p.locked_at > now()) order by l.due_at limit 1)
        union all
        (${laneHeads} and not hours.quiet and l.cold and p.cold_at <= now() order by l.due_at limit 1)
        union all
        (${laneHeads} and hours.quiet and l.last_inbound_at > now() - ${answerWindow} order by l.last_inbound_at limit 1)
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
      -- The time it is, not that of the statement, which may have waited for a lock: the pace counts from here.
      set state = 's', claimed_by = ${worker}, claimed_at = clock_timestamp(), attempts = o.attempts + 1, login_epoch = head.login_epoch, cold = o.cold or head.cold,
        counted_at = case when head.cold then now() else o.counted_at end
      -- The revision: a message that was edited or taken back in this very moment is read anew by the next claim.
      from head where o.id = head.id and o.state = 'q' and o.revision = head.revision
        and (not head.in_hand or exists (select from hand where hand.id = head.in_flight))
      returning o.*, head.linked_at, head.cold as opens, head.in_flight
    ), aside as (
      update outbox_lanes l set due_at = 'infinity' from claimed join hand on hand.id = claimed.in_flight where l.chat_id = hand.chat_id
    ), pace as (
      ${movePace(defaults)}
      -- All that was claimed, so that nothing has to be joined to it again.
      returning n.*, ${paceOf(defaults).typing} as typing, extract(epoch from p.next_send_at - n.claimed_at) * 1000 as wait_ms
    )
    select ${selected}, true as same_login, o.typing, o.wait_ms::float8, o.opens,
      exists (select from outbox_lanes l where l.session_id = o.session_id and l.waiting > 0 and (l.waiting > 1 or l.chat_id <> o.chat_id)) as more
    from pace o ${joined}`
  return rows.map((row) => ({
    ...claimedOf(row),
    waitMs: row.waitMs,
    opens: row.opens,
    more: row.more,
  }))
}

/** What is left claimed: by a worker that died, or handed to WhatsApp and not yet confirmed for `olderThanSeconds`. */
export async function unconfirmed(
  sql: Sql,
  lease: Lease,
  olderThanSeconds: number,
  defaults: PacingConfig,
): Promise<Outstanding[]> {
  const rows = await sql<ClaimedRow & Pick<Outstanding, 'ageMs'>>`
    select ${selected}, (extract(epoch from now() - o.claimed_at) * 1000)::float8 as age_ms, o.login_epoch = s.login_epoch as same_login,
      ${paceOf(defaults).typing} as typing
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
    where p.session_id = ${lease.id} and o.state = 's' and o.claimed_at <= now() - ${olderThanSeconds} * interval '1 second'
    order by o.id`
  return rows.map((row) => ({ ...claimedOf(row), ageMs: row.ageMs }))
}

/** What a try that came to nothing says about the message. */
export interface Verdict {
  /** How long it, and what is behind it in its chat, waits. */
  delayMs: number
  /** It was no fault of the message: the attempt does not count. */
  forgiven?: boolean
  /** Nobody can know whether it went out. */
  doubted?: boolean
  /** WhatsApp has seen nothing of it: a conversation that this claim has counted is not opened. */
  unseen?: boolean
  /** For how long the session opens no conversation at all, and what for. */
  hold?: { ms: number; by: 'NUMBER_NOT_CHECKED' }
}

/**
 * Puts a message back at the head of its chat. If it is to be deleted for everyone by now, or its batch was cancelled, it
 * is taken back instead, whatever is known of the attempt: it must not be sent again. Throws LeaseLost.
 */
export async function putBack(
  sql: Sql,
  lease: Lease,
  { outboxId, messageId, opens = false }: Claimed & { opens?: boolean },
  { delayMs, forgiven = false, doubted = false, unseen = false, hold }: Verdict,
): Promise<void> {
  const unopened = opens && unseen
  await sql.begin(async (tx) => {
    await assertFence(tx, lease)
    // Held before the message: whoever cancels the batch has either done so already, or finds the message waiting. A retry that was asked for after that stands.
    const [batch] = await tx<{ cancelled: boolean }>`
      select b.cancelled_at >= o.created_at as cancelled
      from outbox o join messages m on m.id = o.message_id join batches b on b.id = m.batch_id where o.id = ${outboxId} for share of b`
    const [back] = await tx<{ countedAt: Date | null }>`
      with back as (
        update outbox
        set state = 'q', claimed_by = null, claimed_at = null, attempts = attempts - ${forgiven}::boolean::int,
            doubts = doubts + ${doubted}::boolean::int, cold = cold and not ${unopened}::boolean
        where id = ${outboxId} and state = 's' returning chat_id, counted_at
      ), lane as (
        update outbox_lanes l
        set due_at = now() + ${delayMs}::int * interval '1 ms', cold = l.cold and ${unopened}::boolean, opening = l.opening or (l.cold and not ${unopened}::boolean)
        from back where l.chat_id = back.chat_id
      )
      select counted_at from back`
    // Not there any more: it was confirmed after all.
    if (!back) return
    if (unopened) await giveBackOpening(tx, lease.id, back.countedAt)
    // After that: what is given back may end what holds all others.
    if (hold) await holdOpenings(tx, lease.id, hold)
    // By a statement of its own: whoever held the row until now may have asked for it. From here on they take it back themselves, see cancel().
    const [unwanted] = await tx`
      select from wa_actions where message_id = ${messageId} and kind = 'revoke' and done_at is null limit 1`
    if (unwanted || batch?.cancelled) await takeBack(tx, fragment`o.id = ${outboxId}`)
  })
}

/** What ends a message that is given up. */
export interface Ending {
  /** `failed` when this try certainly did not go out, `unknown` when nobody can tell. */
  status: 'failed' | 'unknown'
  code: string
  message: string
  /** WhatsApp was not asked to send it since it was claimed. */
  unasked?: boolean
}

/**
 * Gives up a claimed message, unless it was confirmed or refused after all. It also ends as `unknown` if an earlier
 * attempt may have gone out. Throws LeaseLost.
 */
export async function giveUp(
  sql: Sql,
  lease: Lease,
  { outboxId, messageId, opens }: Claimed & { opens?: boolean },
  { status, code, message, unasked }: Ending,
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, lease)
    // By its place: what was queued again since is another try, of which nothing is known here.
    const [left] = await takeOut(tx, fragment`o.id = ${outboxId} and o.state = 's'`)
    if (!left) return
    const end = mayBeOut(left) ? 'unknown' : status
    await tx`
      update messages set status = ${end}, attempts = ${left.attempts}, error_code = ${code}, error_message = ${message}
      where id = ${messageId}`
    if (left.cold && end === 'failed') {
      await keepClosed(tx, [left.chatId])
      // The opening stays counted if WhatsApp may have seen the message. It has not if this claim counted it and nothing
      // was handed over since. Of earlier attempts nobody can tell, however few `attempts` says: those that were no fault
      // of the message are not among them. And a number that is not on WhatsApp has nobody who could see it.
      if ((opens && unasked) || code === 'NUMBER_NOT_ON_WHATSAPP')
        await giveBackOpening(tx, lease.id, left.countedAt)
    }
    await tellMessages(tx, 'message.ack', [messageId])
  })
}

/** Whether the recipient of a message has asked for no more of them by now; see Claimed.optedOut. */
export async function hasOptedOut(sql: Sql, { messageId }: Claimed): Promise<boolean> {
  const [row] = await sql<{ optedOut: boolean }>`
    select ${optedOut} as opted_out from messages m join chats c on c.id = m.chat_id left join contacts k on k.id = c.contact_id where m.id = ${messageId}`
  return row?.optedOut ?? false
}

/** The engine broke down while it had the message in its hands. */
export async function countCrash(sql: Sql, lease: Lease, { outboxId }: Claimed): Promise<void> {
  await sql`
    update outbox o set crashes = o.crashes + 1 from wa_sessions s
    where o.id = ${outboxId} and o.state = 's' and s.id = o.session_id and s.fence = ${lease.fence}`
}
