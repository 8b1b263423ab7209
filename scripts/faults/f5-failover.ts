/** F5: the owner dies; another worker of the same machine brings its sessions back. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Family, Lab } from './lab.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { World } from './world.ts'

const sessions = 2
/** While one waits for a lease to run out, browsers start in the other. */
const worlds = 2
const leaseTtlMs = 2_000

export const failover: Family = { id: 'F5', run }

async function run(lab: Lab): Promise<Row[]> {
  const limit = leaseTtlMs + 5_000
  const restored = new Trials(
    'F5',
    `owner SIGKILLed: WORKING elsewhere ≤ TTL (${leaseTtlMs / 1_000} s) + 5 s`,
    { ms: limit, of: 'p95' },
  )
  const delivery = new Trials('F5', 'messages in flight at the kill: lost 0, doubled 0')
  restored.note = `${sessions} sessions at once, in each of ${worlds} worlds`
  await Promise.all(
    Array.from({ length: worlds }, (_, index) => killOwners(lab, index, { restored, delivery })),
  )
  return [restored.row(), delivery.row()]
}

async function killOwners(
  lab: Lab,
  index: number,
  { restored, delivery }: { restored: Trials; delivery: Trials },
): Promise<void> {
  const name = `f5-${index}`
  const world = await World.open(lab, name, {
    settings: { WA_LEASE_TTL_MS: String(leaseTtlMs) },
  })
  const random = lab.random(name)
  const sent: { id: string; customer: string; body: string }[] = []

  let owner = await world.startWorker('worker-0')
  const subjects = await world.link(sessions)
  await world.loginsOnDisk(subjects)
  for (let kill = 1; kill <= Math.ceil(lab.scaled(20) / worlds); kill++) {
    const heir = await world.startWorker(`worker-${kill}`)
    const marks = await Promise.all(subjects.map(({ id }) => world.mark(id)))
    // Every second time in the middle of a send.
    if ((kill + index) % 2 === 0) {
      for (const subject of subjects) {
        const { customer, body } = world.unique()
        sent.push({ id: await world.send(subject, customer, body), customer, body })
      }
      await sleep(random.between(0, 150))
    }
    const at = Date.now()
    await owner.end('SIGKILL')
    await Promise.all(
      subjects.map(({ id }, nth) =>
        restored.attempt(async () => (await world.working(id, marks[nth]!)).at - at),
      ),
    )
    owner = heir
  }
  for (const { id, customer, body } of sent) {
    await delivery.attempt(async () => {
      await world.confirmed(id)
      const { seen } = world.seenBy(customer, body)
      if (seen !== 1) throw new Error(`${body}: the recipient has it ${seen} times`)
    })
  }
  const left = await world.close()
  if (left.length > 0) lab.say(`F5: left behind: ${left.join(', ')}`)
}
