import { tellChats, tellChatsOf } from './chats.ts'
import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { AppError } from './errors.ts'
import { phoneOf } from './wa-id.ts'
import { assertFence } from './wa-session-leases.ts'
import type { SessionLease } from './wa-session-leases.ts'

/** What was heard of one person. */
export interface PersonFacts {
  /** Addresses that are all theirs. */
  addresses: string[]
  /** One of them that people dial, while WhatsApp has the person under another. */
  alternate?: string | undefined
  /** What says so, for people to judge it by. */
  source: 'page' | 'number_check' | 'echo' | 'person'
  /** When it was so: the latest word on a name or number counts, in whatever order words come. */
  at: Date
  /** In the address book of the phone. */
  name?: string | null | undefined
  /** As they call themselves. */
  pushName?: string | null | undefined
  isBusiness?: boolean | undefined
}

interface Row {
  id: string
  waId: string
  mergedInto: string | null
  /** How their chats are called. */
  calledAs: string | null
}

/**
 * Learns that addresses belong to one person, and what they are called. Contacts that turn out to be one are joined: chats keep the address they came
 * from, an opt-out of either holds for both, and unmerge() takes it back. What a person has taken apart stays apart. Answers the id of the contact of the first address.
 * A transaction of its own, not to be called inside
 * another. Throws LeaseLost.
 */
export async function learnPerson(
  sql: Sql,
  hearer: SessionLease,
  person: PersonFacts,
): Promise<string> {
  const addresses = [...new Set(person.addresses)]
  // By itself: rows that only this transaction sees could not be locked in order with the others.
  await addAddresses(sql, hearer, addresses, ofOwner(hearer))
  return sql.begin(async (tx) => {
    await assertFence(tx, hearer)
    await holdPeople(tx, hearer.workspaceId, 'change')
    const rows = await lockPeople(tx, hearer.workspaceId, addresses)
    const rootOf = (waId: string) => {
      const row = rows.find((one) => one.waId === waId)!
      return row.mergedInto ?? row.id
    }
    if (addresses.length > 1) {
      await tx`
        update contacts set seen_at = greatest(seen_at, ${person.at}::timestamptz), alternate = alternate or wa_id = ${person.alternate ?? ''}
        where workspace_id = ${hearer.workspaceId} and wa_id = any(${addresses}::text[])`
    }
    let id = rootOf(addresses[0]!)
    for (const other of new Set(addresses.map(rootOf))) {
      if (other !== id) id = await merge(tx, hearer.workspaceId, id, other, person)
    }
    await refresh(tx, id)
    const { name = null, pushName = null, isBusiness = false, at } = person
    await tx`
      update contacts set
        name = case when ${name}::text is not null and ${later('name_at', 'name', name, at)} then ${name} else name end,
        name_at = case when ${name}::text is not null then greatest(name_at, ${at}::timestamptz) else name_at end,
        push_name = case when ${pushName}::text is not null and ${later('push_name_at', 'push_name', pushName, at)} then ${pushName} else push_name end,
        push_name_at = case when ${pushName}::text is not null then greatest(push_name_at, ${at}::timestamptz) else push_name_at end,
        is_business = is_business or ${isBusiness}
      where id = ${id}`
    await tellOfName(tx, hearer.workspaceId, rows, id)
    return id
  })
}

/** An address that was heard of, and the name its owner gave themselves then, if any. */
export interface Heard {
  waId: string
  pushName: string | null
  at: Date
}

/**
 * The contacts of addresses, made where there are none, by their addresses. Of the names somebody gives themselves the latest counts, so its moment is kept even when the
 * name is the same. Locks the contacts. Needs holdPeople(), and comes before any write about a chat.
 */
export async function contactsOf(
  tx: Sql,
  hearer: Pick<SessionLease, 'id' | 'workspaceId'>,
  heard: Heard[],
): Promise<Map<string, string>> {
  if (heard.length === 0) return new Map()
  const addresses = [...new Set(heard.map(({ waId }) => waId))]
  await addAddresses(tx, hearer, addresses)
  const rows = await lockPeople(tx, hearer.workspaceId, addresses)
  const ids = new Map(rows.map(({ waId, id, mergedInto }) => [waId, mergedInto ?? id]))
  const named = heard.filter(({ pushName }) => pushName !== null)
  if (named.length > 0) {
    await tx`
      update contacts k set push_name = n.push_name, push_name_at = n.at
      from (
        select distinct on (u.id) u.* from unnest(
          ${named.map(({ waId }) => ids.get(waId))}::uuid[], ${named.map(({ pushName }) => pushName)}::text[],
          ${named.map(({ at }) => at)}::timestamptz[]) u(id, push_name, at)
        order by u.id, u.at desc, u.push_name desc) n
      where k.id = n.id and (n.at, n.push_name) > (k.push_name_at, coalesce(k.push_name, ''))`
  }
  return ids
}

/** Whether these addresses are known to be of one person. */
export const areOne = (workspaceId: string, one: Fragment | string, other: Fragment | string) =>
  fragment`exists (
  select from contacts a join contacts b on coalesce(a.merged_into, a.id) = coalesce(b.merged_into, b.id)
  where a.workspace_id = ${workspaceId} and a.wa_id = ${one} and b.workspace_id = ${workspaceId} and b.wa_id = ${other})`

/**
 * Whether these addresses may be of one person: they are known to be, or are of different kinds and nothing is known against it. WhatsApp has one number and one lid
 * for a person, so whoever is known to have another of either is somebody else.
 */
export const mayBeOne = (workspaceId: string, one: Fragment | string, other: Fragment | string) =>
  fragment`(${areOne(workspaceId, one, other)}
  or split_part(${one}, '@', 2) <> split_part(${other}, '@', 2) and not exists (
    select from (values (${one}, ${other}), (${other}, ${one})) v(wa_id, of_kind)
    join contacts a on a.workspace_id = ${workspaceId} and a.wa_id = v.wa_id
    join contacts b on b.id = coalesce(a.merged_into, a.id) or b.merged_into = coalesce(a.merged_into, a.id)
    where split_part(b.wa_id, '@', 2) = split_part(v.of_kind, '@', 2)))`

/** Joins two contacts because a person says so, and forgets that they were ever to be apart. Undefined when one of them is not there. */
export async function mergeContacts(
  sql: Sql,
  workspaceId: string,
  id: string,
  otherId: string,
  also: (tx: Sql) => Promise<void>,
): Promise<string | undefined> {
  return sql.begin(async (tx) => {
    await holdPeople(tx, workspaceId, 'change')
    const addresses = await addressesOf(tx, workspaceId, [id, otherId])
    if (addresses.length < 2) return undefined
    const rows = await lockPeople(tx, workspaceId, addresses)
    const [root, other] = addresses.map((waId) => {
      const row = rows.find((one) => one.waId === waId)!
      return row.mergedInto ?? row.id
    }) as [string, string]
    if (root === other) return root
    const all = rows.map(({ waId }) => waId)
    await tx`
      delete from contacts_apart
      where workspace_id = ${workspaceId} and wa_id = any(${all}::text[]) and other_wa_id = any(${all}::text[])`
    const survivor = await merge(tx, workspaceId, root, other, { source: 'person', addresses })
    await tellOfName(tx, workspaceId, rows, survivor)
    await also(tx)
    return survivor
  })
}

/**
 * Takes back the latest joining of a contact: each of the two is what it was, with what came since staying where it belongs by its address, and nothing that was
 * heard joins them again. Answers their ids, or undefined when there is no such contact; throws 409 NOT_MERGED.
 */
export async function unmerge(
  sql: Sql,
  workspaceId: string,
  id: string,
  also: (tx: Sql) => Promise<void>,
): Promise<{ contact: string; separated: string } | undefined> {
  return sql.begin(async (tx) => {
    await holdPeople(tx, workspaceId, 'change')
    const addresses = await addressesOf(tx, workspaceId, [id])
    if (addresses.length === 0) return undefined
    const rows = await lockPeople(tx, workspaceId, addresses)
    const row = rows.find(({ waId }) => waId === addresses[0])!
    const root = row.mergedInto ?? row.id
    const [last] = await tx<{ id: number; mergedId: string; members: string[] }>`
      select id, merged_id, members from contact_merges
      where workspace_id = ${workspaceId} and survivor_id = ${root} and undone_at is null order by id desc limit 1`
    if (!last) throw new AppError(409, 'NOT_MERGED', 'The contact is not joined from others.')
    const { mergedId, members } = last
    const taken = rows.filter((one) => members.includes(one.id)).map(({ waId }) => waId)
    const left = rows.filter((one) => !members.includes(one.id)).map(({ waId }) => waId)
    await tx`update contact_merges set undone_at = now() where id = ${last.id}`
    await tx`
      insert into contacts_apart (workspace_id, wa_id, other_wa_id)
      select ${workspaceId}, least(a, b), greatest(a, b) from unnest(${taken}::text[]) a, unnest(${left}::text[]) b
      on conflict do nothing`
    await tx`
      update contacts set merged_into = case when id <> ${mergedId} then ${mergedId}::uuid end where id = any(${members}::uuid[])`
    // A wish that was uttered while they were one is the wish of both.
    await tx`
      update contacts s set opted_out = r.opted_out, opted_out_at = r.opted_out_at
      from contacts r, contact_merges m, jsonb_populate_record(null::contacts, m.after) a
      where s.id = ${mergedId} and r.id = ${root} and m.id = ${last.id}
        and (r.opted_out, r.opted_out_at) is distinct from (a.opted_out, a.opted_out_at)`
    // What was changed since is left as it is.
    await tx`
      update contacts r set
        (name, name_at) = (select b.name, b.name_at where (r.name, r.name_at) is not distinct from (a.name, a.name_at)
          union all select r.name, r.name_at limit 1),
        (push_name, push_name_at) = (select b.push_name, b.push_name_at where (r.push_name, r.push_name_at) is not distinct from (a.push_name, a.push_name_at)
          union all select r.push_name, r.push_name_at limit 1),
        (opted_out, opted_out_at) = (select b.opted_out, b.opted_out_at where (r.opted_out, r.opted_out_at) is not distinct from (a.opted_out, a.opted_out_at)
          union all select r.opted_out, r.opted_out_at limit 1),
        is_business = b.is_business
      from contact_merges m, jsonb_populate_record(null::contacts, m.before) b, jsonb_populate_record(null::contacts, m.after) a
      where r.id = ${root} and m.id = ${last.id}`
    await refresh(tx, root)
    await refresh(tx, mergedId)
    await moveChats(
      tx,
      workspaceId,
      fragment`contact_id = ${root} and wa_chat_id = any(${taken}::text[])`,
      mergedId,
    )
    await tellOfName(tx, workspaceId, rows, root)
    await also(tx)
    return { contact: root, separated: mergedId }
  })
}

/** Whether a word of that moment beats the one in the columns; of two of the same moment the greater, so that their order does not matter. */
const later = (atColumn: string, column: string, value: string | null, at: Date) =>
  fragment`(${at}::timestamptz, ${value}::text) >= (${raw(atColumn)}, coalesce(${raw(column)}, ''))`

/** Names of columns, of which there is a handful in this file. */
const raw = (text: string) => fragment([text] as unknown as TemplateStringsArray)

/** What a joining changes of the contact that stays. */
const joinedColumns = raw(
  `jsonb_build_object('name', k.name, 'name_at', k.name_at, 'push_name', k.push_name, 'push_name_at', k.push_name_at,
    'is_business', k.is_business, 'opted_out', k.opted_out, 'opted_out_at', k.opted_out_at)`,
)

/** What only the owner of the session may write, in a statement of its own. */
const ofOwner = ({ id, fence }: SessionLease) => fragment`
  exists (select from wa_sessions where id = ${id} and fence = ${fence} for share)`

/** Rows for addresses that have none yet. */
async function addAddresses(
  sql: Sql,
  hearer: Pick<SessionLease, 'id' | 'workspaceId'>,
  addresses: string[],
  allowed = fragment`true`,
): Promise<void> {
  const lid = (waId: string) => (waId.endsWith('@lid') ? waId : null)
  await sql`
    insert into contacts (workspace_id, session_id, wa_id, phone, lid)
    select ${hearer.workspaceId}, ${hearer.id}, x.* from unnest(
      ${addresses}::text[], ${addresses.map(phoneOf)}::text[], ${addresses.map(lid)}::text[]) x(wa_id, phone, lid)
    where not exists (select from contacts k where k.workspace_id = ${hearer.workspaceId} and k.wa_id = x.wa_id) and ${allowed}
    order by x.wa_id
    on conflict do nothing`
}

/** One address of each of these contacts, in their order. */
async function addressesOf(tx: Sql, workspaceId: string, ids: string[]): Promise<string[]> {
  const rows = await tx<{ waId: string }>`
    select k.wa_id from unnest(${ids}::uuid[]) with ordinality u(id, n)
    join contacts k on k.id = u.id and k.workspace_id = ${workspaceId} order by u.n`
  return rows.map(({ waId }) => waId)
}

/**
 * Until the transaction ends, who is who in a workspace does not change, or (`change`) is changed by nobody else. To be called before any contact or chat is locked.
 */
export async function holdPeople(
  tx: Sql,
  workspaceId: string,
  how: 'keep' | 'change',
): Promise<void> {
  const key = fragment`hashtextextended(${`people of ${workspaceId}`}, 0)`
  if (how === 'keep') await tx`select pg_advisory_xact_lock_shared(${key})`
  else await tx`select pg_advisory_xact_lock(${key})`
}

/**
 * Locks every row of the people with these addresses, in the order of their addresses: whoever locks several contacts does it in that order, and before
 * any chat. Answers the rows. Needs holdPeople().
 */
async function lockPeople(tx: Sql, workspaceId: string, addresses: string[]): Promise<Row[]> {
  // By ids alone, for which there are indexes: a workspace may have any number of people.
  return tx<Row>`
    with root as materialized (
      select coalesce(merged_into, id) as id from contacts where workspace_id = ${workspaceId} and wa_id = any(${addresses}::text[]))
    select id, wa_id, merged_into, ${calledAs} as called_as from contacts
    where id in (select id from root union select k.id from root join contacts k on k.merged_into = root.id)
    order by wa_id for no key update`
}

/** Joins two contacts whose rows are locked, unless a person has taken them apart. Answers the one that stays, or the first one. */
async function merge(
  tx: Sql,
  workspaceId: string,
  id: string,
  otherId: string,
  { source, addresses }: Pick<PersonFacts, 'source' | 'addresses'>,
): Promise<string> {
  const people = await tx<Pick<Row, 'id' | 'waId'> & { root: string; first: boolean }>`
    select k.id, k.wa_id, r.id as root, r.id = first_value(r.id) over (order by r.created_at, r.id) as first
    from contacts r join contacts k on k.id = r.id or k.merged_into = r.id
    where r.id in (${id}, ${otherId})`
  const apart = await tx`
    select from contacts_apart a
    where a.workspace_id = ${workspaceId}
      and exists (
        select from unnest(${people.map(({ waId }) => waId)}::text[], ${people.map(({ first }) => first)}::boolean[]) x(wa_id, first),
          unnest(${people.map(({ waId }) => waId)}::text[], ${people.map(({ first }) => first)}::boolean[]) y(wa_id, first)
        where x.first <> y.first and x.wa_id = a.wa_id and y.wa_id = a.other_wa_id)
    limit 1`
  if (apart.length > 0) return id
  const survivor = people.find(({ first }) => first)!.root
  const merged = survivor === id ? otherId : id
  const members = people.filter(({ first }) => !first).map((one) => one.id)
  const [before] = await tx<{ image: object }>`
    select ${joinedColumns} as image from contacts k where k.id = ${survivor}`
  const [after] = await tx<{ image: object }>`
    update contacts k set
      (name, name_at) = (select case when newer then l.name else k.name end, greatest(k.name_at, l.name_at)
        from (select (l.name_at, coalesce(l.name, '')) > (k.name_at, coalesce(k.name, '')) as newer) x),
      (push_name, push_name_at) = (select case when newer then l.push_name else k.push_name end, greatest(k.push_name_at, l.push_name_at)
        from (select (l.push_name_at, coalesce(l.push_name, '')) > (k.push_name_at, coalesce(k.push_name, '')) as newer) x),
      is_business = k.is_business or l.is_business,
      opted_out = k.opted_out or l.opted_out,
      -- Of when that was so last: greatest() passes over nulls.
      opted_out_at = case when k.opted_out = l.opted_out then greatest(k.opted_out_at, l.opted_out_at) when k.opted_out then k.opted_out_at else l.opted_out_at end
    from contacts l where k.id = ${survivor} and l.id = ${merged}
    returning ${joinedColumns} as image`
  await tx`update contacts set merged_into = ${survivor} where id = any(${members}::uuid[])`
  await tx`
    insert into contact_merges (workspace_id, survivor_id, merged_id, members, evidence, before, after)
    values (${workspaceId}, ${survivor}, ${merged}, ${members}, ${{ source, addresses }}, ${before!.image}, ${after!.image})`
  await refresh(tx, survivor)
  await moveChats(tx, workspaceId, fragment`contact_id = ${merged}`, survivor)
  return survivor
}

/** The number and the lid a contact is shown with: of those it has, what WhatsApp had last. */
async function refresh(tx: Sql, id: string): Promise<void> {
  const shown = (form: string) => fragment`(
    select k.wa_id from contacts k where (k.id = ${id} or k.merged_into = ${id}) and k.wa_id like ${form}
    order by k.alternate, k.seen_at desc, k.wa_id limit 1)`
  await tx`
    update contacts c set phone = x.phone, lid = x.lid
    from (select '+' || split_part(${shown('%@c.us')}, '@', 1) as phone, ${shown('%@lid')} as lid) x
    where c.id = ${id} and (c.phone, c.lid) is distinct from (x.phone, x.lid)`
}

const calledAs = raw('coalesce(name, push_name, phone)')

/** Tells of a contact's chats when they are called something else than they were. */
async function tellOfName(tx: Sql, workspaceId: string, before: Row[], id: string): Promise<void> {
  const [now] = await tx<Pick<Row, 'calledAs'>>`
    select ${calledAs} as called_as from contacts where id = ${id}`
  const was = before.find((row) => row.id === id)?.calledAs
  if (now!.calledAs !== was) await tellChatsOf(tx, workspaceId, id)
}

/** Gives chats to another contact, and tells of it. */
async function moveChats(
  tx: Sql,
  workspaceId: string,
  which: ReturnType<typeof fragment>,
  contactId: string,
): Promise<void> {
  // In the order in which accept() locks chats.
  const chats = await tx<{ id: string }>`
    select id from chats where ${which} order by wa_chat_id, session_id for no key update`
  if (chats.length === 0) return
  const ids = chats.map(({ id }) => id)
  await tx`update chats set contact_id = ${contactId} where id = any(${ids}::uuid[])`
  await tellChats(tx, workspaceId, ids)
}
