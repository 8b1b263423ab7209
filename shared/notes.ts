import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { notFound } from './errors.ts'
import { newestFirst, newestPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'

interface NoteRow {
  id: string
  chatId: string
  authorId: string | null
  authorName: string | null
  body: string
  createdAt: Date
  editedAt: Date | null
}

/** What a colleague remarked about a chat, as the API answers it. It is never sent. */
export interface Note {
  id: string
  chatId: string
  /** Null when they have left the workspace. */
  author: { id: string; fullName: string } | null
  body: string
  createdAt: Date
  editedAt: Date | null
}

function noteResource({ id, chatId, authorId, authorName, body, createdAt, editedAt }: NoteRow) {
  const author = authorId === null ? null : { id: authorId, fullName: authorName ?? '' }
  return { id, chatId, author, body, createdAt, editedAt }
}

/** Everything a NoteRow has; `n` is the note. */
const selected = fragment`
  n.id, n.chat_id, n.author_id, (select u.full_name from profiles u where u.id = n.author_id) as author_name,
  n.body, n.created_at, n.edited_at`

/** Adds a note to a chat. Throws 404 when the workspace has no such chat. */
export async function createNote(
  sql: Sql,
  author: { id: string; workspaceId: string },
  chatId: string,
  body: string,
): Promise<Note> {
  const [row] = await sql<NoteRow>`
    insert into chat_notes as n (workspace_id, chat_id, author_id, body)
    select workspace_id, id, ${author.id}, ${body} from chats
    where workspace_id = ${author.workspaceId} and id = ${chatId}
    returning ${selected}`
  if (!row) throw notFound('Chat')
  return noteResource(row)
}

/** The notes of a chat, newest first. */
export async function listNotes(
  sql: Sql,
  workspaceId: string,
  chatId: string,
  page: PageWish,
): Promise<Page<Note>> {
  const rows = await sql<NoteRow & { position: string }>`
    select ${selected}, n.created_at::text as position from chat_notes n
    where n.workspace_id = ${workspaceId} and n.chat_id = ${chatId} ${newestFirst(page, fragment`n.`)}`
  return newestPage(rows, page, noteResource)
}

/** Which note of which chat. */
export interface NoteKey {
  workspaceId: string
  chatId: string
  id: string
}

/** The note. Throws 404. */
export async function existingNote(sql: Sql, key: NoteKey): Promise<Note> {
  const [row] = await sql<NoteRow>`select ${selected} from chat_notes n where ${matches(key)}`
  if (!row) throw notFound('Note')
  return noteResource(row)
}

/** Changes what a note says. Throws 404. */
export async function editNote(sql: Sql, key: NoteKey, body: string): Promise<Note> {
  const [row] = await sql<NoteRow>`
    update chat_notes n set body = ${body}, edited_at = now() where ${matches(key)} returning ${selected}`
  if (!row) throw notFound('Note')
  return noteResource(row)
}

/** Throws 404. */
export async function deleteNote(sql: Sql, key: NoteKey): Promise<void> {
  const deleted = await sql`delete from chat_notes n where ${matches(key)} returning id`
  if (deleted.length === 0) throw notFound('Note')
}

const matches = ({ workspaceId, chatId, id }: NoteKey) =>
  fragment`n.workspace_id = ${workspaceId} and n.chat_id = ${chatId} and n.id = ${id}`
