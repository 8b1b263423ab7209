import { createHash } from 'node:crypto'
import { EventEmitter } from 'node:events'
import { readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { isGroup, serializeKey } from '../../shared/wa-id.ts'
import type { Account } from '../../shared/wa-session-transitions.ts'
import { EngineError } from './engine.ts'
import type { Engine, EngineEvents, OutgoingText, Pulse, Receipt } from './engine.ts'
import { contactFor, seededRandom } from './simulator-contacts.ts'
import type { SimulatedContact } from './simulator-contacts.ts'

export interface SimulatorOptions {
  sessionId: string
  /** Where the simulated login is kept, as a browser would keep its profile. */
  profileDir: () => Promise<string>
  /** How long the QR code waits before the simulated phone scans it. Infinity leaves it to scan(). */
  scanMs: number
  /** All other delays are multiplied by this: 0 for tests that need no delays. */
  pace?: number
  seed?: number
}

/** What the simulated phone remembers: who is linked and what this device sent. */
interface Login {
  account: Account
  sent: Record<string, Receipt & { chatId: string }>
}

const qrLifeMs = 20_000

/**
 * A WhatsApp in memory, behind the same port as the real one: it shows a QR code, is scanned, links a made-up number, delivers and
 * acknowledges, and its contacts answer. What a contact does depends on the last digits of its number (simulator-contacts.ts).
 * The login outlives stop() and a crash of the process, in a file where the browser's profile would be.
 */
export class SimulatorEngine extends EventEmitter<EngineEvents> implements Engine {
  readonly #options: Required<SimulatorOptions>
  readonly #random: () => number
  readonly #timers = new Set<NodeJS.Timeout>()
  #file: string | undefined
  #login: Login | undefined
  #running = false
  #stopped = false
  #linkUp = true
  #qrAttempt = 0
  #received = 0
  #saving: Promise<void> = Promise.resolve()

  constructor(options: SimulatorOptions) {
    super()
    this.#options = { pace: 1, seed: hash(options.sessionId), ...options }
    this.#random = seededRandom(this.#options.seed)
  }

  async start(): Promise<void> {
    this.#file = join(await this.#options.profileDir(), 'simulated-phone.json')
    this.#login = await readLogin(this.#file)
    if (this.#stopped) return
    this.#running = true
    if (this.#login) this.#after(100, () => this.#ready())
    else this.#showQr()
  }

  async stop(): Promise<void> {
    this.#stopped = true
    this.#running = false
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers.clear()
    await this.#saving
  }

  async reload(): Promise<void> {
    this.#mustRun()
    this.emit('link', 'lost')
    this.#after(200, () => this.#linkUp && this.emit('link', 'restored'))
  }

  async pairingCode(): Promise<{ code: string; expiresAt: Date }> {
    if (!this.#running || this.#login) {
      throw new EngineError('permanent', 'SESSION_NOT_READY', 'No device is being linked.')
    }
    return { code: 'SIMU1234', expiresAt: new Date(Date.now() + 180_000) }
  }

  async memory(): Promise<number | null> {
    return null
  }

  async probe(): Promise<Pulse> {
    this.#mustRun()
    return { online: this.#linkUp, unreported: 0 }
  }

  async logout(): Promise<void> {
    this.#mustRun()
    this.#login = undefined
    this.#save()
    await this.stop()
  }

  async send({ chatId, body, keyId }: OutgoingText): Promise<Receipt> {
    const login = this.#mustRun()
    const known = login.sent[keyId]
    if (known) return { waMessageId: known.waMessageId, ack: known.ack }

    const contact = contactFor(chatId)
    if (contact === 'unregistered') {
      throw new EngineError('permanent', 'NUMBER_NOT_ON_WHATSAPP', `${chatId} is not on WhatsApp.`)
    }
    const receipt = { waMessageId: serializeKey(true, chatId, keyId), ack: 0 }
    login.sent[keyId] = { ...receipt, chatId }
    this.#save()
    this.emit('message', this.#message(true, chatId, keyId, body))
    if (this.#linkUp) this.#transmit(keyId, chatId, body, contact)
    return receipt
  }

  async find({ keyId }: Pick<OutgoingText, 'chatId' | 'keyId'>): Promise<Receipt | null> {
    const known = this.#mustRun().sent[keyId]
    return known ? { waMessageId: known.waMessageId, ack: known.ack } : null
  }

  /** The phone scans the code on show. */
  scan(account: Account = accountOf(this.#options.sessionId)): void {
    if (!this.#running || this.#login) return
    this.#login = { account, sent: {} }
    this.#save()
    this.#after(200, () => this.#ready())
  }

  /** A customer writes. */
  deliver(from: string, body: string, id?: string): void {
    this.#received += 1
    const keyId = id ?? `3A${hash(`${from}${body}${this.#received}${Date.now()}`).toString(16)}`
    this.emit('message', this.#message(false, from, keyId.toUpperCase(), body))
  }

  /** The phone, or the whole machine, goes out of reach of WhatsApp. What is sent meanwhile goes out on restoreLink(). */
  dropLink(): void {
    this.#linkUp = false
    this.emit('link', 'lost')
  }

  restoreLink(): void {
    this.#linkUp = true
    this.emit('link', 'restored')
    for (const [keyId, { chatId, ack }] of Object.entries(this.#login?.sent ?? {})) {
      if (ack === 0) this.#transmit(keyId, chatId, '', contactFor(chatId))
    }
  }

  /** The device is unlinked on the phone. */
  logoutFromPhone(): void {
    this.#login = undefined
    this.#save()
    this.emit('loggedOut')
  }

  /** The engine dies, as a browser does. */
  crash(): void {
    this.#running = false
    this.emit('closed', { reason: 'BROWSER_CRASHED' })
  }

  #showQr(): void {
    this.#qrAttempt += 1
    const value = `2@SIMULATED-${this.#options.sessionId}-${this.#qrAttempt},simulator,simulator,simulator,1`
    const expiresAt = new Date(Date.now() + qrLifeMs)
    this.emit('qr', { value, attempt: this.#qrAttempt, expiresAt })
    const { scanMs } = this.#options
    if (scanMs < qrLifeMs) this.#timer(scanMs, () => this.scan())
    else this.#timer(qrLifeMs, () => !this.#login && this.#showQr())
  }

  #ready(): void {
    if (this.#login) this.emit('ready', this.#login.account)
  }

  #transmit(keyId: string, chatId: string, body: string, contact: SimulatedContact): void {
    if (contact === 'unregistered') return
    const slow = contact === 'slow' ? 20 : 1
    if (contact === 'refuses') return this.#after(100, () => this.#ack(keyId, -1))
    if (contact === 'loses') return
    this.#after(100 * slow, () => this.#ack(keyId, 1))
    if (contact === 'offline') return
    this.#after(300 * slow, () => this.#ack(keyId, 2))
    if (contact === 'silent') return
    this.#after(800 * slow, () => this.#ack(keyId, 3))
    if (contact === 'answers' && body !== '' && !isGroup(chatId)) {
      this.#after(1_500, () => this.deliver(chatId, `You wrote: ${body}`))
    }
  }

  #ack(keyId: string, ack: number): void {
    const sent = this.#login?.sent[keyId]
    if (!sent || !this.#linkUp) return
    sent.ack = ack
    this.#save()
    this.emit('ack', { keyId, waMessageId: sent.waMessageId, ack })
  }

  #message(fromMe: boolean, chatId: string, id: string, body: string) {
    return {
      key: { fromMe, chatId, id, participant: '' },
      waMessageId: serializeKey(fromMe, chatId, id),
      type: 'text' as const,
      body,
      timestamp: Math.floor(Date.now() / 1_000),
      ack: fromMe ? 0 : 1,
      senderName: fromMe ? null : `Customer ${chatId.slice(0, -5).slice(-4)}`,
      chatName: null,
    }
  }

  #mustRun(): Login {
    if (!this.#running || !this.#login) {
      throw new EngineError('transient', 'SESSION_NOT_READY', 'The simulated phone is not linked.')
    }
    return this.#login
  }

  /** Up to half as long again as `ms`, by the seed: in the same order each run, never in the same instant. */
  #after(ms: number, work: () => void): void {
    this.#timer(ms * this.#options.pace * (1 + this.#random() / 2), work)
  }

  #timer(ms: number, work: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      if (this.#running) work()
    }, ms)
    this.#timers.add(timer)
  }

  /** Whole files, one after the other, so that a crash leaves the last complete one. */
  #save(): void {
    const file = this.#file!
    const text = JSON.stringify(this.#login ?? null)
    this.#saving = this.#saving
      .then(() => writeFile(`${file}.new`, text, { mode: 0o600 }))
      .then(() => rename(`${file}.new`, file))
      .catch((error: unknown) => {
        this.emit('closed', { reason: 'PROFILE_UNWRITABLE', detail: String(error) })
      })
  }
}

async function readLogin(file: string): Promise<Login | undefined> {
  try {
    return (JSON.parse(await readFile(file, 'utf8')) as Login | null) ?? undefined
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new EngineError('transient', 'PROFILE_UNREADABLE', `${file} cannot be read.`, {
      cause: error,
    })
  }
}

const hash = (text: string) => createHash('sha256').update(text).digest().readUInt32BE()

/** A number that nobody has: country code 999 is not given out. The same session always gets the same one. */
function accountOf(sessionId: string): Account {
  const phone = `999${String(hash(sessionId)).padStart(10, '0')}`
  return { waId: `${phone}@c.us`, lid: null, phone: `+${phone}`, pushName: 'Simulated Phone' }
}
