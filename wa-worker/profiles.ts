import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** A file in the profile that tells under which fence it was last used. */
const marker = 'awfar-fence'

/** Where the logins of sessions live on this machine: one folder a session, whose contents are a full account credential. */
export class Profiles {
  readonly #folder: string
  /** Logins put away that are kept for each session. */
  readonly #keep = 3

  constructor(dataDir: string) {
    this.#folder = join(dataDir, 'profiles')
  }

  /** The folder of a session's login; made, for our eyes only, if it is not there. */
  async open(sessionId: string): Promise<string> {
    const folder = this.#path(sessionId)
    await mkdir(folder, { recursive: true, mode: 0o700 })
    return folder
  }

  /** Writes down the fence under which the profile is used from now on. */
  async markUsed(sessionId: string, fence: number): Promise<void> {
    const path = join(await this.open(sessionId), marker)
    // As a whole or not at all: without it a profile counts as older than any snapshot, and a full disk would have it replaced.
    await writeFile(`${path}.new`, String(fence), { mode: 0o600 })
    await rename(`${path}.new`, path)
  }

  /** The fence under which the profile was last used here; undefined when there is none on this machine. */
  async usedUnder(sessionId: string): Promise<number | undefined> {
    try {
      return Number(await readFile(join(this.#path(sessionId), marker), 'utf8'))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
  }

  /** Puts a login away: the next start pairs anew, and a person can still bring the old one back. */
  async archive(sessionId: string): Promise<void> {
    const stamp = new Date().toISOString().replaceAll(/[:.]/g, '-')
    try {
      await rename(this.#path(sessionId), `${this.#path(sessionId)}.archived-${stamp}`)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return // never started here
      throw error
    }
    const archived = await this.#archived(sessionId)
    for (const name of archived.slice(0, -this.#keep)) {
      await rm(join(this.#folder, name), { recursive: true, force: true })
    }
  }

  /** Destroys a login and all that was put away of it; only when a person deletes the session. */
  async remove(sessionId: string): Promise<void> {
    const names = await readdir(this.#folder).catch(() => [])
    for (const name of names) {
      // The profile, and beside it what was put away of it or is being copied.
      if (name !== sessionId && !name.startsWith(`${sessionId}.`)) continue
      await rm(join(this.#folder, name), { recursive: true, force: true, maxRetries: 5 })
    }
  }

  /** The sessions that have, or had, a login here. */
  async sessions(): Promise<string[]> {
    const names = await readdir(this.#folder).catch(() => [])
    return [...new Set(names.map((name) => name.split('.')[0]!))].filter((id) => uuid.test(id))
  }

  async #archived(sessionId: string): Promise<string[]> {
    const names = await readdir(this.#folder).catch(() => [])
    return names.filter((name) => name.startsWith(`${sessionId}.archived-`)).sort()
  }

  #path(sessionId: string): string {
    return join(this.#folder, sessionId)
  }
}
