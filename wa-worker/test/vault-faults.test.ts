import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import t from 'tap'
import type { Test } from 'tap'
import type { Sql } from '../../shared/db.ts'
import { root } from '../../shared/root.ts'
import { besideProfile, filesOf, givenProfile, vaultRig } from './vault-rig.ts'
import type { Rig } from './vault-rig.ts'

const reason = 'PERIODIC'
const fixture = join(import.meta.dirname, 'fixtures', 'take-snapshot.ts')
const steps = ['copied', 'uploading', 'uploaded', 'verified'] as const
const killsOfEach = 6
const faults = 176
const seed = 20260711

/** What the last snapshot that was reported as taken holds. */
interface Book {
  files: Map<string, string>
}

async function begin(t: Test): Promise<{ rig: Rig; book: Book }> {
  const rig = await vaultRig(t)
  const files = givenProfile(rig.profile, 'the first')
  await rig.vault.take(rig.session, rig.profile, { reason })
  return { rig, book: { files } }
}

/** Whether a worker that starts now, with nothing on its disk, gets the login the book says. */
async function isRestorable({ vault, session, profile }: Rig, { files }: Book): Promise<boolean> {
  rmSync(profile, { recursive: true, force: true })
  const { generation, refused } = await vault.restore(session, profile)
  if (generation === null || refused.length > 0) return false
  return JSON.stringify([...filesOf(profile)]) === JSON.stringify([...files])
}

await t.test('a process killed at any step leaves the last snapshot restorable', async (t) => {
  const { rig, book } = await begin(t)
  const { url, folder, profile, session } = rig
  let kills = 0
  let restorable = 0
  for (let round = 0; round < killsOfEach; round++) {
    await Promise.all(
      steps.map(async (step) => {
        // A profile each: only the database and the store are shared.
        const own = `${profile}-${step}`
        givenProfile(own, `${step} ${round}`, 200_000)
        const task = JSON.stringify({ url, folder, profile: own, session, step })
        const child = spawn(process.execPath, ['--import', 'tsx', fixture, task], {
          cwd: root,
          stdio: ['ignore', 'pipe', 'inherit'],
        })
        t.teardown(() => child.kill('SIGKILL'))
        const ended = once(child, 'exit')
        const reached = await Promise.race([once(child.stdout, 'data'), ended])
        t.equal(String(reached[0]), step)
        child.kill('SIGKILL')
        t.same(await ended, [null, 'SIGKILL'])
        kills += 1
      }),
    )
    for (const step of steps) rmSync(`${profile}-${step}`, { recursive: true })
    if (await isRestorable(rig, book)) restorable += steps.length
  }
  t.comment(`kills: ${kills}, restorable after: ${restorable}`)
  t.equal(restorable, kills)

  const left = rig.objects().length
  t.ok(left > 1, 'uploads of the dead lie about')
  await rig.vault.collectOrphans()
  t.equal(rig.objects().length, left, 'too young to be sure that nobody is at it')
  t.equal(await rig.vault.collectOrphans({ olderThanMs: 0 }), kills)
  const drafts = rig.objects().filter((path) => path.includes('.drafts'))
  t.equal(rig.objects().length - drafts.length, 1)
  t.ok(await isRestorable(rig, book))

  // Copies of the login that the dead left beside the profile go with the next snapshot of the same profile.
  givenProfile(`${profile}-copied`, 'the last')
  t.ok(besideProfile(profile).some((name) => name.includes('-copied.taking-')))
  await rig.vault.take(session, `${profile}-copied`, { reason })
  t.notOk(besideProfile(profile).some((name) => name.includes('-copied.taking-')))
})

const fail = () => {
  throw new Error('fault')
}

/** Each sets up one fault; some answer the database to use. */
const kinds: Record<string, (rig: Rig, random: () => number) => Sql | undefined> = {
  'the upload does not begin': ({ store }) => void (store.beforePut = fail),
  'the upload breaks off': ({ store }, random) => {
    store.changeSource = (source) => cut(source, random(), fail)
    return undefined
  },
  'the store loses the end, and says nothing': ({ store }, random) => {
    store.changeSource = (source) => cut(source, random())
    return undefined
  },
  'the store changes a byte, and says nothing': ({ store }, random) => {
    store.changeSource = (source) => flip(source, random())
    return undefined
  },
  'the answer to the upload is lost': ({ store }) => void (store.afterPut = fail),
  'it cannot be read back': ({ store }) => void (store.beforeGet = fail),
  'reading back breaks off': ({ store }, random) => {
    store.changeResult = (source) => cut(source, random(), fail)
    return undefined
  },
  'a byte is read back wrong': ({ store }, random) => {
    store.changeResult = (source) => flip(source, random())
    return undefined
  },
  'the first write fails': ({ sql }) => breaking(sql, 1, 'before'),
  'the last write fails': ({ sql }) => breaking(sql, 2, 'before'),
  'the answer to the last write is lost': ({ sql }) => breaking(sql, 2, 'after'),
}

/** A database whose nth transaction fails, before or after it is committed, and every later one too. */
function breaking(sql: Sql, nth: number, when: 'before' | 'after'): Sql {
  let count = 0
  return Object.assign(
    ((strings: TemplateStringsArray, ...values: never[]) => sql(strings, ...values)) as Sql,
    {
      begin: async <T>(work: (tx: Sql) => Promise<T>): Promise<T> => {
        count += 1
        if (count < nth) return sql.begin(work)
        if (count === nth && when === 'after') await sql.begin(work)
        return fail()
      },
    },
  )
}

/** Reads it all, and gives a part of it; then ends, or does `then`. */
function cut(source: Readable, part: number, then?: () => never): Readable {
  return change(source, (bytes) => {
    const kept = bytes.subarray(0, Math.floor(bytes.length * part))
    return then ? [kept, then] : [kept]
  })
}

function flip(source: Readable, place: number): Readable {
  return change(source, (bytes) => {
    bytes[Math.floor(bytes.length * place)]! ^= 4
    return [bytes]
  })
}

function change(source: Readable, what: (bytes: Buffer) => (Buffer | (() => never))[]): Readable {
  async function* changed() {
    const chunks: Buffer[] = []
    for await (const chunk of source) chunks.push(chunk as Buffer)
    for (const part of what(Buffer.concat(chunks))) yield typeof part === 'function' ? part() : part
  }
  return Readable.from(changed(), { objectMode: false })
}

function generator(state: number): () => number {
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

await t.test('whatever fails at any step, the last snapshot stays restorable', async (t) => {
  const { rig, book } = await begin(t)
  const random = generator(seed)
  const done = new Map<string, number>()
  let restorable = 0
  let succeeded = 0
  for (let n = 0; n < faults; n++) {
    const names = Object.keys(kinds)
    const name = names[Math.floor(random() * names.length)]!
    const files = givenProfile(rig.profile, `fault ${n}`, 2_000 + Math.floor(random() * 90_000))
    const sql = kinds[name]!(rig, random)
    const taken = await rig
      .newVault({ attempts: 1, ...(sql && { sql }) })
      .take(rig.session, rig.profile, { reason })
      .catch(() => undefined)
    rig.store.heal()
    done.set(name, (done.get(name) ?? 0) + 1)
    if (taken) succeeded += 1
    // The one fault after which the snapshot is complete: its taker never heard so.
    if (taken || name === 'the answer to the last write is lost') book.files = files
    if (await isRestorable(rig, book)) restorable += 1
  }
  t.comment(`faults: ${faults}, restorable after: ${restorable}, seed: ${seed}`)
  for (const [name, times] of done) t.comment(`  ${times} × ${name}`)
  t.equal(restorable, faults)
  t.equal(succeeded, 0, 'no snapshot that a fault hit was reported as taken')
  await rig.vault.collectOrphans({ olderThanMs: 0 })
  t.ok(rig.objects().length <= 3)
  const [row] = await rig.sql<{ rows: number }>`select count(*)::int as rows from wa_snapshots`
  t.equal(row!.rows, rig.objects().length)
})
