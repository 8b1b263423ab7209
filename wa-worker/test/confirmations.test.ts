import t from 'tap'
import { Confirmations } from '../confirmations.ts'
import type { Outstanding } from '../../shared/claims.ts'

const minute = 60_000
const times = { unconfirmedMs: minute, stalledMs: 3 * minute, unknownMs: 15 * minute }

/** A session that was opened at minute 0; each message is named by the minute it is claimed in. */
function opened() {
  const confirmations = new Confirmations(times)
  const at = (claimed: number) => ({
    ...{ keyId: `key ${claimed}`, messageId: `message ${claimed}` },
    claimedAt: new Date(claimed * minute),
  })
  confirmations.opened(0)
  return {
    open: (now: number) => confirmations.opened(now * minute),
    close: (now: number) => confirmations.closed(now * minute),
    hand: (claimed: number) => confirmations.handed(at(claimed), claimed * minute),
    ack: (claimed: number) => confirmations.acked(`key ${claimed}`),
    confirm: (claimed: number) => confirmations.confirmed(at(claimed)),
    drop: (claimed: number) => confirmations.dropped(at(claimed)),
    isClear: () => confirmations.isClear,
    /** What is overdue, and what is suspicious, of what was claimed in these minutes. */
    review: (now: number, ...claimed: number[]) => {
      const outstanding = claimed.map((minutes) => ({
        ...at(minutes),
        ageMs: (now - minutes) * minute,
      }))
      const { overdue, suspicious } = confirmations.review(
        outstanding as Outstanding[],
        now * minute,
      )
      const claims = (messages: Outstanding[]) =>
        messages.map(({ claimedAt }) => claimedAt.getTime() / minute)
      return { overdue: claims(overdue), suspicious: claims(suspicious) }
    },
  }
}

void t.test('silence speaks against a session in its time, and each message once', (t) => {
  const { review } = opened()
  t.strictSame(review(2, 0).suspicious, [])
  t.strictSame(review(3, 0, 1).suspicious, [0])
  t.strictSame(review(4, 0, 1).suspicious, [1])
  t.strictSame(review(5, 0, 1).suspicious, [])
  t.end()
})

void t.test('what was handed over before a confirmed message speaks against nobody', (t) => {
  for (const confirm of ['ack', 'confirm'] as const) {
    const session = opened()
    session.hand(0)
    session.hand(1)
    session.hand(2)
    session[confirm](1)
    t.strictSame(session.review(6, 0, 2).suspicious, [2], 'what was handed over after it does')
  }
  t.end()
})

void t.test('that another session has its ack says nothing of this one', (t) => {
  const { hand, ack, drop, review } = opened()
  hand(0)
  hand(1)
  ack(7)
  drop(1)
  ack(1)
  t.strictSame(review(3, 0).suspicious, [0])
  t.end()
})

void t.test('a page that is new has its own time to confirm what was left', (t) => {
  const { open, close, review } = opened()
  close(2)
  open(2)
  t.strictSame(review(4, 0).suspicious, [])
  t.strictSame(review(5, 0).suspicious, [0])
  t.end()
})

void t.test('what no cure has helped is tried as seldom as messages are given up', (t) => {
  const { hand, confirm, review } = opened()
  t.strictSame(review(3, 0).suspicious, [0])
  t.strictSame(review(7, 0, 4).suspicious, [4])
  t.strictSame(review(12, 0, 4, 9).suspicious, [])
  t.strictSame(review(21, 9).suspicious, [])
  t.strictSame(review(22, 9).suspicious, [9])
  hand(23)
  confirm(23)
  t.strictSame(review(27, 24).suspicious, [24], 'a confirmation ends that')
  t.end()
})

void t.test('what is overdue has had its time while the session was open', (t) => {
  const { open, close, review } = opened()
  t.strictSame(review(10, 0).overdue, [])
  close(10)
  open(100)
  t.strictSame(review(104, 0).overdue, [])
  t.strictSame(review(105, 0), { overdue: [0], suspicious: [] })
  t.end()
})

void t.test('so has what an earlier owner left', (t) => {
  const { review } = opened()
  t.strictSame(review(1, -60).overdue, [])
  t.strictSame(review(14, -60).overdue, [])
  t.strictSame(review(15, -60).overdue, [-60])
  t.end()
})

void t.test('what is sent anew has its time anew', (t) => {
  const { review, drop } = opened()
  review(10, 0)
  drop(0)
  t.strictSame(review(20, 12).overdue, [])
  t.strictSame(review(27, 12).overdue, [12])
  t.end()
})

void t.test('nothing is kept of what became of messages elsewhere', (t) => {
  const { hand, review, isClear } = opened()
  hand(0)
  t.notOk(isClear())
  review(1)
  t.notOk(isClear(), 'it may not have been looked for yet')
  review(3)
  t.ok(isClear())
  t.end()
})
