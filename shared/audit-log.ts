import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { highestFirst, numberedPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'

/** Who did something, and from where. */
export interface Actor {
  type: 'person' | 'api_key' | 'anonymous'
  id: string | null
  name: string | null
  ip: string | null
  userAgent: string | null
  requestId: string | null
}

/** What was done. `before` and `after` hold what a change changed, never a secret. */
export interface Deed {
  workspaceId: string
  action: string
  targetType?: string
  targetId?: string
  before?: object
  after?: object
}

/** An entry of the log as the API answers it. */
export interface AuditEntry {
  id: number
  at: Date
  actor: { type: Actor['type']; id: string | null; name: string | null }
  action: string
  target: { type: string; id: string | null } | null
  before: object | null
  after: object | null
  ip: string | null
  userAgent: string | null
  requestId: string | null
}

type AuditRow = Omit<AuditEntry, 'actor' | 'target'> & {
  actorType: Actor['type']
  actorId: string | null
  actorName: string | null
  targetType: string | null
  targetId: string | null
}

/** Writes an entry. Inside a transaction it stands or falls with what it tells of. */
export async function writeAudit(sql: Sql, actor: Actor, deed: Deed): Promise<void> {
  await sql`
    insert into audit_log (workspace_id, actor_type, actor_id, actor_name, action, target_type, target_id, before, after, ip, user_agent, request_id)
    values (${deed.workspaceId}, ${actor.type}, ${actor.id}, ${actor.name}, ${deed.action}, ${deed.targetType}, ${deed.targetId},
            ${deed.before}, ${deed.after}, ${actor.ip}, ${actor.userAgent}, ${actor.requestId})`
}

/** The statement that writes an entry for each row of `deeds`, which have `action`, `target_type`, `target_id` and `after`: for what does many things at once. */
export const auditing = (workspaceId: string, by: Actor, deeds: Fragment) => fragment`
  insert into audit_log (workspace_id, actor_type, actor_id, actor_name, ip, user_agent, request_id, action, target_type, target_id, after)
  select ${workspaceId}::uuid, ${by.type}::text, ${by.id}::uuid, ${by.name}::text, ${by.ip}::text, ${by.userAgent}::text, ${by.requestId}::text,
    action, target_type, target_id, after
  from (${deeds}) deed`

export interface AuditFilter extends PageWish {
  action?: string
  actorId?: string
  targetType?: string
  targetId?: string
  from?: Date
  to?: Date
}

/** The log of a workspace, newest first. */
export async function listAudit(
  sql: Sql,
  workspaceId: string,
  filter: AuditFilter,
): Promise<Page<AuditEntry>> {
  const equals = (column: ReturnType<typeof fragment>, value: string | undefined) =>
    value === undefined ? fragment`` : fragment`and ${column} = ${value}`
  const rows = await sql<AuditRow>`
    select id, at, actor_type, actor_id, actor_name, action, target_type, target_id, before, after, ip, user_agent, request_id
    from audit_log
    where workspace_id = ${workspaceId}
      ${equals(fragment`action`, filter.action)} ${equals(fragment`actor_id`, filter.actorId)}
      ${equals(fragment`target_type`, filter.targetType)} ${equals(fragment`target_id`, filter.targetId)}
      ${filter.from ? fragment`and at >= ${filter.from}` : fragment``}
      ${filter.to ? fragment`and at < ${filter.to}` : fragment``}
      ${highestFirst(filter, fragment`id`)}`
  return numberedPage(rows, filter, ({ id }) => id, entryOf)
}

/** Removes what is older than so many days. Answers how many entries. */
export async function expireAudit(sql: Sql, days: number): Promise<number> {
  return sql.begin(async (tx) => {
    await tx`set local awfar.audit_retention = 'on'`
    const removed = await tx`
      delete from audit_log
      where at < now() - ${days} * interval '1 day' and at < now() - interval '7 days' returning id`
    return removed.length
  })
}

function entryOf({
  actorType,
  actorId,
  actorName,
  targetType,
  targetId,
  ...rest
}: AuditRow): AuditEntry {
  return {
    id: rest.id,
    at: rest.at,
    actor: { type: actorType, id: actorId, name: actorName },
    action: rest.action,
    target: targetType === null ? null : { type: targetType, id: targetId },
    before: rest.before,
    after: rest.after,
    ip: rest.ip,
    userAgent: rest.userAgent,
    requestId: rest.requestId,
  }
}
