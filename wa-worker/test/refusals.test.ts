import t from 'tap'
import { refusalOf } from '../engine/webjs-outgoing.ts'

void t.test('a lock ends when WhatsApp says, in seconds or in milliseconds', (t) => {
  const until = new Date('2026-12-24T18:00:00Z')
  const lock = (lockedUntil: number) =>
    refusalOf({
      id: { fromMe: true, remote: 'x', id: 'x' },
      ack: -1,
      errorCode: 463,
      lockedUntil,
    })
  for (const lockedUntil of [until.getTime(), until.getTime() / 1_000])
    t.strictSame(lock(lockedUntil), { code: 'REACHOUT_LOCKED', until })
  t.end()
})
