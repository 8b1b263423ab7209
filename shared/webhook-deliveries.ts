import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { eventId, eventJson, readEvents } from './events.ts'
import type { EventType, StoredEvent } from './events.ts'
import type { Sealed } from './key-ring.ts'
import { highestFirst, numberedPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'
import { retryWaiting } from './webhooks.ts'
import type { Wanted } from './webhooks.ts'

export type DeliveryStatus = 'pending' | 'delivered' | 'dead'

/** A delivery as the API answers it. */
export interface Delivery {
  id: string
  eventId: string
  type: EventType
  status: DeliveryStatus
  attempts: number
  /** Null when there will be none, or when another delivery of the same chat comes first. */
  nextAttemptAt: Date | null
  lastAttemptAt: Date | null
  responseStatus: number | null
  error: string | null
  /** Milliseconds. */
  duration: number | null
  createdAt: Date
  deliveredAt: Date | null
}

interface DeliveryRow extends Omit<Delivery, 'eventId'> {
  seq: number
  tx: number
  eventNumber: number
}

/** `d` is the delivery, `e` its event. */
const columns = fragment`
  d.id, d.seq, e.tx::text::bigint as tx, e.id as event_number, e.type, d.status, d.attempts,
  case when d.status = 'pending' then nullif(d.due_at, 'infinity') end as next_attempt_at, d.attempted_at as last_attempt_at,
  d.response_status, d.error, d.duration_ms as duration, d.created_at, d.delivered_at`

function deliveryResource({ seq: _, tx, eventNumber, ...row }: DeliveryRow): Delivery {
  return {
    id: row.id,
    eventId: eventId({ tx, id: eventNumber }),
    type: row.type,
    status: row.status,
    attempts: row.attempts,
    nextAttemptAt: row.nextAttemptAt,
    lastAttemptAt: row.lastAttemptAt,
    responseStatus: row.responseStatus,
    error: row.error,
    duration: row.duration,
    createdAt: row.createdAt,
    deliveredAt: row.deliveredAt,
  }
}

/** The deliveries of a webhook, newest first. */
export async function listDeliveries(
  sql: Sql,
  workspaceId: string,
  webhookId: string,
  { status, ...page }: PageWish & { status?: DeliveryStatus | undefined },
): Promise<Page<Delivery>> {
  const rows = await sql<DeliveryRow>`
    select ${columns} from webhook_deliveries d join events e on e.id = d.event_id
    where d.workspace_id = ${workspaceId} and d.webhook_id = ${webhookId}
      ${status === undefined ? fragment`` : fragment`and d.status = ${status}`}
      ${highestFirst(page, fragment`d.seq`)}`
  return numberedPage(rows, page, ({ seq }) => seq, deliveryResource)
}

/**
 * Has a delivery made once more, beside the order: one that is done anew and for another 24 hours, one that waits for its next try at once. Undefined when the webhook has none
 * of this id.
 */
export async function redeliver(
  sql: Sql,
  workspaceId: string,
  webhookId: string,
  id: string,
): Promise<Delivery | undefined> {
  return sql.begin(async (tx) => {
    const [row] = await tx`
      update webhook_deliveries
      set status = 'pending', due_at = case when status = 'pending' and due_at = 'infinity' then due_at else now() end, aside = aside or status <> 'pending',
          attempts = case when status = 'pending' then attempts else 0 end,
          expires_at = case when status = 'pending' then expires_at else now() + interval '24 hours' end
      where workspace_id = ${workspaceId} and webhook_id = ${webhookId} and id = ${id} returning id`
    if (!row) return undefined
    const [delivery] = await tx<DeliveryRow>`
      select ${columns} from webhook_deliveries d join events e on e.id = d.event_id where d.id = ${id}`
    return deliveryResource(delivery!)
  })
}

/** What a delivery must not overtake, and be overtaken by: whatever tells of the same chat, session or file. */
function laneOf({ payload }: StoredEvent): string {
  const { chatId, id } = JSON.parse(payload) as { chatId?: string; id?: string }
  return chatId ?? id ?? ''
}

/** The webhooks for which something has happened. */
export async function webhooksWithNews(sql: Sql): Promise<string[]> {
  const rows = await sql<{ id: string }>`
    select w.id from webhooks w cross join (select pg_snapshot_xmin(pg_current_snapshot()) as tx) h
    where w.enabled and exists (
      select from events e where e.workspace_id = w.workspace_id and (e.tx, e.id) > (w.tx, w.event_id) and e.tx < h.tx)`
  return rows.map(({ id }) => id)
}

/**
 * Makes deliveries of what has happened since the last time, in the order of the events, at most `limit` at a time; whoever does it at the same time for the same webhook
 * waits, so each event becomes one delivery. False when nothing is left.
 */
export async function fanOut(sql: Sql, webhookId: string, limit = 500): Promise<boolean> {
  return sql.begin(async (tx) => {
    const [webhook] = await tx<{
      workspaceId: string
      events: Wanted[]
      tx: number
      eventId: number
    }>`
      select workspace_id, events, tx::text::bigint as tx, event_id from webhooks where id = ${webhookId} and enabled for update`
    if (!webhook) return false
    const { workspaceId, events: wanted } = webhook
    const position = { tx: webhook.tx, id: webhook.eventId }
    const [page] = await readEvents(tx, [{ workspaceId, position }], limit)
    const { events, full } = page!
    const last = events.at(-1)
    if (!last) return false
    const news = events.filter(({ type }) => wanted.includes('*') || wanted.includes(type))
    await tx`
      with news as (
        select *, row_number() over (partition by lane order by ord) as place
        from unnest(${news.map(({ id }) => id)}::bigint[], ${news.map(laneOf)}::text[]) with ordinality n(event_id, lane, ord)
      )
      insert into webhook_deliveries (workspace_id, webhook_id, event_id, lane, due_at)
      select ${workspaceId}::uuid, ${webhookId}::uuid, n.event_id, n.lane,
        case when n.place > 1 or exists (
          select from webhook_deliveries d where d.webhook_id = ${webhookId} and d.lane = n.lane and d.status = 'pending' and not d.aside)
        then 'infinity' else now() end
      from news n order by n.ord`
    await tx`update webhooks set tx = ${last.tx}::xid8, event_id = ${last.id} where id = ${webhookId}`
    return full
  })
}

/** A delivery that is to be posted now. */
export interface ClaimedDelivery {
  id: string
  webhookId: string
  url: string
  /** The current secret, and the one before while it counts. */
  secrets: Sealed[]
  /** With this one. */
  attempts: number
  /** The id of the event, and the event itself. */
  eventId: string
  body: string
}

/** How long a claim holds: longer than a post may take. */
const claimSeconds = 30

/** Nobody is posting `d`. */
const unclaimed = fragment`d.status = 'pending' and coalesce(d.claimed_until < now(), true)`

/**
 * Claims what is due, at most `width` of a webhook beside those that `busy` counts. A claim runs out by itself: what a process that died was posting is posted by
 * another one. Webhooks whose circuit is open give nothing, and when their time has come one delivery, the oldest, to see.
 */
export async function claimDeliveries(
  sql: Sql,
  { busy, width, limit }: { busy: Map<string, number>; width: number; limit: number },
): Promise<ClaimedDelivery[]> {
  const due = await claim(
    sql,
    fragment`
      head as (
        select d.id from webhooks w
        left join unnest(${[...busy.keys()]}::uuid[], ${[...busy.values()]}::int[]) b(id, n) on b.id = w.id
        cross join lateral (
          select d.id, d.due_at from webhook_deliveries d
          where d.webhook_id = w.id and d.due_at <= now() and ${unclaimed}
          order by d.due_at, d.seq limit greatest(${width} - coalesce(b.n, 0), 0)) d
        where w.enabled and w.retry_at is null
        order by d.due_at limit ${limit}
      )`,
  )
  const probes = await claim(
    sql,
    fragment`
      probed as (
        update webhooks w set retry_at = now() + ${claimSeconds} * interval '1 second'
        where w.enabled and w.retry_at <= now() and exists (
          select from webhook_deliveries d where d.webhook_id = w.id and d.due_at < 'infinity' and ${unclaimed})
        returning w.id
      ), head as (
        select d.id from probed w
        cross join lateral (
          select d.id from webhook_deliveries d
          where d.webhook_id = w.id and d.due_at < 'infinity' and ${unclaimed}
          order by d.aside, d.seq limit 1) d
      )`,
  )
  return [...due, ...probes]
}

async function claim(sql: Sql, head: Fragment): Promise<ClaimedDelivery[]> {
  type Row = StoredEvent & {
    deliveryId: string
    webhookId: string
    url: string
    attempts: number
    keyId: string
    box: string
    previousKeyId: string | null
    previousBox: string | null
  }
  const rows = await sql<Row>`
    with ${head}, claimed as (
      update webhook_deliveries d
      set claimed_until = now() + ${claimSeconds} * interval '1 second', attempted_at = now(), attempts = d.attempts + 1
      from head where d.id = head.id and ${unclaimed}
      returning d.*
    )
    select c.id as delivery_id, c.webhook_id, w.url, c.attempts, w.key_id, w.box,
      case when w.previous_until > now() then w.previous_key_id end as previous_key_id, w.previous_box,
      e.tx::text::bigint as tx, e.id, e.workspace_id, e.session_id, e.type, e.created_at, e.payload::text as payload
    from claimed c join webhooks w on w.id = c.webhook_id join events e on e.id = c.event_id
    order by c.seq`
  return rows.map(
    ({
      deliveryId,
      webhookId,
      url,
      attempts,
      keyId,
      box,
      previousKeyId,
      previousBox,
      ...event
    }) => ({
      id: deliveryId,
      webhookId,
      url,
      attempts,
      secrets: [
        { keyId, box },
        ...(previousKeyId === null ? [] : [{ keyId: previousKeyId, box: previousBox! }]),
      ],
      eventId: eventId(event),
      body: eventJson(event),
    }),
  )
}

/** What came of a post. */
export interface PostOutcome {
  ok: boolean
  status: number | null
  /** Why it was none, in a word. */
  error: string | null
  /** Milliseconds it took. */
  duration: number
}

/** Failures in a row that open a webhook's circuit. */
export const circuitFailures = 5
/** So often a delivery may fail before it holds up its lane no longer. */
export const patience = 8

/**
 * Records what came of a post. A failure is tried again after `delayMs`, until its 24 hours are over; the circuit it opens is tried again after `circuitMs`. Nothing is
 * recorded when the claim has passed to somebody else.
 */
export async function recordPost(
  sql: Sql,
  { id, webhookId, attempts }: Pick<ClaimedDelivery, 'id' | 'webhookId' | 'attempts'>,
  { ok, status, error, duration }: PostOutcome,
  { delayMs, circuitMs }: { delayMs: number; circuitMs: (failures: number) => number },
): Promise<DeliveryStatus | undefined> {
  return sql.begin(async (tx) => {
    // First the webhook, as everybody does: outcomes and fan-outs of one webhook come one after the other.
    const [webhook] = await tx<{ failures: number; open: boolean }>`
      select failures, retry_at is not null as open from webhooks where id = ${webhookId} for update`
    if (!webhook) return undefined
    const [before] = await tx<{ aside: boolean; lane: string }>`
      select aside, lane from webhook_deliveries where id = ${id} and attempts = ${attempts} and status = 'pending' for update`
    if (!before) return undefined
    const [after] = await tx<{ status: DeliveryStatus; aside: boolean }>`
      update webhook_deliveries
      set claimed_until = null, response_status = ${status}, error = ${error}, duration_ms = ${duration},
          status = case when ${ok} then 'delivered' when now() + ${delayMs} * interval '1 ms' > expires_at then 'dead' else 'pending' end,
          delivered_at = case when ${ok} then now() end,
          due_at = case when ${ok} then due_at else now() + ${delayMs} * interval '1 ms' end,
          aside = aside or (not ${ok} and attempts >= ${patience})
      where id = ${id} returning status, aside`
    if (ok) {
      await tx`update webhooks set failures = 0, retry_at = null, last_success_at = now() where id = ${webhookId}`
      if (webhook.open) await retryWaiting(tx, webhookId)
    } else {
      const failures = webhook.failures + 1
      const pause = failures >= circuitFailures ? circuitMs(failures) : null
      await tx`
        update webhooks
        set failures = ${failures}, last_failure_at = now(), last_error = ${error}, retry_at = now() + ${pause}::int * interval '1 ms'
        where id = ${webhookId}`
    }
    if (!before.aside && (after!.aside || after!.status !== 'pending')) {
      await letPass(tx, webhookId, [before.lane])
    }
    return after!.status
  })
}

/** Lets the first delivery of each lane go that waited for the one before it. */
const letPass = (tx: Sql, webhookId: string, lanes: string[]) =>
  tx`
    update webhook_deliveries d set due_at = now()
    from (
      select distinct on (lane) id from webhook_deliveries
      where webhook_id = ${webhookId} and lane = any(${lanes}) and status = 'pending' and not aside order by lane, seq) head
    where d.id = head.id and d.due_at = 'infinity'`

/** Gives up what could not be delivered within its time. Answers how many. */
export async function expireDeliveries(sql: Sql): Promise<number> {
  const webhooks = await sql<{ webhookId: string }>`
    select distinct d.webhook_id from webhook_deliveries d where d.expires_at < now() and ${unclaimed}`
  let total = 0
  for (const { webhookId } of webhooks) {
    total += await sql.begin(async (tx) => {
      await tx`select from webhooks where id = ${webhookId} for update`
      const dead = await tx<{ lane: string }>`
        update webhook_deliveries d set status = 'dead', error = coalesce(d.error, 'EXPIRED')
        where d.webhook_id = ${webhookId} and d.expires_at < now() and ${unclaimed} returning d.lane`
      await letPass(tx, webhookId, [...new Set(dead.map(({ lane }) => lane))])
      return dead.length
    })
  }
  return total
}
