import { isGroup } from '../../shared/wa-id.ts'
import type { Acquaintance, ChatInfo, ContactInfo, Engine, Recent } from './engine.ts'
import { addressesOf, contactFor } from './simulator-contacts.ts'
import { incomingOf } from './simulator-phone.ts'
import type { Login, SimulatedMessage } from './simulator-phone.ts'

/** Every simulated group is called after its number. */
const groupName = (chatId: string) => `Group ${chatId.slice(0, -5).slice(-4)}`

/** Under any address of the chat. */
export function messagesIn({ messages }: Login, chatId: string): SimulatedMessage[] {
  const addresses = addressesOf(chatId)
  return Object.values(messages).filter(({ key }) => addresses.includes(key.chatId))
}

/** A group has us and whoever wrote in it; we have made it. */
export function chatInfo(login: Login, chatId: string): ChatInfo | null {
  const messages = messagesIn(login, chatId)
  if (messages.length === 0) return null
  if (!isGroup(chatId)) {
    const names = messages.map((message) => incomingOf(message).senderName)
    return { name: names.find((name) => name !== null) ?? null, isGroup: false, participants: [] }
  }
  const authors = messages.flatMap(({ key }) => key.participant || [])
  const everyone = [login.account.waId, ...new Set(authors)]
  return {
    name: groupName(chatId),
    isGroup: true,
    participants: everyone.map((waId, index) => ({ waId, isAdmin: index === 0 })),
  }
}

export function contactInfo(waId: string): ContactInfo | null {
  if (contactFor(waId) === 'unregistered') return null
  const [pn, lid = null] = addressesOf(waId) as [string, string?]
  const digits = pn.slice(0, -5)
  return {
    waId: pn,
    lid,
    phone: `+${digits}`,
    name: null,
    pushName: `Customer ${digits.slice(-4)}`,
    isBusiness: false,
  }
}

export function people(waIds: string[]): Acquaintance[] {
  return waIds.flatMap((asked) => {
    const info = contactInfo(asked)
    return info ? { asked, ...info } : []
  })
}

export function recentChats(
  { messages }: Login,
  { sinceSeconds, limitPerChat, maxChats }: Parameters<Engine['recent']>[0],
): Recent {
  const chats = new Map<string, SimulatedMessage[]>()
  for (const message of Object.values(messages)) {
    if (message.timestamp < sinceSeconds) continue
    const { chatId } = message.key
    chats.set(chatId, [...(chats.get(chatId) ?? []), message])
  }
  const newest = [...chats].sort(([, a], [, b]) => b.at(-1)!.timestamp - a.at(-1)!.timestamp)
  return {
    truncated: newest.length > maxChats,
    chats: newest.slice(0, maxChats).map(([chatId, all]) => ({
      chatId,
      name: isGroup(chatId) ? groupName(chatId) : null,
      isGroup: isGroup(chatId),
      messages: all.slice(-limitPerChat).map(incomingOf),
      complete: all.length <= limitPerChat,
    })),
  }
}
