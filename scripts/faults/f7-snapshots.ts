/** F7: snapshots of logins: their taker is killed at every step, bits flip, and rows and objects get into the wrong hands. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { connect } from '../../shared/db.ts'
import type { Db } from '../../shared/db.ts'
import type { Family, Lab } from './lab.ts'
import type { Random } from './random.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'

const steps = [
  'before the upload',
  'in the upload',
  'after the upload',
  'before the flip',
  'in the flip',
  'after the flip',
  'in a restore',
]
/** Of an object: its mark and nonce at the beginning, its seal at the end. */
const headLength = 20
const sealLength = 16
const timeoutMs = 60_000
/** Logins under way in one process when it is killed: four trials for the start of one. */
const loginsOfVictim = 4

export const snapshots: Family = { id: 'F7', run: (lab) => run(lab) }

/** Broken twins need only what alters snapshots. */
export const alterations = (lab: Lab) => run(lab, { kills: false })

interface Owner {
  id: string
  workspaceId: string
  fence: number
  worker: string
}

interface Task {
  what: 'take' | 'restore'
  session: Owner
  profile: string
  step?: string
  /** Where the store changes a bit of what it is given. */
  alterAt?: number
}

interface Restored {
  generation: number | null
  refused: { generation: number }[]
}

/** A session, its profile, and what the last snapshot holds that was reported as taken: the book of the judge. */
interface Login {
  session: Owner
  profile: string
  book: Map<string, string>
}

async function run(lab: Lab, { kills = true } = {}): Promise<Row[]> {
  const folder = join(lab.folder, 'f7')
  await mkdir(folder, { recursive: true })
  const url = await lab.createDatabase()
  const sql = connect(url, { applicationName: 'faults', max: 4 })
  const place = { root: lab.root, url, folder }
  const keeper = await Keeper.start(place)
  const scene: Scene = { lab, sql, folder, place, keeper, random: lab.random('F7') }
  try {
    return [
      ...(kills ? [await killed(scene)] : []),
      await alteredByStore(scene),
      await bitsFlipped(scene),
      await wrongHands(scene),
    ]
  } finally {
    await keeper.kill()
    await sql.close()
  }
}

interface Scene {
  lab: Lab
  sql: Db
  folder: string
  place: { root: string; url: string; folder: string }
  keeper: Keeper
  random: Random
}

/** Whoever takes or restores a snapshot is killed at each step; then a login must come back, and exactly the right one. */
async function killed(scene: Scene): Promise<Row> {
  const { lab, place, keeper } = scene
  const trials = new Trials('F7', `SIGKILL at each of ${steps.length} steps: restorable`)
  const logins = await Promise.all(Array.from({ length: loginsOfVictim }, () => givenLogin(scene)))
  for (let round = 0; round < Math.ceil(lab.scaled(16) / loginsOfVictim); round++) {
    for (const step of steps) {
      const what = step === 'in a restore' ? 'restore' : 'take'
      const books = await Promise.all(
        logins.map(({ profile }) => writeProfile(scene, profile, 60_000)),
      )
      lab.signal.throwIfAborted()
      const victim = await Keeper.start(place)
      await victim.stopAt(logins.map((login) => ({ what, step, ...login })))
      await victim.kill()
      for (const [index, login] of logins.entries()) {
        if (step === 'after the flip') login.book = books[index]!
        await trials.attempt(() =>
          comesBack(keeper, login).catch((error: Error) => {
            throw new Error(`${step}: ${error.message}`, { cause: error })
          }),
        )
      }
    }
  }
  return trials.row()
}

/** A store that changes a bit and says nothing: the snapshot must not count as taken, and the one before is used. */
async function alteredByStore(scene: Scene): Promise<Row> {
  const { lab, keeper, random } = scene
  const trials = new Trials('F7', 'bit changed while it is stored: never counts as taken')
  const login = await givenLogin(scene)
  for (let n = 0; n < lab.scaled(40); n++) {
    await trials.attempt(async () => {
      await writeProfile(scene, login.profile, 4_000)
      const alterAt = random.between(0, 1_500)
      const { error } = await keeper.ask({ what: 'take', alterAt, ...login })
      if (error === undefined) throw new Error(`byte ${alterAt}: it was reported as taken`)
      await comesBack(keeper, login)
    })
  }
  return trials.row()
}

/** At rest: the altered generation is refused, whatever bit it is, and the one before is used. */
async function bitsFlipped(scene: Scene): Promise<Row> {
  const { lab, keeper, random, sql } = scene
  const trials = new Trials('F7', 'bit flipped in the newest: refused, the one before is used')
  const login = await givenLogin(scene)
  const before = { ...login }
  login.book = await writeProfile(scene, login.profile, 4_000)
  await keeper.must({ what: 'take', ...login })
  const object = await newestObject(scene, login)
  const whole = await readFile(object)
  const [{ generation } = { generation: 0 }] = await sql<{ generation: number }>`
    select max(generation) as generation from wa_snapshots where session_id = ${login.session.id}`
  const [first, last] = [headLength, whole.length - sealLength]
  const places = [
    ...Array.from({ length: headLength }, (_, index) => index),
    ...Array.from({ length: 164 }, () => random.between(first, last - 1)),
    ...Array.from({ length: sealLength }, (_, index) => last + index),
  ]
  const count = lab.scaled(places.length)
  for (let n = 0; n < count; n++) {
    // Evenly, both ends among them, also in a short run.
    const at = places[Math.round((n * (places.length - 1)) / (count - 1))]!
    await trials.attempt(async () => {
      const flipped = Buffer.from(whole)
      flipped[at]! ^= 1 << random.between(0, 7)
      await replaceObject(object, flipped)
      await comesBack(keeper, before, [generation]).catch((error: Error) => {
        throw new Error(`a bit of byte ${at}: ${error.message}`, { cause: error })
      })
    })
  }
  await replaceObject(object, whole)
  await trials.attempt(() => comesBack(keeper, login))
  return trials.row()
}

/** What another workspace's session stored, put in the place of one's own in every way a row or an object can be. */
async function wrongHands(scene: Scene): Promise<Row> {
  const { lab, keeper, sql } = scene
  const trials = new Trials('F7', "another workspace's snapshot: never opens")
  const ways: ((mine: Login, theirs: Login) => Promise<void>)[] = [
    async (mine, theirs) => {
      const foreign = await readFile(await newestObject(scene, theirs))
      await replaceObject(await newestObject(scene, mine), foreign)
    },
    async (mine, theirs) => {
      const [their] = await sql<Record<string, string>>`
        delete from wa_snapshots where session_id = ${theirs.session.id} returning *`
      await sql`
        update wa_snapshots set object_key = ${their!['objectKey']}, size = ${their!['size']}, sha256 = ${their!['sha256']},
          files = ${their!['files']}, bytes = ${their!['bytes']}, key_id = ${their!['keyId']}, wrapped_key = ${their!['wrappedKey']}
        where session_id = ${mine.session.id}`
    },
    async (mine, theirs) => {
      await sql`delete from wa_snapshots where session_id = ${mine.session.id}`
      await sql`
        update wa_snapshots set session_id = ${mine.session.id}, workspace_id = ${mine.session.workspaceId}
        where session_id = ${theirs.session.id}`
    },
  ]
  for (let n = 0; n < lab.scaled(30); n++) {
    await trials.attempt(async () => {
      const [mine, theirs] = [await givenLogin(scene), await givenLogin(scene)]
      await ways[n % ways.length]!(mine, theirs)
      await rm(mine.profile, { recursive: true })
      const { generation } = await keeper.must({ what: 'restore', ...mine })
      if (generation !== null) throw new Error(`way ${n % ways.length}: it was restored`)
      if ((await filesOf(mine.profile)).size > 0) throw new Error('something of it was written')
    })
  }
  return trials.row()
}

/** A session of a workspace of its own, whose login is in the vault. */
async function givenLogin(scene: Scene): Promise<Login> {
  const { sql, folder, keeper } = scene
  const [workspace] = await sql<{ id: string }>`
    insert into workspaces (name) values ('Bakery') returning id`
  const workspaceId = workspace!.id
  const [row] = await sql<{ id: string }>`
    insert into wa_sessions (workspace_id, name, engine, owner, fence, lease_until)
    values (${workspaceId}, 'sales', 'webjs', 'worker', 1, now() + interval '1 hour') returning id`
  const session = { id: row!.id, workspaceId, fence: 1, worker: 'worker' }
  const profile = join(folder, 'profiles', session.id)
  const login = { session, profile, book: await writeProfile(scene, profile, 4_000) }
  await keeper.must({ what: 'take', ...login })
  return login
}

/** A machine whose disk is lost gets the login of the book, after it has refused exactly these generations. */
async function comesBack(
  keeper: Keeper,
  { session, profile, book }: Login,
  wrong: number[] = [],
): Promise<void> {
  await rm(profile, { recursive: true, force: true })
  const { generation, refused } = await keeper.must({ what: 'restore', session, profile })
  const passed = refused.map((snapshot) => snapshot.generation)
  if (generation === null) throw new Error('no snapshot could be used')
  if (JSON.stringify(passed) !== JSON.stringify(wrong)) {
    throw new Error(`refused ${passed.join(', ') || 'none'}, not ${wrong.join(', ') || 'none'}`)
  }
  const files = await filesOf(profile)
  if (JSON.stringify([...files]) !== JSON.stringify([...book])) {
    throw new Error('it is not the login that was stored')
  }
}

/** What looks like a browser's profile, with contents nobody saw before. */
async function writeProfile(
  { random }: Scene,
  profile: string,
  bytes: number,
): Promise<Map<string, string>> {
  const noise = (length: number) =>
    Array.from({ length: length / 8 }, () => random.between(0x10000000, 0xffffffff).toString(16))
  const files = new Map([
    ['Default/IndexedDB/whatsapp.leveldb/000003.log', noise(bytes).join('')],
    ['Default/IndexedDB/whatsapp.leveldb/CURRENT', 'MANIFEST-000001\n'],
    ['Default/Local Storage/leveldb/000003.log', noise(800).join('')],
  ])
  await rm(profile, { recursive: true, force: true })
  for (const [name, text] of files) {
    await mkdir(dirname(join(profile, name)), { recursive: true })
    await writeFile(join(profile, name), text)
  }
  return files
}

async function filesOf(folder: string): Promise<Map<string, string>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
  const paths = entries.filter((entry) => entry.isFile()).map((e) => join(e.parentPath, e.name))
  const files = await Promise.all(
    paths
      .sort()
      .map(async (path): Promise<[string, string]> => [
        path.slice(folder.length + 1),
        await readFile(path, 'utf8'),
      ]),
  )
  return new Map(files)
}

async function newestObject({ sql, folder }: Scene, { session }: Login): Promise<string> {
  const [row] = await sql<{ objectKey: string }>`
    select object_key from wa_snapshots
    where session_id = ${session.id} and state = 'verified' order by generation desc limit 1`
  return join(folder, 'objects', 'sessions', row!.objectKey)
}

async function replaceObject(path: string, bytes: Buffer): Promise<void> {
  await chmod(path, 0o600)
  await writeFile(path, bytes)
}

interface Answer {
  result?: Restored
  error?: string
  stopped?: true
}

/** A process with the product's vault. */
class Keeper {
  readonly #child: ReturnType<typeof fork>
  readonly #exited: Promise<unknown>
  #answers: Answer[] = []
  #ended = false
  #turn: Promise<unknown> = Promise.resolve()

  private constructor(place: object) {
    this.#child = fork(join(import.meta.dirname, 'vault-task.mjs'), [JSON.stringify(place)], {
      execArgv: [],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    })
    this.#child.on('message', (answer: Answer) => this.#answers.push(answer))
    this.#exited = once(this.#child, 'exit').then(() => (this.#ended = true))
  }

  static async start(place: object): Promise<Keeper> {
    const keeper = new Keeper(place)
    await keeper.#next()
    return keeper
  }

  /** One task at a time, whoever asks. */
  ask(task: Task): Promise<Answer> {
    const turn = this.#turn.then(() => {
      this.#child.send(task)
      return this.#next()
    })
    this.#turn = turn.catch(() => {})
    return turn
  }

  async must(task: Task): Promise<Restored> {
    const { error, result } = await this.ask(task)
    if (error !== undefined) throw new Error(error)
    return result!
  }

  /** Resolves when all of them have reached their step. */
  async stopAt(tasks: Task[]): Promise<void> {
    for (const task of tasks) this.#child.send(task)
    for (const { step } of tasks) {
      const { stopped, error } = await this.#next()
      if (!stopped) throw new Error(`${step} was not reached: ${error ?? 'it was done before'}`)
    }
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#exited
  }

  async #next(): Promise<Answer> {
    if (this.#answers.length === 0 && !this.#ended) {
      const signal = AbortSignal.timeout(timeoutMs)
      await Promise.race([once(this.#child, 'message', { signal }), this.#exited])
    }
    const answer = this.#answers.shift()
    if (!answer) throw new Error('the process with the vault ended')
    return answer
  }
}
