import type { Account, Accounts, Device } from './accounts.ts'
import type { Book } from './book.ts'
import type { Exchange } from './exchange.ts'
import type { Groups } from './groups.ts'
import type { Answer, Link } from './links.ts'
import type { Numbers } from './numbers.ts'
import type { Pairing } from './pairing.ts'
import { keyOf, textOf } from './wire.ts'
import type { Wire } from './wire.ts'

/** So many messages of each chat come with a new pairing. */
const HISTORY_PER_CHAT = 50

interface Parts {
  accounts: Accounts
  numbers: Numbers
  groups: Groups
  pairing: Pairing
  exchange: Exchange
  book: Book
  /** A profile older than its last connection is logged out. */
  revokeRolledBack: boolean
}

type Call = (link: Link, args: Wire) => unknown

/** What a page can ask the server, by name. */
export function pageCalls(parts: Parts): Answer {
  const { accounts, numbers, groups, pairing, exchange, book } = parts

  const hello: Call = (link, args) => {
    const keys = { noise: textOf(args.noise), identity: textOf(args.identity) }
    link.keys = keys
    const device = accounts.findDevice(keys)
    if (device && parts.revokeRolledBack && Number(args.epoch) < device.epoch - 1) {
      device.account.devices.delete(device)
      return { ref: pairing.invite(link) }
    }
    if (!device) return { ref: pairing.invite(link) }
    device.attach(link)
    device.epoch += 1
    link.device = device
    return { account: describe(device) }
  }

  const describe = ({ account, epoch, isNew }: Device) => ({
    number: account.number,
    lid: numbers.register({ number: account.number }).lid,
    pushName: account.pushName,
    platform: account.platform,
    epoch,
    addressBook: numbers
      .all()
      .filter(({ name }) => name !== undefined)
      .map(person),
    groups: groups.of(`${account.number}@c.us`),
    history: isNew ? recentHistory(account) : [],
  })

  const exists: Call = (_link, { wid }) => {
    const found = numbers.find(textOf(wid))
    return found ? person(found) : null
  }

  const history: Call = (link, { chat, before, limit }) => {
    const older = [...deviceOf(link).account.history.values()].filter(
      (record) => keyOf(record).remote === chat && Number(record.t) < Number(before),
    )
    return { records: older.slice(-Number(limit)) }
  }

  const reaction: Call = (link, { key, id, text }) =>
    exchange.note(deviceOf(link).account, 'reaction', {
      key: textOf(key),
      id: textOf(id),
      body: textOf(text),
    })

  const calls: Record<string, Call> = {
    hello,
    ready: (link) => {
      deviceOf(link).isNew = false
      deviceOf(link).ready()
    },
    refreshQr: (link) => link.push('ref', { ref: pairing.invite(link) }),
    pairingCode: (link) => ({ code: pairing.code(link) }),
    removeDevice: (link) => {
      const device = deviceOf(link)
      device.account.devices.delete(device)
    },
    message: (link, { record }) => exchange.accept(deviceOf(link), record as Wire),
    edit: (link, { key, id, body }) => {
      const edit = { key: textOf(key), id: textOf(id), body: textOf(body) }
      exchange.note(deviceOf(link).account, 'edit', edit)
    },
    revoke: (link, { key, id }) =>
      exchange.note(deviceOf(link).account, 'revoke', {
        key: textOf(key),
        id: textOf(id),
        body: '',
      }),
    reaction,
    exists,
    history,
    signal: (link, { kind, to }) => {
      const { number } = deviceOf(link).account
      const target = to === undefined ? {} : { to: textOf(to) }
      book.signals.push({ account: number, kind: textOf(kind), ...target, at: Date.now() })
    },
    resendPlaceholders: () => undefined,
  }

  return (link, name, args) => {
    const call = calls[name]
    if (!call) throw new Error(`the server knows no call ${name}`)
    return call(link, args)
  }
}

function deviceOf(link: Link): Device {
  if (!link.device) throw new Error('this page is not linked')
  if (!link.device.account.devices.has(link.device)) throw new Error('this device was logged out')
  return link.device
}

const person = ({
  number,
  lid,
  name,
  pushName,
  isBusiness,
}: ReturnType<Numbers['all']>[number]) => ({
  pn: `${number}@c.us`,
  lid,
  name,
  pushName,
  isBusiness,
})

function recentHistory(account: Account): Wire[] {
  const counts = new Map<string, number>()
  return [...account.history.values()]
    .reverse()
    .filter((record) => {
      const { remote } = keyOf(record)
      counts.set(remote, (counts.get(remote) ?? 0) + 1)
      return (counts.get(remote) ?? 0) <= HISTORY_PER_CHAT
    })
    .reverse()
}
