import t from 'tap'
import { beforeLookUp, onAbsence, onFailure, onUnchecked } from '../rulings.ts'

const limits = { maxAttempts: 5, maxCrashes: 3 }
const resend = 'reconcile_then_resend_same_id'
const ended = (status: string, code: string) => ({ is: 'end', ending: { status, code } })

const failures = {
  'what may be out is looked up': [
    { certainty: 'unknown', code: 'SEND_TIMEOUT', asked: true, attempts: 9 },
    { is: 'lookUp' },
  ],
  'what WhatsApp Web was not asked for is not out': [
    { certainty: 'unknown', code: 'ACTION_TIMEOUT', asked: false, attempts: 1 },
    { is: 'again', back: { delayMs: 2_000, forgiven: undefined, doubted: undefined } },
  ],
  'nor is it tried for ever': [
    { certainty: 'unknown', code: 'ACTION_TIMEOUT', asked: false, attempts: 5 },
    ended('failed', 'ATTEMPTS_EXHAUSTED'),
  ],
  'what never will go out ends': [
    { certainty: 'permanent', code: 'MEDIA_GONE', asked: false, attempts: 1 },
    { is: 'end', ending: { status: 'failed', code: 'MEDIA_GONE', unasked: true } },
  ],
  'what failed before is tried later': [
    { certainty: 'transient', code: 'SEND_FAILED', asked: true, attempts: 4 },
    { is: 'again', back: { delayMs: 16_000 }, outcome: 'over' },
  ],
  'what fails for the last time ends': [
    { certainty: 'transient', code: 'SEND_FAILED', asked: true, attempts: 5 },
    { is: 'end', ending: { status: 'failed', code: 'SEND_FAILED', unasked: false } },
  ],
  'a session that cannot send is no fault of the message': [
    { certainty: 'transient', code: 'SESSION_NOT_READY', asked: true, attempts: 9 },
    { is: 'again', back: { delayMs: 0, forgiven: true }, outcome: 'offline' },
  ],
  'nor is one that lacks what sending needs': [
    { certainty: 'transient', code: 'MODULE_MISSING', asked: true, attempts: 9 },
    { is: 'again', back: { delayMs: 0, forgiven: true }, outcome: 'crippled' },
  ],
  'nor is a store that is away': [
    { certainty: 'transient', code: 'MEDIA_STORE_UNAVAILABLE', asked: false, attempts: 9 },
    { is: 'again', back: { delayMs: 10_000, forgiven: true }, outcome: 'over' },
  ],
} as const

void t.test('what becomes of a try that failed', (t) => {
  for (const [what, [{ asked, attempts, ...error }, ruling]] of Object.entries(failures))
    t.match(onFailure({ attempts }, { ...error, message: 'no' }, asked, limits), ruling, what)
  t.end()
})

void t.test('what becomes of a message whose number could not be checked', (t) => {
  const error = { certainty: 'transient', code: 'NUMBER_NOT_CHECKED', message: 'no' } as const
  const holdMs = 60_000
  const hold = { ms: holdMs, by: 'NUMBER_NOT_CHECKED' }
  t.match(
    onUnchecked({ attempts: 9, opens: true }, error, holdMs, limits),
    { is: 'again', back: { delayMs: 0, forgiven: true, unseen: true, hold }, outcome: 'over' },
    'it waits as all strangers do',
  )
  t.match(
    onUnchecked({ attempts: 9, opens: false }, error, holdMs, limits),
    { is: 'again', back: { delayMs: holdMs, forgiven: true, hold } },
    'one that was counted before waits by itself',
  )
  t.match(
    onUnchecked({ attempts: 4, opens: true }, error, undefined, limits),
    { is: 'again', back: { delayMs: 16_000, forgiven: undefined, unseen: true, hold: undefined } },
    'where others can be checked it is charged',
  )
  t.match(onUnchecked({ attempts: 5, opens: true }, error, undefined, limits), {
    is: 'end',
    ending: { status: 'failed', code: 'NUMBER_NOT_CHECKED', unasked: true },
  })
  t.end()
})

const tried = { attempts: 1, crashes: 0, doubts: 0, sameLogin: true }
const elsewhere = { ...tried, sameLogin: false }

const absences = {
  'what is not there is sent again': [
    [tried, 'at_most_once'],
    { is: 'again', back: { delayMs: 0, doubted: false } },
  ],
  'at once for the second time, too: a worker may have died': [
    [{ ...tried, attempts: 2 }, resend],
    { is: 'again', back: { delayMs: 0 } },
  ],
  'then ever later': [
    [{ ...tried, attempts: 4 }, resend],
    { is: 'again', back: { delayMs: 4_000 } },
  ],
  'but not much': [[{ ...tried, attempts: 9 }, resend], { is: 'again', back: { delayMs: 60_000 } }],
  'a doubt of before does not matter where this try is known': [
    [{ ...tried, doubts: 1 }, resend],
    { is: 'again' },
  ],
  'what broke the page twice lets others go first': [
    [{ ...tried, crashes: 2 }, resend],
    { is: 'again', back: { delayMs: 15_000 } },
  ],
  'after the third time it has failed': [
    [{ ...tried, crashes: 3 }, resend],
    ended('failed', 'PAGE_CRASHED'),
  ],
  'so it has after ten tries': [
    [{ ...tried, attempts: 10 }, resend],
    ended('failed', 'ATTEMPTS_EXHAUSTED'),
  ],
  'another login proves nothing': [
    [elsewhere, resend],
    { is: 'again', back: { delayMs: 0, doubted: true } },
  ],
  'what is doubted once more ends': [
    [{ ...elsewhere, doubts: 1 }, resend],
    ended('unknown', 'OUTCOME_UNKNOWN'),
  ],
  'what may be sent once at most ends': [
    [elsewhere, 'at_most_once'],
    ended('unknown', 'OUTCOME_UNKNOWN'),
  ],
  'under another login the last breakdown is no failure': [
    [{ ...elsewhere, crashes: 3 }, resend],
    ended('unknown', 'PAGE_CRASHED'),
  ],
  'nor is the last try': [
    [{ ...elsewhere, attempts: 10 }, resend],
    ended('unknown', 'ATTEMPTS_EXHAUSTED'),
  ],
} as const

void t.test('what becomes of a message that is not found', (t) => {
  for (const [what, [[message, policy], ruling]] of Object.entries(absences))
    t.match(onAbsence(message, policy, limits), ruling, what)
  t.end()
})

void t.test('what is given up says what came in its way', (t) => {
  const cause = { message: 'asUserWidOrThrow is no function.' }
  const ruling = onAbsence({ ...tried, attempts: 10 }, resend, limits, cause)
  t.match(ruling, { ending: { message: `Not sent after 10 attempts. ${cause.message}` } })
  t.match(onAbsence({ ...tried, attempts: 10 }, resend, limits), {
    ending: { message: 'Not sent after 10 attempts.' },
  })
  t.end()
})

void t.test('what breaks the page is looked up once more than it may be tried', (t) => {
  t.equal(beforeLookUp({ crashes: 3 }, limits), undefined)
  t.match(beforeLookUp({ crashes: 4 }, limits), ended('unknown', 'PAGE_CRASHED'))
  t.end()
})
