/** Broken twins: the product with one guard taken out. A fault that still passes has no teeth. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { oneDisk } from './f3-stale-owner.ts'
import { only } from './f6-restarts.ts'
import { alterations } from './f7-snapshots.ts'
import type { Family, Lab } from './lab.ts'
import { copyProduct } from './product.ts'
import type { Edit } from './product.ts'
import { isKept, Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { inParallel } from './waiting.ts'

interface Twin {
  without: string
  edits: Edit[]
  /** How the promise begins that must be broken. */
  breaks: string
  run(lab: Lab): Promise<Row[]>
}

const runs = 3

const twins: Twin[] = [
  {
    without: 'the fence',
    edits: [
      {
        file: 'shared/wa-session-leases.js',
        find: 'if (!row)\n        throw new LeaseLost(id);',
        replace: '',
      },
    ],
    breaks: 'F3 owner wakes up again, one disk: stale writes 0',
    run: oneDisk,
  },
  {
    without: 'the pipe to the browser',
    edits: [
      { file: 'wa-worker/engine/webjs-client.js', find: 'pipe: true,', replace: 'pipe: false,' },
    ],
    breaks: 'F6 worker SIGKILL: no browser outlives it',
    run: (lab) => only(lab, 'worker SIGKILL'),
  },
  {
    without: 'reading a snapshot back before it counts',
    edits: [
      {
        file: 'wa-worker/vault.js',
        find: 'const proven = await this.#objects.read(session, stored, { signal });',
        replace: 'const proven = { ...totals };',
      },
    ],
    breaks: 'F7 bit changed while it is stored',
    run: alterations,
  },
  {
    without: 'the seal and the hash of a snapshot',
    edits: [
      {
        file: 'wa-worker/snapshot-format.js',
        find: 'this.#decipher.setAuthTag(this.#held);\n            done(null, this.#decipher.final());',
        replace: 'done();',
      },
      {
        file: 'wa-worker/snapshot-objects.js',
        find: ' || meter.sha256 !== snapshot.sha256',
        replace: '',
      },
    ],
    breaks: 'F7 bit flipped in the newest',
    run: alterations,
  },
  {
    without: 'the way to the snapshot before',
    edits: [
      {
        file: 'wa-worker/vault.js',
        find: 'if (!isUnusable(error))\n                        throw error;',
        replace: 'throw error;',
      },
    ],
    breaks: 'F7 bit flipped in the newest',
    run: alterations,
  },
]

/**
 * What fails of the fault, run until the named promise is among it, at most so often. Some faults hit by chance: an owner that lost its session
 * writes once more only if it was stopped with its hands full, and on a busy machine five trials may all miss that instant. A guard that is in
 * place is not broken by running more often, so this finds no twin that has its guard.
 */
async function whatBreaks(twin: Twin, lab: Lab): Promise<string[]> {
  let broken: string[] = []
  for (let run = 1; run <= runs; run++) {
    // Short: the path of a browser's socket has little room.
    const folder = `${lab.folder}${run}`
    await mkdir(folder)
    const once: Lab = {
      ...lab,
      folder,
      // Other instants than the run before.
      random: (name) => lab.random(run === 1 ? name : `${name} ${run}`),
      // The first few trials show it, or it is a matter of chance.
      scaled: (trials) => Math.min(5, trials),
    }
    const rows = await twin.run(once).catch(async (error: unknown) => {
      // Nothing was shown. Without its guard a product may also get no further than that.
      if (run === runs || lab.signal.aborted) throw error
      await leave(once)
      return []
    })
    broken = rows.filter((row) => !isKept(row)).map(({ fault, what }) => `${fault} ${what}`)
    if (broken.some((what) => what.startsWith(twin.breaks))) return broken
  }
  return broken
}

/** Ends what a run that broke off has left, so that it does not slow down the next. */
async function leave({ worlds, folder }: Lab): Promise<void> {
  const left = [...worlds].filter((world) => world.folder.startsWith(`${folder}/`))
  for (const world of left) worlds.delete(world)
  await Promise.all(left.map((world) => world.abort()))
}

export const brokenTwins: Family = {
  id: 'TWINS',
  async run(lab) {
    const caught = new Trials('twins', 'guard taken out: the fault that is named for it fails')
    await inParallel(twins, 2, async (twin, index) => {
      const folder = join(lab.folder, `t${index}`)
      const root = `${folder}p`
      await copyProduct(lab.root, root, twin.edits)
      const broken = await whatBreaks(twin, { ...lab, root, folder })
      const named = broken.some((what) => what.startsWith(twin.breaks))
      caught.check(named, `without ${twin.without} "${twin.breaks}" holds all the same`)
      lab.say(`twin without ${twin.without}: ${broken.join('; ') || 'nothing fails'}`)
    })
    const row = caught.row()
    const list = twins.map(({ without }) => without).join('; ')
    return [{ ...row, note: `${row.kept} of ${row.n} caught: without ${list}` }]
  },
}
