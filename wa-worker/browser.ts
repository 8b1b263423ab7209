import {
  accessSync,
  constants,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { homedir, hostname, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import puppeteer from 'puppeteer'

/** Where browsers are found, in the order they are tried; scripts/setup.mjs looks in the same places. */
const places = [
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome-stable',
  '/usr/bin/google-chrome',
  '/snap/bin/chromium',
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
  '/Applications/Chromium.app/Contents/MacOS/Chromium',
  join(homedir(), 'Applications/Google Chrome.app/Contents/MacOS/Google Chrome'),
  join(homedir(), 'Applications/Chromium.app/Contents/MacOS/Chromium'),
  '/usr/bin/microsoft-edge',
]

/** The browser to run, or why there is none. A path that was named and is wrong is an error: no other browser takes its place. */
export function findBrowser(named: string | undefined): { path: string } | { missing: string } {
  if (named !== undefined) {
    return isExecutable(named)
      ? { path: named }
      : { missing: `PUPPETEER_EXECUTABLE_PATH names ${named}, which is not an executable file.` }
  }
  const path = [...places, puppeteer.executablePath()].find(isExecutable)
  return path === undefined
    ? {
        missing:
          'No Chromium or Chrome found. Install one (sudo apt-get install -y chromium, or npm run browser:install) or name one in PUPPETEER_EXECUTABLE_PATH.',
      }
    : { path }
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

/** A file in the profile that tells which browser runs on it. */
const record = 'awfar-browser'

/** A process of a machine; `startedAt`, in ticks since the boot, tells it from a later one with the same pid. Null where the system does not tell. */
interface Holder {
  host: string
  pid: number
  startedAt?: number | null
}

/** Writes down which browser runs on a profile: not every one locks it (`chromium-headless-shell` does not). */
export function recordBrowser(profileDir: string, pid: number): void {
  const holder: Holder = { host: hostname(), pid, startedAt: startOf(pid) }
  const file = join(profileDir, record)
  writeFileSync(`${file}.new`, JSON.stringify(holder), { mode: 0o600 })
  renameSync(`${file}.new`, file)
}

/**
 * Clears a profile for a new browser. Call it only while holding the session's lease: whatever still has the profile is then a left-over of
 * a dead worker. A browser of this machine that lives on is killed by its recorded pid, if it started when the record says and its command line names
 * this very profile; a lock of another machine (a container's former host name) is removed, since Chromium would refuse to start over it.
 */
export function clearProfile(profileDir: string): void {
  for (const holder of [readRecord(profileDir), readLock(profileDir)]) {
    if (holder?.host === hostname() && isOn(profileDir, holder)) killGroup(holder.pid)
  }
  removeSocketFolder(profileDir)
  for (const name of [record, 'SingletonLock', 'SingletonCookie', 'SingletonSocket']) {
    rmSync(join(profileDir, name), { force: true })
  }
}

/** A browser that was killed leaves the folder of its socket in the system's folder for temporary files. */
function removeSocketFolder(profileDir: string): void {
  try {
    const folder = dirname(readlinkSync(join(profileDir, 'SingletonSocket')))
    if (dirname(folder) === tmpdir()) rmSync(folder, { recursive: true, force: true })
  } catch {
    // none
  }
}

function readRecord(profileDir: string): Holder | undefined {
  try {
    return JSON.parse(readFileSync(join(profileDir, record), 'utf8')) as Holder
  } catch {
    return undefined // none, or not to be trusted
  }
}

function readLock(profileDir: string): Holder | undefined {
  try {
    const target = readlinkSync(join(profileDir, 'SingletonLock'))
    const dash = target.lastIndexOf('-')
    return { host: target.slice(0, dash), pid: Number(target.slice(dash + 1)) }
  } catch {
    return undefined // no lock
  }
}

function isOn(profileDir: string, { pid, startedAt }: Holder): boolean {
  try {
    if (typeof startedAt === 'number' && startOf(pid) !== startedAt) return false
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      .split('\0')
      .includes(`--user-data-dir=${profileDir}`)
  } catch {
    return false // no such process, or no /proc: then it is not ours to kill
  }
}

/** When a process was started, in ticks since the boot; null where the system does not tell. */
function startOf(pid: number): number | null {
  try {
    return Number(statFields(readFileSync(`/proc/${pid}/stat`, 'utf8'))[19])
  } catch {
    return null
  }
}

/** The fields behind the name, which stands in parentheses and may hold anything: state, parent, group and so on. */
const statFields = (stat: string) => stat.slice(stat.lastIndexOf(')') + 2).split(' ')

/** Ends a browser and what it started: it leads a process group of its own. */
export function killGroup(pid: number): void {
  for (const target of [-pid, pid]) {
    try {
      process.kill(target, 'SIGKILL')
    } catch {
      // gone already
    }
  }
}

/**
 * Bytes a browser and what it started use, shared pages divided among those that share them (PSS): the processes of the group it
 * leads. Null where the system does not tell (only Linux does).
 */
export async function groupMemory(leader: number): Promise<number | null> {
  const names = await readdir('/proc').catch(() => [])
  const sizes = await Promise.all(
    names.filter((name) => /^\d+$/.test(name)).map((pid) => memoryIn(pid, leader)),
  )
  const total = sizes.reduce((sum, size) => sum + size, 0)
  return total === 0 ? null : total
}

async function memoryIn(pid: string, leader: number): Promise<number> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8')
    if (Number(statFields(stat)[2]) !== leader) return 0
    const rollup = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8')
    return Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) * 1_024
  } catch {
    return 0 // ended meanwhile
  }
}
