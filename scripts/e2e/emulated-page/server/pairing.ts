import { randomBytes, randomInt } from 'node:crypto'
import type { Link } from './links.ts'

export interface QrTiming {
  /** How long the first QR text of a connection is valid. */
  qrFirstMs: number
  /** How long each later one is valid. */
  qrIntervalMs: number
  /** After so many the page goes idle until it asks for more. */
  qrRefs: number
}

const CODE_LETTERS = '123456789ABCDEFGHJKLMNPQRSTVWXYZ'

/** The pages that wait to be linked, each with the QR reference or the code it shows. */
export class Pairing {
  readonly #timing: QrTiming
  readonly #refs = new Map<Link, string>()
  readonly #codes = new Map<string, Link>()
  readonly #timers = new Map<Link, NodeJS.Timeout>()

  constructor(timing: QrTiming) {
    this.#timing = timing
  }

  /** The first reference for this page; later ones are pushed to it. */
  invite(link: Link): string {
    this.forget(link)
    return this.#show(link, 1)
  }

  forget(link: Link): void {
    clearTimeout(this.#timers.get(link))
    this.#timers.delete(link)
    this.#refs.delete(link)
  }

  code(link: Link): string {
    const letters = Array.from({ length: 8 }, () => CODE_LETTERS[randomInt(CODE_LETTERS.length)])
    const code = letters.join('')
    this.#codes.set(code, link)
    return code
  }

  /** The page that shows this QR text now. */
  byQr(qr: string): Link {
    const [ref, noise, identity] = qr.split(',')
    for (const [link, current] of this.#refs) {
      if (link.keys?.noise !== noise || link.keys?.identity !== identity) continue
      if (current !== ref) throw new Error('this QR code has expired')
      return link
    }
    throw new Error('no page shows this QR code')
  }

  byCode(code: string): Link {
    const link = this.#codes.get(code.replace('-', ''))
    if (!link?.isOpen) throw new Error('no page shows this pairing code')
    this.#codes.delete(code)
    return link
  }

  #show(link: Link, count: number): string {
    const ref = `2@${randomBytes(48).toString('base64url')}`
    this.#refs.set(link, ref)
    const { qrFirstMs, qrIntervalMs, qrRefs } = this.#timing
    const next = () => {
      if (!link.isOpen) return this.forget(link)
      if (count < qrRefs) return link.push('ref', { ref: this.#show(link, count + 1) })
      this.#refs.delete(link)
      link.push('idle', {})
    }
    this.#timers.set(link, setTimeout(next, count === 1 ? qrFirstMs : qrIntervalMs))
    return ref
  }
}
