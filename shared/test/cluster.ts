import { readdirSync } from 'node:fs'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'

/**
 * The folder of the database that the test files of one run share. before.ts, after.ts and every test file are children of the
 * same tap process: its pid is the key, so that two runs at once, in one checkout or in two, never meet.
 */
export const runFolder = join(tmpdir(), `awfar-test-${userInfo().uid}-${process.ppid}`)

/** Holds the address of the shared server. */
export const urlFile = join(runFolder, 'url')

/** Folders of runs whose tap is gone: it was killed before it could clean up. */
export function deadRunFolders(): string[] {
  const mine = new RegExp(`^awfar-test-${userInfo().uid}-(\\d+)$`)
  return readdirSync(tmpdir())
    .filter((name) => {
      const pid = mine.exec(name)?.[1]
      return pid !== undefined && !isAlive(Number(pid))
    })
    .map((name) => join(tmpdir(), name))
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
