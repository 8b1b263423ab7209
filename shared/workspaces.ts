import { fragment } from './db.ts'
import type { Sql } from './db.ts'

export const unknownPolicies = ['reconcile_then_resend_same_id', 'at_most_once'] as const

/** What is done about a message of which nobody can find out whether it was sent. */
export type UnknownPolicy = (typeof unknownPolicies)[number]

export interface WorkspaceRow {
  id: string
  name: string
  unknownPolicy: UnknownPolicy
  optOutWords: string[]
  createdAt: Date
}

/** A workspace as the API answers it. */
export type Workspace = WorkspaceRow

export function workspaceResource(row: WorkspaceRow): Workspace {
  const { id, name, unknownPolicy, optOutWords, createdAt } = row
  return { id, name, unknownPolicy, optOutWords, createdAt }
}

const columns = fragment`id, name, unknown_policy, opt_out_words, created_at`

/** Founds a workspace; answers its id. */
export async function createWorkspace(sql: Sql, name: string): Promise<string> {
  const [row] = await sql<{ id: string }>`
    insert into workspaces (name) values (${name}) returning id`
  return row!.id
}

/** The workspace of somebody who is signed in: it exists. */
export async function readWorkspace(sql: Sql, id: string): Promise<WorkspaceRow> {
  const [row] = await sql<WorkspaceRow>`select ${columns} from workspaces where id = ${id}`
  return row!
}

/** What is done in this workspace about a message of which nobody can find out whether it was sent. */
export async function readUnknownPolicy(sql: Sql, workspaceId: string): Promise<UnknownPolicy> {
  const [row] = await sql<{ unknownPolicy: UnknownPolicy }>`
    select unknown_policy from workspaces where id = ${workspaceId}`
  return row!.unknownPolicy
}

/** Changes what is given. */
export async function updateWorkspace(
  sql: Sql,
  id: string,
  changes: Partial<Pick<WorkspaceRow, 'name' | 'unknownPolicy' | 'optOutWords'>>,
): Promise<WorkspaceRow> {
  const [row] = await sql<WorkspaceRow>`
    update workspaces set name = coalesce(${changes.name}, name),
      unknown_policy = coalesce(${changes.unknownPolicy}, unknown_policy),
      opt_out_words = coalesce(${changes.optOutWords}::text[], opt_out_words)
    where id = ${id} returning ${columns}`
  return row!
}
