/** Broken twins: the product with one guard taken out. A fault that still passes has no teeth. */
import { cp, mkdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { only } from './f6-restarts.ts'
import { oneDisk } from './f3-stale-owner.ts'
import type { Family, Lab } from './lab.ts'
import { isKept, Trials } from './trials.ts'
import type { Row } from './trials.ts'

interface Twin {
  without: string
  file: string
  /** Must be in the built file exactly once. */
  find: string
  replace: string
  caughtBy: string
  run(lab: Lab): Promise<Row[]>
}

const twins: Twin[] = [
  {
    without: 'the fence',
    file: 'shared/wa-session-leases.js',
    find: 'if (!row)\n        throw new LeaseLost(id);',
    replace: '',
    caughtBy: 'F3 stale writes',
    run: oneDisk,
  },
  {
    without: 'pipe: true',
    file: 'wa-worker/engine/webjs.js',
    find: 'pipe: true,',
    replace: 'pipe: false,',
    caughtBy: 'F6 no browser outlives its worker',
    run: (lab) => only(lab, 'worker SIGKILL'),
  },
  {
    without: 'the way past a snapshot that does not verify',
    file: 'wa-worker/vault.js',
    find: 'if (!isUnusable(error))\n                        throw error;',
    replace: 'throw error;',
    caughtBy: 'F6 newest snapshot corrupted',
    run: (lab) => only(lab, 'newest snapshot corrupted, disk lost'),
  },
]

export const brokenTwins: Family = {
  id: 'TWINS',
  async run(lab) {
    const caught = new Trials('twins', 'guards taken out: a named fault fails')
    for (const [index, twin] of twins.entries()) {
      const root = await makeTwin(lab, twin)
      // Short: the path of a browser's socket has little room.
      const folder = join(lab.folder, `t${index}`)
      await mkdir(folder)
      // The first few trials of the fault show it, or it is not shown at all.
      const rows = await twin.run({ ...lab, root, folder, scaled: (trials) => Math.min(5, trials) })
      const broken = rows.filter((row) => !isKept(row))
      caught.check(broken.length > 0, `without ${twin.without} nothing fails`)
      const named = broken.map(({ fault, what }) => `${fault} ${what}`).join('; ')
      lab.say(`twin without ${twin.without}: ${named || 'not caught'} (wanted: ${twin.caughtBy})`)
    }
    const row = caught.row()
    return [{ ...row, note: `twins caught ${row.kept}/${row.n}` }]
  },
}

async function makeTwin(lab: Lab, { without, file, find, replace }: Twin): Promise<string> {
  const root = join(lab.folder, `twin without ${without}`.replaceAll(/[^a-z]+/g, '-'))
  await mkdir(root)
  await cp(join(lab.root, 'dist'), join(root, 'dist'), { recursive: true })
  await cp(join(lab.root, 'package.json'), join(root, 'package.json'))
  for (const shared of ['node_modules', 'migrations']) {
    await symlink(join(lab.root, shared), join(root, shared))
  }
  const path = join(root, 'dist', file)
  const text = await readFile(path, 'utf8')
  if (text.split(find).length !== 2) {
    throw new Error(
      `${file} no longer has "${find}" once: the twin without ${without} is the product`,
    )
  }
  await writeFile(
    path,
    text.replace(find, () => replace),
  )
  return root
}
