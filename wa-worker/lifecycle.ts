import type { SessionStatus } from '../shared/wa-sessions.ts'

/** What can happen to a session. */
export type LifecycleEvent =
  /** A worker begins to run it. */
  | { type: 'start'; reason?: string }
  | { type: 'qr' }
  | { type: 'ready' }
  | { type: 'linkLost' }
  | { type: 'linkRestored' }
  /** The engine broke down; another attempt follows. */
  | { type: 'broke'; reason: string }
  /** No further attempt helps: a person must look. */
  | { type: 'gaveUp'; reason: string }
  | { type: 'qrTimeout' }
  /** WhatsApp asks for a passkey: a person must answer on the phone. */
  | { type: 'passkeyAsked' }
  /** Nobody used it for long. */
  | { type: 'expired' }
  | {
      type: 'loggedOut'
      reason: 'LOGGED_OUT_ON_PHONE' | 'LOGGED_OUT_BY_REQUEST' | 'LOGOUT_UNCONFIRMED'
    }
  | { type: 'stopped' }
  /** The worker goes away and leaves the session to another one. */
  | { type: 'handedOver' }

export interface Next {
  to: SessionStatus
  reason: string | null
  /** Nothing may start it again before a person asks. */
  stops: boolean
}

type Table = Record<LifecycleEvent['type'], Partial<Record<SessionStatus, SessionStatus>>>

const everywhere = (to: SessionStatus): Partial<Record<SessionStatus, SessionStatus>> => ({
  STARTING: to,
  SCAN_QR_CODE: to,
  WORKING: to,
  RECONNECTING: to,
  PASSKEY_REQUIRED: to,
  LOGGED_OUT: to,
  EXPIRED: to,
  FAILED: to,
  STOPPED: to,
})

/** A session that was linked reconnects; one that was not starts again. */
const again: Partial<Record<SessionStatus, SessionStatus>> = {
  STARTING: 'STARTING',
  SCAN_QR_CODE: 'STARTING',
  PASSKEY_REQUIRED: 'STARTING',
  WORKING: 'RECONNECTING',
  RECONNECTING: 'RECONNECTING',
}

const table: Table = {
  start: {
    ...again,
    STOPPED: 'STARTING',
    LOGGED_OUT: 'STARTING',
    EXPIRED: 'STARTING',
    FAILED: 'STARTING',
  },
  qr: {
    STARTING: 'SCAN_QR_CODE',
    RECONNECTING: 'SCAN_QR_CODE',
    SCAN_QR_CODE: 'SCAN_QR_CODE',
    PASSKEY_REQUIRED: 'SCAN_QR_CODE',
  },
  ready: {
    STARTING: 'WORKING',
    SCAN_QR_CODE: 'WORKING',
    RECONNECTING: 'WORKING',
    PASSKEY_REQUIRED: 'WORKING',
  },
  linkLost: { WORKING: 'RECONNECTING' },
  linkRestored: { RECONNECTING: 'WORKING' },
  broke: again,
  gaveUp: everywhere('FAILED'),
  qrTimeout: { SCAN_QR_CODE: 'STOPPED', PASSKEY_REQUIRED: 'STOPPED' },
  passkeyAsked: { STARTING: 'PASSKEY_REQUIRED', SCAN_QR_CODE: 'PASSKEY_REQUIRED' },
  expired: everywhere('EXPIRED'),
  loggedOut: everywhere('LOGGED_OUT'),
  stopped: everywhere('STOPPED'),
  handedOver: again,
}

/**
 * The state a session comes to, or undefined when the event means nothing in this state. Pure, and the only place that
 * knows the state machine. Where the state stays the same a new reason may still be worth telling.
 */
export function next(from: SessionStatus, event: LifecycleEvent): Next | undefined {
  const to = table[event.type][from]
  if (to === undefined) return undefined
  return { to, reason: reasonOf(event, from), stops: stops(event) }
}

function reasonOf(event: LifecycleEvent, from: SessionStatus): string | null {
  switch (event.type) {
    case 'start':
      // Whoever ran it before did not say goodbye.
      return event.reason ?? (from === 'WORKING' ? 'WORKER_LOST' : null)
    case 'broke':
    case 'gaveUp':
    case 'loggedOut':
      return event.reason
    case 'linkLost':
      return 'LINK_LOST'
    case 'qrTimeout':
      return 'QR_TIMEOUT'
    case 'passkeyAsked':
      return 'PASSKEY_ASKED'
    case 'expired':
      return 'UNUSED'
    case 'handedOver':
      return 'WORKER_STOPPED'
    case 'qr':
    case 'ready':
    case 'linkRestored':
    case 'stopped':
      return null
  }
}

/** Of a logout that was asked for, whoever asked has said what is to follow. */
const stops = (event: LifecycleEvent) =>
  event.type === 'qrTimeout' ||
  event.type === 'expired' ||
  (event.type === 'loggedOut' && event.reason === 'LOGGED_OUT_ON_PHONE')
