import type { EventEmitter } from 'node:events'
import type { MessageType } from '../../shared/messages.ts'
import type { Account, QrCode } from '../../shared/wa-session-transitions.ts'

/** A WhatsApp message's id in parts; the serialized form flips between addresses, the parts do not. */
export interface MessageKey {
  fromMe: boolean
  /** The chat's address: `digits@c.us`, `…@lid`, `…@g.us`. */
  chatId: string
  id: string
  /** The author within a group; empty elsewhere. */
  participant: string
}

export interface IncomingMessage {
  key: MessageKey
  waMessageId: string
  type: MessageType
  body: string | null
  /** Seconds since 1970. */
  timestamp: number
  ack: number
  senderName: string | null
  chatName: string | null
}

export interface OutgoingText {
  chatId: string
  body: string
  /** The id it must travel under (keyIdOf): an engine that already knows a message of this id sends nothing. */
  keyId: string
}

/** What the engine knows of a message of ours: 0 taken but not confirmed, 1 server, 2 device, 3 read, 4 played, −1 refused. */
export interface Receipt {
  waMessageId: string
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
  ack: [{ keyId: string; waMessageId: string; ack: number }]
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
  send(message: OutgoingText): Promise<Receipt>
  /** What became of an earlier send, or null when the engine is certain that it never took the message. Rejects with an EngineError. */
  find(message: Pick<OutgoingText, 'chatId' | 'keyId'>): Promise<Receipt | null>
}

/**
 * permanent: it did not go out and never will. transient: it did not go out, a later try may.
 * unknown: it may have gone out; look it up before any other try.
 */
export type Certainty = 'permanent' | 'transient' | 'unknown'

/** A failure of an engine, and what it says about the thing that was asked for. The code is stable, for people and for rows. */
export class EngineError extends Error {
  readonly certainty: Certainty
  readonly code: string

  constructor(certainty: Certainty, code: string, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'EngineError'
    this.certainty = certainty
    this.code = code
  }
}
