/** How a simulated contact behaves. */
export type SimulatedContact =
  'answers' | 'silent' | 'offline' | 'slow' | 'loses' | 'refuses' | 'unregistered'

/** By the last four digits of the number, as test card numbers work elsewhere; any other number answers. */
const byEnding: Record<string, SimulatedContact> = {
  '0001': 'unregistered', // not on WhatsApp: NUMBER_NOT_ON_WHATSAPP
  '0002': 'refuses', // WhatsApp refuses the message (ack −1)
  '0003': 'loses', // no ack ever comes
  '0004': 'slow', // every ack takes 20 times as long
  '0005': 'offline', // reaches the server only
  '0006': 'silent', // delivered, neither read nor answered
}

export function contactFor(chatId: string): SimulatedContact {
  const user = chatId.slice(0, chatId.indexOf('@'))
  return byEnding[user.slice(-4)] ?? 'answers'
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
