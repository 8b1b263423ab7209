import { tellChatsOf } from './chats.ts'
import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { holdPeople } from './identities.ts'
import { newestFirst, newestPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'

/** A person, or a business, as the API answers them. */
export interface Contact {
  id: string
  /** As the workspace calls them, or the address book of the phone. */
  name: string | null
  /** As they call themselves. */
  pushName: string | null
  phone: string | null
  lid: string | null
  waId: string
  isBusiness: boolean
  optedOut: boolean
  /** Every address that is theirs; chats keep the one they came from. */
  addresses: string[]
}

interface ContactRow extends Omit<Contact, 'waId'> {
  waId: string
  position: string
}

/** Everything a ContactRow has; `k` is the contact. */
const selected = fragment`
  k.id, k.name, k.push_name, k.phone, k.lid, k.is_business, k.opted_out, k.created_at::text as position,
  coalesce(substr(k.phone, 2) || '@c.us', k.lid, k.wa_id) as wa_id,
  (select array_agg(a.wa_id order by a.wa_id collate "C") from contacts a where a.id = k.id or a.merged_into = k.id) as addresses`

function contactResource({ position: _, ...contact }: ContactRow): Contact {
  return contact
}

/**
 * The contacts of a workspace, newest first. A search finds those that have, for each of its words, a word of one of their names that begins so, or a piece (from four
 * digits on) of their number.
 */
export async function listContacts(
  sql: Sql,
  workspaceId: string,
  { search, ...page }: PageWish & { search?: string | undefined },
): Promise<Page<Contact>> {
  const rows = await sql<ContactRow>`
    select ${selected} from contacts k
    where k.workspace_id = ${workspaceId} and k.merged_into is null
      ${search === undefined ? fragment`` : fragment`and k.search @@ ${queryOf(search)}`}
      ${newestFirst(page, fragment`k.`)}`
  return newestPage(rows, page, contactResource)
}

/** Words hold letters and digits only, so nothing in them can be an operator. A search without any finds nothing. */
const queryOf = (search: string) =>
  fragment`(select coalesce(string_agg('''' || w || ''':*', ' & '), '')::tsquery from unnest(words_of(${search})) w)`

/** A contact, by its own id or by that of one it was joined with. */
export async function findContact(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<Contact | undefined> {
  const [row] = await sql<ContactRow>`
    select ${selected} from contacts a join contacts k on k.id = coalesce(a.merged_into, a.id)
    where a.workspace_id = ${workspaceId} and a.id = ${id}`
  return row && contactResource(row)
}

export interface ContactChanges {
  /** Null: what is heard of a name counts again. */
  name?: string | null
  optedOut?: boolean
}

/** Changes a contact, in the caller's transaction, and tells of chats that are called something else by that. Answers what it was and is, or undefined when there is none. */
export async function changeContact(
  tx: Sql,
  workspaceId: string,
  id: string,
  { name, optedOut }: ContactChanges,
): Promise<{ before: Contact; after: Contact } | undefined> {
  await holdPeople(tx, workspaceId, 'keep')
  const before = await findContact(tx, workspaceId, id)
  if (!before) return undefined
  const { id: contactId } = before
  if (name !== undefined) {
    await tx`
      update contacts set name = ${name}, name_at = ${name === null ? '-infinity' : 'infinity'}::timestamptz where id = ${contactId}`
  }
  if (optedOut !== undefined) {
    // Also when it was so already: a word of before that is read later changes nothing.
    await tx`update contacts set opted_out = ${optedOut}, opted_out_at = now() where id = ${contactId}`
  }
  const after = (await findContact(tx, workspaceId, contactId))!
  if (calledAs(after) !== calledAs(before)) await tellChatsOf(tx, workspaceId, contactId)
  return { before, after }
}

/** How their chats are called. */
const calledAs = ({ name, pushName, phone }: Contact) => name ?? pushName ?? phone
