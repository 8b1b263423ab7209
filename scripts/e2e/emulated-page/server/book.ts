import type { Wire } from './wire.ts'

/** A message as it reached the server. */
export interface Stanza {
  account: string
  /** The wid the page addressed. */
  to: string
  /** The number (or group) behind it. */
  recipient: string
  id: string
  type: string
  body: string
  mediaSha256?: string
  /** Milliseconds since the epoch. */
  at: number
  /** 1, and more when the same id of the same account came before. */
  transmission: number
  /** The whole message, marked as in wire.ts. */
  content: Wire
}

/** A message as its recipient sees it: one per id, however often it was transmitted. */
export type Received = Pick<Stanza, 'id' | 'type' | 'body' | 'mediaSha256' | 'at'> & {
  from: string
}

/** What a page lets others know besides messages: typing, seen, presence. */
export interface Signal {
  account: string
  kind: string
  to?: string
  at: number
}

/** The judge's book: what reached the server, and what the recipients got. */
export class Book {
  readonly stanzas: Stanza[] = []
  readonly signals: Signal[] = []
  readonly #received = new Map<string, Map<string, Received>>()
  readonly #transmissions = new Map<string, number>()

  enter(stanza: Omit<Stanza, 'transmission'>): Stanza {
    const key = `${stanza.account} ${stanza.id}`
    const transmission = (this.#transmissions.get(key) ?? 0) + 1
    this.#transmissions.set(key, transmission)
    const entered = { ...stanza, transmission }
    this.stanzas.push(entered)
    return entered
  }

  handOver({ account, recipient, id, type, body, at, mediaSha256 }: Stanza): void {
    const inbox = this.#received.get(recipient) ?? new Map<string, Received>()
    this.#received.set(recipient, inbox)
    const key = `${account} ${id}`
    const media = mediaSha256 === undefined ? {} : { mediaSha256 }
    if (!inbox.has(key)) inbox.set(key, { from: account, id, type, body, at, ...media })
  }

  received(recipient: string): Received[] {
    return [...(this.#received.get(recipient)?.values() ?? [])]
  }
}
