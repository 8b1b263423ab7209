import { createHash } from 'node:crypto'

export interface Registration {
  number: string
  /** The number's other name, e.g. `271828182845904@lid`. */
  lid: string
  /** The name in the address book of the phone. */
  name?: string | undefined
  pushName?: string | undefined
  isBusiness: boolean
}

export interface RegisterOptions {
  number: string
  lid?: string
  name?: string
  pushName?: string
  isBusiness?: boolean
  /** Other spellings that lead to this number, as with Brazil's ninth digit. */
  aliases?: string[]
}

/** Who is on WhatsApp. */
export class Numbers {
  readonly everyone: boolean
  readonly #registered = new Map<string, Registration>()
  readonly #numberOf = new Map<string, string>()

  /** With `everyone`, a number nobody registered is on WhatsApp as well. */
  constructor(everyone: boolean) {
    this.everyone = everyone
  }

  register({ number, lid, aliases = [], ...details }: RegisterOptions): Registration {
    const known = this.#registered.get(number)
    const registration: Registration = {
      isBusiness: false,
      ...known,
      ...details,
      number,
      lid: lid ?? known?.lid ?? inventLid(number),
    }
    this.#registered.set(number, registration)
    for (const name of [number, `${number}@c.us`, registration.lid])
      this.#numberOf.set(name, number)
    for (const alias of aliases) {
      this.#numberOf.set(alias, number).set(`${alias}@c.us`, number)
    }
    return registration
  }

  unregister(number: string): void {
    this.#registered.delete(number)
  }

  /** Looks up a number, a wid or a LID. */
  find(name: string): Registration | undefined {
    const number = this.#numberOf.get(name)
    const found = number === undefined ? undefined : this.#registered.get(number)
    if (found || !this.everyone || number !== undefined || !/^\d+(@c\.us)?$/.test(name))
      return found
    return this.register({ number: name.replace('@c.us', '') })
  }

  /** The bare number behind any name; groups and unknown names stay as they are. */
  numberOf(name: string): string {
    return this.#numberOf.get(name) ?? name.replace('@c.us', '')
  }

  all(): Registration[] {
    return [...this.#registered.values()]
  }
}

/** Always the same for one number. */
const inventLid = (number: string) =>
  `${createHash('sha256').update(number).digest().readBigUInt64BE().toString().slice(0, 15)}@lid`
