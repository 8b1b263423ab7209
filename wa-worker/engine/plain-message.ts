import { serializeKey } from '../../shared/wa-id.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import type { IncomingMessage } from './engine.ts'

/** A message with nothing to it but what is given. */
export function plainMessage(
  key: MessageKey,
  given: Pick<IncomingMessage, 'type' | 'body' | 'timestamp'> & Partial<IncomingMessage>,
): IncomingMessage {
  return {
    key,
    waMessageId: serializeKey(key.fromMe, key.chatId, key.id, key.participant),
    ack: 1,
    senderName: null,
    chatName: null,
    pending: false,
    revoked: false,
    media: null,
    quoted: null,
    mentions: [],
    location: null,
    contacts: [],
    poll: null,
    ...given,
  }
}
