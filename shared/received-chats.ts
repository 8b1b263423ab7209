import { homeOf, otherAddress } from './chat-homes.ts'
import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { contactsOf } from './identities.ts'
import { authorOf } from './received.ts'
import type { Received } from './received.ts'
import { isGroup } from './wa-id.ts'
import type { SessionLease } from './wa-session-leases.ts'

/** An address messages come from, and where they belong. */
interface Seen {
  address: string
  /** The other address of the same account, where it is known. */
  other: string | null
  waChatId: string | null
  hasContact: boolean
}

/**
 * Finds or creates the chats of messages, the one there is for either address of a person, and their contacts, learns the names of those who wrote, and locks all of it until the transaction ends. Answers the ids of the
 * chats by the addresses of the messages.
 */
export async function openChats(
  tx: Sql,
  session: SessionLease,
  messages: Received[],
): Promise<Map<string, string>> {
  const { id: sessionId, workspaceId } = session
  const seen = [...new Set(messages.map(({ waChatId }) => waChatId))]
  const found = await tx<Seen>`
    select x.address, o.wa_id as other, c.wa_chat_id, c.contact_id is not null as has_contact
    from unnest(${seen}::text[]) x(address)
    cross join lateral (select ${otherAddress(workspaceId, fragment`x.address`)} as wa_id, ${homeOf({ workspaceId, sessionId }, fragment`x.address`)} as home) o
    left join chats c on c.session_id = ${sessionId} and c.wa_chat_id = o.home`
  const chats = new Map(found.map((one) => [one.address, one]))
  const homes = new Map<string, string>()
  for (const { address, other, waChatId } of found) {
    homes.set(address, waChatId ?? (other === null ? undefined : homes.get(other)) ?? address)
  }
  const addressOf = (waChatId: string) => homes.get(waChatId)!
  // Whoever wrote is a contact from now on. Contacts are locked before chats, everywhere.
  const contacts = await contactsOf(
    tx,
    session,
    messages.flatMap((message) => {
      const { fromMe, waChatId, senderName, timestamp } = message
      const waId = isGroup(waChatId) ? authorOf(message) : addressOf(waChatId)
      const pushName = fromMe ? null : senderName
      const isKnown = !isGroup(waChatId) && chats.get(waChatId)?.hasContact
      // Of whoever wrote to us, also because a word of theirs may opt them out.
      if (waId === undefined || (isKnown && fromMe)) return []
      return { waId, pushName, at: new Date(timestamp * 1_000) }
    }),
  )
  const names = new Map<string, string | null>()
  for (const { waChatId, chatName } of messages) {
    const address = addressOf(waChatId)
    names.set(address, (isGroup(waChatId) ? chatName : null) ?? names.get(address) ?? null)
  }
  const addresses = [...names.keys()]
  const opened = await tx<{ id: string; waChatId: string }>`
    insert into chats (workspace_id, session_id, wa_chat_id, is_group, contact_id, name)
    select ${session.workspaceId}::uuid, ${session.id}::uuid, x.* from unnest(
      ${addresses}::text[], ${addresses.map(isGroup)}::boolean[],
      ${addresses.map((address) => (isGroup(address) ? null : (contacts.get(address) ?? null)))}::uuid[], ${[...names.values()]}::text[]
    ) x(wa_chat_id, is_group, contact_id, name)
    -- In the order in which accept() locks chats.
    order by x.wa_chat_id
    on conflict (session_id, wa_chat_id) do update
    set name = coalesce(excluded.name, chats.name), contact_id = coalesce(chats.contact_id, excluded.contact_id)
    returning id, wa_chat_id`
  const ids = new Map(opened.map(({ id, waChatId }) => [waChatId, id]))
  return new Map(messages.map(({ waChatId }) => [waChatId, ids.get(addressOf(waChatId))!]))
}
