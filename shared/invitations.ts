import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { newestFirst, newestPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'
import type { Role } from './profiles.ts'
import { hashToken, newToken } from './tokens.ts'

/** An open invitation as the API answers it. */
export interface Invitation {
  id: string
  email: string
  role: Role
  invitedBy: string
  expiresAt: Date
  createdAt: Date
}

const lifeDays = 7
const columns = fragment`id, email, role, invited_by, expires_at, created_at`

/** Invites an address; an earlier invitation of it is replaced. Undefined when somebody of the workspace has the address. */
export async function invite(
  sql: Sql,
  by: { id: string; workspaceId: string },
  { email, role }: { email: string; role: Role },
): Promise<{ invitation: Invitation; token: string } | undefined> {
  const token = newToken()
  const [invitation] = await sql<Invitation>`
    insert into invitations (workspace_id, email, role, token_hash, invited_by, expires_at)
    select ${by.workspaceId}, ${email}, ${role}, ${hashToken(token)}, ${by.id}, now() + ${lifeDays} * interval '1 day'
    where not exists (
      select from profiles where workspace_id = ${by.workspaceId} and lower(email) = lower(${email}))
    on conflict (workspace_id, lower(email)) do update set
      id = gen_random_uuid(), email = excluded.email, role = excluded.role, token_hash = excluded.token_hash,
      invited_by = excluded.invited_by, expires_at = excluded.expires_at, created_at = now()
    returning ${columns}`
  return invitation && { invitation, token }
}

/** The open invitations of a workspace, newest first. */
export async function listInvitations(
  sql: Sql,
  workspaceId: string,
  page: PageWish,
): Promise<Page<Invitation>> {
  const rows = await sql<Invitation & { position: string }>`
    select ${columns}, created_at::text as position from invitations
    where workspace_id = ${workspaceId} and expires_at > now() ${newestFirst(page)}`
  return newestPage(rows, page, ({ position: _, ...invitation }) => invitation)
}

/** Takes an invitation back. Answers what it was; undefined when the workspace has none of this id. */
export async function withdrawInvitation(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<Invitation | undefined> {
  const [row] = await sql<Invitation>`
    delete from invitations where id = ${id} and workspace_id = ${workspaceId} returning ${columns}`
  return row
}

/** Whether the token belongs to an open invitation: asked before the costly work is done. */
export async function isInvited(sql: Sql, token: string): Promise<boolean> {
  const rows = await sql`
    select id from invitations where token_hash = ${hashToken(token)} and expires_at > now()`
  return rows.length === 1
}

/** Uses an invitation up. Of any number of parallel uses exactly one gets it, the others undefined. */
export async function takeInvitation(
  sql: Sql,
  token: string,
): Promise<(Invitation & { workspaceId: string }) | undefined> {
  const [row] = await sql<Invitation & { workspaceId: string }>`
    delete from invitations where token_hash = ${hashToken(token)} and expires_at > now()
    returning ${columns}, workspace_id`
  return row
}
