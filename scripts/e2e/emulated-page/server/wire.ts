/** The marked JSON that page and server exchange; `page/encoding.js` is its other end. */

export type Wire = Record<string, unknown>

export interface MessageKey {
  fromMe: boolean
  /** The chat: a number's, a LID's or a group's wid. */
  remote: string
  id: string
  participant?: string | undefined
}

const SERIALIZED = /^(true|false)_([^_]+)_(.+?)(?:_([^_]+@[^_]+))?$/

export const wid = (serialized: string) => ({ $wid: serialized })

export function serializeKey({ fromMe, remote, id, participant }: MessageKey): string {
  return [fromMe, remote, id, participant].filter((part) => part !== undefined).join('_')
}

export function parseKey(serialized: string): MessageKey {
  const [, fromMe, remote, id, participant] = SERIALIZED.exec(serialized) ?? []
  if (remote === undefined || id === undefined) throw new Error(`not a message key: ${serialized}`)
  return { fromMe: fromMe === 'true', remote, id, participant }
}

export const keyOf = (record: Wire): MessageKey => parseKey((record.id as { $key: string }).$key)

export const textOf = (value: unknown): string => (typeof value === 'string' ? value : '')

/** `@c.us` is added to a bare number. */
export const toWid = (value: string): string => (value.includes('@') ? value : `${value}@c.us`)

export const now = () => Math.floor(Date.now() / 1000)
