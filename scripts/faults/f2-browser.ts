/** F2: the browser or its page dies or freezes, in the middle of a send. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Family, Lab } from './lab.ts'
import { signal, stillRunning } from './proc.ts'
import type { Browser, Listed } from './proc.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually, inParallel } from './waiting.ts'
import { World } from './world.ts'
import type { Subject } from './world.ts'

const detectedWithinMs = 20_000
/** Most of a trial is waiting; more of them at once would keep two cores too busy to tell a slow page from a dead one. */
const lanes = 6
/** A session that breaks again and again is given ever longer pauses: two take turns in a lane, so that what is waited for is the mending. */
const sessionsOfLane = 2

interface Kind {
  what: string
  times: number
  signal: NodeJS.Signals
  /** The processes that get it. */
  victims(browser: Browser): Listed[]
}

const main = (browser: Browser) => [browser.main]
const renderers = (browser: Browser) => browser.renderers

const kinds: Kind[] = [
  { what: 'browser SIGKILL', times: 40, signal: 'SIGKILL', victims: main },
  { what: 'renderer crash', times: 40, signal: 'SIGSEGV', victims: renderers },
  { what: 'renderer frozen (SIGSTOP)', times: 40, signal: 'SIGSTOP', victims: renderers },
  { what: 'browser frozen (SIGSTOP)', times: 10, signal: 'SIGSTOP', victims: main },
]

interface Outcome {
  detected: Trials
  recovered: Trials
  inbound: Trials
}

interface Scene {
  world: World
  outcomes: Map<Kind, Outcome>
  /** Messages that were on their way when the fault came. */
  sent: Sent[]
  /** What customers wrote between the fault and the recovery. */
  meanwhile: { subject: Subject; body: string }[]
  leftovers: Trials
}

interface Sent {
  id: string
  customer: string
  body: string
}

export const browserFaults: Family = { id: 'F2', run }

async function run(lab: Lab): Promise<Row[]> {
  const world = await World.open(lab, 'f2', { browser: 'chromium' })
  // A message stays in flight long enough to be hit.
  world.whatsapp.setAcks({ serverMs: 150, deliveredMs: 200, readMs: 250 })
  const worker = await world.startWorker('worker-a')
  const random = lab.random('F2')
  const trials = random.shuffled(
    kinds.flatMap((kind) => Array.from({ length: lab.scaled(kind.times) }, () => kind)),
  )
  const delays = trials.map(() => random.between(0, 300))
  const subjects = await world.link(Math.min(lanes * sessionsOfLane, trials.length))
  await world.loginsOnDisk(subjects)
  lab.say(`F2: ${subjects.length} sessions linked`)

  const detection = { ms: detectedWithinMs, of: 'max' } as const
  const outcomeOf = ({ what }: Kind): Outcome => ({
    detected: new Trials('F2', `${what}: detected ≤ 20 s`, detection),
    recovered: new Trials('F2', `${what}: WORKING again without a code`),
    inbound: new Trials('F2', `${what}: inbound before and after it stored once`),
  })
  const outcomes = new Map(kinds.map((kind) => [kind, outcomeOf(kind)]))
  const leftovers = new Trials('F2', 'processes of a broken browser left 0')
  const scene: Scene = { world, outcomes, sent: [], meanwhile: [], leftovers }
  await inParallel(subjects.slice(0, lanes), lanes, async (_, lane) => {
    for (let index = lane; index < trials.length; index += lanes) {
      // A lane never meets another's sessions: their number is a multiple of the lanes', or there is but one trial for each.
      await one(scene, subjects[index % subjects.length]!, trials[index]!, delays[index]!)
    }
  })

  const messages = new Trials('F2', 'messages in flight: lost 0, doubled 0')
  for (const { id, customer, body } of scene.sent) {
    await messages.attempt(async () => {
      await world.confirmed(id)
      const { seen } = world.seenBy(customer, body)
      if (seen !== 1) throw new Error(`${body}: the recipient has it ${seen} times`)
    })
  }
  const again = scene.sent.filter(
    ({ customer, body }) => world.seenBy(customer, body).transmitted > 1,
  )
  messages.note = `${again.length} transmitted again under their id`
  // Read again at the latest half a minute after the session works.
  const missed = new Trials('F2', 'inbound between fault and recovery: missed 0')
  for (const { subject, body } of scene.meanwhile) {
    await missed.attempt(async () => {
      await eventually(`"${body}" stored`, () => world.isStored(subject, body))
    })
  }

  const survived = new Trials('F2', 'worker processes alive, nothing left behind')
  survived.check(worker.ended === undefined, () => `the worker died:\n${worker.output}`)
  const left = await world.close()
  survived.check(left.length === 0, `left behind: ${left.join(', ')}`)
  const rows = [...outcomes.values()].flatMap(({ detected, recovered, inbound }) => [
    detected.row(),
    recovered.row(),
    inbound.row(),
  ])
  return [...rows, messages.row(), missed.row(), leftovers.row(), survived.row()]
}

async function one(scene: Scene, subject: Subject, kind: Kind, delayMs: number): Promise<void> {
  const { world, outcomes, sent, meanwhile, leftovers } = scene
  const { detected, recovered, inbound } = outcomes.get(kind)!
  // On a busy machine it may have broken by itself: a fault that meets a session on its way back is noticed by nobody.
  const works = async () => (await world.status(subject.id)) === 'WORKING'
  await eventually('it works', works).catch(() => {})
  const browser = world.browser(subject.id)
  if (!browser || browser.renderers.length === 0) return detected.failed('no browser runs')
  const heard = await inbound.attempt(() => world.hears(subject))
  const mark = await world.mark(subject.id)
  const { customer, body } = world.unique()
  sent.push({ id: await world.send(subject, customer, body), customer, body })
  await sleep(delayMs) // the instant is part of the fault
  const victims = kind.victims(browser)
  const at = Date.now()
  for (const { pid } of victims) signal(pid, kind.signal)
  meanwhile.push({ subject, body: world.write(subject) })
  const noticed = await detected.attempt(async () => {
    const row = await world.broken(subject.id, mark, detectedWithinMs + 20_000)
    return row.at - at
  })
  if (!noticed) return recovered.failed('it was never noticed')
  const healed = await recovered.attempt(async () => {
    return (await world.working(subject.id, mark)).at - at
  })
  if (!heard) return
  if (healed) await inbound.attempt(() => world.hears(subject))
  else inbound.failed('it never worked again')
  await leftovers.attempt(async () => {
    const broken = victims.includes(browser.main) ? browser.all : victims
    const gone = () => stillRunning(broken).length === 0
    await eventually('the broken processes are gone', gone, 10_000)
  })
}
