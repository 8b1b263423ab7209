import type { EventEmitter } from 'node:events'
import type {
  LocationContent,
  MediaContent,
  MediaType,
  MessageContent,
  PollContent,
} from '../../shared/message-content.ts'
import type { MessageType } from '../../shared/messages.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import type { Account, QrCode } from '../../shared/wa-session-transitions.ts'

export interface IncomingMessage {
  key: MessageKey
  waMessageId: string
  type: MessageType
  /** The text, or the caption; of a poll its question, of contact cards the names. */
  body: string | null
  /** Seconds since 1970. */
  timestamp: number
  ack: number
  senderName: string | null
  chatName: string | null
  /** WhatsApp cannot read it yet: the content may follow under the same id. Never so of a message event. */
  pending: boolean
  /** It was deleted for everyone before we saw it. */
  revoked: boolean
  /** What download() would bring. */
  media: IncomingMedia | null
  /** The message this one answers. */
  quoted: MessageKey | null
  /** Addresses of the people named in it. */
  mentions: string[]
  location: Omit<LocationContent, 'type'> | null
  contacts: ContactCard[]
  poll: Omit<PollContent, 'type'> | null
}

export interface IncomingMedia {
  kind: MediaType
  mimeType: string
  /** Bytes, as the sender says; null where unknown. */
  size: number | null
  filename: string | null
  /** Of sound and video, where known. */
  seconds: number | null
  /** Recorded as a voice message. */
  isVoice: boolean
}

export interface ContactCard {
  name: string
  /** `+` and digits, or null where the card has no number on WhatsApp. */
  phone: string | null
}

/** A person, as far as WhatsApp Web knows. */
export interface ContactInfo {
  /** The address with the phone number, where it is known, else the lid. */
  waId: string
  lid: string | null
  phone: string | null
  /** In the address book of the phone. */
  name: string | null
  /** As the person calls itself. */
  pushName: string | null
  isBusiness: boolean
}

/** A person that was asked about. */
export interface Acquaintance extends ContactInfo {
  /** The address in the question. */
  asked: string
}

export interface ChatInfo {
  name: string | null
  isGroup: boolean
  /** Of a group; empty elsewhere. */
  participants: { waId: string; isAdmin: boolean }[]
}

/** Chats with news, and their messages. */
export interface Recent {
  chats: RecentChat[]
  /** There are more chats with news than were asked for. */
  truncated: boolean
}

export interface RecentChat {
  chatId: string
  name: string | null
  isGroup: boolean
  /** Oldest first, none older than asked for. */
  messages: IncomingMessage[]
  /** No message since the asked moment is missing: an older one, or the beginning of the chat, was seen. */
  complete: boolean
}

/** Content as an engine sends it: the bytes of media lie in a local file meanwhile. */
export type OutgoingContent = Exclude<MessageContent, MediaContent> | OutgoingMedia

export interface OutgoingMedia extends MediaContent {
  /** Absolute; whoever sends keeps the file until the send has settled. */
  path: string
}

export interface OutgoingMessage {
  /** `digits@c.us`, `…@lid` or `…@g.us`. */
  chatId: string
  /** The id it must travel under (keyIdOf): an engine that already knows a message of this id sends nothing. */
  keyId: string
  content: OutgoingContent
  /** Addresses of the people named in the text or caption, where `@` and their number stands. */
  mentions?: string[] | undefined
  /** The message this one answers. */
  quoted?: MessageKey | undefined
}

/** Why WhatsApp refused a message, where it says so. */
export interface Refusal {
  /** REACHOUT_LOCKED: this number may start no new chats for a while; chats that exist go on. Otherwise REFUSED_BY_WHATSAPP. */
  code: 'REACHOUT_LOCKED' | 'REFUSED_BY_WHATSAPP'
  /** When a reach-out lock ends, where WhatsApp tells. */
  until?: Date | undefined
}

/** What the engine knows of a message of ours: 0 taken but not confirmed, 1 server, 2 device, 3 read, 4 played, −1 refused. */
export interface Receipt extends Partial<Refusal> {
  waMessageId: string
  /** With −1 comes a code. */
  ack: number
}

/** A sign of life. */
export interface Pulse {
  /** Connected to WhatsApp now. */
  online: boolean
  /** Messages WhatsApp has shown since the engine became ready, of which it has told nobody. */
  unreported: number
}

export interface EngineEvents {
  /** A code waits to be scanned. `attempt` counts from 1. */
  qr: [QrCode]
  /** WhatsApp asks for a passkey before it links. */
  passkey: []
  /** Linked and synced. At most once for each start. */
  ready: [Account]
  /** The connection to WhatsApp dropped, or is back; the engine sees to it by itself. */
  link: ['lost' | 'restored']
  /** The device was unlinked on the phone. The engine is of no more use: stop it. */
  loggedOut: []
  /** Something is wrong that a reload may cure. */
  trouble: [{ reason: string; detail?: string }]
  /** The engine broke down. It is of no more use: stop it, and start a new one. */
  closed: [{ reason: string; detail?: string }]
  /** A message came in, or one of ours was sent, here or on the phone. Repeats are possible. */
  message: [IncomingMessage]
  /** A message came that WhatsApp cannot read yet (`pending`). It follows as a message under the same id, as a rule within seconds. */
  placeholder: [IncomingMessage]
  /** WhatsApp confirmed or refused a message of ours. Repeats are possible, in any order. */
  ack: [Receipt & { keyId: string }]
  /** A text or caption was changed, here or elsewhere. Repeats are possible, as with all that follows. */
  edit: [{ key: MessageKey; body: string; at: Date }]
  /** A message was deleted for everyone. */
  revoke: [{ key: MessageKey; at: Date }]
  /** Somebody reacted, or took the reaction back (an empty emoji). One reaction a person and message: the last one counts. */
  reaction: [{ target: MessageKey; emoji: string; waId: string; fromMe: boolean; at: Date }]
  /** What a person has chosen in a poll now; none is possible. */
  pollVote: [{ poll: MessageKey; options: string[]; waId: string; fromMe: boolean; at: Date }]
  /** Somebody calls. The key is one of the call, in the chat of the caller. */
  call: [{ key: MessageKey; video: boolean; at: Date }]
}

/**
 * One WhatsApp session: an engine is made for one start and thrown away after its stop. Listeners must not throw.
 * Every promise settles within a deadline of the engine's own.
 */
export interface Engine extends EventEmitter<EngineEvents> {
  /** Starts and resolves when events will tell the rest; rejects with an EngineError. */
  start(): Promise<void>
  /**
   * Closes and keeps the login. Never rejects, may be called at any time and more than once; nothing is left running, and calls under way
   * reject. `atOnce` does not wait for a graceful end: the session is somebody else's.
   */
  stop(how?: 'atOnce'): Promise<void>
  /**
   * First aid: loads WhatsApp anew in the same engine. `link` tells the rest. Rejects with an EngineError when not even that works.
   */
  reload(): Promise<void>
  /** A code to type on the phone instead of scanning; only while a scan is waited for. Rejects with an EngineError. */
  pairingCode(phone: string): Promise<{ code: string; expiresAt: Date }>
  /** Bytes of memory its processes use, or null where that cannot be told. */
  memory(): Promise<number | null>
  /** Asks the engine for a sign of life. Rejects with an EngineError when none comes. */
  probe(): Promise<Pulse>
  /** Unlinks the device from the account, then stops. Rejects with an EngineError when WhatsApp did not confirm; stopped all the same. */
  logout(): Promise<void>
  /** Sends, unless a message of that id exists already. Rejects with an EngineError. */
  send(message: OutgoingMessage): Promise<Receipt>
  /**
   * What became of an earlier send, looked for under every address of the chat, or null when the engine is certain that it never took the
   * message, or has given it up: then send() tries again, under the same id. Rejects with an EngineError.
   */
  find(message: Pick<OutgoingMessage, 'chatId' | 'keyId'>): Promise<Receipt | null>
  /** Reacts to a message; an empty emoji takes the reaction back. Rejects with an EngineError. */
  react(reaction: { target: MessageKey; emoji: string }): Promise<void>
  /** Changes the text or the caption of a message of ours; does nothing when it reads so already. Rejects with an EngineError. */
  edit(edit: { target: MessageKey; body: string }): Promise<void>
  /** Deletes a message for everyone; does nothing when it is deleted already. Rejects with an EngineError. */
  revoke(revocation: { target: MessageKey }): Promise<void>
  /**
   * Shows "typing…" (WhatsApp itself takes it off after 25 s), or no longer. A number of milliseconds shows it for so long, at most a minute,
   * and resolves when that is over. Rejects with an EngineError, never later than a few seconds after its time.
   */
  typing(chatId: string, on: boolean | number): Promise<void>
  /** Marks a chat as read; one that does not exist has nothing to read. Rejects with an EngineError. */
  seen(chatId: string): Promise<void>
  /**
   * Whether a number (digits, a plus may stand before them) is on WhatsApp, and its address there: in Brazil and Mexico often not the
   * number that was asked for. Rejects with an EngineError.
   */
  checkNumber(phone: string): Promise<NumberCheck>
  /**
   * Writes the media of a message into this file, which is overwritten, and answers its size; `expired` when WhatsApp no longer has it.
   * Rejects with an EngineError, transient ones worth another try.
   */
  download(key: MessageKey, path: string): Promise<{ size: number } | 'expired'>
  /** A chat, or null when there is none with this address. Rejects with an EngineError. */
  chat(chatId: string): Promise<ChatInfo | null>
  /** A person, or null when nothing is known of the address. Rejects with an EngineError. */
  contact(waId: string): Promise<ContactInfo | null>
  /** What WhatsApp Web knows of these people by itself, without asking its server; of whom it knows nothing are left out. Rejects with an EngineError. */
  people(waIds: string[]): Promise<Acquaintance[]>
  /** The chats in which something happened since a moment (seconds since 1970), newest first. Rejects with an EngineError. */
  chatsSince(sinceSeconds: number): Promise<Omit<RecentChat, 'messages' | 'complete'>[]>
  /** The latest messages of a chat since a moment, as recent() has them. Takes its time, but ends. Rejects with an EngineError. */
  history(chatId: string, since: { sinceSeconds: number; limit: number }): Promise<RecentChat>
  /**
   * What happened since a moment (seconds since 1970), newest chats first: for what came while no engine listened. Reads no more
   * than it is allowed to, and says what it left out. Rejects with an EngineError.
   */
  recent(since: { sinceSeconds: number; limitPerChat: number; maxChats: number }): Promise<Recent>
}

export type NumberCheck = { exists: true; waId: string } | { exists: false; waId: null }

/**
 * permanent: it did not go out and never will. transient: it did not go out, a later try may.
 * unknown: it may have gone out; look it up before any other try.
 */
export type Certainty = 'permanent' | 'transient' | 'unknown'

/**
 * A failure of an engine, and what it says about the thing that was asked for. The code is stable, for people and for rows:
 *
 * permanent
 * - NUMBER_NOT_ON_WHATSAPP   nobody has this address
 * - INVALID_RECIPIENT        WhatsApp knows no such form of an address
 * - INVALID_MENTION          a mention is no address of a person
 * - QUOTED_NOT_FOUND         the message to answer is not there, or cannot be answered
 * - MESSAGE_NOT_FOUND        the message to react to, edit, delete or download is not there
 * - NOT_EDITABLE             not ours, too old, or of a kind that cannot be edited
 * - NOT_REVOCABLE            not ours, or too old
 * - RECIPIENT_BLOCKED        this account has blocked the recipient
 * - MEDIA_REFUSED            WhatsApp Web does not take this file as this kind
 *
 * transient
 * - SESSION_NOT_READY        not linked, not synced, or stopped
 * - SEND_FAILED              WhatsApp Web threw and took nothing, or gave the message up before it was out: its own trouble, or a message it never takes; a limit of tries tells them apart
 * - ACTION_FAILED            the same of a reaction, an edit, a deletion, typing, seen or a number check
 * - MEDIA_UNREADABLE         the local file is gone or cannot be read: fetch it anew
 * - MEDIA_UPLOAD_FAILED      the file did not get to WhatsApp
 * - DOWNLOAD_FAILED          the file did not come; another try may bring it
 * - MODULE_MISSING           WhatsApp Web no longer has a part this needs; the message names it
 * - KIND_UNAVAILABLE         the same of a part that messages of this kind need and others do not: they go on
 * - BROWSER_MISSING, START_FAILED, PROFILE_UNREADABLE   the engine did not start
 *
 * unknown
 * - SEND_TIMEOUT, FIND_TIMEOUT, ACTION_TIMEOUT, DOWNLOAD_TIMEOUT, READ_TIMEOUT, PAIRING_TIMEOUT, LOGOUT_TIMEOUT   no answer in time; the page may still do it
 * - FIND_FAILED              the look-up itself failed
 * - SEND_UNDERWAY            an earlier try of the same message is still busy in the page
 * - SEND_VANISHED            WhatsApp Web took the message and does not list it
 * - PAGE_UNRESPONSIVE        no sign of life
 * - BROWSER_GONE             the browser went away in the middle of it
 */
export class EngineError extends Error {
  readonly certainty: Certainty
  readonly code: string

  constructor(certainty: Certainty, code: string, message: string, options?: ErrorOptions) {
    // What a page throws may hold what Postgres does not store.
    super(message.replaceAll('\0', ''), options)
    this.name = 'EngineError'
    this.certainty = certainty
    this.code = code
  }
}
