/** F16: a session is stopped and started again and again: nothing may pile up. */
import type { Family, Lab } from './lab.ts'
import { familyOf, listProcesses } from './proc.ts'
import type { Measured, Program } from './program.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'
import { World } from './world.ts'
import type { Subject } from './world.ts'

/** Pools breathe; a leak adds one with each cycle, this many more with each ten. */
const spare = (cycles: number) => Math.max(10, cycles / 10)
/** A heap breathes as well, even right after a collection; a cycle that kept its engine would add several times as much. */
const spareHeap = (cycles: number) => Math.max(4_194_304, cycles * 10_240)

export const recycles: Family = {
  id: 'F16',
  run: async (lab) => {
    const both = [recycle(lab, 'simulator', 300, 10), recycle(lab, 'webjs', 40, 4)]
    return (await Promise.all(both)).flat()
  },
}

async function recycle(
  lab: Lab,
  engine: 'webjs' | 'simulator',
  times: number,
  sessions: number,
): Promise<Row[]> {
  const where = engine === 'webjs' ? 'the headless shell' : 'simulator'
  const world = await World.open(lab, `f16-${engine}`, { engine })
  const cycles = new Trials('F16', `stop and start on ${where}: WORKING again without a code`)
  const leaks = new Trials(
    'F16',
    `after them, on ${where}: no process, descriptor, listener or memory piled up`,
  )
  const worker = await world.startWorker('worker-a', { measured: true })
  const subjects = await world.link(sessions)
  if (engine === 'webjs') await world.loginsOnDisk(subjects)

  const rounds = Math.max(3, Math.ceil(lab.scaled(times) / sessions))
  const samples: Sample[] = []
  for (let round = 0; round < rounds; round++) {
    await Promise.all(subjects.map((subject) => cycle(world, subject, cycles)))
    samples.push(await sample(worker))
  }
  // The first round fills pools and caches that stay.
  const first = samples[0]!
  const last = samples.at(-1)!
  const slope = (values: number[]) => slopeOf(values.slice(1)) / sessions / 1_024
  const cyclesAfterFirst = (rounds - 1) * sessions
  const totals = (counts: Sample): [string, number, number][] => [
    ['browsers', counts.browsers, 0],
    ['descriptors', counts.descriptors, spare(cyclesAfterFirst)],
    ['listeners', sum(counts.listeners), 0],
    ['handles and timers', sum(counts.resources), spare(cyclesAfterFirst)],
  ]
  for (const [index, [what, after, more]] of totals(last).entries()) {
    const before = totals(first)[index]![1]
    leaks.check(
      after <= before + more,
      `${what}: ${before} after one round, ${after} at the end ${JSON.stringify([first, last])}`,
    )
  }
  // Once the first third has warmed it up the heap stays where it is.
  const warm = samples.slice(Math.floor(samples.length / 3))
  const growth = slopeOf(warm.map(({ heap }) => heap)) * (warm.length - 1)
  leaks.check(
    growth <= spareHeap((warm.length - 1) * sessions),
    () => `the heap grew by ${mb(growth)} MB: ${warm.map(({ heap }) => mb(heap)).join(', ')}`,
  )
  leaks.check(
    !worker.output.includes('MaxListenersExceededWarning'),
    'Node warned of too many listeners',
  )
  leaks.note =
    `${rounds * sessions} cycles; a cycle adds ${slope(samples.map(({ rss }) => rss)).toFixed(1)} kB of RSS ` +
    `and ${slope(samples.map(({ heap }) => heap)).toFixed(1)} kB of heap to the worker ` +
    `(RSS ${mb(first.rss)} → ${mb(last.rss)} MB)`
  const left = await world.close()
  leaks.check(left.length === 0, `left behind: ${left.join(', ')}`)
  return [cycles.row(), leaks.row()]
}

async function cycle(world: World, subject: Subject, cycles: Trials): Promise<void> {
  await cycles.attempt(async () => {
    const at = Date.now()
    const path = `/api/whatsapp/sessions/${subject.id}`
    await world.agent.call('POST', `${path}/stop`)
    await eventually('STOPPED', async () => (await world.status(subject.id)) === 'STOPPED')
    const mark = await world.mark(subject.id)
    await world.agent.call('POST', `${path}/start`)
    return (await world.working(subject.id, mark)).at - at
  })
}

interface Sample extends Measured {
  browsers: number
}

async function sample(worker: Program): Promise<Sample> {
  const measured = await worker.measure()
  // A browser's own helpers come and go; the number of browsers does not.
  const browsers = familyOf(worker.pid, listProcesses()).filter(
    ({ command }) => command.includes('--user-data-dir=') && !command.includes(' --type='),
  )
  return { ...measured, browsers: browsers.length }
}

/** Least squares: what each further sample adds. */
function slopeOf(values: number[]): number {
  const middle = (values.length - 1) / 2
  const mean = values.reduce((total, value) => total + value, 0) / values.length
  const [over, under] = values.reduce(
    ([above, below], value, index) => [
      above + (index - middle) * (value - mean),
      below + (index - middle) ** 2,
    ],
    [0, 0],
  )
  return under === 0 ? 0 : over / under
}

const sum = (counts: Record<string, number>) =>
  Object.values(counts).reduce((total, count) => total + count, 0)

const mb = (bytes: number) => Math.round(bytes / 1_048_576)
