/** F13: workers are told to end while everybody sends: one after the other, all of them, three times. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Family, Lab } from './lab.ts'
import { familyOf, listProcesses, stillRunning } from './proc.ts'
import { unpaced } from './program.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { World } from './world.ts'
import type { Subject } from './world.ts'

const sessions = 4
const workers = 3
const exitWithinMs = 30_000
const everyMs = 400

export const shutdown: Family = { id: 'F13', run }

interface Sent {
  id: string
  customer: string
  body: string
}

async function run(lab: Lab): Promise<Row[]> {
  const world = await World.open(lab, 'f13', {
    settings: {
      // Room for all sessions on two of the workers.
      WA_MAX_SESSIONS: String(Math.ceil(sessions / (workers - 1))),
      // At the usual pace what was sent in half a minute would take three to leave.
      ...unpaced,
    },
  })
  const random = lab.random('F13')
  const exits = new Trials('F13', 'SIGTERM under load: exit code 0, ≤ 30 s', {
    ms: exitWithinMs,
    of: 'max',
  })
  const clean = new Trials('F13', 'SIGTERM under load: leftover processes 0')
  const delivery = new Trials('F13', `rolling restart of ${workers} workers ×3: lost 0, doubled 0`)
  const order = new Trials('F13', `rolling restart of ${workers} workers ×3: order kept`)
  const tidy = new Trials('F13', 'afterwards: leftover files and processes 0')

  let named = 0
  const start = () => world.startWorker(`worker-${named++}`)
  const running = [await start(), await start()]
  const subjects = await world.link(sessions)
  await world.loginsOnDisk(subjects)
  running.push(await start())

  const loading = new AbortController()
  const sent = new Map<Subject, Sent[]>(subjects.map((subject) => [subject, []]))
  const load = subjects.map((subject) => keepSending(world, subject, sent, loading.signal))
  for (let round = 0; round < lab.scaled(3); round++) {
    for (let index = 0; index < workers; index++) {
      await sleep(random.between(300, 1_500)) // the instant is part of the fault
      const worker = running[index]!
      const before = familyOf(worker.pid, listProcesses())
      const at = performance.now()
      const { code, signal } = await worker.end('SIGTERM')
      const ms = performance.now() - at
      if (code === 0) exits.kept(ms)
      else exits.failed(`ended with ${code ?? signal} after ${Math.round(ms)} ms`)
      const left = stillRunning(before)
      clean.check(left.length === 0, `${left.length} processes left`)
      running[index] = await start()
    }
  }
  loading.abort()
  await Promise.all(load)

  for (const [subject, messages] of sent) {
    for (const { id, customer, body } of messages) {
      await delivery.attempt(async () => {
        await world.confirmed(id, 90_000)
        const { seen } = world.seenBy(customer, body)
        if (seen !== 1) throw new Error(`${body}: the recipient has it ${seen} times`)
      })
    }
    const customer = messages[0]!.customer
    const got = world.whatsapp.received(customer).map(({ body }) => body)
    const wanted = messages.map(({ body }) => body)
    order.check(
      JSON.stringify(got) === JSON.stringify(wanted),
      () =>
        `${subject.account}: ${wanted.findIndex((body, index) => got[index] !== body)}th differs`,
    )
  }
  const again = world.whatsapp.stanzas.filter(({ transmission }) => transmission > 1).length
  delivery.note = `${again} transmissions beyond the first, each under its own id`
  const left = await world.close()
  tidy.check(left.length === 0, `left behind: ${left.join(', ')}`)
  return [exits.row(), clean.row(), delivery.row(), order.row(), tidy.row()]
}

/** One customer a session, so that the order can be seen. */
async function keepSending(
  world: World,
  subject: Subject,
  sent: Map<Subject, Sent[]>,
  signal: AbortSignal,
): Promise<void> {
  const { customer } = world.unique()
  while (!signal.aborted) {
    const { body } = world.unique()
    sent.get(subject)!.push({ id: await world.send(subject, customer, body), customer, body })
    await sleep(everyMs, undefined, { signal }).catch(() => {})
  }
}
