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

export const brokenTwins: Family = {
  id: 'TWINS',
  async run(lab) {
    const caught = new Trials('twins', 'guard taken out: the fault that is named for it fails')
    await inParallel(twins, 2, async (twin, index) => {
      // Short: the path of a browser's socket has little room.
      const folder = join(lab.folder, `t${index}`)
      await mkdir(folder)
      const root = join(folder, 'product')
      await copyProduct(lab.root, root, twin.edits)
      // The first few trials of the fault show it, or it is not shown at all.
      const rows = await twin.run({ ...lab, root, folder, scaled: (trials) => Math.min(5, trials) })
      const broken = rows.filter((row) => !isKept(row)).map(({ fault, what }) => `${fault} ${what}`)
      const named = broken.filter((what) => what.startsWith(twin.breaks))
      caught.check(named.length > 0, `without ${twin.without} "${twin.breaks}" holds all the same`)
      lab.say(`twin without ${twin.without}: ${broken.join('; ') || 'nothing fails'}`)
    })
    const row = caught.row()
    const list = twins.map(({ without }) => without).join('; ')
    return [{ ...row, note: `${row.kept} of ${row.n} caught: without ${list}` }]
  },
}
