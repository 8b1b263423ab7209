import type { MessageType } from '../../shared/messages.ts'
import { serializeKey } from '../../shared/wa-id.ts'
import type { IncomingMessage, MessageKey } from './engine.ts'

/** The id of a message as the library or the page hands it over: of both, only the parts are to be relied on. */
export interface LibraryId {
  fromMe?: boolean
  remote?: string | { _serialized?: string }
  id?: string
  participant?: string | { _serialized?: string }
}

/** A message as the library hands it over; only what is read here, and nothing of it is certain. */
export interface LibraryMessage {
  id: LibraryId
  type?: string
  body?: string
  timestamp?: number
  ack?: number
  author?: string
  /** The page's own model. */
  _data?: { notifyName?: string }
}

const types: Record<string, MessageType> = {
  chat: 'text',
  image: 'image',
  video: 'video',
  document: 'document',
  audio: 'audio',
  ptt: 'voice',
  sticker: 'sticker',
  location: 'location',
  vcard: 'contact',
  multi_vcard: 'contact',
  poll_creation: 'poll',
  gp2: 'system',
  call_log: 'system',
}

/** Traffic of WhatsApp with itself: no message to anybody. */
const internal = new Set([
  'e2e_notification',
  'notification',
  'notification_template',
  'protocol',
  'ciphertext',
  'reaction',
  'debug',
  'newsletter_notification',
  'broadcast_notification',
])

/** A message of the library as ours, or undefined when it is none of a conversation (status updates, channels, internal traffic). */
export function incomingMessage(message: LibraryMessage): IncomingMessage | undefined {
  const identity = identify(message.id, message.author)
  if (!identity || internal.has(message.type ?? '')) return undefined
  if (!/@(c\.us|lid|g\.us)$/.test(identity.key.chatId)) return undefined
  return {
    ...identity,
    type: types[message.type ?? ''] ?? 'unknown',
    // A caption that is not there comes as an empty text.
    body: storable(message.body ?? '') || (message.type === 'chat' ? '' : null),
    timestamp: message.timestamp ?? Math.floor(Date.now() / 1_000),
    ack: message.ack ?? 0,
    senderName: nameOf(message._data?.notifyName),
    chatName: null,
  }
}

/**
 * Which message this is, put together from the parts of its id: WhatsApp has renamed the serialized field before. Undefined when parts are
 * missing. `author` stands in for a participant that is left out.
 */
export function identify(
  id: LibraryId,
  author?: string,
): { key: MessageKey; waMessageId: string } | undefined {
  const chatId = addressOf(id.remote)
  if (chatId === undefined || id.id === undefined) return undefined
  const fromMe = id.fromMe === true
  const inGroup = chatId.endsWith('@g.us')
  const participant = inGroup ? (addressOf(id.participant) ?? addressOf(author) ?? '') : ''
  return {
    key: { fromMe, chatId, id: id.id, participant: fromMe ? '' : participant },
    waMessageId: serializeKey(fromMe, chatId, id.id, participant),
  }
}

/** Postgres keeps no NUL and no half of a surrogate pair in a text; people's messages may hold them. */
const storable = (text: string) => text.replaceAll('\0', '').replaceAll(/\p{Surrogate}/gu, '\uFFFD')

/** A name as it may be shown, or null when there is none. */
export function nameOf(name: string | undefined): string | null {
  return storable(name ?? '').trim() || null
}

/** An address as text, without the device (`123:4@c.us`) and in the form we use everywhere. */
export function addressOf(
  value: string | { _serialized?: string } | undefined,
): string | undefined {
  const text = typeof value === 'string' ? value : value?._serialized
  return text?.replace(/:\d+@/, '@').replace(/@s\.whatsapp\.net$/, '@c.us')
}
