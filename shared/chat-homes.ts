import { fragment } from './db.ts'
import type { Fragment } from './db.ts'

/**
 * The other address of the account behind this one; null where none is known. One number and one lid of one person are one account. With more of either nobody knows
 * which of his telephones would be answered.
 */
export const otherAddress = (
  workspaceId: Fragment | string,
  address: Fragment | string,
) => fragment`(
  select max(k.wa_id) filter (where k.wa_id <> ${address})
  from contacts a join contacts k on k.id = coalesce(a.merged_into, a.id) or k.merged_into = coalesce(a.merged_into, a.id)
  where a.workspace_id = ${workspaceId} and a.wa_id = ${address}
  having count(*) = 2 and count(distinct split_part(k.wa_id, '@', 2)) = 2)`

/**
 * The address of the chat there is for this one, whether messages come from there or go there: what was sent to a number may be answered from the address WhatsApp has
 * for it, and who wrote from a lid may be answered at the number. Null where there is none.
 */
export const homeOf = (
  { workspaceId, sessionId }: Record<'workspaceId' | 'sessionId', Fragment | string>,
  address: Fragment | string,
) => fragment`coalesce(
  (select c.wa_chat_id from chats c where c.session_id = ${sessionId} and (c.wa_chat_id = ${address} or c.canonical_wa_id = ${address})
   order by c.canonical_wa_id is not distinct from ${address} desc limit 1),
  (select c.wa_chat_id from chats c where c.session_id = ${sessionId} and c.wa_chat_id = ${otherAddress(workspaceId, address)}))`
