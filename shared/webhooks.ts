import { randomUUID } from 'node:crypto'
import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { AppError } from './errors.ts'
import type { EventType } from './events.ts'
import { isSealFault } from './key-ring.ts'
import type { KeyRing, Sealed } from './key-ring.ts'
import { newestFirst, newestPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'
import { newSecret, secretBytes } from './webhook-secrets.ts'

/** `*` stands for every type, also of those to come. */
export type Wanted = EventType | '*'

/** A webhook as the API answers it; its secret is shown when it is made. */
export interface Webhook {
  id: string
  url: string
  events: Wanted[]
  enabled: boolean
  circuit: { state: 'closed' | 'open' | 'half_open'; failures: number; retryAt: Date | null }
  lastSuccessAt: Date | null
  lastFailureAt: Date | null
  lastError: string | null
  /** Until when the secret before this one counts, too. */
  previousSecretUntil: Date | null
  createdAt: Date
  updatedAt: Date
}

interface WebhookRow extends Omit<Webhook, 'circuit'> {
  failures: number
  retryAt: Date | null
  probing: boolean
  position: string
}

const columns = fragment`
  w.id, w.url, w.events, w.enabled, w.failures, w.retry_at, w.last_success_at, w.last_failure_at, w.last_error,
  coalesce(w.retry_at <= now(), false) as probing, case when w.previous_until > now() then w.previous_until end as previous_secret_until,
  w.created_at, w.updated_at, w.created_at::text as position`

function webhookResource(row: WebhookRow): Webhook {
  const { failures, retryAt, probing } = row
  return {
    id: row.id,
    url: row.url,
    events: row.events,
    enabled: row.enabled,
    circuit: {
      state: retryAt === null ? 'closed' : probing ? 'half_open' : 'open',
      failures,
      retryAt,
    },
    lastSuccessAt: row.lastSuccessAt,
    lastFailureAt: row.lastFailureAt,
    lastError: row.lastError,
    previousSecretUntil: row.previousSecretUntil,
    createdAt: row.createdAt,
    updatedAt: row.updatedAt,
  }
}

/** Binds a sealed secret to its webhook: it opens for no other. */
const context = (id: string) => `webhook\n${id}`

const seal = (keys: KeyRing, id: string, secret: string): Sealed =>
  keys.seal(secretBytes(secret)!, context(id))

/** The bytes of a webhook's secret. Throws UnknownKey or SealBroken. */
export const openSecret = (keys: KeyRing, id: string, sealed: Sealed): Buffer =>
  keys.open(sealed, context(id))

/** Of one workspace. */
const maxWebhooks = 50

/** Nothing that was there before becomes a delivery. */
const fromNowOn = fragment`pg_snapshot_xmin(pg_current_snapshot())`

/** Makes a webhook for what happens from now on. `secret` is stored sealed and cannot be shown again. Throws 409 TOO_MANY_WEBHOOKS. */
export async function createWebhook(
  sql: Sql,
  keys: KeyRing,
  workspaceId: string,
  {
    url,
    events,
    secret = newSecret(),
    enabled = true,
  }: { url: string; events: Wanted[]; secret?: string | undefined; enabled?: boolean | undefined },
): Promise<Webhook & { secret: string }> {
  const id = randomUUID()
  const { keyId, box } = seal(keys, id, secret)
  const [row] = await sql<WebhookRow>`
    insert into webhooks as w (id, workspace_id, url, events, enabled, key_id, box, tx)
    select ${id}::uuid, ${workspaceId}::uuid, ${url}, ${events}::text[], ${enabled}::boolean, ${keyId}, ${box}, ${fromNowOn}
    where (select count(*) from webhooks where workspace_id = ${workspaceId}) < ${maxWebhooks}
    returning ${columns}`
  if (!row) {
    throw new AppError(
      409,
      'TOO_MANY_WEBHOOKS',
      `A workspace may have ${maxWebhooks} webhooks: delete one first.`,
    )
  }
  return { ...webhookResource(row), secret }
}

/** The webhooks of a workspace, newest first. */
export async function listWebhooks(
  sql: Sql,
  workspaceId: string,
  page: PageWish,
): Promise<Page<Webhook>> {
  const rows = await sql<WebhookRow>`
    select ${columns} from webhooks w where w.workspace_id = ${workspaceId} ${newestFirst(page, fragment`w.`)}`
  return newestPage(rows, page, webhookResource)
}

export async function findWebhook(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<Webhook | undefined> {
  const [row] = await sql<WebhookRow>`
    select ${columns} from webhooks w where w.workspace_id = ${workspaceId} and w.id = ${id}`
  return row && webhookResource(row)
}

/**
 * Changes a webhook. Enabled again, it begins with what happens from then on; enabled or with another URL, its circuit is closed and what waits is tried at once.
 * Undefined when the workspace has none of this id.
 */
export async function updateWebhook(
  sql: Sql,
  workspaceId: string,
  id: string,
  { url, events, enabled }: { url?: string; events?: Wanted[]; enabled?: boolean },
): Promise<Webhook | undefined> {
  return sql.begin(async (tx) => {
    const [before] = await tx<{ url: string; enabled: boolean }>`
      select url, enabled from webhooks where workspace_id = ${workspaceId} and id = ${id} for update`
    if (!before) return undefined
    const back = enabled === true && !before.enabled
    const fresh = back || (url !== undefined && url !== before.url)
    if (fresh) await retryWaiting(tx, id)
    const [row] = await tx<WebhookRow>`
      update webhooks w
      set url = coalesce(${url}, url), events = coalesce(${events}::text[], events), enabled = coalesce(${enabled}::boolean, enabled),
          tx = case when ${back} then ${fromNowOn} else tx end, event_id = case when ${back} then 0 else event_id end,
          failures = case when ${fresh} then 0 else failures end, retry_at = case when ${fresh} then null else retry_at end,
          updated_at = now()
      where id = ${id} returning ${columns}`
    return webhookResource(row!)
  })
}

/** Lets what waits for another try be tried now. */
export const retryWaiting = (tx: Sql, webhookId: string) =>
  tx`
    update webhook_deliveries set due_at = now()
    where webhook_id = ${webhookId} and status = 'pending' and due_at > now() and due_at < 'infinity'`

/** Gives a webhook another secret; deliveries are signed with the old one as well for so many hours. Undefined when there is no such webhook. */
export async function rotateSecret(
  sql: Sql,
  keys: KeyRing,
  workspaceId: string,
  id: string,
  { secret = newSecret(), keepHours }: { secret?: string | undefined; keepHours: number },
): Promise<(Webhook & { secret: string }) | undefined> {
  const { keyId, box } = seal(keys, id, secret)
  const [row] = await sql<WebhookRow>`
    update webhooks w
    set previous_key_id = key_id, previous_box = box, previous_until = now() + ${keepHours} * interval '1 hour',
        key_id = ${keyId}, box = ${box}, updated_at = now()
    where w.workspace_id = ${workspaceId} and w.id = ${id} returning ${columns}`
  return row && { ...webhookResource(row), secret }
}

/** Removes a webhook and what was on its way to it. Answers what it was. */
export async function deleteWebhook(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<Webhook | undefined> {
  const [row] = await sql<WebhookRow>`
    delete from webhooks w where w.workspace_id = ${workspaceId} and w.id = ${id} returning ${columns}`
  return row && webhookResource(row)
}

/** Secrets sealed with another key than the current one are sealed with it. Answers how many, and of which webhooks they did not open. */
export async function resealWebhooks(
  sql: Sql,
  keys: KeyRing,
): Promise<{ resealed: number; failed: string[] }> {
  const rows = await sql<Sealed & { id: string; previous: boolean }>`
    select id, key_id, box, false as previous from webhooks where key_id <> ${keys.current}
    union all
    select id, previous_key_id, previous_box, true from webhooks where previous_key_id <> ${keys.current}`
  const failed: string[] = []
  let resealed = 0
  for (const { id, previous, ...old } of rows) {
    try {
      const { keyId, box } = keys.seal(openSecret(keys, id, old), context(id))
      const changed = previous
        ? await sql`
            update webhooks set previous_key_id = ${keyId}, previous_box = ${box} where id = ${id} and previous_box = ${old.box} returning id`
        : await sql`
            update webhooks set key_id = ${keyId}, box = ${box} where id = ${id} and box = ${old.box} returning id`
      resealed += changed.length
    } catch (error) {
      if (!isSealFault(error)) throw error
      failed.push(id)
    }
  }
  return { resealed, failed }
}
