/** F2: the browser or its page dies or freezes, in the middle of a send. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Family, Lab } from './lab.ts'
import { signal } from './proc.ts'
import type { Browser } from './proc.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { inParallel } from './waiting.ts'
import { World } from './world.ts'
import type { Subject } from './world.ts'

const detectedWithinMs = 20_000
const sessions = 20

interface Kind {
  what: string
  inflict(browser: Browser): void
}

const kinds: Kind[] = [
  { what: 'browser SIGKILL', inflict: ({ main }) => signal(main.pid, 'SIGKILL') },
  {
    what: 'renderer crash',
    inflict: ({ renderers }) => renderers.forEach(({ pid }) => signal(pid, 'SIGSEGV')),
  },
  {
    what: 'renderer frozen (SIGSTOP)',
    inflict: ({ renderers }) => renderers.forEach(({ pid }) => signal(pid, 'SIGSTOP')),
  },
  { what: 'browser frozen (SIGSTOP)', inflict: ({ main }) => signal(main.pid, 'SIGSTOP') },
]

interface Outcome {
  detected: Trials
  recovered: Trials
  inbound: Trials
}

export const browserFaults: Family = { id: 'F2', run }

async function run(lab: Lab): Promise<Row[]> {
  const world = await World.open(lab, 'f2')
  // A message stays in flight long enough to be hit.
  world.whatsapp.setAcks({ serverMs: 150, deliveredMs: 200, readMs: 250 })
  const worker = await world.startWorker('worker-a')
  const random = lab.random('F2')
  const trials = random.shuffled(
    kinds.flatMap((kind) => Array.from({ length: lab.scaled(40) }, () => kind)),
  )
  const subjects = await world.link(Math.min(sessions, trials.length))
  await world.loginsOnDisk(subjects)
  lab.say(`F2: ${subjects.length} sessions linked`)

  const outcomes = new Map<Kind, Outcome>(
    kinds.map((kind) => [
      kind,
      {
        detected: new Trials('F2', `${kind.what}: detected ≤ 20 s`, {
          ms: detectedWithinMs,
          of: 'max',
        }),
        recovered: new Trials('F2', `${kind.what}: WORKING again without a code`),
        inbound: new Trials('F2', `${kind.what}: inbound afterwards stored once`),
      },
    ]),
  )
  const sent: Sent[] = []
  await inParallel(subjects, subjects.length, async (subject, lane) => {
    for (let index = lane; index < trials.length; index += subjects.length) {
      const kind = trials[index]!
      await one(world, subject, kind, outcomes.get(kind)!, random.between(0, 300), sent)
    }
  })

  const messages = new Trials('F2', 'messages in flight: lost 0, doubled 0')
  for (const { id, customer, body } of sent) {
    await messages.attempt(async () => {
      await world.confirmed(id)
      const { seen } = world.seenBy(customer, body)
      if (seen !== 1) throw new Error(`${body}: the recipient has it ${seen} times`)
    })
  }
  const again = sent.filter(({ customer, body }) => world.seenBy(customer, body).transmitted > 1)
  messages.note = `${again.length} transmitted again under their id`

  const survived = new Trials('F2', 'worker processes alive, nothing left behind')
  survived.check(worker.ended === undefined, () => `the worker died:\n${worker.output}`)
  const left = await world.close()
  survived.check(left.length === 0, `left behind: ${left.join(', ')}`)
  const rows = [...outcomes.values()].flatMap(({ detected, recovered, inbound }) => [
    detected.row(),
    recovered.row(),
    inbound.row(),
  ])
  return [...rows, messages.row(), survived.row()]
}

interface Sent {
  id: string
  customer: string
  body: string
}

async function one(
  world: World,
  subject: Subject,
  kind: Kind,
  { detected, recovered, inbound }: Outcome,
  delayMs: number,
  sent: Sent[],
): Promise<void> {
  const browser = await world.browser(subject.id)
  if (!browser || browser.renderers.length === 0) return detected.failed('no browser runs')
  const mark = await world.mark(subject.id)
  const { customer, body } = world.unique()
  sent.push({ id: await world.send(subject, customer, body), customer, body })
  await sleep(delayMs) // the instant is part of the fault
  const at = Date.now()
  kind.inflict(browser)
  const noticed = await detected.attempt(async () => {
    const row = await world.broken(subject.id, mark, detectedWithinMs + 20_000)
    return row.at - at
  })
  if (!noticed) return recovered.failed('it was never noticed')
  const healed = await recovered.attempt(async () => {
    return (await world.working(subject.id, mark)).at - at
  })
  if (healed) await inbound.attempt(() => world.hears(subject))
  else inbound.failed('it never worked again')
}
