import { EventEmitter } from 'node:events'
import { copyFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { MessageContent } from '../../shared/message-content.ts'
import { isGroup } from '../../shared/wa-id.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import type { Account } from '../../shared/wa-session-transitions.ts'
import { EngineError } from './engine.ts'
import type {
  Acquaintance,
  ChatInfo,
  ContactInfo,
  Engine,
  EngineEvents,
  NumberCheck,
  OutgoingMessage,
  Pulse,
  Receipt,
  Recent,
  RecentChat,
} from './engine.ts'
import { canonicalOf, contactFor, seededRandom } from './simulator-contacts.ts'
import {
  accountOf,
  bodyOf,
  hash,
  incomingOf,
  readLogin,
  receiptOf,
  slotOf,
  uploaded,
  writeLogin,
} from './simulator-phone.ts'
import type { Login, SimulatedMessage } from './simulator-phone.ts'
import { chatInfo, contactInfo, messagesIn, people, recentChats } from './simulator-reading.ts'

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

export interface Delivery {
  /** The group it is written in, by `from`. */
  group?: string | undefined
  quoted?: MessageKey | undefined
  mentions?: string[] | undefined
  /** Of media. */
  bytes?: Uint8Array | undefined
  /** Makes no event, as what came while no page was open: recent() has it. */
  unheard?: boolean | undefined
  /** Cannot be read yet; deliver it once more under the same id for that. */
  placeholder?: boolean | undefined
}

const qrLifeMs = 20_000
/** For so long WhatsApp lets a message be edited, and be deleted for everyone. */
const editableSeconds = 15 * 60
const revocableSeconds = 60 * 60 * 60
const lockMs = 60 * 60 * 1_000

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
  /** The write under way and, if the login has changed since, the one after it. */
  #writing: Promise<void> | undefined
  #nextWrite: Promise<void> | undefined
  readonly #transmitted = new Map<string, number>()
  readonly #signals: { kind: 'typing' | 'paused' | 'seen'; chatId: string }[] = []
  readonly #ending = new AbortController()
  /** Of media that came in; WhatsApp keeps no longer than this engine lives. */
  readonly #bytes = new Map<string, Uint8Array>()

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
    this.#ending.abort()
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers.clear()
    await (this.#nextWrite ?? this.#writing)
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
    await this.#save()
    await this.stop()
  }

  async send(outgoing: OutgoingMessage): Promise<Receipt> {
    const { chatId, keyId, content, mentions = [], quoted } = outgoing
    this.#mustRun()
    if (!/^\d+(-\d+)?@(c\.us|lid|g\.us)$/.test(chatId)) {
      throw new EngineError(
        'permanent',
        'INVALID_RECIPIENT',
        `WhatsApp knows no address ${chatId}.`,
      )
    }
    const stranger = mentions.find((mention) => !/^\d+@(c\.us|lid)$/.test(mention))
    if (stranger !== undefined) {
      throw new EngineError('permanent', 'INVALID_MENTION', `${stranger} is nobody's address.`)
    }
    const media = 'path' in content ? await uploaded(content.path) : undefined

    const login = this.#mustRun()
    const key: MessageKey = { fromMe: true, chatId, id: keyId, participant: '' }
    const known = login.messages[slotOf(key)]
    if (known) return receiptOf(known)
    const contact = contactFor(chatId)
    if (contact === 'unregistered') {
      throw new EngineError('permanent', 'NUMBER_NOT_ON_WHATSAPP', `${chatId} is not on WhatsApp.`)
    }
    if (contact === 'breaks') {
      throw new EngineError('transient', 'SEND_FAILED', 'The simulated page threw.')
    }
    if (quoted && !login.messages[slotOf(quoted)]) {
      throw new EngineError('permanent', 'QUOTED_NOT_FOUND', `${quoted.id} cannot be answered.`)
    }
    const message: SimulatedMessage = {
      ...media,
      key,
      content: withoutPath(content),
      timestamp: now(),
      ack: 0,
      quoted,
      mentions,
      ...('path' in content && { path: content.path }),
    }
    login.messages[slotOf(key)] = message
    const receipt = receiptOf(message)
    // As the real page has it in its database before it goes out.
    await this.#save()
    this.emit('message', incomingOf(message))
    if (this.#linkUp) this.#transmit(message)
    return receipt
  }

  async find({ keyId }: Pick<OutgoingMessage, 'chatId' | 'keyId'>): Promise<Receipt | null> {
    const known = this.#mustRun().messages[slotOf({ fromMe: true, id: keyId })]
    return known ? receiptOf(known) : null
  }

  async react({ target, emoji }: { target: MessageKey; emoji: string }): Promise<void> {
    await this.#react(this.#mustHave(target), '', emoji)
  }

  async edit({ target, body }: { target: MessageKey; body: string }): Promise<void> {
    const message = this.#mustHave(target)
    const { content, timestamp, revoked } = message
    if (!revoked && bodyOf(content) === body) return
    const editable = content.type === 'text' || 'caption' in content
    if (!target.fromMe || revoked || !editable || now() - timestamp > editableSeconds) {
      throw new EngineError('permanent', 'NOT_EDITABLE', 'WhatsApp does not let it be edited.')
    }
    await this.#edit(message, body)
  }

  async revoke({ target }: { target: MessageKey }): Promise<void> {
    const message = this.#mustHave(target)
    if (message.revoked) return
    if (!target.fromMe || now() - message.timestamp > revocableSeconds) {
      throw new EngineError('permanent', 'NOT_REVOCABLE', 'WhatsApp does not let it be deleted.')
    }
    await this.#revoke(message)
  }

  async typing(chatId: string, on: boolean | number): Promise<void> {
    this.#mustRun()
    this.#signal(on === false ? 'paused' : 'typing', chatId)
    if (typeof on === 'boolean') return
    const ms = Math.min(on, 60_000) * this.#options.pace
    await sleep(ms, undefined, { signal: this.#ending.signal }).catch(() => this.#mustRun())
    this.#signal('paused', chatId)
  }

  async seen(chatId: string): Promise<void> {
    this.#mustRun()
    this.#signal('seen', chatId)
  }

  async checkNumber(phone: string): Promise<NumberCheck> {
    this.#mustRun()
    const waId = canonicalOf(phone)
    if (contactFor(waId) === 'unregistered') return { exists: false, waId: null }
    return { exists: true, waId }
  }

  async download(key: MessageKey, path: string): Promise<{ size: number } | 'expired'> {
    const message = this.#mustHave(key)
    const bytes = this.#bytes.get(slotOf(key))
    if (message.expired) return 'expired'
    if (bytes) {
      await writeFile(path, bytes)
      return { size: bytes.length }
    }
    if (message.path === undefined) return 'expired'
    await copyFile(message.path, path)
    return { size: message.size ?? 0 }
  }

  async chat(chatId: string): Promise<ChatInfo | null> {
    return chatInfo(this.#mustRun(), chatId)
  }

  async contact(waId: string): Promise<ContactInfo | null> {
    this.#mustRun()
    return contactInfo(waId)
  }

  async people(waIds: string[]): Promise<Acquaintance[]> {
    this.#mustRun()
    return people(waIds)
  }

  async chatsSince(sinceSeconds: number) {
    const { chats } = recentChats(this.#mustRun(), { sinceSeconds, ...unlimited })
    return chats.map(({ chatId, name, isGroup }) => ({ chatId, name, isGroup }))
  }

  async history(
    chatId: string,
    { sinceSeconds, limit }: { sinceSeconds: number; limit: number },
  ): Promise<RecentChat> {
    const since = { sinceSeconds, maxChats: Infinity, limitPerChat: limit }
    const { chats } = recentChats(this.#mustRun(), since)
    const nothing = { name: null, isGroup: isGroup(chatId), messages: [], complete: true }
    return chats.find((chat) => chat.chatId === chatId) ?? { chatId, ...nothing }
  }

  async recent(since: Parameters<Engine['recent']>[0]): Promise<Recent> {
    return recentChats(this.#mustRun(), since)
  }

  get sessionId(): string {
    return this.#options.sessionId
  }

  /** How often a message of this id reached the simulated server since this engine was made. */
  transmissions(keyId: string): number {
    return this.#transmitted.get(keyId) ?? 0
  }

  /** What the simulated WhatsApp has of a message of ours. */
  arrived(keyId: string): SimulatedMessage | undefined {
    return this.#login?.messages[slotOf({ fromMe: true, id: keyId })]
  }

  /** What contacts have been shown of late besides messages. */
  get signals(): readonly { kind: string; chatId: string }[] {
    return this.#signals
  }

  /** The phone scans the code on show. */
  scan(account: Account = accountOf(this.#options.sessionId)): void {
    if (!this.#running || this.#login) return
    this.#login = { account, messages: {} }
    void this.#save()
    this.#after(200, () => this.#ready())
  }

  /** A customer writes; a text may stand for its content. Answers the message's key. */
  deliver(
    from: string,
    content: string | MessageContent,
    id?: string,
    more: Delivery = {},
  ): MessageKey {
    const { group, quoted, mentions, bytes, unheard, placeholder } = more
    this.#received += 1
    const said = JSON.stringify(content)
    const unique = id ?? `3A${hash(`${from}${said}${this.#received}${Date.now()}`).toString(16)}`
    const message: SimulatedMessage = {
      key: {
        fromMe: false,
        chatId: group ?? from,
        id: unique.toUpperCase(),
        participant: group === undefined ? '' : from,
      },
      content: typeof content === 'string' ? { type: 'text', body: content } : content,
      timestamp: now(),
      ack: 1,
      quoted,
      mentions,
      size: bytes?.length,
      pending: placeholder,
    }
    if (bytes) this.#bytes.set(slotOf(message.key), bytes)
    if (this.#login) this.#login.messages[slotOf(message.key)] = message
    void this.#save()
    if (!unheard) this.emit(placeholder ? 'placeholder' : 'message', incomingOf(message))
    return message.key
  }

  /** A customer changes a message of theirs. */
  editByContact(key: MessageKey, body: string): void {
    void this.#edit(this.#mustHave(key), body)
  }

  /** A customer deletes a message of theirs for everyone. */
  revokeByContact(key: MessageKey): void {
    void this.#revoke(this.#mustHave(key))
  }

  /** A customer reacts to a message; an empty emoji takes the reaction back. */
  reactByContact(target: MessageKey, waId: string, emoji: string): void {
    void this.#react(this.#mustHave(target), waId, emoji)
  }

  /** A customer votes in a poll. */
  voteByContact(poll: MessageKey, waId: string, options: string[]): void {
    const { key } = this.#mustHave(poll)
    this.emit('pollVote', { poll: key, options, waId, fromMe: false, at: new Date() })
  }

  /** A customer calls. */
  callByContact(waId: string, video = false): void {
    this.#received += 1
    const id = `CALL${this.#received}${Date.now()}`
    const key = { fromMe: false, chatId: waId, id, participant: '' }
    this.emit('call', { key, video, at: new Date() })
  }

  /** WhatsApp no longer has the media of this message. */
  expireMedia(key: MessageKey): void {
    this.#mustHave(key).expired = true
  }

  /** The phone, or the whole machine, goes out of reach of WhatsApp. What is sent meanwhile goes out on restoreLink(). */
  dropLink(): void {
    this.#linkUp = false
    this.emit('link', 'lost')
  }

  restoreLink(): void {
    this.#linkUp = true
    this.emit('link', 'restored')
    this.#transmitPending()
  }

  /** As the real page does at each connection: what the server has not confirmed goes out again, under its id. What it has goes its way without the page. */
  #transmitPending(): void {
    for (const message of Object.values(this.#login?.messages ?? {})) {
      if (!message.key.fromMe) continue
      if (message.ack === 0) this.#transmit(message)
      else if (message.ack > 0) this.#arrive(message)
    }
  }

  /** The device is unlinked on the phone. The page may say so, or only that it is no longer paired. */
  logoutFromPhone(says: 'loggedOut' | 'unpaired' = 'loggedOut'): void {
    this.#login = undefined
    void this.#save()
    if (says === 'loggedOut') this.emit('loggedOut')
    else this.emit('closed', { reason: 'STATE_UNPAIRED' })
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
    if (!this.#login) return
    this.emit('ready', this.#login.account)
    if (this.#linkUp) this.#transmitPending()
  }

  #transmit(message: SimulatedMessage): void {
    const { key, content } = message
    this.#transmitted.set(key.id, this.transmissions(key.id) + 1)
    const contact = contactFor(key.chatId)
    const slow = contact === 'slow' ? 20 : 1
    if (contact === 'refuses') {
      return this.#after(100, () => this.#refuse(message, { code: 'REFUSED_BY_WHATSAPP' }))
    }
    if (contact === 'locked' && !this.#hasWritten(key.chatId)) {
      const refusal = { code: 'REACHOUT_LOCKED' as const, lockedUntil: Date.now() + lockMs }
      return this.#after(100, () => this.#refuse(message, refusal))
    }
    if (contact === 'loses') return
    this.#after(100 * slow, () => this.#ack(message, 1))
    this.#arrive(message)
    if (contact !== 'answers' || isGroup(key.chatId)) return
    const answer =
      content.type === 'text' ? `You wrote: ${content.body}` : `You sent: ${content.type}`
    this.#after(1_500, () => this.deliver(key.chatId, answer))
  }

  /** Whoever it is for gets it, and reads it. */
  #arrive(message: SimulatedMessage): void {
    const contact = contactFor(message.key.chatId)
    const slow = contact === 'slow' ? 20 : 1
    if (contact === 'offline') return
    if (message.ack < 2) this.#after(300 * slow, () => this.#ack(message, 2))
    if (contact === 'silent') return
    if (message.ack < 3) this.#after(800 * slow, () => this.#ack(message, 3))
  }

  #hasWritten(chatId: string): boolean {
    return messagesIn(this.#mustRun(), chatId).some(({ key }) => !key.fromMe)
  }

  #ack(message: SimulatedMessage, ack: number): void {
    if (this.#login?.messages[slotOf(message.key)] !== message || !this.#linkUp) return
    // On a busy machine a later timer may come before an earlier one.
    if (ack > 0 && message.ack >= ack) return
    message.ack = ack
    void this.#save()
    this.emit('ack', { keyId: message.key.id, ...receiptOf(message) })
  }

  #refuse(
    message: SimulatedMessage,
    refusal: Required<Pick<SimulatedMessage, 'code'>> & Pick<SimulatedMessage, 'lockedUntil'>,
  ): void {
    Object.assign(message, refusal)
    this.#ack(message, -1)
  }

  async #react(message: SimulatedMessage, by: string, emoji: string): Promise<void> {
    message.reactions = { ...message.reactions, [by]: emoji }
    const waId = by || this.#mustRun().account.waId
    const reaction = { target: message.key, emoji, waId, fromMe: by === '', at: new Date() }
    await this.#save()
    this.emit('reaction', reaction)
  }

  async #edit({ key, content }: SimulatedMessage, body: string): Promise<void> {
    if (content.type === 'text') content.body = body
    else if ('caption' in content) content.caption = body
    await this.#save()
    this.emit('edit', { key, body, at: new Date() })
  }

  async #revoke(message: SimulatedMessage): Promise<void> {
    message.revoked = true
    await this.#save()
    this.emit('revoke', { key: message.key, at: new Date() })
  }

  #mustHave(target: MessageKey): SimulatedMessage {
    const message = this.#mustRun().messages[slotOf(target)]
    if (message) return message
    throw new EngineError('permanent', 'MESSAGE_NOT_FOUND', `${target.id}.`)
  }

  #signal(kind: 'typing' | 'paused' | 'seen', chatId: string): void {
    this.#signals.push({ kind, chatId })
    if (this.#signals.length > 100) this.#signals.shift()
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

  /** Resolves when what the phone remembers now is on the disk. At most one write waits for the one under way. */
  #save(): Promise<void> {
    const write = async () => {
      this.#nextWrite = undefined
      try {
        await writeLogin(this.#file!, this.#login)
      } catch (error) {
        this.emit('closed', { reason: 'PROFILE_UNWRITABLE', detail: String(error) })
      }
    }
    if (this.#nextWrite) return this.#nextWrite
    if (!this.#writing) {
      this.#writing = write().finally(() => (this.#writing = undefined))
      return this.#writing
    }
    this.#nextWrite = this.#writing.then(() => {
      this.#writing = write().finally(() => (this.#writing = undefined))
      return this.#writing
    })
    return this.#nextWrite
  }
}

const unlimited = { limitPerChat: Infinity, maxChats: Infinity }
const now = () => Math.floor(Date.now() / 1_000)

function withoutPath(content: OutgoingMessage['content']): MessageContent {
  if (!('path' in content)) return { ...content }
  const { type, mimeType, filename, caption, mediaId } = content
  return { type, mimeType, filename, caption, mediaId }
}
