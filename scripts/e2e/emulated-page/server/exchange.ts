import { randomBytes } from 'node:crypto'
import type { Account, Accounts, Device } from './accounts.ts'
import type { Acks } from './acks.ts'
import type { Book, Stanza } from './book.ts'
import type { Groups } from './groups.ts'
import type { MediaStore } from './media.ts'
import type { Numbers } from './numbers.ts'
import { keyOf, now, parseKey, serializeKey, textOf, toWid, wid } from './wire.ts'
import type { MessageKey, Wire } from './wire.ts'

export interface InboundMedia {
  /** Bytes, or base64 text. */
  data: Uint8Array | string
  mimetype: string
  filename?: string
}

export interface MessageOptions {
  body?: string
  id?: string
  /** Seconds since the epoch. */
  timestamp?: number
  /** `chat` unless there is media; any type the page knows. */
  type?: string
  /** The bare id of a message of the same account to answer to. */
  quoted?: string
  media?: InboundMedia
  /** More attributes of the message, marked as in wire.ts. */
  extra?: Wire
}

export interface InboundMessage extends MessageOptions {
  /** The account's number. */
  to: string
  /** The sender's number; in a group, the author's. */
  from: string
  group?: string
  /** Addresses the sender by LID; a text also sets which. */
  lid?: boolean | string
  pushName?: string
  /** Tells the page once more even when it has this id already. */
  again?: boolean
}

export interface PhoneMessage extends MessageOptions {
  account: string
  to: string
}

export interface Delivered {
  id: string
  /** The serialized key under which the page has it. */
  key: string
}

const MEDIA_TYPES: Record<string, string> = { image: 'image', video: 'video', audio: 'audio' }

interface Parts {
  numbers: Numbers
  accounts: Accounts
  groups: Groups
  media: MediaStore
  acks: Acks
  book: Book
}

/** Passes messages, and what happens to them later, between pages, phones and the outside. */
export class Exchange {
  readonly #parts: Parts

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** A page transmits a message; the same id may come again. */
  accept(device: Device, record: Wire): void {
    const { numbers, accounts, book } = this.#parts
    const { account } = device
    const { id, remote } = keyOf(record)
    const stanza = book.enter(this.#stanza(account, remote, id, record))
    const plan = this.#parts.acks.planFor(account.number, stanza.recipient)
    if (stanza.transmission === 1) {
      account.history.set(serializeKey(keyOf(record)), { ...record })
      for (const other of account.devices) if (other !== device) other.tell('message', { record })
    }
    if (plan.mode !== 'fail') {
      book.handOver(stanza)
      const recipient = accounts.find(stanza.recipient)
      if (recipient && recipient !== account && stanza.transmission === 1) {
        const sender = numbers.register({ number: account.number, pushName: account.pushName })
        this.#arrive(recipient, inbound(record, `${sender.number}@c.us`, account.pushName))
      }
    }
    this.#parts.acks.schedule(account.number, plan, ({ level, again, refusal }) =>
      this.ack(account, serializeKey(keyOf(record)), level, again, refusal),
    )
  }

  /** Something done to a message that is there already: it has an id of its own. */
  note(
    account: Account,
    type: string,
    { key, id, body }: { key: string; id: string; body: string },
  ) {
    const { remote } = parseKey(key)
    const content = { target: key }
    const stanza = this.#parts.book.enter(
      this.#stanza(account, remote, id, { ...content, type, body }),
    )
    this.#parts.book.handOver(stanza)
  }

  ack(account: Account, key: string, level: number, again = false, refusal: Wire = {}): void {
    const record = account.history.get(key)
    if (record) record.ack = level
    account.tell('ack', { key, level, again, ...(level < 0 ? refusal : {}) })
  }

  /** Acknowledges by bare id: the account's latest message of that id. */
  ackById(id: string, level: number): void {
    const stanza = this.#parts.book.stanzas.findLast((other) => other.id === id)
    if (!stanza) throw new Error(`no message ${id} was sent`)
    this.ack(this.#parts.accounts.get(stanza.account), serializeKey(keyOf(stanza.content)), level)
  }

  deliver(message: InboundMessage): Delivered {
    const { numbers, accounts, groups } = this.#parts
    const account = accounts.get(message.to)
    const { lid, pushName } = message
    const sender = numbers.register({
      number: message.from.replace('@c.us', ''),
      ...(typeof lid === 'string' ? { lid } : {}),
      ...(pushName === undefined ? {} : { pushName }),
    })
    const from = lid ? sender.lid : `${sender.number}@c.us`
    const group = message.group === undefined ? undefined : groupWid(message.group)
    if (group) account.tell('group', groups.join(group, [`${account.number}@c.us`, from]))
    const key: MessageKey = {
      fromMe: false,
      remote: group ?? from,
      id: message.id ?? inventId(),
      ...(group ? { participant: from } : {}),
    }
    const record: Wire = {
      ...this.#content(account, message),
      id: { $key: serializeKey(key) },
      from: wid(group ?? from),
      to: wid(`${account.number}@c.us`),
      ...(group ? { author: wid(from) } : {}),
      notifyName: sender.pushName ?? '',
      ack: 1,
    }
    this.#arrive(account, record, message.again)
    return { id: key.id, key: serializeKey(key) }
  }

  typeOnPhone(message: PhoneMessage): Delivered {
    const account = this.#parts.accounts.get(message.account)
    const to = toWid(message.to)
    const key: MessageKey = { fromMe: true, remote: to, id: message.id ?? inventId() }
    const record: Wire = {
      ...this.#content(account, message),
      id: { $key: serializeKey(key) },
      from: wid(`${account.number}@c.us`),
      to: wid(to),
      ack: 1,
    }
    const stanza = this.#stanza(account, to, key.id, record)
    this.#parts.book.handOver({ ...stanza, transmission: 1 })
    this.#arrive(account, record)
    return { id: key.id, key: serializeKey(key) }
  }

  /** Changes attributes of a message in the account's pages: edits, revocations, late decryption. */
  change(account: Account, id: string, changes: Wire): void {
    const record = this.#find(account, id)
    Object.assign(record, changes)
    account.tell('changed', { key: serializeKey(keyOf(record)), changes })
  }

  react(account: Account, { from, id, text }: { from: string; id: string; text: string }): void {
    const parent = this.#find(account, id)
    const key: MessageKey = { fromMe: false, remote: toWid(from), id: inventId() }
    const reaction = {
      id: { $key: serializeKey(key) },
      reactionParentKey: parent.id,
      reactionText: text,
      reactionTimestamp: Date.now(),
      from: wid(toWid(from)),
      read: false,
    }
    account.tell('reaction', { reaction })
  }

  /** `options` are their places in the poll. */
  vote(account: Account, { from, id, options }: { from: string; id: string; options: number[] }) {
    const poll = this.#find(account, id)
    const key: MessageKey = { fromMe: false, remote: keyOf(poll).remote, id: inventId() }
    const vote = {
      id: { $key: serializeKey(key) },
      pollUpdateParentKey: poll.id,
      selectedOptionLocalIds: options,
      from: wid(toWid(from)),
      t: now(),
      senderTimestampMs: Date.now(),
    }
    account.tell('vote', { vote })
  }

  call(account: Account, { from, video = false }: { from: string; video?: boolean }): string {
    const id = inventId()
    const peerJid = wid(toWid(from))
    account.tell('call', { call: { id, peerJid, isVideo: video, isGroup: false, outgoing: false } })
    return id
  }

  expireMedia(account: Account, id: string): void {
    this.#parts.media.expire(textOf(this.#find(account, id).directPath))
  }

  #arrive(account: Account, record: Wire, again = false): void {
    const key = serializeKey(keyOf(record))
    if (!account.history.has(key)) account.history.set(key, { ...record })
    account.tell('message', { record, again })
  }

  #find(account: Account, id: string): Wire {
    const record = [...account.history.values()].findLast((message) => keyOf(message).id === id)
    if (!record) throw new Error(`${account.number} has no message ${id}`)
    return record
  }

  #content(account: Account, options: MessageOptions): Wire {
    const { body, timestamp = now(), type = 'chat', quoted, media, extra } = options
    const text = media ? { caption: body } : { body: body ?? '' }
    const content = {
      type,
      t: timestamp,
      ...text,
      ...(media ? this.#upload(media, options.type) : {}),
    }
    return { ...content, ...(quoted ? quotation(this.#find(account, quoted)) : {}), ...extra }
  }

  #upload({ data, mimetype, filename }: InboundMedia, type: string | undefined): Wire {
    const bytes = typeof data === 'string' ? Buffer.from(data, 'base64') : Buffer.from(data)
    const { directPath, filehash } = this.#parts.media.put(bytes)
    return {
      type: type ?? MEDIA_TYPES[mimetype.split('/')[0] ?? ''] ?? 'document',
      mimetype,
      filename,
      directPath,
      filehash,
      encFilehash: filehash,
      mediaKey: randomBytes(32).toString('base64'),
      mediaKeyTimestamp: now(),
      size: bytes.length,
    }
  }

  #stanza(account: Account, to: string, id: string, record: Wire): Omit<Stanza, 'transmission'> {
    const media = this.#parts.media.get(textOf(record.directPath))
    return {
      account: account.number,
      to,
      recipient: this.#parts.numbers.numberOf(to),
      id,
      type: textOf(record.type),
      body: textOf(record.caption ?? record.body ?? record.pollName),
      ...(media ? { mediaSha256: media.sha256 } : {}),
      at: Date.now(),
      content: record,
    }
  }
}

/** An own message of one account, as the account it goes to sees it. */
function inbound(record: Wire, from: string, notifyName: string): Wire {
  const { id } = keyOf(record)
  const key = serializeKey({ fromMe: false, remote: from, id })
  return { ...record, id: { $key: key }, from: wid(from), notifyName, ack: 1, self: 'in' }
}

function quotation(quoted: Wire): Wire {
  const { type, body, caption } = quoted
  return {
    quotedMsg: { type, body, caption },
    quotedStanzaID: keyOf(quoted).id,
    quotedParticipant: quoted.author ?? quoted.from,
  }
}

const groupWid = (group: string) => (group.includes('@') ? group : `${group}@g.us`)
const inventId = () => `3A${randomBytes(9).toString('hex').toUpperCase()}`
