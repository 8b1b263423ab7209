import { createHash } from 'node:crypto'
import { readFile, rename, writeFile } from 'node:fs/promises'
import type { MessageContent } from '../../shared/message-content.ts'
import { serializeKey } from '../../shared/wa-id.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import type { Account } from '../../shared/wa-session-transitions.ts'
import { EngineError } from './engine.ts'
import type { IncomingMessage, Receipt } from './engine.ts'

/** A message in the simulated WhatsApp. */
export interface SimulatedMessage extends Pick<Receipt, 'ack' | 'code'> {
  key: MessageKey
  content: MessageContent
  /** Seconds since 1970. */
  timestamp: number
  quoted?: MessageKey | undefined
  mentions?: string[] | undefined
  /** Whoever reads it has not got its content yet. */
  pending?: boolean | undefined
  /** WhatsApp no longer has its media. */
  expired?: boolean | undefined
  /** Of media: hexadecimal, and where the simulated servers keep the bytes. */
  sha256?: string | undefined
  size?: number | undefined
  path?: string | undefined
  /** Milliseconds since 1970. */
  lockedUntil?: number | undefined
  revoked?: boolean | undefined
  /** Emoji by who reacted; ours under an empty name. */
  reactions?: Record<string, string> | undefined
}

/** What the simulated phone remembers: who is linked, and every message. */
export interface Login {
  account: Account
  /** By slotOf(). */
  messages: Record<string, SimulatedMessage>
}

/** Under which a message is remembered: its own id alone, since people have two addresses. */
export const slotOf = ({ fromMe, id }: Pick<MessageKey, 'fromMe' | 'id'>) => `${fromMe}_${id}`

export function receiptOf({ key, ack, code, lockedUntil }: SimulatedMessage): Receipt {
  return {
    waMessageId: serializeKey(key.fromMe, key.chatId, key.id, key.participant),
    ack,
    ...(code !== undefined && { code }),
    ...(lockedUntil !== undefined && { until: new Date(lockedUntil) }),
  }
}

/** What is read of a message at a glance: its text, or the caption. */
export function bodyOf(content: MessageContent): string | null {
  switch (content.type) {
    case 'text':
      return content.body
    case 'location':
      return null
    case 'contact':
      return content.name
    case 'poll':
      return content.question
    default:
      return content.caption
  }
}

/** A message as the port tells of it. */
export function incomingOf(message: SimulatedMessage): IncomingMessage {
  const { key, content, timestamp, ack, quoted, mentions = [], pending = false } = message
  const { revoked = false } = message
  const author = key.participant || key.chatId
  const hidden = pending || revoked
  const media = 'mimeType' in content && !hidden ? content : undefined
  return {
    key,
    waMessageId: receiptOf(message).waMessageId,
    type: hidden ? 'unknown' : content.type,
    body: hidden ? null : bodyOf(content),
    timestamp,
    ack,
    senderName: key.fromMe ? null : `Customer ${author.slice(0, author.indexOf('@')).slice(-4)}`,
    chatName: null,
    pending,
    revoked,
    media: media
      ? {
          kind: media.type,
          mimeType: media.mimeType,
          size: message.size ?? null,
          filename: media.type === 'document' ? media.filename : null,
          seconds: null,
          isVoice: media.type === 'voice',
        }
      : null,
    quoted: quoted ?? null,
    mentions,
    location: content.type === 'location' && !hidden ? without(content) : null,
    contacts:
      content.type === 'contact' && !hidden ? [{ name: content.name, phone: content.phone }] : [],
    poll: content.type === 'poll' && !hidden ? without(content) : null,
  }
}

function without<T extends { type: string }>({ type: _, ...rest }: T): Omit<T, 'type'> {
  return rest
}

export async function readLogin(file: string): Promise<Login | undefined> {
  try {
    const login = JSON.parse(await readFile(file, 'utf8')) as Login | null
    return login ? { ...login, messages: login.messages ?? {} } : undefined
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new EngineError('transient', 'PROFILE_UNREADABLE', `${file} cannot be read.`, {
      cause: error,
    })
  }
}

/** Writes a login whole, so that a crash leaves the last complete one. */
export async function writeLogin(file: string, login: Login | undefined): Promise<void> {
  await writeFile(`${file}.new`, JSON.stringify(login ?? null), { mode: 0o600 })
  await rename(`${file}.new`, file)
}

/** The bytes of a file as WhatsApp's servers get them. Rejects with MEDIA_UNREADABLE. */
export async function uploaded(path: string): Promise<{ sha256: string; size: number }> {
  const bytes = await readFile(path).catch((error: unknown) => {
    const message = `The file cannot be read: ${String(error)}`
    throw new EngineError('transient', 'MEDIA_UNREADABLE', message)
  })
  if (bytes.length === 0) throw new EngineError('permanent', 'MEDIA_REFUSED', `${path} is empty.`)
  return { sha256: createHash('sha256').update(bytes).digest('hex'), size: bytes.length }
}

export const hash = (text: string) => createHash('sha256').update(text).digest().readUInt32BE()

/** A number that nobody has: country code 999 is not given out. The same session always gets the same one. */
export function accountOf(sessionId: string): Account {
  const phone = `999${String(hash(sessionId)).padStart(10, '0')}`
  return { waId: `${phone}@c.us`, lid: null, phone: `+${phone}`, pushName: 'Simulated Phone' }
}
