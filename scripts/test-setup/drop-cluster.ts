import { existsSync, readFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** Stops the server of a test run, whoever still uses it, and removes its folder. */
export async function dropCluster(folder: string): Promise<void> {
  const pidFile = join(folder, 'postgres', 'postmaster.pid')
  if (existsSync(pidFile)) {
    const pid = Number(readFileSync(pidFile, 'utf8').split('\n')[0])
    if (serves(pid, folder)) process.kill(pid, 'SIGQUIT') // at once: nothing in there is kept
    const deadline = Date.now() + 10_000
    while (serves(pid, folder) && Date.now() < deadline) await sleep(10)
  }
  // Its other processes may write for a moment longer.
  await rm(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 })
}

/** A pid in an old file may be another program's by now. */
function serves(pid: number, folder: string): boolean {
  try {
    process.kill(pid, 0)
    const commandLine = `/proc/${pid}/cmdline`
    return !existsSync('/proc') || readFileSync(commandLine, 'utf8').includes(folder)
  } catch {
    return false
  }
}
