import type { Claimed, Ending, FreshlyClaimed, Verdict } from '../shared/claims.ts'
import type { UnknownPolicy } from '../shared/workspaces.ts'
import { retryBackoff } from './backoff.ts'
import type { EngineError } from './engine/engine.ts'

/**
 * What becomes of a claimed message. again: it is put back, and `outcome` tells the session whether it can go on. end: it is given up. lookUp: it may be out, and nothing is done about it
 * before that is known.
 */
export type Ruling =
  | { is: 'again'; back: Verdict; outcome: 'over' | 'offline' | 'crippled' }
  | { is: 'end'; ending: Ending }
  | { is: 'lookUp' }

export interface Limits {
  /** Tries that fail before a message is given up. */
  maxAttempts: number
  /** Times the page may break down over a message. */
  maxCrashes: number
}

/** On a message whose try failed. `asked`: WhatsApp Web had been told to send it by then; before that, nothing can have gone out. */
export function onFailure(
  { attempts }: Pick<Claimed, 'attempts'>,
  { certainty, code, message }: Pick<EngineError, 'certainty' | 'code' | 'message'>,
  asked: boolean,
  { maxAttempts }: Limits,
): Ruling {
  if (certainty === 'unknown' && asked) return { is: 'lookUp' }
  const failed = (why: string, text: string): Ruling => ({
    is: 'end',
    ending: { status: 'failed', code: why, message: text, unasked: !asked },
  })
  if (certainty === 'permanent') return failed(code, message)
  if (code === 'SESSION_NOT_READY' || code === 'MODULE_MISSING') {
    const outcome = code === 'MODULE_MISSING' ? 'crippled' : 'offline'
    return { is: 'again', back: { delayMs: 0, forgiven: true }, outcome }
  }
  // No fault of the message, however long it lasts.
  if (code === 'MEDIA_STORE_UNAVAILABLE')
    return { is: 'again', back: { delayMs: storeDelayMs, forgiven: true }, outcome: 'over' }
  if (attempts < maxAttempts)
    return { is: 'again', back: { delayMs: retryBackoff(attempts) }, outcome: 'over' }
  return certainty === 'unknown'
    ? failed('ATTEMPTS_EXHAUSTED', notSentAfter(attempts, { message }))
    : failed(code, message)
}

/**
 * On a message whose number could not be checked. `holdMs`: for how long no other can be either; then it is no fault of
 * the message, however long it lasts. Undefined if others can be.
 * A conversation that was counted is given back in either case, and the message waits with all other new contacts; what
 * was counted by an earlier claim waits as long by itself.
 */
export function onUnchecked(
  message: Pick<FreshlyClaimed, 'attempts' | 'opens'>,
  error: Pick<EngineError, 'certainty' | 'code' | 'message'>,
  holdMs: number | undefined,
  limits: Limits,
): Ruling {
  if (holdMs === undefined) {
    const ruling = onFailure(message, error, false, limits)
    return ruling.is === 'again' ? { ...ruling, back: { ...ruling.back, unseen: true } } : ruling
  }
  const delayMs = message.opens ? 0 : holdMs
  const hold = { ms: holdMs, by: 'NUMBER_NOT_CHECKED' } as const
  return { is: 'again', back: { delayMs, forgiven: true, unseen: true, hold }, outcome: 'over' }
}

/**
 * On a message that is to be looked up; undefined if it may be. More crashes than allowed: the last came during a look-up,
 * so the outcome stays unknown.
 */
export function beforeLookUp(
  { crashes }: Pick<Claimed, 'crashes'>,
  { maxCrashes }: Limits,
): Ruling | undefined {
  if (crashes <= maxCrashes) return undefined
  return { is: 'end', ending: { status: 'unknown', ...pageCrashed(crashes) } }
}

/**
 * On a message that WhatsApp Web does not know. `policy`: what the workspace wants where that proves nothing. `cause`: what
 * came in the way of the send, if that is known.
 */
export function onAbsence(
  {
    attempts,
    crashes,
    doubts,
    sameLogin,
  }: Pick<Claimed, 'attempts' | 'crashes' | 'doubts' | 'sameLogin'>,
  policy: UnknownPolicy,
  { maxAttempts, maxCrashes }: Limits,
  cause?: Pick<EngineError, 'message'>,
): Ruling {
  // The login it was sent by is not the one that was asked: that one has its word for it only where it was not sent at all.
  const doubted = !sameLogin
  const end = (why: { code: string; message: string }): Ruling => ({
    is: 'end',
    ending: { status: doubted ? 'unknown' : 'failed', ...why },
  })
  if (crashes >= maxCrashes) return end(pageCrashed(crashes))
  // Deaths of workers count here too, which are seldom a message's fault: hence the longer rope.
  if (attempts >= 2 * maxAttempts)
    return end({ code: 'ATTEMPTS_EXHAUSTED', message: notSentAfter(attempts, cause) })
  if (doubted && (doubts > 0 || policy === 'at_most_once')) return end(outcomeUnknown)
  // What comes to nothing again and again is not to use up the pace of all others.
  const delayMs = crashes > 1 ? suspectDelayMs : attempts > 2 ? retryBackoff(attempts - 2) : 0
  return { is: 'again', back: { delayMs, doubted }, outcome: 'over' }
}

export const outcomeUnknown = {
  code: 'OUTCOME_UNKNOWN',
  message: 'Nobody can know whether this was sent. Ask the recipient, or send it again.',
}

const pageCrashed = (crashes: number) => ({
  code: 'PAGE_CRASHED',
  message: `WhatsApp Web broke down ${crashes} times over this message.`,
})

const notSentAfter = (attempts: number, cause?: { message: string }) =>
  `Not sent after ${attempts} attempts. ${cause?.message ?? ''}`.trim()

/** A message the page broke down over twice lets the others go first. */
const suspectDelayMs = 15_000

const storeDelayMs = 10_000
