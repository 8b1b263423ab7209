import { availableParallelism } from 'node:os'
import { dirname, extname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Piscina } from 'piscina'
import type { ZxcvbnFactory } from '@zxcvbn-ts/core'
import { AppError } from '../shared/errors.ts'
import { text } from './plugins/joi.ts'

const cost = 12

/** The hash of a password nobody has: comparing with it takes as long as comparing with a real one. */
const nobodysHash = '$2b$12$jadujIpd2oLNg36MDe3m6.QTjVd/jPNjJxwlxx8aMb48xGHdOGs8K'

const here = fileURLToPath(import.meta.url)

/**
 * Where bcrypt runs, a fifth of a second of a processor each time. On Node's own threads files and name look-ups would wait for it, and at
 * our own priority every other answer would. One that dies fails its password and is replaced.
 */
export const threads = new Piscina({
  filename: join(dirname(here), `bcrypt-thread${extname(here)}`),
  minThreads: 0,
  maxThreads: availableParallelism(),
  idleTimeout: 60_000,
})
// Past so many a caller would wait for seconds, and is told so at once instead.
const maxWaiting = 20

/** bcrypt reads no more of a password, and stops at NUL. */
export const passwordBytes = 72

/** A password that is compared. What bcrypt would not read is refused, never cut off. */
export const password = () =>
  text().max(passwordBytes, 'utf8').messages({
    'string.max':
      '{#label} must be at most {#limit} bytes long (letters with accents and emoji take several)',
  })

/** A password that is set. How good it is, is found out by assertStrong. */
export const newPassword = () => password().min(8)

/** Hashes a password in a thread, with its salt and cost in the hash. */
export function hashPassword(password: string): Promise<string> {
  return inThread<string>('hash', { password, cost })
}

/** Whether the password belongs to the hash. Without a hash: no, after the same time. */
export async function verifyPassword(password: string, hash: string | undefined): Promise<boolean> {
  const matches = await inThread<boolean>('compare', { password, hash: hash ?? nobodysHash })
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

/** Throws 503 BUSY while more passwords wait than can be judged soon: asked before anything else is done for a sign-in. */
export function assertNotBusy(): void {
  if (threads.queueSize < maxWaiting) return
  throw new AppError(503, 'BUSY', 'Too many people are signing in at once; try again.')
}

async function inThread<T>(name: 'hash' | 'compare', task: object): Promise<T> {
  assertNotBusy()
  return (await threads.run(task, { name })) as T
}
