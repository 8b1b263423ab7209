import { readdirSync, statfsSync } from 'node:fs'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'

/** In memory where there is enough of it (containers often have 64 MB): a database of some hundred small files is made there in a tenth of the time. */
const home = sizeOf('/dev/shm') >= 4 * 2 ** 30 ? '/dev/shm' : tmpdir()

/**
 * The folder of the database that the test files of one run share. before.ts, after.ts and every test file are children of the
 * same tap process: its pid is the key, so that two runs at once, in one checkout or in two, never meet.
 */
export const runFolder = join(home, `awfar-test-${userInfo().uid}-${process.ppid}`)

/** Holds the address of the shared server. */
export const urlFile = join(runFolder, 'url')

/** Folders of runs whose tap is gone: it was killed before it could clean up. */
export function deadRunFolders(): string[] {
  const mine = new RegExp(`^awfar-test-${userInfo().uid}-(\\d+)$`)
  return readdirSync(home)
    .filter((name) => {
      const pid = mine.exec(name)?.[1]
      return pid !== undefined && !isAlive(Number(pid))
    })
    .map((name) => join(home, name))
}

/** In bytes; 0 where there is no such file system. Not what is free: all processes of a run have to find the same. */
function sizeOf(folder: string): number {
  try {
    const { blocks, bsize } = statfsSync(folder)
    return blocks * bsize
  } catch {
    return 0
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
