import { readdirSync, readFileSync } from 'node:fs'

/** A process as the kernel lists it. */
export interface Listed {
  pid: number
  parent: number
  /** Clock ticks since boot: a pid that was given out again has another. */
  startedAt: string
  zombie: boolean
  command: string
}

export function listProcesses(): Listed[] {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name))
  return pids
    .map(Number)
    .map(readProcess)
    .filter((process) => process !== undefined)
}

/** Nothing here waits for a disk: reading at once costs a fifth of what promises would. */
function readProcess(pid: number): Listed | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8')
    // The name before it stands in brackets and may hold spaces.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return {
      pid,
      parent: Number(fields[1]),
      startedAt: fields[19]!,
      zombie: fields[0] === 'Z',
      command: command.replaceAll('\0', ' '),
    }
  } catch {
    return undefined // ended meanwhile
  }
}

/** A process and everything it started. */
export function familyOf(pid: number, all: Listed[]): Listed[] {
  const children = all.filter(({ parent }) => parent === pid)
  const self = all.filter((process) => process.pid === pid)
  return [...self, ...children.flatMap((child) => familyOf(child.pid, all))]
}

/** Those of these processes that still run. */
export function stillRunning(before: Listed[]): Listed[] {
  return before.filter((old) => {
    const same = readProcess(old.pid)
    return same?.startedAt === old.startedAt && !same.zombie
  })
}

export interface Browser {
  main: Listed
  renderers: Listed[]
  all: Listed[]
}

/** The Chromium that runs on this profile. */
export function browserOn(profile: string): Browser | undefined {
  const processes = listProcesses().filter(({ zombie }) => !zombie)
  const main = processes.find(
    ({ command }) =>
      command.includes(`--user-data-dir=${profile} `) && !command.includes(' --type='),
  )
  if (!main) return undefined
  const all = familyOf(main.pid, processes)
  return { main, all, renderers: all.filter(({ command }) => command.includes('--type=renderer')) }
}

/** A process that ended in this very moment needs no signal. */
export function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
