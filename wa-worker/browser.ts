import { accessSync, constants, readFileSync, readlinkSync, rmSync } from 'node:fs'
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

/**
 * Clears a profile for a new browser. Call it only while holding the session's lease: whatever still has the profile is then a left-over of
 * a dead worker. A browser of this machine that lives on is killed by its pid, if its command line names this very profile; a lock of another
 * machine (a container's former host name) is removed, since Chromium would refuse to start over it.
 */
export function clearProfile(profileDir: string): void {
  const lock = readLock(profileDir)
  if (!lock) return
  if (lock.host === hostname() && holdsProfile(lock.pid, profileDir)) killGroup(lock.pid)
  removeSocketFolder(profileDir)
  for (const name of ['SingletonLock', 'SingletonCookie', 'SingletonSocket']) {
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

function readLock(profileDir: string): { host: string; pid: number } | undefined {
  try {
    const target = readlinkSync(join(profileDir, 'SingletonLock'))
    const dash = target.lastIndexOf('-')
    return { host: target.slice(0, dash), pid: Number(target.slice(dash + 1)) }
  } catch {
    return undefined // no lock
  }
}

function holdsProfile(pid: number, profileDir: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      .split('\0')
      .includes(`--user-data-dir=${profileDir}`)
  } catch {
    return false // no such process, or no /proc: then it is not ours to kill
  }
}

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
    // The name in parentheses may hold anything; the fields behind it are state, parent, group.
    const group = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[2])
    if (group !== leader) return 0
    const rollup = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8')
    return Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) * 1_024
  } catch {
    return 0 // ended meanwhile
  }
}
