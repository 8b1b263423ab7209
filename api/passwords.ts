import { availableParallelism } from 'node:os'
import bcrypt from 'bcrypt'
import { AppError } from '../shared/errors.ts'

const cost = 12

/** The hash of a password nobody has: comparing with it takes as long as comparing with a real one. */
const nobodysHash = '$2b$12$jadujIpd2oLNg36MDe3m6.QTjVd/jPNjJxwlxx8aMb48xGHdOGs8K'

// bcrypt runs on Node's pool of 4 threads, as do files and name look-ups: one thread stays free for them. Past so many
// waiting, a caller would wait for seconds, and is told so at once instead.
const atOnce = Math.min(availableParallelism(), 3)
const maxWaiting = 20

let running = 0
const waiting: (() => void)[] = []

export function hashPassword(password: string): Promise<string> {
  return inTurn(() => bcrypt.hash(password, cost))
}

/** Whether the password belongs to the hash. Without a hash: no, after the same time. */
export async function verifyPassword(password: string, hash: string | undefined): Promise<boolean> {
  const matches = await inTurn(() => bcrypt.compare(password, hash ?? nobodysHash))
  return matches && hash !== undefined
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
