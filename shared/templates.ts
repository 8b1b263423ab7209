import { fragment } from './db.ts'
import { violated } from './db-errors.ts'
import type { Sql } from './db.ts'
import { AppError, notFound } from './errors.ts'
import { longestText } from './message-content.ts'
import { newestFirst, newestPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'

/** A variable of a template: without a fallback it needs a value. */
export interface Variable {
  name: string
  fallback: string | null
}

/** What is put in for the variables; one that is absent or null has no value. */
export type Values = Record<string, string | null>

/** A piece of a template: text as it is, or a variable and how it was written. */
type Part = string | (Variable & { written: string })

/** Letters of any language, digits and underscores. */
export const variableName = /^[\p{L}_][\p{L}\p{M}\p{N}_]{0,63}$/u

/** Names that look the same are the same: keyboards and file systems write an accented letter as one character, or as two. */
const sameName = (name: string) => name.normalize('NFC')

/**
 * The pieces of a template. Braces that stand alone are text; where two of them are not those of a `{{name}}` or `{{name|fallback}}` it throws an
 * error that says at which character, counted from 1. With `isNew` it throws of a "{" in a fallback, too: that of `{{name|{x}}}` ends at the first "}}",
 * and leaves a brace behind every value. Templates that were stored before this was refused are read as ever.
 */
export function parseTemplate(text: string, isNew = false): Part[] {
  const parts: Part[] = []
  const fault = (index: number, what: string) =>
    new Error(`has a ${what} at character ${[...text.slice(0, index)].length + 1}`)
  for (let at = 0; at < text.length;) {
    const open = text.indexOf('{{', at)
    const before = text.slice(at, open === -1 ? undefined : open)
    const stray = before.indexOf('}}')
    if (stray !== -1) throw fault(at + stray, '"}}" that closes nothing')
    if (before !== '') parts.push(before)
    if (open === -1) break
    const close = text.indexOf('}}', open + 2)
    if (close === -1) throw fault(open, '"{{" that is never closed')
    const inside = text.slice(open + 2, close)
    const bar = inside.indexOf('|')
    const name = (bar === -1 ? inside : inside.slice(0, bar)).trim()
    const fallback = bar === -1 ? null : inside.slice(bar + 1).trim()
    if (!variableName.test(name) || fallback?.includes('{{')) {
      throw fault(open, '"{{" without the name of a variable')
    }
    if (isNew && fallback?.includes('{')) {
      throw fault(text.indexOf('{', open + 2), '"{" in the fallback of a variable')
    }
    parts.push({ name: sameName(name), fallback, written: text.slice(open, close + 2) })
    at = close + 2
  }
  return parts
}

/** The variables of a template in the order they appear, each once. One that stands somewhere without a fallback has none. */
export function variablesOf(text: string): Variable[] {
  const variables = new Map<string, Variable>()
  for (const part of parseTemplate(text)) {
    if (typeof part === 'string') continue
    const { name, fallback } = part
    const known = variables.get(name)
    if (!known) variables.set(name, { name, fallback })
    else if (fallback === null) known.fallback = null
  }
  return [...variables.values()]
}

/**
 * The text of a template with its values, which are put in as they are: braces in them mean nothing. Variables that have neither value nor fallback
 * are named, each once, and stay as they were written. Of two values for one name the last counts, as where JSON has a key twice.
 * Throws 422 TEMPLATE_TEXT_INVALID when they make a text that is too long to be sent.
 */
export function render(text: string, values: Values): { body: string; missing: string[] } {
  const given = new Map(Object.entries(values).map(([name, value]) => [sameName(name), value]))
  const missing = new Set<string>()
  const pieces = parseTemplate(text).map((part) => {
    if (typeof part === 'string') return part
    const piece = given.get(part.name) ?? part.fallback
    if (piece === null) missing.add(part.name)
    return piece ?? part.written
  })
  // Before they are put together: a few kilobytes of values can make megabytes.
  if (pieces.reduce((length, piece) => length + piece.length, 0) > longestText) {
    throw invalid(`longer than ${longestText} characters`)
  }
  return { body: pieces.join(''), missing: [...missing] }
}

/** What sending a template with these values would send. Throws 422 TEMPLATE_TEXT_INVALID when that is blank, or too long. */
export function previewTemplate(template: TemplateRow, values: Values): ReturnType<typeof render> {
  const shown = render(template.body, values)
  if (!/\S/.test(shown.body)) throw invalid('blank')
  return shown
}

const invalid = (what: string) =>
  new AppError(422, 'TEMPLATE_TEXT_INVALID', `With these values the template is ${what}.`)

export interface TemplateRow {
  id: string
  name: string
  body: string
  createdAt: Date
  updatedAt: Date
}

/** A template as the API answers it. */
export interface Template extends TemplateRow {
  variables: Variable[]
}

/** A template as the API answers it. */
export function templateResource({ id, name, body, createdAt, updatedAt }: TemplateRow): Template {
  return { id, name, body, variables: variablesOf(body), createdAt, updatedAt }
}

const columns = fragment`id, name, body, created_at, updated_at`

/** Creates a template. Throws 409 NAME_TAKEN when the workspace has one of that name, however it is capitalised. */
export async function createTemplate(
  sql: Sql,
  { workspaceId, name, body }: { workspaceId: string; name: string; body: string },
): Promise<TemplateRow> {
  const [row] = await unlessTaken(
    name,
    sql<TemplateRow>`
      insert into templates (workspace_id, name, body) values (${workspaceId}, ${name}, ${body})
      returning ${columns}`,
  )
  return row!
}

/** Changes what is given. Undefined when there is no such template; throws 409 NAME_TAKEN. */
export async function updateTemplate(
  sql: Sql,
  workspaceId: string,
  id: string,
  { name, body }: { name?: string; body?: string },
): Promise<TemplateRow | undefined> {
  const [row] = await unlessTaken(
    name,
    sql<TemplateRow>`
      update templates set name = coalesce(${name}, name), body = coalesce(${body}, body), updated_at = now()
      where workspace_id = ${workspaceId} and id = ${id} returning ${columns}`,
  )
  return row
}

async function unlessTaken<T>(name: string | undefined, statement: Promise<T>): Promise<T> {
  try {
    return await statement
  } catch (error) {
    if (violated(error) !== 'templates_name') throw error
    throw new AppError(409, 'NAME_TAKEN', `A template named "${name}" exists already.`)
  }
}

/** Throws 404 when there is none. */
export async function existingTemplate(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<TemplateRow> {
  const [row] = await sql<TemplateRow>`
    select ${columns} from templates where workspace_id = ${workspaceId} and id = ${id}`
  if (!row) throw notFound('Template')
  return row
}

/** The templates of a workspace, newest first. */
export async function listTemplates(
  sql: Sql,
  workspaceId: string,
  page: PageWish,
): Promise<Page<Template>> {
  const rows = await sql<TemplateRow & { position: string }>`
    select ${columns}, created_at::text as position from templates where workspace_id = ${workspaceId} ${newestFirst(page)}`
  return newestPage(rows, page, templateResource)
}

/** False when there is no such template. */
export async function deleteTemplate(sql: Sql, workspaceId: string, id: string): Promise<boolean> {
  const deleted = await sql`
    delete from templates where workspace_id = ${workspaceId} and id = ${id} returning id`
  return deleted.length === 1
}

/**
 * The text to send. Throws 422 TEMPLATE_VARIABLE_MISSING that names every variable without value and fallback, and what previewTemplate() throws.
 */
export function renderTemplate(template: TemplateRow, values: Values): string {
  const { body, missing } = previewTemplate(template, values)
  if (missing.length > 0) {
    throw new AppError(
      422,
      'TEMPLATE_VARIABLE_MISSING',
      `The template "${template.name}" needs a value for ${missing.join(', ')}.`,
      missing.map((name) => ({
        path: `body.template.variables.${name}`,
        message: `"${name}" is missing`,
      })),
    )
  }
  return body
}
