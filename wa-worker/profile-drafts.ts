import { randomBytes } from 'node:crypto'
import { open, readdir, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

/** What a folder beside a profile is for: a copy a snapshot is taken of, a login that comes out of the vault, the profile that this replaced. */
type Purpose = 'taking' | 'restoring' | 'replaced'

/** A folder beside the profile, so that a rename never crosses a file system. Nothing is made. */
export const aside = (profile: string, purpose: Purpose) =>
  `${profile}.${purpose}-${randomBytes(6).toString('hex')}`

/** Removes what an attempt that was killed has left: only the session's owner calls this, so nobody else is at it. */
export async function clearAside(profile: string, ...purposes: Purpose[]): Promise<void> {
  const folder = dirname(profile)
  const mine = purposes.map((purpose) => `${basename(profile)}.${purpose}-`)
  for (const name of await readdir(folder).catch(() => [])) {
    if (!mine.some((prefix) => name.startsWith(prefix))) continue
    await rm(join(folder, name), { recursive: true, force: true })
  }
}

/**
 * Puts the draft in the place of the profile. The old one stays beside it until a snapshot has been taken of the new one. A crash between the two
 * renames leaves no profile, which is restored once more.
 */
export async function replaceProfile(profile: string, draft: string): Promise<void> {
  await clearAside(profile, 'replaced')
  await rename(profile, aside(profile, 'replaced')).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
  await rename(draft, profile)
  const folder = await open(dirname(profile), 'r')
  await folder.sync().finally(() => folder.close())
}
