/** F6: however a session's run ends, the next one needs no code. */
import { chmod, readFile, readlink, rm, symlink, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { BrowserKind } from './browsers.ts'
import type { Family, Lab } from './lab.ts'
import { familyOf, listProcesses, signal, stillRunning } from './proc.ts'
import type { Program } from './program.ts'
import type { Random } from './random.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'
import { World } from './world.ts'
import type { Subject } from './world.ts'

const sessions = 5
/** Chromium over a pipe ends within a second of its parent; this is the slowest that is still "by itself". */
const orphanedMs = 5_000

export const restarts: Family = {
  id: 'F6',
  run: async (lab) => {
    const on = (browser: BrowserKind) => causes.filter((cause) => cause.browser === browser)
    return [
      ...(await run(lab, on('chromium'), 'chromium')),
      ...(await run(lab, on('shell'), 'shell')),
    ]
  },
}

interface Scene {
  world: World
  subjects: Subject[]
  worker: Program
  random: Random
  /** Browsers that outlived their worker. */
  orphans: Trials
}

/** Ends the run of every session of the scene; resolves to the worker that is to bring them back. */
interface Cause {
  what: string
  /** Where the browser's own pipe, death or lock is the subject, customers' own. */
  browser: BrowserKind
  inflict(scene: Scene): Promise<Program>
}

const startNext = ({ world }: Scene) => world.startWorker('worker-a')

const causes: Cause[] = [
  {
    what: 'worker SIGTERM',
    browser: 'shell',
    inflict: async (scene) => {
      await scene.worker.end('SIGTERM')
      return startNext(scene)
    },
  },
  {
    what: 'worker SIGKILL',
    browser: 'chromium',
    inflict: async (scene) => {
      const before = familyOf(scene.worker.pid, listProcesses())
      await scene.worker.end('SIGKILL')
      await scene.orphans.attempt(async () => {
        await eventually(
          'no browser outlives its worker',
          () => stillRunning(before).length === 0,
          orphanedMs,
        )
      })
      return startNext(scene)
    },
  },
  {
    what: 'browser SIGKILL',
    browser: 'chromium',
    inflict: async ({ world, subjects, worker }) => {
      for (const { id } of subjects) {
        const browser = world.browser(id)
        if (browser) signal(browser.main.pid, 'SIGKILL')
      }
      return worker
    },
  },
  {
    what: 'stale lock of another host',
    browser: 'chromium',
    inflict: async (scene) => {
      await scene.worker.end('SIGTERM')
      for (const { id } of scene.subjects) await lockElsewhere(scene.world.profile(id))
      return startNext(scene)
    },
  },
  {
    what: 'local disk lost',
    browser: 'shell',
    inflict: async (scene) => {
      await scene.world.loginsInVault(scene.subjects)
      await scene.worker.end('SIGKILL')
      await loseDisk(scene)
      return startNext(scene)
    },
  },
  {
    what: 'newest snapshot corrupted, disk lost',
    browser: 'shell',
    inflict: async (scene) => {
      await scene.world.loginsInVault(scene.subjects, 2)
      await scene.worker.end('SIGTERM')
      await loseDisk(scene)
      for (const { id } of scene.subjects) {
        const [newest] = await scene.world.snapshots(id)
        await flipByte(newest!, scene.random.next())
      }
      return startNext(scene)
    },
  },
]

async function loseDisk({ world }: Scene): Promise<void> {
  // Chromium writes for a moment longer than its worker lived.
  await rm(dirname(world.profile('any')), { recursive: true, force: true, maxRetries: 10 })
}

/** Anywhere in the file. */
async function flipByte(path: string, where: number): Promise<void> {
  const bytes = await readFile(path)
  const index = Math.floor(where * bytes.length)
  bytes[index] = bytes[index]! ^ 0x01
  await chmod(path, 0o600)
  await writeFile(path, bytes)
}

/** As a container leaves it that had another name. */
async function lockElsewhere(profile: string): Promise<void> {
  const lock = join(profile, 'SingletonLock')
  await rm(lock, { force: true })
  await symlink('another-host-4711', lock)
  if ((await readlink(lock)) !== 'another-host-4711') throw new Error('the lock was not placed')
}

async function run(lab: Lab, some: Cause[], browser: BrowserKind): Promise<Row[]> {
  const world = await World.open(lab, `f6-${browser}`, {
    browser,
    settings: { WA_LEASE_TTL_MS: '6000', WA_SNAPSHOT_INTERVAL_MS: '5000' },
  })
  const orphans = new Trials('F6', 'worker SIGKILL: no browser outlives it by 5 s')
  const random = lab.random('F6')
  let worker = await world.startWorker('worker-a')
  const subjects = await world.link(sessions)
  await world.loginsOnDisk(subjects)
  const rows: Row[] = []
  for (const cause of some) {
    const trials = new Trials('F6', `restart without a code: ${cause.what}`)
    trials.note = browser === 'chromium' ? 'on Chromium' : 'on its headless shell'
    for (let round = 0; round < Math.ceil(lab.scaled(20) / sessions); round++) {
      const marks = await Promise.all(subjects.map(({ id }) => world.mark(id)))
      const at = Date.now()
      worker = await cause.inflict({ world, subjects, worker, random, orphans })
      await Promise.all(
        subjects.map(({ id }, index) =>
          trials.attempt(async () => (await world.working(id, marks[index]!)).at - at),
        ),
      )
    }
    rows.push(trials.row())
  }
  const left = await world.close()
  if (left.length > 0) lab.say(`F6: left behind: ${left.join(', ')}`)
  return [...rows, orphans.row()].filter(({ n }) => n > 0)
}

/** Broken twins need only one of the causes; what they lack both browsers miss. */
export const only = (lab: Lab, what: string) =>
  run(
    lab,
    causes.filter((cause) => cause.what === what),
    'shell',
  )
