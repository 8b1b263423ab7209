/** The longest text WhatsApp takes, in characters. */
export const longestText = 65_536

/** What a message says. Stored with the message as it is, and handed to the engine as it is stored. */
export type MessageContent =
  TextContent | LocationContent | ContactContent | PollContent | MediaContent

export interface TextContent {
  type: 'text'
  body: string
}

export interface LocationContent {
  type: 'location'
  /** Degrees, north and east positive. */
  latitude: number
  longitude: number
  name?: string | undefined
  address?: string | undefined
}

/** A contact card. */
export interface ContactContent {
  type: 'contact'
  name: string
  /** `+` and digits. */
  phone: string
}

export interface PollContent {
  type: 'poll'
  question: string
  /** Two to twelve, all different. */
  options: string[]
  /** Whether one person may choose several. */
  multiple: boolean
}

export type MediaType = 'image' | 'video' | 'document' | 'audio' | 'voice' | 'sticker'

export interface MediaContent {
  type: MediaType
  mimeType: string
  filename: string
  /** Null where there is none, and always for voice, audio and stickers: WhatsApp shows none there. */
  caption: string | null
  /** Our own media, whose bytes are sent; null once it was deleted. */
  mediaId: string | null
}
