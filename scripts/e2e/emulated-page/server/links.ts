import type { WebSocket } from 'ws'
import type { Device } from './accounts.ts'
import type { Wire } from './wire.ts'

export interface PageKeys {
  noise: string
  identity: string
}

type PageFrame = { receipt: number } | { id: number; call: string; args: Wire }

/** Answers the calls of a page; what it throws becomes the call's error in the page. */
export type Answer = (link: Link, call: string, args: Wire) => unknown

/** One live connection of a page to WhatsApp. */
export class Link {
  readonly #socket: WebSocket
  /** Known once the page said hello. */
  keys: PageKeys | undefined
  /** Known once the page turned out to be a linked device. */
  device: Device | undefined

  constructor(socket: WebSocket, answer: Answer, closed: (link: Link) => void) {
    this.#socket = socket
    socket.on('message', (data: Buffer) => void this.#receive(data.toString(), answer))
    socket.on('close', () => closed(this))
    socket.on('error', () => socket.terminate())
  }

  get isOpen(): boolean {
    return this.#socket.readyState === this.#socket.OPEN
  }

  push(name: string, data: object): void {
    if (this.isOpen) this.#socket.send(JSON.stringify({ push: name, data }))
  }

  /** Says a last word and closes. */
  end(lastWord: string): void {
    this.push(lastWord, {})
    this.#socket.close()
  }

  /** Breaks off without a word, as a network does. */
  cut(): void {
    this.#socket.terminate()
  }

  async #receive(text: string, answer: Answer): Promise<void> {
    const frame = JSON.parse(text) as PageFrame
    if ('receipt' in frame) return this.device?.confirm(frame.receipt)
    const { id, call, args } = frame
    try {
      this.#reply({ id, result: (await answer(this, call, args)) ?? null })
    } catch (error) {
      this.#reply({ id, error: (error as Error).message })
    }
  }

  #reply(frame: object): void {
    if (this.isOpen) this.#socket.send(JSON.stringify(frame))
  }
}
