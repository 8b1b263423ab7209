import type { MediaContent, MessageContent } from './message-content.ts'

/** The columns of a message that say what it says: a text to show and search, and what a text cannot hold. */
export interface ContentColumns {
  type: MessageContent['type']
  body: string | null
  content: object | null
  mediaId: string | null
}

/** How a content is stored; contentOf() reads it back. */
export function columnsOf(message: MessageContent): ContentColumns {
  const { type, ...content } = message
  const mediaId = null
  switch (message.type) {
    case 'text':
      return { type, body: message.body, content: null, mediaId }
    case 'location':
      return { type, body: message.name ?? message.address ?? null, content, mediaId }
    case 'contact':
      return { type, body: message.name, content, mediaId }
    case 'poll':
      return { type, body: message.question, content, mediaId }
    default: {
      const { mimeType, filename } = message
      return {
        type,
        body: message.caption,
        content: { mimeType, filename },
        mediaId: message.mediaId,
      }
    }
  }
}

/** The reverse of columnsOf(). */
export function contentOf({
  type,
  body,
  content,
  mediaId,
}: {
  type: string
  body: string | null
  content: object | null
  mediaId: string | null
}): MessageContent {
  if (type === 'text') return { type, body: body ?? '' }
  if (type === 'location' || type === 'contact' || type === 'poll')
    return { ...content, type } as MessageContent
  return { ...content, type, caption: body, mediaId } as MediaContent
}
