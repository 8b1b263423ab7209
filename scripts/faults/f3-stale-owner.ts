/** F3: an owner that stalls for longer than its lease, is replaced, and wakes up again. */
import { setTimeout as sleep } from 'node:timers/promises'
import { staleWrites, takeovers } from './audit.ts'
import type { BrowserKind } from './browsers.ts'
import type { Family, Lab } from './lab.ts'
import { listProcesses } from './proc.ts'
import type { Program } from './program.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'
import { World } from './world.ts'
import type { Subject } from './world.ts'

const sessions = 3
/** Longer than elsewhere: a machine that is busy with this suite must not lose a lease on its own. */
const ttlMs = 3_000

export const staleOwner: Family = {
  id: 'F3',
  run: async (lab) => {
    // Most of each is waiting for a lease to run out.
    const [one, two, alone] = await Promise.all([
      oneDisk(lab),
      twoDisks(lab),
      stalledAlmostTooLong(lab),
    ])
    return [...one, ...two, alone]
  },
}

/** On one disk the new owner finds the old one's browser and ends it; the lock on the profile, which the shell does not know, is in its way until then. */
export const oneDisk = (lab: Lab) => rounds(lab, 'one disk', ['data', 'data'], 'chromium')
/** With a disk each the login comes out of the vault, and nothing but the fence stands between the two. */
const twoDisks = (lab: Lab) => rounds(lab, 'a disk each', ['data', 'data-b'], 'shell')

interface Contender {
  name: string
  program: Program
}

async function rounds(
  lab: Lab,
  where: string,
  disks: [string, string],
  browser: BrowserKind,
): Promise<Row[]> {
  const world = await World.open(lab, `f3 ${where}`.replaceAll(' ', '-'), {
    browser,
    settings: { WA_LEASE_TTL_MS: String(ttlMs) },
  })
  const random = lab.random(`F3 ${where}`)
  const taken = new Trials('F3', `owner stopped > TTL, ${where}: another has it WORKING`)
  const sends = new Trials('F3', `owner wakes up again, ${where}: stale sends 0`)
  const delivery = new Trials('F3', `messages around the change, ${where}: lost 0, doubled 0`)
  const writes = new Trials('F3', `owner wakes up again, ${where}: stale writes 0`)
  let overlapMs = 0
  let transmittedAgain = 0

  const start = async (name: string, disk: string): Promise<Contender> => ({
    name,
    program: await world.startWorker(name, { disk }),
  })
  const first = await start('worker-0', disks[0])
  const subjects = await world.link(sessions)
  await world.loginsOnDisk(subjects, disks[0])
  if (disks[0] !== disks[1]) await world.loginsInVault(subjects)
  const contenders = [first, await start('worker-1', disks[1])]

  const wanted = lab.scaled(15)
  let done = 0
  let round = 0
  while (done < wanted) {
    const [owner, mine] = await busiest(world, contenders, subjects)
    done += mine.length
    const marks = await Promise.all(mine.map(({ id }) => world.mark(id)))
    const sent = await burst(world, mine)
    await sleep(random.between(0, 60)) // the instant is part of the fault
    const stoppedAt = Date.now()
    owner.program.kill('SIGSTOP')
    const watching = watchBrowsers(world, mine, lab.signal)
    // Every second time it wakes up while the new owner may still be starting, else only when it has been replaced.
    const early = round++ % 2 === 1
    const wakeAfterMs = ttlMs + random.between(700, 4_000) - (Date.now() - stoppedAt)
    const waking = early && sleep(wakeAfterMs).then(() => owner.program.kill('SIGCONT'))
    const restoredAt = await Promise.all(
      mine.map(async ({ id }, index) => {
        let at = Infinity
        await taken.attempt(async () => {
          at = (await world.working(id, marks[index]!, 60_000)).at
          return at - stoppedAt
        })
        return at
      }),
    )
    await waking
    owner.program.kill('SIGCONT')
    for (const message of sent) {
      await delivery.attempt(async () => {
        await world.confirmed(message.id)
        const { seen, transmitted } = world.seenBy(message.customer, message.body)
        transmittedAgain += transmitted - 1
        if (seen !== 1) throw new Error(`${message.body}: the recipient has it ${seen} times`)
      })
    }
    for (const [index, { id }] of mine.entries()) {
      const change = (await takeovers(world.sql, id)).find(({ at }) => at > stoppedAt)
      // Before the new owner works it sends nothing: what goes out between is the old one's.
      const stale = world.whatsapp.stanzas.filter(
        ({ at, body, transmission }) =>
          change !== undefined &&
          at > change.at &&
          at < restoredAt[index]! &&
          transmission === 1 &&
          sent.some((one) => one.subject.id === id && one.body === body),
      )
      sends.check(stale.length === 0, `${stale.length} sent by an owner that had lost the session`)
    }
    await eventually('the old owner has let go', () => {
      return browsersOf(world, mine).every((browsers) => browsers <= 1)
    })
    overlapMs += await watching.stop()
    if (owner.program.ended) taken.failed(`the old owner died:\n${owner.program.output}`)
  }
  taken.note = `two browsers of one login lived for ${(overlapMs / 1_000).toFixed(1)} s in all`
  delivery.note = `${transmittedAgain} transmissions beyond the first, each under its own id`

  const stale = await staleWrites(world.sql)
  const [{ count } = { count: 0 }] = await world.sql<{ count: number }>`
    select count(*)::int from faults_writes where writer like 'worker%'`
  writes.note = `${count} writes by both workers looked at`
  if (stale.length === 0) for (let n = 0; n < done; n++) writes.kept()
  for (const line of stale) writes.failed(line)
  const left = await world.close()
  if (left.length > 0) lab.say(`F3: left behind: ${left.join(', ')}`)
  return [taken.row(), writes.row(), sends.row(), delivery.row()]
}

/** Long enough for the owner to fear for its lease, not always long enough to lose it; there is nobody else. */
async function stalledAlmostTooLong(lab: Lab): Promise<Row> {
  const trials = new Trials('F3', 'only owner stopped for 0.85 TTL: every session WORKING again')
  const world = await World.open(lab, 'f3-alone', { settings: { WA_LEASE_TTL_MS: String(ttlMs) } })
  const worker = await world.startWorker('worker-0')
  const subjects = await world.link(2)
  await world.loginsOnDisk(subjects)
  for (let stop = 0; stop < lab.scaled(10); stop++) {
    worker.kill('SIGSTOP')
    await sleep(ttlMs * 0.85)
    worker.kill('SIGCONT')
    for (const subject of subjects) {
      // Its state says nothing: a session nobody runs keeps the one it had. Only a message that comes through does.
      await trials.attempt(async () => {
        const { customer, body } = world.unique()
        await world.confirmed(await world.send(subject, customer, body), 30_000)
      })
    }
  }
  await world.close()
  return trials.row()
}

/** The worker that has most of the sessions now, and those it has. */
async function busiest(
  world: World,
  contenders: Contender[],
  subjects: Subject[],
): Promise<[Contender, Subject[]]> {
  return eventually('every session works', async () => {
    const statuses = await Promise.all(subjects.map(({ id }) => world.status(id)))
    if (statuses.some((status) => status !== 'WORKING')) return false
    const owners = await Promise.all(
      subjects.map(async ({ id }) => (await takeovers(world.sql, id)).at(-1)!.writer),
    )
    const lists = contenders.map((contender): [Contender, Subject[]] => [
      contender,
      subjects.filter((_, index) => owners[index] === contender.name),
    ])
    return lists.toSorted(([, a], [, b]) => b.length - a.length)[0]!
  })
}

/** Sends and receives at once, so that the owner is stopped with both hands full: its first writes are through, most are not. */
async function burst(world: World, subjects: Subject[]) {
  const sent: { subject: Subject; id: string; customer: string; body: string }[] = []
  for (const subject of subjects) {
    for (let n = 0; n < 3; n++) {
      const { customer, body } = world.unique()
      sent.push({ subject, id: await world.send(subject, customer, body), customer, body })
    }
  }
  const before = await received(world)
  for (let n = 0; n < 100; n++) {
    for (const { account } of subjects) {
      const { customer, body } = world.unique()
      world.whatsapp.deliver({ to: account, from: customer, body })
    }
  }
  await eventually('the first of many is stored', async () => (await received(world)) > before)
  return sent
}

async function received(world: World): Promise<number> {
  const [row] = await world.sql<{ count: number }>`
    select count(*)::int from messages where direction = 'inbound'`
  return row!.count
}

/** How many browsers run on the login of each of these sessions, on any disk. */
function browsersOf(world: World, subjects: Subject[]): number[] {
  const browsers = listProcesses().filter(
    ({ command, zombie }) =>
      !zombie &&
      command.includes(`--user-data-dir=${world.folder}/`) &&
      !command.includes(' --type='),
  )
  return subjects.map(
    ({ id }) => browsers.filter(({ command }) => command.includes(`/profiles/${id} `)).length,
  )
}

/** Adds up for how long two browsers of one login live. */
function watchBrowsers(
  world: World,
  subjects: Subject[],
  signal: AbortSignal,
): { stop(): Promise<number> } {
  let watching = true
  let totalMs = 0
  const done = (async () => {
    let before = performance.now()
    while (watching && !signal.aborted) {
      await sleep(250)
      const now = performance.now()
      for (const browsers of browsersOf(world, subjects)) {
        if (browsers > 1) totalMs += now - before
      }
      before = now
    }
  })()
  return {
    async stop() {
      watching = false
      await done
      return totalMs
    },
  }
}
