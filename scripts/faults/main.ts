/**
 * npm run test:faults [-- --seed N --only F2,F5 --quick --keep --markdown FILE]: breaks real processes, real browsers and pages on purpose and
 * counts which promises hold. Ends with the line "N passed, N failed".
 */
import { existsSync, rmSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { availableParallelism, loadavg } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { root } from '../../shared/root.ts'
import { writeFigures } from '../markdown.ts'
import { findBrowsers } from './browsers.ts'
import type { BrowserKind } from './browsers.ts'
import { Cluster } from './cluster.ts'
import { kills } from './f1-kills.ts'
import { killsInPage } from './f1-page.ts'
import { browserFaults } from './f2-browser.ts'
import { staleOwner } from './f3-stale-owner.ts'
import { database } from './f4-database.ts'
import { failover } from './f5-failover.ts'
import { restarts } from './f6-restarts.ts'
import { snapshots } from './f7-snapshots.ts'
import { pageFaults } from './f8-page.ts'
import { acks } from './f9-acks.ts'
import { inbound } from './f10-inbound.ts'
import { idempotency } from './f11-idempotency.ts'
import { poison } from './f12-poison.ts'
import { shutdown } from './f13-shutdown.ts'
import { paces } from './f15-pacing.ts'
import { recycles } from './f16-recycles.ts'
import { modelCheck } from './model-check.ts'
import { webhookConsumers } from './hooks.ts'
import { eventStreams } from './sse.ts'
import { sendingTwins } from './twins-sending.ts'
import type { Family, Lab } from './lab.ts'
import { copyProduct } from './product.ts'
import { brokenTwins } from './twins.ts'
import { Random } from './random.ts'
import { markdown, plain } from './table.ts'
import type { Report } from './table.ts'
import { isKept } from './trials.ts'
import type { Row } from './trials.ts'
import { inParallel } from './waiting.ts'

const families: Family[] = [
  kills,
  killsInPage,
  browserFaults,
  staleOwner,
  database,
  failover,
  restarts,
  snapshots,
  pageFaults,
  acks,
  inbound,
  idempotency,
  poison,
  shutdown,
  paces,
  recycles,
  brokenTwins,
  modelCheck,
  sendingTwins,
  eventStreams,
  webhookConsumers,
]
/**
 * F5's promise is a time that a few browsers at once can keep on two cores. F3's owners hold leases of three seconds, which a machine that is busy with others' browsers cannot renew
 * in time: they then take the sessions from each other for ever, and start ever more browsers. No other family runs beside these.
 */
const alone = ['F5', 'F3']
/** The others, the long ones first. */
const order = [
  'F1',
  'F2',
  'F6',
  'F13',
  'F8',
  'TWINS',
  'F16',
  'F7',
  'F11',
  'F4',
  'F1P',
  'MODEL',
  'TWINS4',
  'F9',
  'F10',
  'F12',
  'F15',
  'SSE',
  'HOOKS',
]
/** Families that run at the same time: one waits while another starts browsers. With three, two slow cores are so busy that sessions are not linked within minutes. */
const width = 2
const quickShare = 0.1

const { values: options } = parseArgs({
  options: {
    seed: { type: 'string' },
    only: { type: 'string' },
    quick: { type: 'boolean', default: false },
    keep: { type: 'boolean', default: false },
    markdown: { type: 'string' },
  },
})
const seed = Number(options.seed ?? Math.floor(Math.random() * 1_000_000))
const only = options.only?.toUpperCase().split(',')
const chosen = families.filter(({ id }) => only?.includes(id.toUpperCase()) ?? true)
/** Of all families: those that must be ended when the run is. */
const labs = new Set<Lab>()
const breakOff = new AbortController()

if (!Number.isSafeInteger(seed)) fail(`--seed ${options.seed} is not a whole number`)
if (chosen.length === 0) fail(`--only ${options.only} names none of ${list(families)}`)
const browsers = await findBrowsers(process.env['PUPPETEER_EXECUTABLE_PATH']).catch(
  (error: Error) => fail(error.message),
)
if (!existsSync(join(root, 'dist', 'api', 'server.js'))) fail('Nothing is built: npm run build')

const startedAt = performance.now()
say(`seed ${seed}; ${list(chosen)}`)
const starting = Cluster.start()
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  // Under npm a Ctrl-C comes twice.
  process.on(name, () => {
    if (breakOff.signal.aborted) return
    breakOff.abort()
    void endAll(false).finally(() => process.exit(1))
  })
}
const cluster = await starting
let report: Report
try {
  report = await runAll()
} finally {
  await endAll(options.keep)
}

console.log(plain(report))
if (options.markdown !== undefined) await writeFigures(options.markdown, 'faults', markdown(report))
const failed = report.rows.filter((row) => !isKept(row))
if (failed.length > 0)
  console.log(`broken: ${failed.map(({ fault, what }) => `${fault} ${what}`).join('; ')}`)
console.log(`${report.rows.length - failed.length} passed, ${failed.length} failed`)
process.exitCode = failed.length === 0 ? 0 : 1

async function endAll(keep: boolean): Promise<void> {
  const begun = await starting
  await Promise.all([...labs].map(abortWorlds))
  await begun.stop(keep)
  // What was under way a moment ago may have written something since.
  if (!keep) rmSync(begun.folder, { recursive: true, force: true })
}

async function abortWorlds({ worlds }: Lab): Promise<void> {
  await Promise.all([...worlds].map((world) => world.abort()))
  worlds.clear()
}

async function runAll(): Promise<Report> {
  const folder = `${cluster.folder}/worlds`
  await mkdir(folder)
  const product = `${cluster.folder}/product`
  await copyProduct(root, product)
  const results = new Map<string, Report['rows']>()
  const used = new Map<string, Set<BrowserKind>>()
  const one = async (family: Family) => {
    const begun = performance.now()
    used.set(family.id, new Set())
    const rows = await runFamily(family, { folder, product, used: used.get(family.id)! })
    const seconds = Math.round((performance.now() - begun) / 1_000)
    results.set(family.id, rows)
    say(`${family.id}: ${rows.filter(isKept).length} of ${rows.length} promises kept, ${seconds} s`)
  }
  const together = chosen
    .filter(({ id }) => !alone.includes(id))
    .sort((a, b) => order.indexOf(a.id) - order.indexOf(b.id))
  for (const family of chosen.filter(({ id }) => alone.includes(id))) await one(family)
  await inParallel(together, width, one)
  return {
    seed,
    quick: options.quick,
    date: new Date().toISOString().slice(0, 10),
    machine: `${availableParallelism()} cores, load ${loadavg()[0]!.toFixed(1)}, Node ${process.versions.node}`,
    seconds: Math.round((performance.now() - startedAt) / 1_000),
    browsers: (['chromium', 'shell'] as const).map((kind) => ({
      name: `${kind === 'shell' ? 'its headless shell' : 'Chromium'} ${browsers[kind].version}`,
      families: chosen.map(({ id }) => id).filter((id) => used.get(id)!.has(kind)),
    })),
    rows: chosen.flatMap(({ id }) => results.get(id)!),
  }
}

async function runFamily(
  family: Family,
  { folder, product, used }: { folder: string; product: string; used: Set<BrowserKind> },
): Promise<Row[]> {
  const giveUp = new AbortController()
  const lab: Lab = {
    root: product,
    folder,
    browsers,
    used,
    worlds: new Set(),
    signal: AbortSignal.any([breakOff.signal, giveUp.signal]),
    say,
    createDatabase: () => cluster.createDatabase(),
    random: (name) => new Random(seed, name),
    scaled: (trials) => (options.quick ? Math.max(2, Math.round(trials * quickShare)) : trials),
  }
  labs.add(lab)
  try {
    return await family.run(lab)
  } catch (error) {
    // The fault could not even be tried: nothing was shown. What it has begun must not slow down the others.
    giveUp.abort()
    await abortWorlds(lab)
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error)
    say(`${family.id} broke off: ${text}`)
    return [{ fault: family.id, what: 'ran', n: 1, kept: 0, times: [], note: '', failures: [text] }]
  }
}

function list(some: Family[]): string {
  return some.map(({ id }) => id).join(', ')
}

function say(text: string): void {
  const seconds = ((performance.now() - startedAt) / 1_000).toFixed(0).padStart(4)
  console.log(`${seconds} s  ${text}`)
}

function fail(text: string): never {
  console.error(text)
  process.exit(2)
}
