import type { Link } from './links.ts'
import type { Wire } from './wire.ts'

export interface Phone {
  number: string
  pushName?: string
  lid?: string
  platform?: string
}

interface QueuedEvent {
  sequence: number
  kind: string
  content: Wire
}

/** A browser linked to an account, known by the public keys of its profile. */
export class Device {
  readonly account: Account
  readonly noise: string
  readonly identity: string
  /** Counts its connections; a profile that shows an older count was rolled back. */
  epoch = 0
  /** It gets the history with its first connection. */
  isNew = true
  #link: Link | undefined
  #isReady = false
  readonly #queue = new Map<number, QueuedEvent>()
  #lastSequence = 0

  constructor(account: Account, keys: { noise: string; identity: string }) {
    this.account = account
    this.noise = keys.noise
    this.identity = keys.identity
  }

  get link(): Link | undefined {
    return this.#link
  }

  /** Connected, and told everything that had waited for it. */
  get isOnline(): boolean {
    return this.#link !== undefined && this.#isReady
  }

  /** A second live socket of the same device: the older one is in conflict. */
  attach(link: Link): void {
    if (this.#link && this.#link !== link) this.#link.end('conflict')
    this.#link = link
    this.#isReady = false
  }

  detach(link: Link): void {
    if (this.#link === link) this.#link = undefined
  }

  /** Everything not yet confirmed goes out, in order, and again if an earlier connection died of it. */
  ready(): void {
    this.#isReady = true
    for (const event of this.#queue.values()) this.#link?.push('event', event)
    this.#link?.push('synced', {})
  }

  /** Sends an event, or keeps it for the next connection. */
  tell(kind: string, content: Wire): void {
    const event = { sequence: ++this.#lastSequence, kind, content }
    this.#queue.set(event.sequence, event)
    if (this.#isReady) this.#link?.push('event', event)
  }

  confirm(sequence: number): void {
    this.#queue.delete(sequence)
  }
}

/** A phone number that pairs devices, with the history its phone holds. */
export class Account {
  readonly number: string
  readonly platform: string
  pushName: string
  isLinkDropped = false
  readonly devices = new Set<Device>()
  /** What the phone holds, by serialized key. */
  readonly history = new Map<string, Wire>()

  constructor({ number, pushName = 'Emulated', platform = 'android' }: Phone) {
    this.number = number
    this.pushName = pushName
    this.platform = platform
  }

  tell(kind: string, content: Wire): void {
    for (const device of this.devices) device.tell(kind, content)
  }
}

export class Accounts {
  readonly #accounts = new Map<string, Account>()
  /** Also of devices that were logged out since. */
  readonly #byNoise = new Map<string, Account>()

  open(phone: Phone): Account {
    const account = this.#accounts.get(phone.number) ?? new Account(phone)
    if (phone.pushName) account.pushName = phone.pushName
    this.#accounts.set(phone.number, account)
    return account
  }

  find(number: string): Account | undefined {
    return this.#accounts.get(number)
  }

  get(number: string): Account {
    const account = this.find(number)
    if (!account) throw new Error(`no phone with the number ${number} has linked a device`)
    return account
  }

  link(account: Account, keys: { noise: string; identity: string }): Device {
    const device = new Device(account, keys)
    account.devices.add(device)
    this.#byNoise.set(keys.noise, account)
    return device
  }

  findDevice(keys: { noise: string; identity: string }): Device | undefined {
    const devices = [...(this.#byNoise.get(keys.noise)?.devices ?? [])]
    return devices.find(({ noise, identity }) => noise === keys.noise && identity === keys.identity)
  }

  byNoise(noise: string): Account | undefined {
    return this.#byNoise.get(noise)
  }
}
