/** How a simulated contact behaves. */
export type SimulatedContact =
  | 'answers'
  | 'silent'
  | 'offline'
  | 'slow'
  | 'loses'
  | 'refuses'
  | 'unregistered'
  | 'locked'
  | 'breaks'

/** By the last four digits of the number, as test card numbers work elsewhere; any other number answers. */
const byEnding: Record<string, SimulatedContact> = {
  '0001': 'unregistered', // not on WhatsApp: NUMBER_NOT_ON_WHATSAPP
  '0002': 'refuses', // WhatsApp refuses the message (ack −1, REFUSED_BY_WHATSAPP)
  '0003': 'loses', // no ack ever comes
  '0004': 'slow', // every ack takes 20 times as long
  '0005': 'offline', // reaches the server only
  '0006': 'silent', // delivered, neither read nor answered
  '0007': 'locked', // a reach-out lock (463): refused for an hour from now, unless this contact has written before (ack −1, REACHOUT_LOCKED)
  '0008': 'breaks', // WhatsApp Web throws at each try: SEND_FAILED, nothing goes out
}

export function contactFor(chatId: string): SimulatedContact {
  const user = chatId.slice(0, chatId.indexOf('@'))
  return byEnding[user.slice(-4)] ?? 'answers'
}

/** The lid of a simulated person: 88 before the number. */
export const lidOf = (waId: string) => `88${waId.replace('@c.us', '@lid')}`

/** The addresses of a simulated person, the one with the phone number first; a group has one only. */
export function addressesOf(chatId: string): string[] {
  if (chatId.endsWith('@g.us')) return [chatId]
  const waId = chatId.endsWith('@lid') ? chatId.replace(/^88(\d+)@lid$/, '$1@c.us') : chatId
  return [waId, lidOf(waId)]
}

/** The address WhatsApp has for a number: that of a Brazilian mobile number is without its ninth digit. */
export function canonicalOf(phone: string): string {
  return `${phone.replace(/^\+/, '').replace(/^(55[3-9]\d)9(\d{8})$/, '$1$2')}@c.us`
}

/** Numbers in [0, 1), the same sequence for the same seed (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}
