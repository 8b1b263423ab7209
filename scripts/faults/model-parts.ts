import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type * as acks from '../../shared/acks.ts'
import type * as claims from '../../shared/claims.ts'
import type * as db from '../../shared/db.ts'
import type * as inbox from '../../shared/inbox.ts'
import type * as outbound from '../../shared/outbound.ts'
import type * as waiting from '../../shared/waiting-messages.ts'
import type * as ids from '../../shared/wa-id.ts'
import type * as leases from '../../shared/wa-session-leases.ts'
import type * as sessions from '../../shared/wa-sessions.ts'
import type * as delivery from '../../wa-worker/delivery.ts'
import type * as engine from '../../wa-worker/engine/engine.ts'

/** The parts of the product that a model puts together in its own way. */
export interface Parts {
  /** Pieces of SQL are known to the build they come from, only. */
  connect: typeof db.connect
  keyIdOf: typeof ids.keyIdOf
  accept: typeof outbound.accept
  cancel: typeof waiting.cancel
  editQueued: typeof waiting.editQueued
  claim: typeof claims.claim
  unconfirmed: typeof claims.unconfirmed
  recordAck: typeof acks.recordAck
  storeReceived: typeof inbox.storeReceived
  takeLeases: typeof leases.takeLeases
  LeaseLost: typeof leases.LeaseLost
  createSession: typeof sessions.createSession
  Delivery: typeof delivery.Delivery
  EngineError: typeof engine.EngineError
}

/** Those of the built product in this folder, which may have had a guard taken out. */
export async function builtParts(root: string): Promise<Parts> {
  const load = async (file: string) =>
    (await import(pathToFileURL(join(root, 'dist', file)).href)) as Partial<Parts>
  const files = [
    ...[
      'db',
      'inbox',
      'outbound',
      'waiting-messages',
      'claims',
      'acks',
      'wa-id',
      'wa-session-leases',
      'wa-sessions',
    ].map((name) => `shared/${name}.js`),
    'wa-worker/delivery.js',
    'wa-worker/engine/engine.js',
  ]
  return Object.assign({}, ...(await Promise.all(files.map(load)))) as Parts
}
