import t from 'tap'
import { recordAck } from '../../shared/acks.ts'
import { connect } from '../../shared/db.ts'
import { storeReceived } from '../../shared/inbox.ts'
import { accept } from '../../shared/outbound.ts'
import { cancel, editQueued } from '../../shared/waiting-messages.ts'
import { claim, unconfirmed } from '../../shared/claims.ts'
import { testDb } from '../../shared/test/db.ts'
import { keyIdOf } from '../../shared/wa-id.ts'
import { LeaseLost, takeLeases } from '../../shared/wa-session-leases.ts'
import { createSession } from '../../shared/wa-sessions.ts'
import { Delivery } from '../../wa-worker/delivery.ts'
import { EngineError } from '../../wa-worker/engine/engine.ts'
import { describe, explore } from '../faults/model.ts'
import type { Scenario } from '../faults/model.ts'
import type { Parts } from '../faults/model-parts.ts'

const parts: Parts = {
  connect,
  keyIdOf,
  accept,
  cancel,
  editQueued,
  claim,
  unconfirmed,
  recordAck,
  storeReceived,
  takeLeases,
  LeaseLost,
  createSession,
  Delivery,
  EngineError,
}
const least = { times: 1, store: 'kept', policy: 'reconcile_then_resend_same_id' } as const
const scenarios: Scenario[] = [
  { ...least, chats: 1, loses: 'dies', client: 'cancel' },
  { ...least, chats: 1, loses: 'dies', store: 'older', policy: 'at_most_once' },
]

for (const scenario of scenarios) {
  void t.test(`in every order: ${describe(scenario)}`, async (t) => {
    const { sql } = await testDb(t)
    const { states, ends, interleavings, violations } = await explore(parts, sql, scenario)
    t.comment(`${states} states, ${ends} ends, ${interleavings} interleavings`)
    t.strictSame(violations, [])
    t.ok(interleavings > 10n)
  })
}
