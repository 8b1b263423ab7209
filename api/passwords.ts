import { availableParallelism } from 'node:os'
import bcrypt from 'bcrypt'
import type { ZxcvbnFactory } from '@zxcvbn-ts/core'
import { AppError } from '../shared/errors.ts'
import { text } from './plugins/joi.ts'

const cost = 12

/** The hash of a password nobody has: comparing with it takes as long as comparing with a real one. */
const nobodysHash = '$2b$12$jadujIpd2oLNg36MDe3m6.QTjVd/jPNjJxwlxx8aMb48xGHdOGs8K'

// bcrypt runs on Node's pool of 4 threads, as do files and name look-ups: one thread stays free for them. Past so many
// waiting, a caller would wait for seconds, and is told so at once instead.
const atOnce = Math.min(availableParallelism(), 3)
const maxWaiting = 20

let running = 0
const waiting: (() => void)[] = []

/** A password that is compared. bcrypt reads 72 bytes and stops at NUL: what it would not read is refused, never cut off. */
export const password = () =>
  text().max(72, 'utf8').messages({
    'string.max':
      '{#label} must be at most 72 bytes long (letters with accents and emoji take several)',
  })

/** A password that is set. How good it is, is found out by assertStrong. */
export const newPassword = () => password().min(8)

export function hashPassword(password: string): Promise<string> {
  return inTurn(() => bcrypt.hash(password, cost))
}

/** Whether the password belongs to the hash. Without a hash: no, after the same time. */
export async function verifyPassword(password: string, hash: string | undefined): Promise<boolean> {
  const matches = await inTurn(() => bcrypt.compare(password, hash ?? nobodysHash))
  return matches && hash !== undefined
}

// The estimate runs on the event loop, and takes seconds for some inputs of 72 letters: the first 32 are enough to judge by.
const judged = { maxLength: 32, l33tMaxSubstitutions: 20 }
let judge: Promise<ZxcvbnFactory> | undefined

/** Loads the dictionaries of the strength check, which takes a moment: servers do it before they listen. */
export function loadStrengthCheck(): Promise<ZxcvbnFactory> {
  judge ??= Promise.all([
    import('@zxcvbn-ts/core'),
    import('@zxcvbn-ts/language-common'),
    import('@zxcvbn-ts/language-en'),
  ]).then(
    ([{ ZxcvbnFactory }, common, english]) =>
      new ZxcvbnFactory({
        dictionary: { ...common.dictionary, ...english.dictionary },
        graphs: common.adjacencyGraphs,
        translations: english.translations,
        ...judged,
      }),
  )
  return judge
}

/**
 * Refuses a password that is easily guessed, also by who knows `about` (name, address): 400 VALIDATION_FAILED that says why.
 * `minScore` is zxcvbn's, from 0 (anything) to 4 (very hard to guess).
 */
export async function assertStrong(
  password: string,
  { minScore, about, path }: { minScore: number; about: string[]; path: string },
): Promise<void> {
  const { score, feedback } = (await loadStrengthCheck()).check(
    password,
    about.flatMap((text) => [text, ...text.split(/[\s@.]+/)]).map((word) => word.slice(0, 64)),
  )
  if (score >= minScore) return
  const name = path.split('.').at(-1)!
  const why = [feedback.warning, ...feedback.suggestions].filter(Boolean).join(' ')
  const message = `"${name}" is too easy to guess. ${why}`.trim()
  throw new AppError(400, 'VALIDATION_FAILED', message, [{ path, message }])
}

async function inTurn<T>(work: () => Promise<T>): Promise<T> {
  if (running < atOnce) running += 1
  else if (waiting.length < maxWaiting) await new Promise<void>((go) => waiting.push(go))
  else throw new AppError(503, 'BUSY', 'Too many people are signing in at once; try again.')
  try {
    return await work()
  } finally {
    // The place passes to the next in line, or falls free.
    const next = waiting.shift()
    if (next) next()
    else running -= 1
  }
}
