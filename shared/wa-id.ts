import { createHash } from 'node:crypto'

/** A phone number as people type it: an optional plus, digits, and the usual separators. */
const phone = /^\+?[\d\s().\-/]+$/
const address = /^(\d{1,20}(?:-\d{1,20})?)@(c\.us|s\.whatsapp\.net|g\.us|lid)$/

/**
 * The WhatsApp address of a recipient: `digits@c.us`, `…@s.whatsapp.net` (answered as @c.us), `…@g.us`, `…@lid`, `+1 234 567-890`
 * or bare digits. Undefined when it is none of these.
 */
export function parseRecipient(to: string): string | undefined {
  const match = address.exec(to.trim())
  if (match) {
    const [, user, server] = match as unknown as [string, string, string]
    if (server === 'g.us') return `${user}@g.us`
    if (user.includes('-')) return undefined
    if (server === 'lid') return `${user}@lid`
    return isPhone(user) ? `${user}@c.us` : undefined
  }
  if (!phone.test(to)) return undefined
  const digits = to.replaceAll(/\D/g, '')
  return isPhone(digits) ? `${digits}@c.us` : undefined
}

/** E.164 allows 15 digits; the shortest numbers in use, with their country code, have 7. */
const isPhone = (digits: string) => /^[1-9]\d{6,14}$/.test(digits)

export const isGroup = (waId: string) => waId.endsWith('@g.us')

/** The phone number behind an address, or null where the address hides it (@lid) or has none (@g.us). */
export const phoneOf = (waId: string): string | null =>
  waId.endsWith('@c.us') ? `+${waId.slice(0, -5)}` : null

/**
 * The id under which a message of ours travels on WhatsApp: the same for every attempt, so that a second transmission is
 * recognised as the first. Shaped as WhatsApp Web's own ids are (`3EB0` and 18 hex digits).
 */
export function keyIdOf(messageId: string): string {
  const digest = createHash('sha256').update(`awfar:${messageId}`).digest('hex')
  return `3EB0${digest.slice(0, 18).toUpperCase()}`
}

/** A message's id as whatsapp-web.js writes it: `true_<chat>_<id>`, in groups with `_<participant>` behind it. */
export function serializeKey(fromMe: boolean, chat: string, id: string, participant = ''): string {
  return `${fromMe}_${chat}_${id}${participant && `_${participant}`}`
}
