import t from 'tap'
import { Random } from '../faults/random.ts'
import { markdown, plain } from '../faults/table.ts'
import { placeIn } from '../markdown.ts'
import { isKept, percentile, Trials } from '../faults/trials.ts'

void t.test('a promise is kept when every trial kept it, in time', async (t) => {
  const none = new Trials('F0', 'nothing was tried')
  t.notOk(isKept(none.row()), 'no trial shows nothing')

  const one = new Trials('F0', 'one of two')
  one.kept(5)
  await one.attempt(() => Promise.reject(new Error('lost')))
  t.match(one.row(), { n: 2, kept: 1, times: [5], failures: ['lost'] })
  t.notOk(isKept(one.row()))

  const slow = new Trials('F0', 'all, but late', { ms: 100, of: 'p95' })
  for (let ms = 1; ms <= 20; ms++) slow.kept(ms * 10)
  t.notOk(isKept(slow.row()))
  t.match(slow.row().failures, ['p95 190 ms, promised 100 ms'])

  const inTime = new Trials('F0', 'all, in time', { ms: 200, of: 'max' })
  for (let ms = 1; ms <= 20; ms++) inTime.kept(ms * 10)
  t.ok(isKept(inTime.row()))
})

void t.test('percentiles are values that were measured', (t) => {
  t.equal(percentile([], 0.5), undefined)
  t.equal(percentile([3, 1, 2], 0.5), 2)
  t.equal(percentile([3, 1, 2], 1), 3)
  t.equal(percentile([7], 0.95), 7)
  t.end()
})

void t.test('the same seed gives the same chance, each name its own', (t) => {
  const numbers = (seed: number, name: string) => {
    const random = new Random(seed, name)
    return Array.from({ length: 5 }, () => random.between(0, 1_000))
  }
  t.same(numbers(7, 'F2'), numbers(7, 'F2'))
  t.notSame(numbers(7, 'F2'), numbers(7, 'F3'))
  t.notSame(numbers(7, 'F2'), numbers(8, 'F2'))
  t.same(new Random(7, 'F2').shuffled([1, 2, 3, 4]).sort(), [1, 2, 3, 4])
  t.end()
})

void t.test('the table takes its place in a README, and the next one takes the same', (t) => {
  const broken = new Trials('F0', 'a promise')
  broken.failed('because')
  const report = {
    ...{ seed: 7, quick: false, date: '2026-01-02', machine: '2 cores', seconds: 9 },
    browsers: [
      { name: 'Chromium 1', families: ['F0', 'F1'] },
      { name: 'its headless shell 1', families: ['F1'] },
      { name: 'another', families: [] },
    ],
    rows: [broken.row()],
  }
  t.match(plain(report), /seed 7[^]*F0 +a promise +1 +0 .* BROKEN[^]*1 × because/)
  t.match(plain(report), /\. F0, F1 on Chromium 1; F1 on its headless shell 1\. /)
  t.notMatch(plain(report), 'another')
  const readme = 'before\n<!-- faults: begin -->\nold\n<!-- faults: end -->\nafter\n'
  const placed = placeIn(readme, 'faults', markdown(report))
  t.match(placed, /^before\n[^]*\| F0 \| a promise \|[^]*\nafter\n$/)
  t.notMatch(placed, 'old')
  t.equal(placeIn(placed, 'faults', markdown(report)), placed)
  t.match(placeIn('', 'faults', markdown(report)), /^2026-01-02, seed 7/)
  t.end()
})
