import type { ReceivedMedia } from './media-fetches.ts'
import type { MessageType } from './messages.ts'
import { isGroup } from './wa-id.ts'

/** A message WhatsApp told us of: one that came in, or one of ours that was typed on another device. */
export interface Received {
  fromMe: boolean
  waChatId: string
  keyId: string
  /** Who wrote it, in a group; empty elsewhere and for our own. */
  participant: string
  waMessageId: string
  type: MessageType
  body: string | null
  /** Seconds since 1970, as WhatsApp gives it. */
  timestamp: number
  ack: number
  senderName: string | null
  chatName: string | null
  /** Whether it was heard as it happened, read again afterwards, or is from before the session was linked. Live when absent. */
  source?: 'live' | 'backfill' | 'history'
  /** Its content is not to be read yet; it follows under the same id. */
  pending?: boolean
  /** It was deleted before we saw it. */
  revoked?: boolean
  /** What a text cannot hold: a place, a card, a poll. */
  content?: object | null
  mentions?: string[]
  /** The file that came with it. */
  media?: ReceivedMedia | null
  /** The message it answers. */
  quoted?: { fromMe: boolean; id: string } | null
}

/** Who wrote a message in a group. */
export const authorOf = ({ waChatId, fromMe, participant }: Received): string | undefined =>
  isGroup(waChatId) && !fromMe && participant !== '' ? participant : undefined
