import type { Sql, Statements } from './db.ts'

export const eventTypes = [
  'message',
  'message.any',
  'message.ack',
  'message.reaction',
  'message.edited',
  'message.revoked',
  'message.action',
  'session.status',
  'session.qr',
  'chat.updated',
  'media.ready',
] as const

export type EventType = (typeof eventTypes)[number]

export interface NewEvent {
  workspaceId: string
  sessionId: string
  type: EventType
  /** The resource after the change, as the API would answer it. */
  payload: object
}

/** Appends events, in the transaction of the change they tell of, and nudges their readers once it is committed. */
export async function appendEvents(sql: Statements, events: NewEvent[]): Promise<void> {
  if (events.length === 0) return
  await sql`
    insert into events (workspace_id, session_id, type, payload)
    select * from unnest(
      ${events.map((event) => event.workspaceId)}::uuid[],
      ${events.map((event) => event.sessionId)}::uuid[],
      ${events.map((event) => event.type)}::text[],
      ${events.map((event) => JSON.stringify(event.payload))}::jsonb[])`
  sql.nudge('awfar_events')
}

/**
 * A place in the order of events: by `tx`, then by number. Numbers alone are given out before the commit, so that a lower one may appear
 * after a higher one. `tx` is that of the event's own transaction, or the highest that had ended when it was written (migration 0037).
 * With the number 0 it is the place before everything of that `tx`.
 */
export interface Position {
  tx: number
  id: number
}

/** Whether `a` lies behind `b`. */
export const isAfter = (a: Position, b: Position) => a.tx > b.tx || (a.tx === b.tx && a.id > b.id)

/** The id of an event: a UUID (version 8) that holds its position, so that whoever names it can be told what comes after. */
export function eventId({ tx, id }: Position): string {
  const high = tx.toString(16).padStart(15, '0')
  const low = id.toString(16).padStart(15, '0')
  return `${high.slice(0, 8)}-${high.slice(8, 12)}-8${high.slice(12)}-8${low.slice(0, 3)}-${low.slice(3)}`
}

/** The reverse of eventId(). Undefined when it is not an id of ours. */
export function parseEventId(text: string): Position | undefined {
  const parts = /^([0-9a-f]{8})-([0-9a-f]{4})-8([0-9a-f]{3})-8([0-9a-f]{3})-([0-9a-f]{12})$/i.exec(
    text,
  )
  if (!parts) return undefined
  const [, a = '', b = '', c = '', d = '', e = ''] = parts
  const position = { tx: Number.parseInt(a + b + c, 16), id: Number.parseInt(d + e, 16) }
  return Number.isSafeInteger(position.tx) && Number.isSafeInteger(position.id)
    ? position
    : undefined
}

/** An event on its way out. */
export interface StoredEvent extends Position {
  workspaceId: string
  sessionId: string | null
  type: EventType
  createdAt: Date
  /** JSON. */
  payload: string
}

/** The event as its readers are told it, as JSON: the same text in the stream and in every try of a webhook. */
export function eventJson({
  payload,
  workspaceId,
  sessionId,
  type,
  createdAt,
  ...at
}: StoredEvent): string {
  const head = JSON.stringify({ id: eventId(at), type, workspaceId, sessionId, createdAt })
  return `${head.slice(0, -1)},"payload":${payload}}`
}

/** What lies behind a position: events in their order, and up to where nothing else will ever appear. */
export interface EventPage {
  workspaceId: string
  events: StoredEvent[]
  /** Everything of the workspace up to here has been read. */
  position: Position
  /** There may be more already. */
  full: boolean
  /** Some of it was there and is kept no more. */
  gone: boolean
}

/**
 * Reads on in several workspaces, each from its own position, at most `limit` events of each. Only what is older, by its `tx`, than every running transaction is read:
 * whatever commits later lies behind the position that is answered, so nothing is ever passed over.
 */
export async function readEvents(
  sql: Sql,
  readers: { workspaceId: string; position: Position }[],
  limit: number,
): Promise<EventPage[]> {
  type Row = { reader: number; horizon: number; gone: boolean } & (StoredEvent | { id: null })
  const rows = await sql<Row>`
    select r.ord::int - 1 as reader, h.tx::text::bigint as horizon,
      coalesce((w.events_removed_tx, w.events_removed_id) > (r.tx, r.id), false) as gone,
      e.tx::text::bigint as tx, e.id, e.workspace_id, e.session_id, e.type, e.created_at, e.payload::text as payload
    from (select pg_snapshot_xmin(pg_current_snapshot()) as tx) h
    cross join unnest(
      ${readers.map(({ workspaceId }) => workspaceId)}::uuid[], ${readers.map(({ position }) => position.tx)}::xid8[],
      ${readers.map(({ position }) => position.id)}::bigint[]) with ordinality r(workspace_id, tx, id, ord)
    left join workspaces w on w.id = r.workspace_id
    left join lateral (
      select * from events e
      where e.workspace_id = r.workspace_id and (e.tx, e.id) > (r.tx, r.id) and e.tx < h.tx
      order by e.tx, e.id limit ${limit}) e on true
    order by r.ord, e.tx, e.id`
  // At least one row for each reader.
  const horizon = { tx: rows[0]?.horizon ?? 0, id: 0 }
  const found = readers.map((): StoredEvent[] => [])
  const gone = readers.map(() => false)
  for (const row of rows) {
    gone[row.reader] = row.gone
    if (row.id !== null) found[row.reader]!.push(row)
  }
  return readers.map(({ workspaceId, position }, index) => {
    const events = found[index]!
    const full = events.length === limit
    const { tx, id } = full ? events.at(-1)! : horizon
    return {
      workspaceId,
      events,
      full,
      gone: gone[index]!,
      position: isAfter({ tx, id }, position) ? { tx, id } : position,
    }
  })
}

/**
 * Where a reader of a workspace begins: at what happens from now on, or behind the event it names. Undefined when that cannot be done without a gap: events behind
 * it have been removed, or it is an event of another database.
 */
export async function startingPoint(
  sql: Sql,
  workspaceId: string,
  after?: Position,
): Promise<Position | undefined> {
  const [row] = await sql<{ horizon: number; tx: number | null; id: number | null }>`
    select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as horizon,
      events_removed_tx::text::bigint as tx, events_removed_id as id
    from workspaces where id = ${workspaceId}`
  const { horizon, tx, id } = row!
  if (!after) return { tx: horizon, id: 0 }
  if (after.tx > horizon) return undefined
  if (tx !== null && id !== null && isAfter({ tx, id }, after)) return undefined
  return after
}

/** Removes events of more than a week ago, in small batches, and notes in each workspace up to where. Answers how many. */
export async function removeOldEvents(sql: Sql, batch = 1_000): Promise<number> {
  let total = 0
  for (;;) {
    const [removed] = await sql<{ n: number }>`
      with old as (
        select id from events where created_at < now() - interval '7 days' order by created_at limit ${batch}
      ), gone as (
        delete from events e using old where e.id = old.id returning e.workspace_id, e.tx, e.id
      ), last as (
        select distinct on (workspace_id) workspace_id, tx, id from gone order by workspace_id, tx desc, id desc
      ), noted as (
        update workspaces w set events_removed_tx = last.tx, events_removed_id = last.id from last
        where w.id = last.workspace_id
          and (w.events_removed_tx is null or (w.events_removed_tx, w.events_removed_id) < (last.tx, last.id))
      )
      select count(*)::int as n from gone`
    total += removed!.n
    if (removed!.n < batch) return total
  }
}
