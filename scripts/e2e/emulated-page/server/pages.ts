import type { WebSocket } from 'ws'

export type Fault =
  { kind: 'hang' } | { kind: 'fail'; message: string; status?: number; matching?: string }

/** What another page may do otherwise; see page/variations.js. */
export type Variation =
  | 'serializesKeys'
  | 'hidesMediaId'
  | 'downloadsAnyKind'
  | 'opensKnownChatsOnly'
  | 'neverResends'
  | 'hidesBlocklist'
  | 'looksUpStrictly'
  | 'hidesAccount'
  | 'downloadsBlobs'
  | 'listsMembers'
  | 'namesByGetter'
  | 'chatsWithoutTime'
  | 'quotesByModule'
  | 'chatsByLid'
  | 'repliesByMessage'
  | 'revokesUnderAnotherId'
  | 'refreshesByCommand'
  | 'answersLogout'
  | 'isOlder'
  | 'unpairsFirst'

export interface PageSettings {
  /** How long the first sync takes after the connection. */
  syncMs: number
  /** False: the sync may end before the library listens, and `ready` is lost. */
  syncWaitsForListener: boolean
  /** From the logout to the page's navigation. */
  logoutMs: number
  variations: Variation[]
}

interface Reply {
  id: number
  result?: unknown
  error?: string
}

const COMMAND_TIMEOUT_MS = 10_000

/** The instrument's hand in every open page, also while its link to WhatsApp is cut. */
export class Pages {
  readonly #settings: PageSettings
  readonly #numberOf: (noise: string) => string | undefined
  readonly #open = new Map<WebSocket, string>()
  readonly #waiting = new Map<number, (reply: Reply) => void>()
  readonly #faults = new Map<string, Fault>()
  readonly #removedModules = new Set<string>()
  #lastId = 0

  constructor(settings: PageSettings, numberOf: (noise: string) => string | undefined) {
    this.#settings = settings
    this.#numberOf = numberOf
  }

  accept(socket: WebSocket): void {
    socket.on('message', (data: Buffer) => {
      const frame = JSON.parse(data.toString()) as { noise: string } | Reply
      if ('noise' in frame) this.#greet(socket, frame.noise)
      else this.#waiting.get(frame.id)?.(frame)
    })
    socket.on('close', () => this.#open.delete(socket))
    socket.on('error', () => socket.terminate())
  }

  close(): void {
    for (const socket of this.#open.keys()) socket.terminate()
  }

  of(number: string): WebSocket[] {
    return [...this.#open.keys()].filter(
      (socket) => this.#numberOf(this.#open.get(socket)!) === number,
    )
  }

  /** Runs a command in the pages of this number, or in all pages; resolves when they have done it. */
  async command(number: string | undefined, command: string, ...args: unknown[]): Promise<void> {
    const sockets = number === undefined ? [...this.#open.keys()] : this.of(number)
    if (number !== undefined && sockets.length === 0)
      throw new Error(`no page of ${number} is open`)
    await Promise.all(sockets.map((socket) => this.#run(socket, command, args)))
  }

  async setFault(call: string, fault: Fault | undefined): Promise<void> {
    if (fault) this.#faults.set(call, fault)
    else this.#faults.delete(call)
    await this.command(undefined, 'setFaults', Object.fromEntries(this.#faults))
  }

  /** From the next load on, `window.require` throws for these modules. */
  setRemovedModule(name: string, removed: boolean): void {
    if (removed) this.#removedModules.add(name)
    else this.#removedModules.delete(name)
  }

  /** A page that closes or freezes meanwhile is no error: its commands end with it. */
  #run(socket: WebSocket, command: string, args: unknown[]): Promise<void> {
    return new Promise((resolve, reject) => {
      const id = ++this.#lastId
      const finish = (reply: Reply) => {
        clearTimeout(timer)
        socket.off('close', closed)
        this.#waiting.delete(id)
        if (reply.error === undefined) resolve()
        else reject(new Error(`${command} in the page: ${reply.error}`))
      }
      const closed = () => finish({ id })
      const timer = setTimeout(closed, COMMAND_TIMEOUT_MS)
      socket.once('close', closed)
      this.#waiting.set(id, finish)
      socket.send(JSON.stringify({ id, command, args }))
    })
  }

  #greet(socket: WebSocket, noise: string): void {
    this.#open.set(socket, noise)
    const faults = Object.fromEntries(this.#faults)
    const settings = { ...this.#settings, faults, removedModules: [...this.#removedModules] }
    socket.send(JSON.stringify({ settings }))
  }
}
