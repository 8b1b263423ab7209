import { access, mkdir, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'

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

  async exists(sessionId: string): Promise<boolean> {
    return access(this.#path(sessionId)).then(
      () => true,
      () => false,
    )
  }

  /** Puts a login away: the next start pairs anew, and a person can still bring the old one back. */
  async archive(sessionId: string): Promise<void> {
    if (!(await this.exists(sessionId))) return
    const stamp = new Date().toISOString().replaceAll(/[:.]/g, '-')
    await rename(this.#path(sessionId), `${this.#path(sessionId)}.archived-${stamp}`)
    const archived = await this.#archived(sessionId)
    for (const name of archived.slice(0, -this.#keep)) {
      await rm(join(this.#folder, name), { recursive: true, force: true })
    }
  }

  /** Destroys a login and all that was put away of it; only when a person deletes the session. */
  async remove(sessionId: string): Promise<void> {
    await rm(this.#path(sessionId), { recursive: true, force: true, maxRetries: 5 })
    for (const name of await this.#archived(sessionId)) {
      await rm(join(this.#folder, name), { recursive: true, force: true })
    }
  }

  async #archived(sessionId: string): Promise<string[]> {
    const names = await readdir(this.#folder).catch(() => [])
    return names.filter((name) => name.startsWith(`${sessionId}.archived-`)).sort()
  }

  #path(sessionId: string): string {
    return join(this.#folder, sessionId)
  }
}
