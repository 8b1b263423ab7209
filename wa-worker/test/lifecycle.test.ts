import t from 'tap'
import { readEnv } from '../../shared/config.ts'
import type { SessionStatus } from '../../shared/wa-sessions.ts'
import { reconnectBackoff, retryBackoff } from '../backoff.ts'
import { browserArgs, workerSchema } from '../config.ts'
import type { WorkerConfig } from '../config.ts'
import { incomingMessage } from '../engine/webjs-messages.ts'
import { next } from '../lifecycle.ts'
import type { LifecycleEvent } from '../lifecycle.ts'

const statuses: SessionStatus[] = [
  'STOPPED',
  'STARTING',
  'SCAN_QR_CODE',
  'WORKING',
  'RECONNECTING',
  'LOGGED_OUT',
  'PASSKEY_REQUIRED',
  'EXPIRED',
  'FAILED',
]
const events: LifecycleEvent[] = [
  { type: 'start' },
  { type: 'qr' },
  { type: 'ready' },
  { type: 'linkLost' },
  { type: 'linkRestored' },
  { type: 'broke', reason: 'BROWSER_CRASHED' },
  { type: 'gaveUp', reason: 'START_TIMEOUT' },
  { type: 'qrTimeout' },
  { type: 'passkeyAsked' },
  { type: 'expired' },
  { type: 'loggedOut', reason: 'LOGGED_OUT_ON_PHONE' },
  { type: 'stopped' },
  { type: 'handedOver' },
]

/** The whole machine at a glance: a dot where an event means nothing. */
const machine: Record<LifecycleEvent['type'], string> = {
  start: 'STARTING STARTING STARTING RECONNECTING RECONNECTING STARTING STARTING STARTING STARTING',
  qr: '. SCAN_QR_CODE SCAN_QR_CODE . SCAN_QR_CODE . SCAN_QR_CODE . .',
  ready: '. WORKING WORKING . WORKING . WORKING . .',
  linkLost: '. . . RECONNECTING . . . . .',
  linkRestored: '. . . . WORKING . . . .',
  broke: '. STARTING STARTING RECONNECTING RECONNECTING . STARTING . .',
  gaveUp: 'FAILED FAILED FAILED FAILED FAILED FAILED FAILED FAILED FAILED',
  qrTimeout: '. . STOPPED . . . STOPPED . .',
  passkeyAsked: '. PASSKEY_REQUIRED PASSKEY_REQUIRED . . . . . .',
  expired: Array(9).fill('EXPIRED').join(' '),
  loggedOut: Array(9).fill('LOGGED_OUT').join(' '),
  stopped: Array(9).fill('STOPPED').join(' '),
  handedOver: '. STARTING STARTING RECONNECTING RECONNECTING . STARTING . .',
}

void t.test('every event in every state leads where the table says', async (t) => {
  for (const event of events) {
    const row = statuses.map((status) => next(status, event)?.to ?? '.').join(' ')
    t.equal(row, machine[event.type], event.type)
  }
})

void t.test('reasons are told, and what needs a person stops', async (t) => {
  t.match(next('WORKING', { type: 'start' }), { reason: 'WORKER_LOST', stops: false })
  t.match(next('WORKING', { type: 'linkLost' }), { reason: 'LINK_LOST' })
  t.match(next('SCAN_QR_CODE', { type: 'qrTimeout' }), { reason: 'QR_TIMEOUT', stops: true })
  t.match(next('WORKING', { type: 'loggedOut', reason: 'LOGGED_OUT_ON_PHONE' }), { stops: true })
  t.match(next('WORKING', { type: 'loggedOut', reason: 'LOGGED_OUT_BY_REQUEST' }), { stops: false })
  t.match(next('STARTING', { type: 'ready' }), { reason: null, stops: false })
})

void t.test('three quick attempts, then ever longer ones up to five minutes', async (t) => {
  const steady = reconnectBackoff({ quickMs: 5_000, random: () => 0 })
  t.same([1, 2, 3, 4, 5, 6, 20].map(steady), [5_000, 5_000, 5_000, 10_000, 20_000, 40_000, 300_000])
  const jittered = reconnectBackoff({ quickMs: 5_000, random: () => 1 })
  t.equal(jittered(20), 240_000)
  t.same([1, 2, 10].map(retryBackoff), [2_000, 4_000, 60_000])
})

void t.test('browser flags may hold spaces', async (t) => {
  const rules = '--host-resolver-rules=MAP web.whatsapp.com 127.0.0.1:7443'
  t.same(browserArgs(`${rules} --ignore-certificate-errors`), [
    rules,
    '--ignore-certificate-errors',
  ])
  t.same(browserArgs(`--host-resolver-rules="MAP a.example 127.0.0.1:1"  --x`), [
    '--host-resolver-rules=MAP a.example 127.0.0.1:1',
    '--x',
  ])
  t.same(browserArgs(`"${rules}" '--y'`), [rules, '--y'])
  const read = (value: string) => readEnv<WorkerConfig>(workerSchema, { WA_BROWSER_ARGS: value })
  t.same(read('').WA_BROWSER_ARGS, [])
  t.same(read('--a --b=c d').WA_BROWSER_ARGS, ['--a', '--b=c d'])
  t.throws(() => read('headless'), {
    message: /WA_BROWSER_ARGS must hold flags that begin with --/,
  })
})

void t.test('a message of the library becomes ours, or nothing', async (t) => {
  const from = (remote: string | object, more: object = {}) =>
    incomingMessage(
      { id: { fromMe: false, remote, id: '3A1' }, type: 'chat', body: 'hi', ...more },
      ['5@c.us', '55@lid'],
    )
  t.match(from('1@c.us'), {
    key: { fromMe: false, chatId: '1@c.us', id: '3A1', participant: '' },
    waMessageId: 'false_1@c.us_3A1',
    type: 'text',
  })
  t.match(from({ _serialized: '1:12@s.whatsapp.net' }), { key: { chatId: '1@c.us' } })
  t.match(
    incomingMessage(
      {
        id: { fromMe: false, remote: '9@g.us', id: '3A1', participant: { _serialized: '2@c.us' } },
        type: 'ptt',
      },
      [],
    ),
    {
      key: { participant: '2@c.us' },
      waMessageId: 'false_9@g.us_3A1_2@c.us',
      type: 'voice',
      body: null,
    },
  )
  t.match(from('1@c.us', { body: 'a\0b\ud800', notifyName: ' \0' }), {
    body: 'ab\ufffd',
    senderName: null,
  })
  const strange = { type: 'image', directPath: '/v', mimetype: 'image/\0png', filename: '\0' }
  t.match(from('1@c.us', { ...strange, size: -1, duration: '2.4' }), {
    media: { mimeType: 'image/png', filename: null, size: null, seconds: 2 },
  })
  t.match(from('1@c.us', { ...strange, mimetype: ' ', size: 'big', duration: 1e300 }), {
    media: { mimeType: 'application/octet-stream', size: null, seconds: null },
  })
  t.equal(from('status@broadcast'), undefined)
  t.equal(from('1@newsletter'), undefined)
  t.equal(from('1@c.us', { type: 'e2e_notification' }), undefined)
  t.equal(incomingMessage({ id: {} }, []), undefined)
  t.match(from('1@c.us', { quotedStanzaID: '3EB0', quotedParticipant: '55@lid' }), {
    quoted: { fromMe: true, chatId: '1@c.us', id: '3EB0', participant: '' },
  })
  t.match(from('9@g.us', { quotedStanzaID: '3A0', quotedParticipant: '2@c.us' }), {
    quoted: { fromMe: false, chatId: '9@g.us', id: '3A0', participant: '2@c.us' },
  })
  // A picture stands where the body of media and of places would be.
  t.match(from('1@c.us', { type: 'image', body: '/9j/4AAQ' }), {
    type: 'image',
    body: null,
    media: null,
  })
  t.match(from('1@c.us', { type: 'image', caption: 'look', directPath: '/x', size: '12' }), {
    body: 'look',
    media: { kind: 'image', size: 12, seconds: null },
  })
  t.match(from('1@c.us', { type: 'location', body: '/9j/4AAQ', lat: 1, lng: 2 }), {
    body: null,
    location: { latitude: 1, longitude: 2 },
  })
  t.match(from('1@c.us', { type: 'something_new' }), { type: 'unknown' })
})
