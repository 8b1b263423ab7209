import type { MediaType } from '../../shared/message-content.ts'
import type { MessageType } from '../../shared/messages.ts'
import { serializeKey } from '../../shared/wa-id.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import type { IncomingMedia, IncomingMessage } from './engine.ts'
import { readVcard } from './vcard.ts'

type Address = string | { _serialized?: string } | null

/** The id of a message as the library or the page hands it over: of both, only the parts are to be relied on. */
export interface LibraryId {
  fromMe?: boolean
  remote?: Address
  id?: string
  participant?: Address
}

/** The page's own model of a message; only what is read here, and nothing of it is certain. */
export interface MessageModel {
  id: LibraryId
  type?: string
  body?: string
  caption?: string
  t?: number
  ack?: number
  author?: Address
  notifyName?: string
  directPath?: string
  mimetype?: string
  size?: number | string
  filename?: string
  duration?: number | string
  quotedMsg?: object
  quotedStanzaID?: string
  quotedParticipant?: Address
  mentionedJidList?: Address[]
  lat?: number
  lng?: number
  loc?: string
  vcardList?: { vcard?: string }[]
  pollName?: string
  pollOptions?: { name?: string }[]
  pollSelectableOptionsCount?: number
  protocolMessageKey?: LibraryId
  /** Null as long as nobody has edited it. */
  latestEditSenderTimestampMs?: number | null
}

/** A message as the library hands it over. */
export interface LibraryMessage {
  _data: MessageModel
}

const types: Record<string, MessageType> = {
  chat: 'text',
  image: 'image',
  video: 'video',
  // A round one, recorded as a voice message is.
  ptv: 'video',
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
const media = new Set(['image', 'video', 'document', 'audio', 'voice', 'sticker'])

/** Traffic of WhatsApp with itself: no message to anybody. */
const internal = new Set([
  'e2e_notification',
  'notification',
  'notification_template',
  'protocol',
  'reaction',
  'debug',
  'newsletter_notification',
  'broadcast_notification',
])

/**
 * A message as ours, or undefined when it is none of a conversation (status updates, channels, internal traffic). `me` are the addresses of
 * this account.
 */
export function incomingMessage(model: MessageModel, me: string[]): IncomingMessage | undefined {
  const identity = identify(idOf(model), model.author)
  if (!identity || internal.has(model.type ?? '')) return undefined
  if (!/@(c\.us|lid|g\.us)$/.test(identity.key.chatId)) return undefined
  const type = types[model.type ?? ''] ?? 'unknown'
  const contacts = type === 'contact' ? contactsOf(model) : []
  return {
    ...identity,
    type,
    body: bodyOf(type, model, contacts),
    timestamp: model.t ?? Math.floor(Date.now() / 1_000),
    ack: model.ack ?? 0,
    senderName: nameOf(model.notifyName),
    chatName: null,
    pending: model.type === 'ciphertext',
    revoked: model.type === 'revoked',
    media: mediaOf(type, model),
    quoted: quotedOf(identity.key, model, me),
    mentions: (model.mentionedJidList ?? []).flatMap((wid) => addressOf(wid) ?? []),
    location: type === 'location' ? locationOf(model) : null,
    contacts,
    poll:
      type === 'poll'
        ? {
            question: storable(model.pollName ?? ''),
            options: (model.pollOptions ?? []).map(({ name }) => storable(name ?? '')),
            multiple: model.pollSelectableOptionsCount !== 1,
          }
        : null,
  }
}

/** What is read of a message: the page keeps a small picture where the body of media and of places would be. */
export function bodyOf(
  type: MessageType,
  { type: raw, body, caption, pollName }: MessageModel,
  contacts: { name: string }[] = [],
): string | null {
  if (raw === 'ciphertext' || raw === 'revoked' || type === 'location') return null
  if (media.has(type)) return storable(caption ?? '') || null
  if (type === 'contact') return contacts.map(({ name }) => name).join(', ') || null
  if (type === 'poll') return storable(pollName ?? '')
  return body === undefined ? null : storable(body)
}

/** Under which id a message came. Once it is revoked its model has the id of the revocation. */
export const idOf = ({ type, id, protocolMessageKey }: MessageModel): LibraryId =>
  type === 'revoked' ? (protocolMessageKey ?? id) : id

export const typeOf = (model: MessageModel): MessageType => types[model.type ?? ''] ?? 'unknown'

/**
 * Which message this is, put together from the parts of its id: WhatsApp has renamed the serialized field before. Undefined when parts are
 * missing. `author` stands in for a participant that is left out.
 */
export function identify(
  id: LibraryId | undefined,
  author?: Address,
): { key: MessageKey; waMessageId: string } | undefined {
  const chatId = addressOf(id?.remote)
  if (chatId === undefined || id?.id === undefined) return undefined
  const fromMe = id.fromMe === true
  const inGroup = chatId.endsWith('@g.us')
  const participant = inGroup ? (addressOf(id.participant) ?? addressOf(author) ?? '') : ''
  return {
    key: { fromMe, chatId, id: id.id, participant: fromMe ? '' : participant },
    waMessageId: serializeKey(fromMe, chatId, id.id, participant),
  }
}

function quotedOf(
  { chatId }: MessageKey,
  { quotedStanzaID, quotedParticipant }: MessageModel,
  me: string[],
): MessageKey | null {
  if (!quotedStanzaID) return null
  const author = addressOf(quotedParticipant)
  const fromMe = author !== undefined && me.includes(author)
  const participant = chatId.endsWith('@g.us') && !fromMe ? (author ?? '') : ''
  return { fromMe, chatId, id: quotedStanzaID, participant }
}

function mediaOf(type: MessageType, model: MessageModel): IncomingMedia | null {
  // Without a path there is nothing to be had: a view-once message, for one.
  if (!media.has(type) || !model.directPath) return null
  // What the sender's device claims: it may be anything.
  const count = (value: number | string | undefined) => {
    const claimed = Math.round(Number(value))
    return Number.isSafeInteger(claimed) && claimed >= 0 ? claimed : null
  }
  return {
    kind: type as MediaType,
    mimeType: nameOf(model.mimetype) ?? 'application/octet-stream',
    size: count(model.size),
    filename: nameOf(model.filename),
    seconds: count(model.duration),
    isVoice: type === 'voice',
  }
}

function locationOf({ lat, lng, loc }: MessageModel): IncomingMessage['location'] {
  if (typeof lat !== 'number' || typeof lng !== 'number') return null
  const [name, address] = storable(loc ?? '').split('\n')
  return { latitude: lat, longitude: lng, ...(name && { name }), ...(address && { address }) }
}

function contactsOf({ type, body, vcardList }: MessageModel) {
  const cards = type === 'vcard' ? [body] : (vcardList ?? []).map(({ vcard }) => vcard)
  return cards.flatMap((card) => readVcard(storable(card ?? '')) ?? [])
}

/** Postgres keeps no NUL and no half of a surrogate pair in a text; people's messages may hold them. */
export const storable = (text: string) =>
  text.replaceAll('\0', '').replaceAll(/\p{Surrogate}/gu, '\uFFFD')

/** A name as it may be shown, or null when there is none. */
export function nameOf(name: string | null | undefined): string | null {
  return storable(name ?? '').trim() || null
}

/** An address as text, without the device (`123:4@c.us`) and in the form we use everywhere. */
export function addressOf(value: Address | undefined): string | undefined {
  const text = typeof value === 'string' ? value : value?._serialized
  return text?.replace(/:\d+@/, '@').replace(/@s\.whatsapp\.net$/, '@c.us')
}
