import { fragment } from './db.ts'
import { violated } from './db-errors.ts'
import type { Sql } from './db.ts'
import { AppError, notFound } from './errors.ts'
import { newestFirst, newestPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'

/** What chats can be sorted by, as the API answers it. */
export interface Label {
  id: string
  name: string
  /** `#rrggbb`. */
  color: string
}

const columns = fragment`id, name, color`

/** Creates a label. Throws 409 NAME_TAKEN when the workspace has one of that name, however it is capitalised. */
export async function createLabel(
  sql: Sql,
  { workspaceId, name, color }: { workspaceId: string; name: string; color: string },
): Promise<Label> {
  const [row] = await unlessTaken(
    name,
    sql<Label>`
      insert into labels (workspace_id, name, color) values (${workspaceId}, ${name}, ${color})
      returning ${columns}`,
  )
  return row!
}

/** Changes what is given. Throws 404, and 409 NAME_TAKEN. */
export async function updateLabel(
  sql: Sql,
  workspaceId: string,
  id: string,
  { name, color }: { name?: string; color?: string },
): Promise<Label> {
  const [row] = await unlessTaken(
    name,
    sql<Label>`
      update labels set name = coalesce(${name}, name), color = coalesce(${color}, color)
      where workspace_id = ${workspaceId} and id = ${id} returning ${columns}`,
  )
  if (!row) throw notFound('Label')
  return row
}

async function unlessTaken<T>(name: string | undefined, statement: Promise<T>): Promise<T> {
  try {
    return await statement
  } catch (error) {
    if (violated(error) !== 'labels_name') throw error
    throw new AppError(409, 'NAME_TAKEN', `A label named "${name}" exists already.`)
  }
}

/** The labels of a workspace, newest first. */
export async function listLabels(
  sql: Sql,
  workspaceId: string,
  page: PageWish,
): Promise<Page<Label>> {
  const rows = await sql<Label & { position: string }>`
    select ${columns}, created_at::text as position from labels where workspace_id = ${workspaceId} ${newestFirst(page)}`
  return newestPage(rows, page, ({ position: _, ...label }) => label)
}

/** Deletes a label, and takes it off all chats. Throws 404. */
export async function deleteLabel(sql: Sql, workspaceId: string, id: string): Promise<void> {
  const deleted = await sql`
    delete from labels where workspace_id = ${workspaceId} and id = ${id} returning id`
  if (deleted.length === 0) throw notFound('Label')
}
