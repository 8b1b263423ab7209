/** The two kinds of ids of the page: Wid (whose) and MsgKey (which message). */
/* global crypto */

const USERS = /^(\d+)(?::\d+)?@(c\.us|s\.whatsapp\.net|lid)$/
const SERIALIZED = /^(true|false)_([^_]+)_(.+?)(?:_([^_]+@[^_]+))?$/
const OTHERS = /^([\d-]+|status)@(g\.us|newsletter|broadcast)$/

export class Wid {
  constructor(user, server) {
    this.server = server
    this.user = user
    this._serialized = `${user}@${server}`
  }

  isUser() {
    return this.server === 'c.us' || this.server === 'lid'
  }
  isRegularUser() {
    return this.isUser()
  }
  isLid() {
    return this.server === 'lid'
  }
  isGroup() {
    return this.server === 'g.us'
  }
  isBroadcast() {
    return this.server === 'broadcast'
  }
  isStatus() {
    return this._serialized === 'status@broadcast'
  }
  isNewsletter() {
    return this.server === 'newsletter'
  }
  isBot() {
    return false
  }
  equals(other) {
    return other?._serialized === this._serialized
  }
  toJid() {
    return this._serialized.replace('@c.us', '@s.whatsapp.net')
  }
  toString() {
    return this._serialized
  }
}

export function createWid(value) {
  if (value instanceof Wid) return value
  const text = typeof value === 'string' ? value : value?._serialized
  const [, user, server] = USERS.exec(text) ?? OTHERS.exec(text) ?? []
  if (user === undefined) throw new Error('wid error: invalid wid')
  return new Wid(user, server === 's.whatsapp.net' ? 'c.us' : server)
}

/** Where a key keeps its text. The name is a minifier's and no promise: what a key says of itself is toString(). */
let place = '$1'

/** Keys as the page made them before 2.3000.1042401057 (July 2026). To be called before there are any. */
export function serializeKeys() {
  place = '_serialized'
}

export class MsgKey {
  constructor({ from, to, id, participant, selfDir, fromMe = selfDir === 'out', remote }) {
    this.fromMe = fromMe
    this.remote = remote ?? (fromMe ? to : from)
    this.id = id
    if (participant) this.participant = participant
    this.self = fromMe ? 'out' : 'in'
    this[place] = [fromMe, this.remote, id, participant]
      .filter((part) => part !== undefined)
      .join('_')
  }

  equals(other) {
    return other !== undefined && String(other) === this.toString()
  }
  toString() {
    return this[place]
  }

  static async newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(9))
    return (
      '3EB0' +
      [...bytes]
        .map((byte) => byte.toString(16).padStart(2, '0'))
        .join('')
        .toUpperCase()
    )
  }

  static fromString(text) {
    const [, fromMe, remote, id, participant] = SERIALIZED.exec(text)
    return new MsgKey({
      fromMe: fromMe === 'true',
      remote: createWid(remote),
      id,
      participant: participant && createWid(participant),
    })
  }
}
