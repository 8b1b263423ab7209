import { fragment } from './db.ts'
import type { Fragment } from './db.ts'

type Text = Fragment | string

interface Where {
  workspaceId: Text
  sessionId: Text
}

/**
 * The other address of the account behind this one; null where none is known. One number and one lid of one person are one account, beside a number that is only dialled. With more of
 * either nobody knows which of his telephones would be answered.
 */
export const otherAddress = (workspaceId: Text, address: Text) => fragment`(
  select max(k.wa_id) filter (where k.wa_id <> ${address})
  from contacts a join contacts k on k.id = coalesce(a.merged_into, a.id) or k.merged_into = coalesce(a.merged_into, a.id)
  where a.workspace_id = ${workspaceId} and a.wa_id = ${address} and not k.alternate
  having count(*) = 2 and count(distinct split_part(k.wa_id, '@', 2)) = 2 and bool_or(k.wa_id = ${address}))`

/** The address WhatsApp has for this one, as far as is known: in Brazil and Mexico often not the number that is dialled. */
const actualAddress = ({ workspaceId, sessionId }: Where, address: Text) => fragment`coalesce(
  (select n.wa_id from wa_numbers n
   where ${address} like '%@c.us' and n.workspace_id = ${workspaceId} and n.phone = split_part(${address}, '@', 1) and n.wa_id like '%@c.us'),
  (select c.canonical_wa_id from chats c where c.session_id = ${sessionId} and c.wa_chat_id = ${address}), ${address})`

/** The address of the chat that was opened at this one, else of the first that was found to lead there. */
const chatAt = (sessionId: Text, address: Text) => fragment`coalesce(
  (select c.wa_chat_id from chats c where c.session_id = ${sessionId} and c.wa_chat_id = ${address}),
  (select c.wa_chat_id from chats c where c.session_id = ${sessionId} and c.canonical_wa_id = ${address} order by c.created_at, c.id limit 1))`

const resolved = (where: Where, address: Text, opened: { number: Fragment; actual: Fragment }) => {
  const at = (one: Text) => chatAt(where.sessionId, one)
  return fragment`(
  select coalesce(${at(fragment`here.actual`)}, case when here.actual <> ${address} then ${at(address)} end, (
      select coalesce(${at(fragment`o.other`)}, ${opened.number})
      from (select ${otherAddress(where.workspaceId, fragment`here.actual`)} as other offset 0) o), ${opened.actual})
  from (select ${actualAddress(where, address)} as actual offset 0) here)`
}

/**
 * The address of the chat there is for this one, whether messages come from there or go there: what was sent to a number may be answered from the address WhatsApp has
 * for it, and who wrote from a lid may be answered at the number. Null where there is none.
 */
export const homeOf = (where: Where, address: Text) =>
  resolved(where, address, { number: fragment`null`, actual: fragment`null` })

/**
 * Joins where a message to this address goes, and to whom: `home.wa_chat_id`, with its chat `c`, or where it would be opened; and `k`, the contact of that chat, or of that address: neither need be there.
 * Whatever addresses of one account are written to, also at once, a chat is opened at one of them: its number, where it is known.
 */
export const joinHome = (where: Where, address: Text) => fragment`
  cross join lateral (
    select ${resolved(where, address, {
      number: fragment`case when o.other like '%@c.us' then o.other end`,
      actual: fragment`here.actual`,
    })} as wa_chat_id offset 0) home
  left join chats c on c.session_id = ${where.sessionId} and c.wa_chat_id = home.wa_chat_id
  cross join lateral (
    select coalesce(c.contact_id, (
      select coalesce(a.merged_into, a.id) from contacts a where a.workspace_id = ${where.workspaceId} and a.wa_id = home.wa_chat_id)) as contact_id offset 0) who
  left join contacts k on k.id = who.contact_id`
