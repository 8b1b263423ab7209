/** Broken twins of sending: each lacks one guard, and the model check must find that out. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { Family } from './lab.ts'
import { builtParts } from './model-parts.ts'
import { explore } from './model.ts'
import type { Promised, Scenario } from './model.ts'
import { copyProduct } from './product.ts'
import type { Edit } from './product.ts'
import { Trials } from './trials.ts'

interface Twin {
  without: string
  edits: Edit[]
  /** Which promise must be broken, and in which scenario. */
  breaks: Promised
  in: Scenario
}

const kept = { times: 1, store: 'kept', policy: 'reconcile_then_resend_same_id' } as const
const taken: Scenario = { chats: 1, loses: 'dies', ...kept, client: 'cancel' }
const stalled: Scenario = { chats: 1, loses: 'stalls', ...kept }

const twins: Twin[] = [
  {
    without: 'marking what is claimed',
    edits: [
      { file: 'shared/claims.js', find: "set state = 's', claimed_by", replace: 'set claimed_by' },
    ],
    breaks: 'lanes',
    in: taken,
  },
  {
    without: 'the look-up before a message is sent again',
    edits: [
      {
        file: 'wa-worker/delivery.js',
        find: 'const receipt = await engine.find({ chatId, keyId });',
        replace: 'const receipt = null;',
      },
    ],
    breaks: 'lost 0',
    in: taken,
  },
  {
    without: 'the conflict clause that counts a lane on',
    edits: [
      {
        file: 'shared/outbox.js',
        find: 'set waiting = outbox_lanes.waiting + excluded.waiting,',
        replace: 'set waiting = outbox_lanes.waiting,',
      },
    ],
    breaks: 'lanes',
    in: taken,
  },
  {
    without: 'the fence at the record of an ack',
    edits: [
      {
        file: 'shared/acks.js',
        find: ' and s.fence = r.fence',
        replace: '',
      },
    ],
    breaks: 'stale writes 0',
    in: stalled,
  },
  {
    without: 'the fence at putting back',
    edits: [
      {
        file: 'shared/claims.js',
        find: 'await assertFence(tx, lease);\n        // Held before the message',
        replace: '// Held before the message',
      },
    ],
    breaks: 'stale writes 0',
    in: { ...stalled, offlineOnce: true },
  },
]

export const sendingTwins: Family = {
  id: 'TWINS4',
  async run(lab) {
    const caught = new Trials('twins', 'guard of sending taken out: the model check names it')
    for (const [index, twin] of twins.entries()) {
      const { without, edits, breaks } = twin
      const folder = join(lab.folder, `s${index}`)
      await mkdir(folder)
      const root = join(folder, 'product')
      await copyProduct(lab.root, root, edits)
      const parts = await builtParts(root)
      const sql = parts.connect(await lab.createDatabase(), { applicationName: 'faults', max: 2 })
      try {
        const { violations } = await explore(parts, sql, twin.in, breaks)
        const broken = violations.find(({ promise }) => promise === breaks)
        caught.check(broken !== undefined, `without ${without} "${breaks}" holds all the same`)
        const how = broken && `${broken.what} (${broken.path.join('; ')})`
        lab.say(`twin without ${without}: ${how ?? 'nothing fails'}`)
      } finally {
        await sql.close()
      }
    }
    const row = caught.row()
    const list = twins.map(({ without }) => without).join('; ')
    return [{ ...row, note: `${row.kept} of ${row.n} caught: without ${list}` }]
  },
}
