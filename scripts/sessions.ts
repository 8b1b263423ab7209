import { rename } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { Writable } from 'node:stream'
import { parseArgs } from 'node:util'
import { baseSchema, exitOnConfigError, loadEnv, readEnv } from '../shared/config.ts'
import type { BaseConfig } from '../shared/config.ts'
import { connect } from '../shared/db.ts'
import type { Sql } from '../shared/db.ts'
import { openDatabase } from '../shared/embedded-postgres.ts'
import { errorText } from '../shared/errors.ts'
import { openKeyRing } from '../shared/key-ring.ts'
import { createLogger } from '../shared/logger.ts'
import { openObjectStore, sessionKeySchema, storageSchema } from '../shared/storage.ts'
import type { SessionKeyConfig, StorageConfig } from '../shared/storage.ts'
import { releaseLease } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { Snapshot } from '../shared/wa-snapshots.ts'
import { Vault } from '../wa-worker/vault.ts'
import { mustBeNew, readHead, readLogin, writeLogin } from './login-file.ts'

const usage = `npm run sessions -- <command>
  list                                    every session, who owns it, and its newest snapshot
  snapshots <session>                     what can be restored of a session
  restore <session> [--generation <n>]    makes a snapshot the one the next start uses (the newest if none is named)
  export <session> <file> [--generation <n>]
                                          writes a login to a new file, encrypted with a passphrase
  import <session> <file>                 makes the login in a file the one the next start uses
  rotate                                  seals all snapshots with the first key of SESSION_ENCRYPTION_KEY
A session is named by its id, or by its name where no other has the same. restore, export and import want it stopped: no
worker may own it. The passphrase is asked for, or taken from SESSIONS_PASSPHRASE.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a worker owns the session, 78 wrong settings`

/** What ends the command with a sentence and an exit code of its own. */
class Refusal extends Error {
  readonly exitCode: number

  constructor(exitCode: number, message: string) {
    super(message)
    this.exitCode = exitCode
  }
}

interface Context {
  sql: Sql
  vault: Vault
  dataDir: string
}

interface Target {
  id: string
  workspaceId: string
  name: string
  engine: string
}

type Config = BaseConfig & StorageConfig & SessionKeyConfig

/** Longer than any of these commands takes; they give the session back before. */
const leaseSeconds = 900

type Command = (context: Context) => Promise<void>

/** What each command wants besides its name, and whether it may be told a generation. */
const commands: Record<
  string,
  {
    wants: string[]
    chooses?: true
    run: (given: string[], generation: number | undefined) => Command
  }
> = {
  list: { wants: [], run: () => list },
  rotate: { wants: [], run: () => rotate },
  snapshots: {
    wants: ['session'],
    run:
      ([session = '']) =>
      (context) =>
        showSnapshots(context, session),
  },
  restore: {
    wants: ['session'],
    chooses: true,
    run:
      ([session = ''], generation) =>
      (context) =>
        restore(context, session, generation),
  },
  export: {
    wants: ['session', 'file'],
    chooses: true,
    run:
      ([session = '', file = ''], generation) =>
      (context) =>
        exportLogin(context, session, file, generation),
  },
  import: {
    wants: ['session', 'file'],
    run:
      ([session = '', file = '']) =>
      (context) =>
        importLogin(context, session, file),
  },
}

await main(process.argv.slice(2)).catch(exitOnConfigError)

async function main(args: string[]): Promise<void> {
  if (args.includes('--help') || args.includes('-h')) return console.log(usage)
  const { command, faults } = parse(args)
  if (!command) {
    for (const fault of faults) console.error(fault)
    console.error(`\n${usage}`)
    process.exitCode = 2
    return
  }
  loadEnv()
  const config = readEnv<Config>({ ...baseSchema, ...storageSchema, ...sessionKeySchema })
  const keys = await openKeyRing({
    value: config.SESSION_ENCRYPTION_KEY,
    dataDir: config.DATA_DIR,
    production: config.NODE_ENV === 'production',
  })
  const log = createLogger('sessions', { level: 'error', stdout: false })
  const store = openObjectStore(config)
  const { DATABASE_URL: databaseUrl, DATA_DIR: dataDir } = config
  const database = await openDatabase({ databaseUrl, dataDir }, log)
  const sql = connect(database.url, {
    applicationName: 'awfar-sessions',
    prepare: config.PG_PREPARE,
  })
  try {
    await command({ sql, vault: new Vault({ sql, store, keys, log }), dataDir })
  } catch (error) {
    console.error(errorText(error))
    process.exitCode = error instanceof Refusal ? error.exitCode : 1
  } finally {
    await sql.close()
    await database.release()
  }
}

/** The command, ready to run, or all that is wrong with what was typed. */
function parse(args: string[]): { command?: Command; faults: string[] } {
  let typed
  try {
    const options = { generation: { type: 'string' } } as const
    typed = parseArgs({ args, allowPositionals: true, options })
  } catch (error) {
    return { faults: [errorText(error)] }
  }
  const [name, ...given] = typed.positionals
  const { generation } = typed.values
  if (name === undefined) return { faults: ['a command is missing'] }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined
  if (!command) return { faults: [`"${name}" is no command`] }
  const { wants, chooses, run } = command
  const faults = wants.slice(given.length).map((what) => `${name}: <${what}> is missing`)
  const extra = given.slice(wants.length).map((what) => `"${what}"`)
  if (extra.length > 0) {
    faults.push(`${name}: ${extra.join(' and ')} ${extra.length > 1 ? 'are' : 'is'} too many`)
  }
  if (generation !== undefined && !chooses) faults.push(`${name} takes no --generation`)
  else if (generation !== undefined && !/^[1-9]\d{0,14}$/.test(generation)) {
    faults.push(`--generation must be a number from 1, not "${generation}"`)
  }
  if (faults.length > 0) return { faults }
  return { command: run(given, generation === undefined ? undefined : Number(generation)), faults }
}

async function list({ sql }: Context): Promise<void> {
  const rows = await sql<{
    id: string
    name: string
    workspace: string
    status: string
    owner: string | null
    generation: number | null
    takenAt: Date | null
  }>`
    select s.id, s.name, w.name as workspace, s.status, n.generation, n.created_at as taken_at,
      case when s.lease_until > clock_timestamp() then s.owner end as owner
    from wa_sessions s join workspaces w on w.id = s.workspace_id
    left join wa_snapshots n on n.session_id = s.id and n.generation = s.snapshot_generation
    where s.deleted_at is null order by s.created_at, s.id`
  console.table(
    rows.map(({ id, name, workspace, status, owner, generation, takenAt }) => ({
      ...{ id, name, workspace, status, owner: owner ?? '-', generation: generation ?? '-' },
      taken: takenAt?.toISOString() ?? '-',
    })),
  )
}

async function showSnapshots({ sql, vault }: Context, named: string): Promise<void> {
  const target = await find(sql, named)
  const snapshots = await vault.list(target.id)
  if (snapshots.length === 0) return console.log(`Session ${target.name} has no snapshots.`)
  console.table(
    snapshots.map((snapshot) => ({
      generation: snapshot.generation,
      state: snapshot.archivedFor ? `${snapshot.state} (${snapshot.archivedFor})` : snapshot.state,
      refused: snapshot.refusedAt?.toISOString() ?? '-',
      taken: snapshot.createdAt.toISOString(),
      reason: snapshot.reason,
      bytes: snapshot.size,
      key: snapshot.keyId,
      worker: snapshot.worker,
    })),
  )
}

async function restore(context: Context, named: string, generation?: number): Promise<void> {
  const { sql, vault, dataDir } = context
  await owning(sql, named, async (session, target) => {
    const snapshot = await choose(vault, target, generation)
    // A new generation with the old contents: every worker, wherever it runs, starts from it.
    const contents = await vault.open(session, snapshot)
    const { generation: made } = await vault.add(session, contents, 'RESTORED_BY_PERSON')
    await setAside(dataDir, session.id)
    console.log(
      `Generation ${snapshot.generation} of ${target.name} is current again, as generation ${made}; the next start uses it.`,
    )
  })
}

async function exportLogin(
  { sql, vault }: Context,
  named: string,
  file: string,
  generation?: number,
): Promise<void> {
  await owning(sql, named, async (session, target) => {
    const snapshot = await choose(vault, target, generation)
    await mustBeNew(file)
    const passphrase = await askPassphrase(true)
    const head = { engine: target.engine, name: target.name, takenAt: snapshot.createdAt }
    await writeLogin(file, passphrase, head, await vault.open(session, snapshot))
    console.log(`Generation ${snapshot.generation} of ${target.name} is in ${file}, encrypted.`)
  })
}

async function importLogin(context: Context, named: string, file: string): Promise<void> {
  const { sql, vault, dataDir } = context
  const head = await readHead(file)
  await owning(sql, named, async (session, target) => {
    if (head.engine !== target.engine) {
      throw new Refusal(
        1,
        `${file} holds a login for ${head.engine}, and ${target.name} runs on ${target.engine}.`,
      )
    }
    const contents = await readLogin(file, await askPassphrase(false))
    const { generation } = await vault.add(session, contents, 'IMPORTED')
    await setAside(dataDir, session.id)
    console.log(
      `The login of ${head.name} in ${file} is generation ${generation} of ${target.name}; the next start uses it.`,
    )
  })
}

async function rotate({ vault }: Context): Promise<void> {
  const { rotated, failed } = await vault.rotate()
  console.log(`${rotated} snapshots sealed anew.`)
  for (const { snapshot, why } of failed) {
    console.error(`Generation ${snapshot.generation} of session ${snapshot.sessionId}: ${why}`)
  }
  if (failed.length > 0) process.exitCode = 1
}

async function find(sql: Sql, named: string): Promise<Target> {
  const rows = await sql<Target>`
    select id, workspace_id, name, engine from wa_sessions
    where (id::text = ${named} or name = ${named}) and deleted_at is null limit 2`
  if (rows.length > 1) throw new Refusal(1, `Several sessions are named ${named}: use the id.`)
  if (!rows[0]) throw new Refusal(1, `There is no session ${named}.`)
  return rows[0]
}

/** Owns the session while `work` runs, as a worker would: none can start it meanwhile. */
async function owning(
  sql: Sql,
  named: string,
  work: (session: OwnedSession, target: Target) => Promise<void>,
): Promise<void> {
  const target = await find(sql, named)
  const worker = `sessions:${hostname()}:${process.pid}`
  const [row] = await sql<{ fence: number }>`
    update wa_sessions
    set owner = ${worker}, fence = fence + 1, lease_until = clock_timestamp() + ${leaseSeconds} * interval '1 second'
    where id = ${target.id} and (lease_until is null or lease_until < clock_timestamp())
    returning fence`
  if (!row) {
    const [{ owner } = { owner: null }] = await sql<{ owner: string | null }>`
      select owner from wa_sessions where id = ${target.id}`
    throw new Refusal(3, `Worker ${owner ?? '?'} owns ${target.name}: stop the session first.`)
  }
  const session = { id: target.id, workspaceId: target.workspaceId, fence: row.fence, worker }
  // Broken off, it would keep the session from everybody for as long as it has leased it. What was begun is harmless: nothing is current before it is proven.
  const breakOff = () => {
    releaseLease(sql, session).then(
      () => process.exit(130),
      () => process.exit(1),
    )
  }
  process.once('SIGINT', breakOff).once('SIGTERM', breakOff)
  try {
    await work(session, target)
  } finally {
    process.off('SIGINT', breakOff).off('SIGTERM', breakOff)
    await releaseLease(sql, session)
  }
}

async function choose(vault: Vault, target: Target, generation?: number): Promise<Snapshot> {
  const snapshots = await vault.list(target.id)
  const found =
    generation === undefined
      ? snapshots.find(({ state, refusedAt }) => state === 'verified' && refusedAt === null)
      : snapshots.find((snapshot) => snapshot.generation === generation)
  if (found) return found
  throw new Refusal(
    1,
    generation === undefined
      ? `${target.name} has no snapshot in use; name an archived one by its generation.`
      : `${target.name} has no generation ${generation}.`,
  )
}

/** The login on this machine's disk must not win over the one that was chosen. It is kept. */
async function setAside(dataDir: string, sessionId: string): Promise<void> {
  const profile = join(dataDir, 'profiles', sessionId)
  const stamp = new Date().toISOString().replaceAll(/[:.]/g, '-')
  await rename(profile, `${profile}.archived-${stamp}`).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
}

/** Asked for on the terminal, unseen; twice where a mistake would make the file worthless. */
async function askPassphrase(twice: boolean): Promise<string> {
  const given = process.env['SESSIONS_PASSPHRASE']
  const passphrase = given ?? (await ask('Passphrase: '))
  if (passphrase.length < 12)
    throw new Refusal(1, 'The passphrase must have at least 12 characters.')
  if (given === undefined && twice && (await ask('Once more: ')) !== passphrase) {
    throw new Refusal(1, 'The two passphrases differ.')
  }
  return passphrase
}

async function ask(question: string): Promise<string> {
  if (!process.stdin.isTTY) {
    throw new Refusal(
      1,
      'There is no terminal to ask for a passphrase on: set SESSIONS_PASSPHRASE.',
    )
  }
  process.stderr.write(question)
  const unseen = new Writable({ write: (_chunk, _encoding, done) => done() })
  const prompt = createInterface({ input: process.stdin, output: unseen, terminal: true })
  // The terminal is raw meanwhile: Ctrl-C comes as a key.
  prompt.on('SIGINT', () => process.kill(process.pid, 'SIGINT'))
  try {
    return await prompt.question('')
  } finally {
    prompt.close()
    process.stderr.write('\n')
  }
}
