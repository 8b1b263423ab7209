import { createHash } from 'node:crypto'

/** A phone number as people type it: an optional plus, digits, and the usual separators. */
const phone = /^\(?\+?[\d\s().\-/]+$/
const address = /^(\d{1,20}(?:-\d{1,20})?)@(c\.us|s\.whatsapp\.net|g\.us|lid)$/
/** What comes along unseen when a number is copied: marks of writing direction. */
const unseen = /[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g
const dashes = /[\u2010-\u2015\u2212]/g
/** `+49 (0)30 …`: the zero is dialled only within the country. */
const trunkPrefix = /^(\(?\+\d{1,3}\)?\s*)\(0\)/

/**
 * The WhatsApp address of a recipient: `digits@c.us`, `…@s.whatsapp.net` (answered as @c.us), `…@g.us`, `…@lid`, `+1 234 567-890`
 * or bare digits. Undefined when it is none of these; recipientFault() says why.
 */
export function parseRecipient(to: string): string | undefined {
  const text = plain(to)
  const match = address.exec(text)
  if (match) {
    const [, user, server] = match as unknown as [string, string, string]
    if (server === 'g.us') return `${user}@g.us`
    if (user.includes('-')) return undefined
    if (server === 'lid') return `${user}@lid`
    return isPhone(user) ? `${user}@c.us` : undefined
  }
  const digits = digitsOf(text)
  return digits !== undefined && isPhone(digits) ? `${digits}@c.us` : undefined
}

/** What is wrong with a recipient that parseRecipient() cannot read. */
export function recipientFault(to: string): string {
  const text = plain(to)
  const [user = '', server] = text.split('@')
  if (server !== undefined && !/^(c\.us|s\.whatsapp\.net|g\.us|lid)$/.test(server))
    return 'an address ends in @c.us, @s.whatsapp.net, @g.us or @lid'
  const digits = server === undefined ? digitsOf(text) : /^\d+$/.exec(user)?.[0]
  if (digits === undefined) return 'it has characters that do not belong there'
  if (digits.startsWith('0')) return 'no country code begins with 0'
  return `it has ${digits.length} digits, not 7 to 15`
}

const plain = (to: string) => to.replaceAll(unseen, '').replaceAll(dashes, '-').trim()

/** Of a phone number as people type it; undefined when it is none. */
const digitsOf = (text: string) =>
  phone.test(text) ? text.replace(trunkPrefix, '$1').replaceAll(/\D/g, '') : undefined

/** E.164 allows 15 digits; the shortest numbers in use, with their country code, have 7. */
const isPhone = (digits: string) => /^[1-9]\d{6,14}$/.test(digits)

export const isGroup = (waId: string) => waId.endsWith('@g.us')

/** The digits of the phone number behind an address, or null where the address hides it (@lid) or has none (@g.us). */
export const numberOf = (waId: string): string | null =>
  waId.endsWith('@c.us') ? waId.slice(0, -'@c.us'.length) : null

/** The same with its plus, as contacts have it. */
export const phoneOf = (waId: string): string | null => {
  const number = numberOf(waId)
  return number === null ? null : `+${number}`
}

/**
 * The id under which a message of ours travels on WhatsApp: the same for every attempt, so that a second transmission is
 * recognised as the first. Shaped as WhatsApp Web's own ids are (`3EB0` and 18 hex digits).
 */
export function keyIdOf(messageId: string): string {
  const digest = createHash('sha256').update(`awfar:${messageId}`).digest('hex')
  return `3EB0${digest.slice(0, 18).toUpperCase()}`
}

/** A WhatsApp message's id in parts; the serialized form flips between addresses, the parts do not. */
export interface MessageKey {
  fromMe: boolean
  /** The chat's address: `digits@c.us`, `…@lid`, `…@g.us`. */
  chatId: string
  id: string
  /** The author within a group; empty elsewhere. */
  participant: string
}

/** A message's id as whatsapp-web.js writes it: `true_<chat>_<id>`, in groups with `_<participant>` behind it. */
export function serializeKey(fromMe: boolean, chat: string, id: string, participant = ''): string {
  return `${fromMe}_${chat}_${id}${participant && `_${participant}`}`
}
