/** F8: the page misbehaves in every way that was seen or reported of WhatsApp Web. */
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { EmulatedWhatsAppOptions } from '../e2e/emulated-page/server.ts'
import { sendModules, startModules } from '../../wa-worker/engine/webjs-page.ts'
import type { Family, Lab } from './lab.ts'
import type { Program } from './program.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually, inParallel } from './waiting.ts'
import { World } from './world.ts'
import type { HistoryRow, Subject } from './world.ts'

/** Each has an API and a worker of its own, which cost as much as three cases. */
const lanes = 3
const startTimeoutMs = 20_000
/** Before a person helps. */
const byItselfMs = 10_000
/** Longer than the start's own deadline and every step of the ladder below it. */
const namedWithinMs = 90_000

export const pageFaults: Family = { id: 'F8', run }

/** One lane of cases: a WhatsApp, a worker and a session of its own, since faults reach every page of a WhatsApp. */
interface Scene {
  world: World
  subject: Subject
  mark: number
}

interface Case {
  what: string
  /** The page of `scene` works before; resolves when the fault has run its course. */
  run(scene: Scene): Promise<void>
  whatsapp?: EmulatedWhatsAppOptions
  /** What makes the page well again; the session must then work, started again by a person where that was the state's advice. */
  cure?(scene: Scene): void | Promise<void>
  /** The login is gone for good: nothing else can be tried in its lane. */
  final?: boolean
}

/** States nobody comes back from without a person. */
const resting = ['FAILED', 'STOPPED', 'LOGGED_OUT', 'EXPIRED']

async function run(lab: Lab): Promise<Row[]> {
  const cases = await casesOf(lab)
  const alive = new Trials('F8', 'page faults: worker processes that died 0')
  const rows = new Map<string, Trials>()
  const trialsOf = (what: string) => {
    const trials = rows.get(what) ?? new Trials('F8', what)
    rows.set(what, trials)
    return trials
  }
  for (const [group] of cases) trialsOf(group)
  const lists = cases.map(([group, list]) => list.map((one) => ({ group, one }))).flat()
  const own = lists.filter(({ one }) => one.whatsapp)
  const usual = lists.filter(({ one }) => !one.whatsapp)

  const shared = Array.from({ length: Math.min(lanes, usual.length) }, (_, lane) => async () => {
    const setting = await stage(lab, `f8-${lane}`, {})
    for (let index = lane; index < usual.length; index += lanes) {
      const { group, one } = usual[index]!
      await trialsOf(group).attempt(() => play(lab, setting, one))
      alive.check(setting.worker.ended === undefined, () => `${one.what}: ${setting.worker.output}`)
      if (setting.worker.ended) setting.worker = await setting.world.startWorker('worker-b')
    }
    await setting.world.close()
  })
  const single = own.map(({ group, one }, index) => async () => {
    const setting = await stage(lab, `f8-own-${index}`, one.whatsapp ?? {})
    await trialsOf(group).attempt(() => play(lab, setting, one))
    alive.check(setting.worker.ended === undefined, () => `${one.what}: ${setting.worker.output}`)
    await setting.world.close()
  })
  await inParallel([...shared, ...single], lanes, (work) => work())
  return [...[...rows.values()].map((trials) => trials.row()), alive.row()]
}

interface Setting {
  world: World
  subject: Subject
  worker: Program
}

async function stage(lab: Lab, name: string, whatsapp: EmulatedWhatsAppOptions): Promise<Setting> {
  const world = await World.open(lab, name, {
    whatsapp,
    settings: { WA_START_TIMEOUT_MS: String(startTimeoutMs), WA_RECONNECT_DELAY_MS: '200' },
  })
  const worker = await world.startWorker('worker-a')
  const [subject] = await world.link(1)
  await world.loginsOnDisk([subject!])
  return { world, subject: subject!, worker }
}

async function play(lab: Lab, { world, subject }: Setting, one: Case): Promise<void> {
  // Whatever became of the case before.
  await recovered({ world, subject, mark: await world.mark(subject.id) })
  await eventually('its page can be broken', () => world.whatsapp.hasPage(subject.account))
  try {
    const scene = { world, subject, mark: await world.mark(subject.id) }
    await one.run(scene)
    await one.cure?.(scene)
    if (one.final) return
    await recovered(scene)
    await world.hears(subject)
  } catch (error) {
    await one.cure?.({ world, subject, mark: 0 })
    const text = `${one.what}: ${(error as Error).message}`
    lab.say(`F8: ${text}`)
    throw new Error(text, { cause: error })
  }
}

/**
 * WORKING, where need be after a person did what the state says: start it again. Many faults in a row make the pauses between attempts long;
 * nobody waits for them here.
 */
async function recovered({ world, subject, mark }: Scene): Promise<void> {
  const askAt = performance.now() + byItselfMs
  let asked = false
  await eventually(
    'WORKING again',
    async () => {
      const status = await world.status(subject.id)
      if (!asked && (resting.includes(status) || performance.now() > askAt)) {
        asked = status !== 'WORKING'
        if (asked) await world.agent.call('POST', `/api/whatsapp/sessions/${subject.id}/restart`)
      }
      return status === 'WORKING'
    },
    90_000,
  ).catch(async (error: Error) => {
    throw new Error(`${error.message}; ${told(await world.history(subject.id, mark))}`)
  })
}

const told = (rows: HistoryRow[]) =>
  rows
    .map(({ toStatus, reason, detail }) => `${toStatus} ${reason ?? ''} ${detail ?? ''}`.trim())
    .join(' > ') || 'the history says nothing'

/** Resolves with the row that names the fault; rejects when none does. */
async function named(scene: Scene, names: (row: HistoryRow) => boolean): Promise<HistoryRow> {
  let rows: HistoryRow[] = []
  return eventually(
    'a state with a reason that names it',
    async () => {
      rows = await scene.world.history(scene.subject.id, scene.mark)
      return rows.find(names)
    },
    namedWithinMs,
  ).catch((error: Error) => {
    throw new Error(`${error.message}; ${told(rows)}`)
  })
}

const reasonIn =
  (...reasons: string[]) =>
  ({ reason }: HistoryRow) =>
    reason !== null && reasons.includes(reason)

/** Waits until no more happens: what follows a fault may take a while to begin. */
async function settled({ world, subject }: Scene, quietMs: number): Promise<void> {
  let last = -1
  let since = performance.now()
  await eventually('quiet', async () => {
    const mark = await world.mark(subject.id)
    if (mark !== last) since = performance.now()
    last = mark
    return performance.now() - since > quietMs && (await world.status(subject.id)) === 'WORKING'
  })
}

async function casesOf(lab: Lab): Promise<[string, Case[]][]> {
  const random = lab.random('F8')
  const some = (names: string[]) => random.shuffled(names).slice(0, lab.scaled(names.length))
  const needed = [...new Set([...startModules, ...sendModules])]
  const others = (await modulesOfPage()).filter((name) => !needed.includes(name))
  return [
    [
      'each module the self-test knows removed: named, or text goes on',
      some(needed).map((name) => moduleRemoved(name, reasonIn('MODULE_MISSING'))),
    ],
    [
      'each other module removed: text goes on, or a reason',
      some(others).map((name) => moduleRemoved(name, ({ reason }) => reason !== null)),
    ],
    ['socket states (M7): reason names it, login kept', states.map(stateEntered)],
    ['navigation and loading: recovered, or named', navigations],
    ['start and ready (M1, M4, M6): recovered', starts],
    // Last, one in a lane.
    ['logout on the phone and post_logout: named', logouts],
  ]
}

/** The names under which the emulated page defines its modules. */
async function modulesOfPage(): Promise<string[]> {
  const folder = join(import.meta.dirname, '..', 'e2e', 'emulated-page', 'page')
  const files = (await readdir(folder)).filter((name) => name.endsWith('.js'))
  const texts = await Promise.all(files.map((name) => readFile(join(folder, name), 'utf8')))
  const names = texts.flatMap((text) =>
    [...text.matchAll(/^ {2}(WA\w+)\b/gm)].map(([, name]) => name!),
  )
  if (names.length < 50) throw new Error(`only ${names.length} modules of the page were found`)
  return [...new Set(names)].sort()
}

/** After a release that renamed a module the session either works on, in truth, or says why it does not. */
const moduleRemoved = (name: string, says: (row: HistoryRow) => boolean): Case => ({
  what: `${name} removed`,
  run: async (scene) => {
    const { world, subject, mark } = scene
    const history = () => world.history(subject.id, mark)
    // The reload itself is no answer.
    const isNamed = async () =>
      (await history()).some((row) => row.reason !== 'LINK_LOST' && says(row))
    world.whatsapp.removeModule(name)
    await world.whatsapp.reload(subject.account)
    await eventually(
      'WORKING, or a state that says why not',
      async () => (await isNamed()) || (await history()).at(-1)?.toStatus === 'WORKING',
      namedWithinMs,
    )
    if (sendModules.includes(name) && !(await isNamed())) throw new Error('it was not named')
    await eventually(
      'a text comes through, or a state that says why not',
      async () => (await isNamed()) || (await talks(scene)),
      namedWithinMs,
    )
  },
  cure: ({ world }) => world.whatsapp.restoreModule(name),
})

/** Whether a text goes out and another comes in. */
async function talks({ world, subject }: Scene): Promise<boolean> {
  const { customer, body } = world.unique()
  const id = await world.send(subject, customer, body)
  return Promise.all([world.confirmed(id, 10_000), world.hears(subject, 10_000)]).then(
    () => true,
    () => false,
  )
}

const states = [
  'CONFLICT',
  'UNLAUNCHED',
  'UNPAIRED',
  'UNPAIRED_IDLE',
  'PROXYBLOCK',
  'TOS_BLOCK',
  'DEPRECATED_VERSION',
]

const stateEntered = (state: string): Case => ({
  what: state,
  run: async (scene) => {
    await scene.world.whatsapp.setState(scene.subject.account, state)
    await named(scene, reasonIn(state, `STATE_${state}`))
  },
})

const linkStates = ['TIMEOUT', 'OPENING']

const navigations: Case[] = [
  ...linkStates.map((state) => ({
    what: `state ${state}`,
    run: async (scene: Scene) => {
      await scene.world.whatsapp.setState(scene.subject.account, state)
      await named(scene, reasonIn('LINK_LOST'))
    },
    cure: ({ world, subject }: Scene) => world.whatsapp.setState(subject.account, 'CONNECTED'),
  })),
  {
    what: 'one visit to a maintenance page (M3)',
    run: async (scene) => {
      await scene.world.whatsapp.navigate(scene.subject.account, '/maintenance')
      await named(scene, reasonIn('LINK_LOST', 'PAGE_NAVIGATED'))
    },
  },
  {
    what: 'maintenance for longer than a start may take',
    run: async (scene) => {
      scene.world.whatsapp.setServing({ page: 'maintenance' })
      await scene.world.whatsapp.reload(scene.subject.account)
      await named(scene, reasonIn('PAGE_NAVIGATED', 'START_TIMEOUT', 'START_FAILED'))
    },
    cure: ({ world }) => world.whatsapp.setServing({ page: 'normal' }),
  },
  {
    what: 'a server that never answers',
    run: async (scene) => {
      scene.world.whatsapp.setServing({ page: 'silent' })
      await scene.world.whatsapp.reload(scene.subject.account)
      await named(scene, reasonIn('PAGE_UNRESPONSIVE', 'START_TIMEOUT', 'PAGE_NAVIGATED'))
    },
    cure: ({ world }) => world.whatsapp.setServing({ page: 'normal' }),
  },
  {
    what: 'sockets refused',
    run: async (scene) => {
      scene.world.whatsapp.setServing({ socket: 'refused' })
      scene.world.whatsapp.dropLink(scene.subject.account)
      await named(scene, reasonIn('LINK_LOST'))
    },
    cure: ({ world, subject }) => {
      world.whatsapp.setServing({ socket: 'normal' })
      world.whatsapp.restoreLink(subject.account)
    },
  },
  {
    what: 'sockets that never open',
    run: async (scene) => {
      scene.world.whatsapp.setServing({ socket: 'silent' })
      await scene.world.whatsapp.reload(scene.subject.account)
      await named(scene, reasonIn('LINK_LOST', 'START_TIMEOUT'))
    },
    cure: ({ world }) => world.whatsapp.setServing({ socket: 'normal' }),
  },
  {
    what: 'an empty page',
    run: async (scene) => {
      await scene.world.whatsapp.navigate(scene.subject.account, 'about:blank')
      await named(scene, reasonIn('LINK_LOST', 'PAGE_NAVIGATED', 'START_TIMEOUT'))
    },
  },
  {
    what: 'reload storm: 20 reloads',
    run: async (scene) => {
      for (let n = 0; n < 20; n++) {
        // Between two pages there is none to command.
        await scene.world.whatsapp.reload(scene.subject.account).catch(() => {})
        await sleep(50) // part of the fault: faster than a page loads
      }
      await named(scene, reasonIn('LINK_LOST', 'PAGE_NAVIGATED'))
    },
  },
  {
    what: 'pushState',
    run: async (scene) => {
      await scene.world.whatsapp.navigate(scene.subject.account, '#somewhere')
      await settled(scene, 1_000)
    },
  },
  {
    what: 'a message no listener understands (M5)',
    run: async (scene) => {
      const { customer } = scene.world.unique()
      const extra = { type: 'unheard_of', body: null, t: null, notifyName: 7 }
      scene.world.whatsapp.deliver({ to: scene.subject.account, from: customer, extra })
      await settled(scene, 1_000)
    },
  },
]

const starts: Case[] = [
  {
    what: 'iframes, and syncs again (M4)',
    run: async (scene) => {
      const { world, subject } = scene
      await world.whatsapp.addIframe(subject.account)
      await world.whatsapp.addIframe(subject.account)
      for (let n = 0; n < 3; n++) await world.whatsapp.resync(subject.account)
      await settled(scene, 1_000)
    },
  },
  {
    what: 'the sync ends before anybody listens (M1)',
    whatsapp: { syncWaitsForListener: false, syncMs: 0 },
    run: async (scene) => {
      const { world, subject } = scene
      for (let n = 0; n < 3; n++) {
        const mark = await world.mark(subject.id)
        await world.agent.call('POST', `/api/whatsapp/sessions/${subject.id}/restart`)
        await world.working(subject.id, mark)
      }
    },
  },
  {
    what: 'codes run out before the scan (M6)',
    whatsapp: { qrFirstMs: 400, qrIntervalMs: 400, qrRefs: 2 },
    run: async ({ world }) => {
      const id = await world.create()
      const codes = async () =>
        (
          await world.sql<{ qr: string | null; attempt: number | null }>`
            select qr, qr_attempt as attempt from wa_sessions where id = ${id}`
        )[0]!
      await eventually(
        'a code after the page stopped making them',
        async () => ((await codes()).attempt ?? 0) >= 5,
      )
      // Each lives for a moment only, as it may be for a person.
      await eventually('scanned', async () => {
        const { qr } = await codes()
        const scanned = qr !== null && world.whatsapp.scan(qr, { number: '12025559999' })
        return (
          scanned &&
          scanned.then(
            () => true,
            () => false,
          )
        )
      })
      await eventually('WORKING', async () => (await world.status(id)) === 'WORKING')
    },
  },
]

const logouts: Case[] = [
  {
    what: 'logged out on the phone',
    final: true,
    run: async (scene) => {
      scene.world.whatsapp.logoutFromPhone(scene.subject.account)
      await named(scene, reasonIn('LOGGED_OUT_ON_PHONE'))
      await rests(scene)
    },
  },
  {
    what: 'post_logout of a device that is still linked',
    final: true,
    run: async (scene) => {
      await scene.world.whatsapp.navigate(scene.subject.account, '/?post_logout=1')
      await named(scene, ({ reason }) => reason !== null)
      await eventually('at rest or WORKING', async () => {
        const status = await scene.world.status(scene.subject.id)
        return status === 'WORKING' || resting.includes(status)
      })
    },
  },
]

const rests = (scene: Scene) =>
  eventually(
    'LOGGED_OUT',
    async () => (await scene.world.status(scene.subject.id)) === 'LOGGED_OUT',
  )
