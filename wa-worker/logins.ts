import type { Logger } from '../shared/logger.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { newLogin } from '../shared/wa-session-transitions.ts'
import { deletedAmong } from '../shared/wa-sessions.ts'
import { currentSnapshot, loginEndedUnder } from '../shared/wa-snapshots.ts'
import type { Sql } from '../shared/db.ts'
import type { Profiles } from './profiles.ts'
import type { Vault } from './vault.ts'

/** Why a snapshot is taken. */
export type SnapshotReason = 'SETTLED' | 'PERIODIC' | 'STOPPED'

/**
 * The logins of sessions: a profile on this machine's disk while the session runs here, and snapshots of it in the vault for when that disk, or
 * this machine, is gone.
 */
export class Logins {
  readonly #sql: Sql
  readonly #profiles: Profiles
  readonly #vault: Vault
  readonly #log: Logger
  /** The generations that profiles were last restored from, as long as WhatsApp has not accepted them; 0 when none was left. */
  readonly #restored = new Map<string, number>()

  constructor({
    sql,
    profiles,
    vault,
    log,
  }: {
    sql: Sql
    profiles: Profiles
    vault: Vault
    log: Logger
  }) {
    this.#sql = sql
    this.#profiles = profiles
    this.#vault = vault
    this.#log = log
  }

  /**
   * Makes the profile of this machine the newest there is, before an engine opens it: if the session ran elsewhere since it ran here, or the disk
   * was lost, the profile comes out of the vault. Answers what was done, for a person; undefined when the profile was good as it is.
   * Throws what Vault.restore() throws.
   */
  async prepare(session: OwnedSession, signal: AbortSignal): Promise<string | undefined> {
    const usedUnder = await this.#usedUnder(session)
    const snapshot = await currentSnapshot(this.#sql, session)
    let done: string | undefined
    if (snapshot && (usedUnder === undefined || snapshot.fence > usedUnder)) {
      done = await this.#restore(session, signal)
    }
    await this.#profiles.markUsed(session.id, session.fence)
    return done
  }

  /** WhatsApp accepted the profile: what comes next is newer than any snapshot. */
  accepted(sessionId: string): void {
    this.#restored.delete(sessionId)
  }

  /** Whether the vault has anything to go back to that this profile did not just come from. */
  async canRollBack(session: OwnedSession): Promise<boolean> {
    const before = this.#restored.get(session.id)
    return (await currentSnapshot(this.#sql, session, before)) !== undefined
  }

  /**
   * Goes back to the newest snapshot, when the profile of this machine turned out to be worth nothing; when it had just been restored, to the
   * one before. Answers what was done, for a person. Throws what Vault.restore() throws.
   */
  async rollBack(session: OwnedSession, signal: AbortSignal): Promise<string> {
    const done = await this.#restore(session, signal, this.#restored.get(session.id))
    await this.#profiles.markUsed(session.id, session.fence)
    return done
  }

  /** Whether there is a login at all, here or in the vault. */
  async exists(session: OwnedSession): Promise<boolean> {
    return (
      (await this.#usedUnder(session)) !== undefined ||
      (await currentSnapshot(this.#sql, session)) !== undefined
    )
  }

  /** Takes a snapshot. What goes wrong is logged: the older snapshots still stand, and the next one will be taken. Throws LeaseLost only. */
  async keep(session: OwnedSession, reason: SnapshotReason, limitMs?: number): Promise<void> {
    try {
      await this.#vault.take(session, await this.#profiles.open(session.id), {
        reason,
        ...(limitMs !== undefined && { signal: AbortSignal.timeout(limitMs) }),
      })
    } catch (error) {
      if (error instanceof LeaseLost) throw error
      this.#log.error('login snapshot not taken', { sessionId: session.id, reason, error })
    }
  }

  /** Puts a login away: nothing brings it back by itself, but a person still can. */
  async archive(session: OwnedSession, reason: string): Promise<void> {
    this.#restored.delete(session.id)
    await this.#vault.archive(session, reason)
    await this.#profiles.archive(session.id)
  }

  /** Destroys a login and all that was kept of it, because a person deleted the session. */
  async destroy(session: OwnedSession): Promise<void> {
    this.#restored.delete(session.id)
    await this.#vault.destroy(session)
    await this.#profiles.remove(session.id)
  }

  /** Removes from this machine the logins of sessions that were deleted, wherever that was done. Answers how many. */
  async removeDeleted(): Promise<number> {
    const deleted = await deletedAmong(this.#sql, await this.#profiles.sessions())
    for (const id of deleted) await this.#profiles.remove(id)
    return deleted.length
  }

  /**
   * The fence under which the profile of this machine was last used. One of before a logout or an expiry, which may have happened on another machine, is put
   * away first. (Within one lease that has been done: what is there then has come after it.)
   */
  async #usedUnder(session: OwnedSession): Promise<number | undefined> {
    const usedUnder = await this.#profiles.usedUnder(session.id)
    if (usedUnder === undefined || usedUnder === session.fence) return usedUnder
    const ended = await loginEndedUnder(this.#sql, session)
    if (ended === null || usedUnder > ended) return usedUnder
    await this.#profiles.archive(session.id)
    this.#log.warn('login of before a logout put away', { sessionId: session.id, usedUnder, ended })
    return undefined
  }

  async #restore(session: OwnedSession, signal: AbortSignal, before?: number): Promise<string> {
    const profile = await this.#profiles.open(session.id)
    const { generation, refused } = await this.#vault.restore(session, profile, {
      signal,
      ...(before !== undefined && { before }),
    })
    this.#restored.set(session.id, generation ?? 0)
    for (const { generation: bad, why } of refused) {
      this.#log.error('login snapshot unusable', { sessionId: session.id, generation: bad, why })
    }
    await newLogin(this.#sql, session)
    const passed = refused.map((snapshot) => snapshot.generation).join(', ')
    const said =
      generation === null ? 'No snapshot could be used' : `Restored snapshot ${generation}`
    return passed ? `${said}; refused: ${passed}.` : `${said}.`
  }
}
