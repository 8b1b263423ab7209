import t from 'tap'
import { recordAck } from '../../shared/acks.ts'
import { connect } from '../../shared/db.ts'
import { storeReceived } from '../../shared/inbox.ts'
import { accept } from '../../shared/outbound.ts'
import { claim } from '../../shared/claims.ts'
import { testDb } from '../../shared/test/db.ts'
import { createSession } from '../../shared/wa-sessions.ts'
import { liveThrough, setOwnClock } from '../faults/pacing-month.ts'
import { Random } from '../faults/random.ts'

const parts = { accept, claim, createSession, recordAck, storeReceived }

for (const seed of [1, 2]) {
  void t.test(`a week at a random pace, seed ${seed}`, async (t) => {
    const { url } = await testDb(t)
    await setOwnClock(url)
    const sql = connect(url, { applicationName: 'test', max: 1 })
    try {
      const { sent, opened, left, ...broken } = await liveThrough(
        parts,
        sql,
        new Random(seed, 'week'),
        {
          messages: 200,
          days: 7,
        },
      )
      t.strictSame(broken, { gaps: [], minutes: [], budgets: [], quiet: [], starved: [] })
      t.ok(opened > 0 && sent > opened, 'strangers and replies')
      t.equal(sent + left, 200)
    } finally {
      await sql.close()
    }
  })
}
