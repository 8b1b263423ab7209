import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { tellMessages } from './messages.ts'
import type { MessageStatus } from './messages.ts'
import { keepClosed } from './new-conversations.ts'
import { closeActions } from './wa-actions.ts'
import { assertFence } from './wa-session-leases.ts'
import type { Lease } from './wa-session-leases.ts'

export interface TakenOut {
  messageId: string
  chatId: string
  state: 'z' | 'q' | 's'
  attempts: number
  /** How often it was queued again although nobody could know whether the try before had worked. */
  doubts: number
  cold: boolean
  /** When it was counted as a conversation opened, if it was. */
  countedAt: Date | null
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
    returning chat_id, due_at, cold, opening, last_inbound_at
  )`

/**
 * The statements that take messages out of the outbox (`gone`), and let what is behind each of them in its chat go. `which` speaks of `o`. Rows are
 * locked in one order everywhere, outbox before lane, so that none of this can deadlock with a claim.
 */
export const takingOut = (
  which: Fragment,
  { from = fragment`gone`, opened = fragment`g.sent` } = {},
) => fragment`
  gone as (
    delete from outbox o where ${which} returning o.id, o.message_id, o.chat_id, o.state, o.attempts, o.doubts, o.cold, o.counted_at
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
        cold = l.cold and not ${opened}, opening = l.opening and not ${opened}
    from (select chat_id, count(*) filter (where state <> 'z')::int as n, bool_or(state = 's') as sent,
        min(id) filter (where state <> 'z') as first from ${from} group by chat_id) g
    where l.chat_id = g.chat_id
  )`

/**
 * Takes messages out of the outbox; see takingOut(). They may be many, and of many chats: rows are locked in the order of their
 * places, and then lanes in the order in which a batch is accepted, so that two who take out the same ones cannot wait for each
 * other. The rows by a statement of their own: whoever had them until then may have counted them in their lanes meanwhile.
 */
export async function takeOut(tx: Sql, which: Fragment): Promise<TakenOut[]> {
  const locked = await tx<{ id: number }>`
    select o.id from outbox o where ${which} order by o.id for update`
  if (locked.length === 0) return []
  const ids = locked.map(({ id }) => id)
  const from = fragment`(
    select gone.* from gone
    join (select chat_id from outbox_lanes where chat_id in (select chat_id from gone) order by chat_id for no key update) l on l.chat_id = gone.chat_id) gone`
  return tx<TakenOut>`
    with ${takingOut(fragment`o.id = any(${ids}::bigint[])`, { from })} select * from gone`
}

/**
 * Lets scheduled messages whose time has come queue up, in the order of their time, behind what waits in their chats; at most `limit` of them, any worker may. Answers how many. It takes the lanes of many chats, of all
 * sessions, so it waits for none of them: where somebody is at work, the next call finds the message.
 */
export async function releaseScheduled(sql: Sql, limit = 500): Promise<number> {
  const [released] = await sql<{ n: number }>`
    with due as (
      -- Of what has one time, too, the first go first: where the limit cuts through a chat, or a mailing.
      select id, chat_id, send_at from outbox where send_at <= now() order by send_at, id limit ${limit} for update skip locked
    ), free as (
      select chat_id from outbox_lanes where chat_id in (select chat_id from due) for no key update skip locked
    ), placed as (
      select d.id, nextval(pg_get_serial_sequence('outbox', 'id')) as place
      from (select due.id from due join free on free.chat_id = due.chat_id order by due.send_at, due.id) d
    ), released as (
      update outbox o set state = 'q', send_at = null, id = placed.place from placed where o.id = placed.id
      returning o.id, o.chat_id
    ), lanes as (
      update outbox_lanes l set waiting = l.waiting + r.n,
        -- As in enqueuing(): chats that are released together take their turns in the order of their messages.
        due_at = case when l.waiting = 0 then now() - ((select max(id) from released) - r.first) * interval '1 microsecond' else l.due_at end
      from (select chat_id, count(*)::int as n, min(id) as first from released group by chat_id) r where l.chat_id = r.chat_id
    )
    select count(*)::int as n from released`
  return released!.n
}

/** Messages that are taken out in one transaction: while one runs, nobody is told of anything that was written after its beginning. */
const sliceSize = 500
/** Messages that are looked for at once, of which slices are made. */
const scanSize = 50_000

/**
 * Does something with all messages in the outbox that fit `which`, in the order of their places and in a transaction for each slice, until
 * there are none; `take` takes them out. What was done stays done where it is broken off. `which` speaks of `o`. Answers how many.
 */
async function inSlices(
  sql: Sql,
  which: Fragment,
  take: (tx: Sql, which: Fragment) => Promise<number>,
  atMost = Infinity,
): Promise<number> {
  let taken = 0
  while (taken < atMost) {
    const found = await sql<{ id: number }>`
      select o.id from outbox o where ${which} order by o.id limit ${Math.min(scanSize, atMost - taken)}`
    if (found.length === 0) break
    const ids = found.map(({ id }) => id)
    for (let i = 0; i < ids.length; i += sliceSize) {
      const slice = ids.slice(i, i + sliceSize)
      taken += await sql.begin((tx) =>
        take(tx, fragment`o.id = any(${slice}::bigint[]) and ${which}`),
      )
    }
  }
  return taken
}

/** Cancels what of a session nobody has begun to send: all of it, or about so many. */
export async function cancelQueued(sql: Sql, sessionId: string, atMost?: number): Promise<void> {
  const which = fragment`o.session_id = ${sessionId} and o.state in ('q', 'z')`
  await inSlices(sql, which, takeBack, atMost)
}

/**
 * Cancels those of these messages that nobody has begun to send, and what was to be made of them once they were sent. `which` speaks of `o`. What an earlier try may have brought to WhatsApp
 * is cancelled as well, since it will not be tried again, but says in its error that it may be out; a deletion that was asked for is still to be made then. Answers how many.
 */
export async function takeBack(tx: Sql, which: Fragment): Promise<number> {
  const taken = await takeOut(tx, fragment`${which} and o.state in ('q', 'z')`)
  if (taken.length === 0) return 0
  const idsOf = (messages: TakenOut[]) => messages.map(({ messageId }) => messageId)
  const [out, surely] = [taken.filter(mayBeOut), taken.filter((message) => !mayBeOut(message))]
  await closeActions(
    tx,
    fragment`a.message_id = any(${idsOf(taken)}::uuid[]) and not (a.kind = 'revoke' and a.message_id = any(${idsOf(out)}::uuid[]))`,
  )
  await endTaken(tx, out, { status: 'cancelled', ...mayHaveGoneOut })
  await endTaken(tx, surely, { status: 'cancelled' })
  return taken.length
}

/** An earlier try may have brought it to WhatsApp: so it has not failed, whatever became of the last one. */
export const mayBeOut = ({ doubts }: TakenOut) => doubts > 0

const mayHaveGoneOut = {
  code: 'OUTCOME_UNKNOWN',
  message: 'It will not be tried again, but nobody can know whether an earlier try went out.',
}

/** What became of messages that were taken out: it is written with the number of their attempts, and told. */
async function endTaken(
  tx: Sql,
  taken: TakenOut[],
  { status, code, message }: { status: MessageStatus; code?: string; message?: string },
): Promise<void> {
  const ids = taken.map(({ messageId }) => messageId)
  await tx`
    update messages m set status = ${status}, attempts = t.attempts, error_code = ${code}, error_message = ${message}
    from unnest(${ids}::uuid[], ${taken.map(({ attempts }) => attempts)}::int[]) t(id, attempts) where m.id = t.id`
  const unopened = taken.filter(({ cold, state }) => cold && state !== 's')
  const chatIds = unopened.map(({ chatId }) => chatId)
  if (chatIds.length > 0) await keepClosed(tx, chatIds)
  await tellMessages(tx, 'message.ack', ids)
}

/**
 * Ends all sending from a number that is no longer this session's: what waits has failed, and of what was on its way, or may have been, nobody will ever know.
 * Answers how many messages that were. Throws LeaseLost.
 */
export async function endOutbox(
  sql: Sql,
  session: Lease,
  why: { code: string; message: string },
): Promise<number> {
  return inSlices(sql, fragment`o.session_id = ${session.id}`, async (tx, which) => {
    await assertFence(tx, session)
    const taken = await takeOut(tx, which)
    const gone = (tried: boolean) =>
      taken.filter((message) => (message.state === 's' || mayBeOut(message)) === tried)
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
