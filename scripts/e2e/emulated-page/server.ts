import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { Accounts } from './server/accounts.ts'
import type { Account, Device, Phone } from './server/accounts.ts'
import { Acks } from './server/acks.ts'
import type { AckRule } from './server/acks.ts'
import { Book } from './server/book.ts'
import type { Received, Signal, Stanza } from './server/book.ts'
import { pageCalls } from './server/calls.ts'
import { Changes } from './server/changes.ts'
import type { UntilOptions } from './server/changes.ts'
import { Exchange } from './server/exchange.ts'
import type { Delivered, InboundMessage, PhoneMessage } from './server/exchange.ts'
import { Groups } from './server/groups.ts'
import { Link } from './server/links.ts'
import type { Answer } from './server/links.ts'
import { MediaStore } from './server/media.ts'
import { Numbers } from './server/numbers.ts'
import type { RegisterOptions, Registration } from './server/numbers.ts'
import { Pages } from './server/pages.ts'
import type { PageSettings } from './server/pages.ts'
import { Pairing } from './server/pairing.ts'
import type { QrTiming } from './server/pairing.ts'
import { createWeb } from './server/web.ts'
import type { Certificate, Serving } from './server/web.ts'

export type { Phone } from './server/accounts.ts'
export type { AckMode, AckRule } from './server/acks.ts'
export type { Received, Signal, Stanza } from './server/book.ts'
export type { Delivered, InboundMessage, PhoneMessage } from './server/exchange.ts'
export type { Variation } from './server/pages.ts'

export interface EmulatedWhatsAppOptions extends Partial<QrTiming>, Partial<PageSettings> {
  /** Of the HTTPS server; 0 or absent: any free one. */
  port?: number
  certificate?: Certificate
  /** Every number is on WhatsApp, not only the registered ones. */
  everyoneRegistered?: boolean
  /** A profile older than its last connection is logged out. */
  revokeRolledBack?: boolean
}

/** Starts WhatsApp's server and its users' phones; see the README beside this file. */
export async function startEmulatedWhatsApp(
  options: EmulatedWhatsAppOptions = {},
): Promise<EmulatedWhatsApp> {
  const whatsapp = new EmulatedWhatsApp(options)
  await whatsapp.listen()
  return whatsapp
}

export class EmulatedWhatsApp {
  readonly #options: EmulatedWhatsAppOptions
  readonly #changes = new Changes()
  readonly #book = new Book()
  readonly #accounts = new Accounts()
  readonly #groups = new Groups()
  readonly #media = new MediaStore()
  readonly #acks = new Acks()
  readonly #numbers: Numbers
  readonly #pairing: Pairing
  readonly #pages: Pages
  readonly #exchange: Exchange
  readonly #links = new Set<Link>()
  readonly #serving: Serving = { page: 'normal', socket: 'normal' }
  readonly #answer: Answer
  #server: Awaited<ReturnType<typeof createWeb>> | undefined
  #port = 0

  constructor(options: EmulatedWhatsAppOptions) {
    this.#options = options
    const { qrFirstMs = 60_000, qrIntervalMs = 20_000, qrRefs = 6 } = options
    const { syncMs = 100, syncWaitsForListener = true, logoutMs = 100, variations = [] } = options
    this.#numbers = new Numbers(options.everyoneRegistered ?? false)
    this.#pairing = new Pairing({ qrFirstMs, qrIntervalMs, qrRefs })
    this.#pages = new Pages(
      { syncMs, syncWaitsForListener, logoutMs, variations },
      (noise) => this.#accounts.byNoise(noise)?.number,
    )
    const parts = {
      accounts: this.#accounts,
      numbers: this.#numbers,
      groups: this.#groups,
      media: this.#media,
      acks: this.#acks,
      book: this.#book,
    }
    this.#exchange = new Exchange(parts)
    this.#answer = pageCalls({
      ...parts,
      pairing: this.#pairing,
      exchange: this.#exchange,
      revokeRolledBack: options.revokeRolledBack ?? false,
    })
  }

  async listen(): Promise<void> {
    this.#server = await createWeb({
      certificate: this.#options.certificate,
      media: this.#media,
      serving: this.#serving,
      isLinkDropped: (noise) => this.#accounts.byNoise(noise)?.isLinkDropped ?? false,
      onLink: (socket) => this.#links.add(new Link(socket, this.#take, this.#linkClosed)),
      onControl: (socket) => this.#pages.accept(socket),
    })
    this.#server.listen(this.#options.port ?? 0, '127.0.0.1')
    await once(this.#server, 'listening')
    this.#port = (this.#server.address() as AddressInfo).port
  }

  async close(): Promise<void> {
    this.#acks.stop()
    for (const link of this.#links) link.cut()
    this.#pages.close()
    this.#server?.closeAllConnections()
    if (this.#server?.listening) await once(this.#server.close(), 'close')
  }

  get port(): number {
    return this.#port
  }

  /** Lead a Chromium that asks for web.whatsapp.com here. */
  get browserArgs(): string[] {
    const rules = `MAP web.whatsapp.com 127.0.0.1:${this.#port}`
    return [`--host-resolver-rules=${rules}`, '--ignore-certificate-errors']
  }

  // The judge's book

  get stanzas(): readonly Stanza[] {
    return this.#book.stanzas
  }

  get signals(): readonly Signal[] {
    return this.#book.signals
  }

  /** The recipient's view: each message once, however often it was transmitted. */
  received(recipient: string): Received[] {
    return this.#book.received(this.#numbers.numberOf(recipient))
  }

  /** How many devices are on the list of this number's phone. */
  linkedDevices(number: string): number {
    return this.#accounts.find(number)?.devices.size ?? 0
  }

  /** How many linked devices of this number are connected now. */
  onlineDevices(number: string): number {
    const devices = [...(this.#accounts.find(number)?.devices ?? [])]
    return devices.filter(({ isOnline }) => isOnline).length
  }

  until<T>(predicate: () => T | Promise<T>, options?: UntilOptions): Promise<T> {
    return this.#changes.until(predicate, options)
  }

  async untilOnline(number: string, timeoutMs?: number): Promise<void> {
    const options = { what: `${number} online`, ...(timeoutMs === undefined ? {} : { timeoutMs }) }
    await this.until(() => this.onlineDevices(number) > 0, options)
  }

  // Numbers and pairing

  register(options: RegisterOptions): Registration {
    return this.#numbers.register(options)
  }

  unregister(number: string): void {
    this.#numbers.unregister(number)
  }

  /** Scans the QR code a page shows now; resolves when the device is linked and connected. */
  async scan(qr: string, phone: Phone): Promise<void> {
    await this.#pair(this.#pairing.byQr(qr), phone)
  }

  /** Types the code a page shows into the phone. */
  async enterPairingCode(code: string, phone: Phone): Promise<void> {
    await this.#pair(this.#pairing.byCode(code), phone)
  }

  /** Logs every device of this number out; one that is offline learns it when it comes back. */
  logoutFromPhone(number: string): void {
    const { devices } = this.#accounts.get(number)
    for (const device of devices) {
      devices.delete(device)
      device.link?.push('logout', {})
    }
    this.#changes.tell()
  }

  // Messages

  deliver(message: InboundMessage): Delivered {
    return this.#exchange.deliver(message)
  }

  typeOnPhone(message: PhoneMessage): Delivered {
    return this.#exchange.typeOnPhone(message)
  }

  /** The sender of an inbound message (or the phone, of an own one) edits it. */
  edit(account: string, id: string, body: string): void {
    const changes = { body, latestEditSenderTimestampMs: Date.now() }
    this.#exchange.change(this.#accounts.get(account), id, changes)
  }

  revoke(account: string, id: string): void {
    const changes = { type: 'revoked', subtype: 'sender', body: null }
    this.#exchange.change(this.#accounts.get(account), id, changes)
  }

  /** A message delivered with type `ciphertext` becomes readable. */
  decrypt(account: string, id: string, body: string): void {
    this.#exchange.change(this.#accounts.get(account), id, { type: 'chat', body })
  }

  react(account: string, reaction: { from: string; id: string; text: string }): void {
    this.#exchange.react(this.#accounts.get(account), reaction)
  }

  /** Somebody votes in a poll of the account; `options` are places in it, none takes the vote back. */
  vote(account: string, vote: { from: string; id: string; options: number[] }): void {
    this.#exchange.vote(this.#accounts.get(account), vote)
  }

  /** Somebody calls the account; answers the id of the call. */
  call(account: string, call: { from: string; video?: boolean }): string {
    return this.#exchange.call(this.#accounts.get(account), call)
  }

  /** The person at the phone blocks somebody. */
  async block(account: string, number: string): Promise<void> {
    await this.#pages.command(account, 'block', `${number}@c.us`)
  }

  createGroup(id: string, subject: string, participants: string[]): void {
    const group = this.#groups.create(id, subject, participants)
    for (const wid of participants) {
      this.#accounts.find(wid.replace('@c.us', ''))?.tell('group', group)
    }
  }

  /** The media of this message can no longer be downloaded. */
  expireMedia(account: string, id: string): void {
    this.#exchange.expireMedia(this.#accounts.get(account), id)
  }

  // Acknowledgements

  /** How messages of an account, to a recipient, are acknowledged from now on. */
  setAcks(rule: AckRule): void {
    this.#acks.rule(rule)
  }

  /** Sends the acknowledgements held back by the mode `hold`. */
  releaseAcks(account?: string): void {
    this.#acks.release(account)
  }

  ack(id: string, level: number): void {
    this.#exchange.ackById(id, level)
  }

  // Faults

  dropLink(number: string): void {
    const account = this.#accounts.get(number)
    account.isLinkDropped = true
    for (const { link } of account.devices) link?.cut()
  }

  restoreLink(number: string): void {
    this.#accounts.get(number).isLinkDropped = false
  }

  /** Whether a page of this number can be commanded: a little later than it is linked. */
  hasPage(number: string): boolean {
    return this.#pages.of(number).length > 0
  }

  /** Puts the page's socket into a state; from one it cannot leave, its link is closed. */
  async setState(number: string, state: string): Promise<void> {
    await this.#pages.command(number, 'enterState', state)
  }

  /** hasSynced goes false and true again. */
  async resync(number: string): Promise<void> {
    await this.#pages.command(number, 'resync')
  }

  /** A call of every page rejects from now on; with `matching`, only for a message whose text contains it. */
  async failCall(call: string, message: string, status?: number, matching?: string): Promise<void> {
    const details = {
      ...(status === undefined ? {} : { status }),
      ...(matching === undefined ? {} : { matching }),
    }
    await this.#pages.setFault(call, { kind: 'fail', message, ...details })
  }

  /** A call of every page never answers, until it is restored: then it goes on. */
  async hangCall(call: string): Promise<void> {
    await this.#pages.setFault(call, { kind: 'hang' })
  }

  async restoreCall(call: string): Promise<void> {
    await this.#pages.setFault(call, undefined)
  }

  removeModule(name: string): void {
    this.#pages.setRemovedModule(name, true)
  }

  restoreModule(name: string): void {
    this.#pages.setRemovedModule(name, false)
  }

  async navigate(number: string, url: string): Promise<void> {
    await this.#pages.command(number, 'navigate', url)
  }

  async reload(number: string): Promise<void> {
    await this.#pages.command(number, 'reload')
  }

  async addIframe(number: string): Promise<void> {
    await this.#pages.command(number, 'addIframe')
  }

  setServing(serving: Partial<Serving>): void {
    Object.assign(this.#serving, serving)
  }

  async #pair(link: Link, phone: Phone): Promise<void> {
    if (!link.keys) throw new Error('this page has not said hello')
    const { number, pushName, lid } = phone
    this.#numbers.register({
      number,
      ...(pushName === undefined ? {} : { pushName }),
      ...(lid === undefined ? {} : { lid }),
    })
    const account: Account = this.#accounts.open(phone)
    const device: Device = this.#accounts.link(account, link.keys)
    this.#pairing.forget(link)
    link.push('paired', {})
    await this.until(() => device.isOnline, { what: `${number} linked` })
  }

  readonly #take: Answer = async (link, call, args) => {
    const result = await this.#answer(link, call, args)
    this.#changes.tell()
    return result
  }

  readonly #linkClosed = (link: Link) => {
    this.#links.delete(link)
    this.#pairing.forget(link)
    link.device?.detach(link)
    this.#changes.tell()
  }
}
