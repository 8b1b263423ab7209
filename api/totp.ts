import { randomBytes } from 'node:crypto'
import { Secret, TOTP } from 'otpauth'

/** Seconds a code is shown. */
const period = 30
/** A code counts in its own step and those next to it: clocks of phones are a little off. */
const drift = 1

const totpOf = (seed: Buffer, label = '') =>
  new TOTP({
    issuer: 'Awfar',
    label,
    secret: new Secret({ buffer: new Uint8Array(seed).buffer }),
    algorithm: 'SHA1', // what every authenticator app knows
    digits: 6,
    period,
  })

/** A new seed: 160 bits, as RFC 4226 asks for. */
export const newSeed = () => randomBytes(20)

/** What an authenticator app is told, to be typed and to be scanned. */
export function describeSeed(seed: Buffer, label: string): { secret: string; otpauthUrl: string } {
  const totp = totpOf(seed, label)
  return { secret: totp.secret.base32, otpauthUrl: totp.toString() }
}

/** The code of a seed at a time, as an authenticator app shows it. */
export const codeAt = (seed: Buffer, timestamp: number) => totpOf(seed).generate({ timestamp })

/** The step a code belongs to, by the server's clock; undefined when it is wrong. */
export function stepOf(seed: Buffer, code: string, timestamp = Date.now()): number | undefined {
  const delta = totpOf(seed).validate({ token: code, timestamp, window: drift })
  return delta === null ? undefined : Math.floor(timestamp / 1_000 / period) + delta
}
