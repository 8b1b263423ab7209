import { mkdir, rm } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../shared/db.ts'
import { errorText } from '../shared/errors.ts'
import { SealBroken, UnknownKey } from '../shared/key-ring.ts'
import type { KeyRing } from '../shared/key-ring.ts'
import type { Logger } from '../shared/logger.ts'
import { StoreUnavailable } from '../shared/object-store.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { assertFence, LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import * as snapshots from '../shared/wa-snapshots.ts'
import type { Snapshot } from '../shared/wa-snapshots.ts'
import { copyProfile } from './profile-copy.ts'
import { aside, clearAside, replaceProfile } from './profile-drafts.ts'
import { packFolder, SnapshotBroken } from './snapshot-format.ts'
import type { Totals } from './snapshot-format.ts'
import { isUnusable, SnapshotObjects } from './snapshot-objects.ts'
import { Turns } from './turns.ts'

export interface VaultOptions {
  sql: Sql
  store: ObjectStore
  keys: KeyRing
  log: Logger
  bucket?: string
  /** Generations kept of a login in use, and as many of logins put away. */
  keep?: number
  /** Attempts while the store is unavailable, and the pause before the second; it doubles with each. */
  attempts?: number
  retryMs?: number
  /** How long one snapshot or restore may take in all. Must stay well below the hour after which an upload counts as abandoned. */
  limitMs?: number
}

export interface TakeOptions {
  /** Why now: a stable code. */
  reason: string
  /** Parts of the profile; by default the login of a Chromium profile, or everything where there is none. */
  paths?: string[]
  signal?: AbortSignal
}

export interface Taken {
  generation: number
  /** Bytes of the object; files and bytes of what is in it. */
  size: number
  files: number
  bytes: number
}

export interface Restored {
  /** What the profile now is; null when no generation could be used, and the profile is as it was. */
  generation: number | null
  takenAt: Date | null
  /** Newer generations that could not be used, and why. */
  refused: { generation: number; why: string }[]
}

/** After this long nobody is still uploading. */
const abandonedMs = 3_600_000

/**
 * Keeps the logins of sessions: encrypted snapshots in the object store, several generations of each. The promise: at any moment, however
 * this process ends, the newest snapshot that was ever reported as taken can be restored, and nothing that was altered ever is.
 *
 * What is done for one session happens one after the other.
 */
export class Vault {
  readonly #options: Required<Omit<VaultOptions, 'store' | 'keys' | 'bucket'>>
  readonly #objects: SnapshotObjects
  readonly #turns = new Turns()

  constructor({ store, keys, bucket = 'sessions', ...options }: VaultOptions) {
    this.#options = { keep: 3, attempts: 3, retryMs: 1_000, limitMs: 600_000, ...options }
    this.#objects = new SnapshotObjects({ store, keys, bucket })
  }

  /**
   * Stores a snapshot of a profile, also of one in use, and makes it the current one once it has been read back and proven. The older ones
   * stay until then, and the newest of them after that.
   * Throws LeaseLost, NothingToSnapshot, ProfileRestless, StoreUnavailable or StoreRefused; whatever it throws, what could be restored
   * before still can.
   */
  async take(session: OwnedSession, profile: string, options: TakeOptions): Promise<Taken> {
    const signal = this.#limit(options.signal)
    return this.#turns.take(session.id, signal, async () => {
      await assertFence(this.#options.sql, session)
      await clearAside(profile, 'taking', 'restoring')
      const copy = aside(profile, 'taking')
      try {
        await copyProfile(profile, copy, { parts: options.paths, signal })
        const taken = await this.#keepTrying(signal, () =>
          this.#add(session, () => packFolder(copy), options.reason, signal),
        )
        // A restored profile has proven itself: the one it replaced is of no more use.
        await clearAside(profile, 'replaced')
        return taken
      } finally {
        await rm(copy, { recursive: true, force: true })
      }
    })
  }

  /**
   * Brings a login back: the newest generation that verifies (of those older than `before`) takes the place of the profile, which is moved
   * aside. Call it while nothing runs on the profile. Nothing is replaced before the snapshot was verified as a whole.
   * Throws LeaseLost; UnknownKey, StoreUnavailable or StoreRefused rather than pass over a newer generation that is intact.
   */
  async restore(
    session: OwnedSession,
    profile: string,
    { signal: wish, before }: { signal?: AbortSignal; before?: number } = {},
  ): Promise<Restored> {
    const signal = this.#limit(wish)
    return this.#turns.take(session.id, signal, async () => {
      const { sql, log } = this.#options
      const candidates = await snapshots.restorableSnapshots(sql, session, before)
      await clearAside(profile, 'taking', 'restoring')
      const refused: Restored['refused'] = []
      for (const snapshot of candidates) {
        const { generation } = snapshot
        const draft = aside(profile, 'restoring')
        try {
          await this.#keepTrying(signal, async () => {
            await rm(draft, { recursive: true, force: true })
            await mkdir(draft, { recursive: true, mode: 0o700 })
            await this.#objects.read(session, snapshot, { folder: draft, signal })
          })
          // Reading may have taken longer than the lease: this throws then.
          await snapshots.markRefused(sql, session, snapshot.id, false)
          await replaceProfile(profile, draft)
          log.info('login restored', { sessionId: session.id, generation, refused: refused.length })
          return { generation, takenAt: snapshot.createdAt, refused }
        } catch (error) {
          if (!isUnusable(error)) throw error
          refused.push({ generation, why: errorText(error) })
          log.error('snapshot refused', { sessionId: session.id, generation, error })
          await snapshots.markRefused(sql, session, snapshot.id, true)
        } finally {
          await rm(draft, { recursive: true, force: true })
        }
      }
      return { generation: null, takenAt: null, refused }
    })
  }

  /** Puts the session's snapshots away, after a logout or an expiry: none is restored by itself any more. Throws LeaseLost. */
  async archive(session: OwnedSession, reason: string): Promise<void> {
    const { sql, log, keep } = this.#options
    // Not in turn: a snapshot that is being taken is told so, it is not waited for.
    const archived = await snapshots.archiveSnapshots(sql, session, reason, keep)
    log.info('snapshots archived', { sessionId: session.id, reason, archived })
    await this.#removeDiscarded(session.id)
  }

  /** Destroys all snapshots of the session, the archived ones too: only when a person wants its data gone. Throws LeaseLost. */
  async destroy(session: OwnedSession): Promise<void> {
    await snapshots.discardAll(this.#options.sql, session)
    await this.#removeDiscarded(session.id)
  }

  /** What of a session could be restored by a person, the newest first. */
  async list(sessionId: string): Promise<Snapshot[]> {
    return snapshots.listSnapshots(this.#options.sql, sessionId)
  }

  /**
   * A snapshot's contents, decrypted: a compressed tar, and a full account credential. It is proven only once the stream has ended without an
   * error.
   */
  open(session: OwnedSession, snapshot: Snapshot): Promise<Readable> {
    return this.#objects.open(session, snapshot)
  }

  /** Takes in what open() gave, of this or of another session, as the new current generation. Throws as take() does. */
  async add(session: OwnedSession, contents: Readable, reason: string): Promise<Taken> {
    try {
      const signal = this.#limit()
      return await this.#turns.take(session.id, signal, () =>
        this.#add(session, () => ({ stream: contents }), reason, signal),
      )
    } finally {
      contents.destroy()
    }
  }

  /**
   * Seals the keys of all snapshots with the first key of the ring, so that the others can be taken out of it. The objects stay as they are,
   * and sessions run on meanwhile. Answers which could not be opened, and why.
   */
  async rotate(): Promise<{ rotated: number; failed: { snapshot: Snapshot; why: string }[] }> {
    const { sql } = this.#options
    const failed: { snapshot: Snapshot; why: string }[] = []
    let rotated = 0
    let after: string | null = null
    for (;;) {
      const batch = await snapshots.sealedOtherwise(sql, this.#objects.currentKey, {
        after,
        limit: 500,
      })
      for (const snapshot of batch) {
        const owner = { id: snapshot.sessionId, workspaceId: snapshot.workspaceId }
        try {
          const key = this.#objects.reseal(owner, snapshot)
          if (await snapshots.replaceKey(sql, snapshot, key)) rotated += 1
        } catch (error) {
          if (!(error instanceof UnknownKey || error instanceof SealBroken)) throw error
          failed.push({ snapshot, why: errorText(error) })
        }
      }
      if (batch.length === 0) return { rotated, failed }
      after = batch.at(-1)!.id
    }
  }

  /**
   * Removes objects nothing leads to any more: of uploads that were never finished, of generations that are no longer kept, of sessions that are
   * gone. Safe to run at any time and anywhere, once an hour is enough. Answers how many.
   */
  async collectOrphans({ olderThanMs = abandonedMs } = {}): Promise<number> {
    await this.#objects.ready()
    await snapshots.discardAbandoned(this.#options.sql, olderThanMs)
    return this.#removeDiscarded(undefined, olderThanMs)
  }

  /** One attempt to store what `pack` gives as a new generation. */
  async #add(
    session: OwnedSession,
    pack: () => { stream: Readable; totals?: Totals },
    reason: string,
    signal: AbortSignal,
  ): Promise<Taken> {
    const { sql, log, keep } = this.#options
    const started = performance.now()
    const generation = await snapshots.nextGeneration(sql, session)
    await this.#objects.ready()
    const draft = this.#objects.draft(session, generation)
    const { objectKey, key } = draft
    const begun = { generation, objectKey, key, reason }
    const id = await snapshots.beginSnapshot(sql, session, begun)
    try {
      const { stream, totals } = pack()
      const written = await this.#objects.write(session, draft, stream, signal)
      const stored = {
        ...{ generation, objectKey, keyId: key.keyId, wrappedKey: key.box },
        ...{ ...written, ...(totals ?? { files: null, bytes: null }) },
      }
      const proven = await this.#objects.read(session, stored, { signal })
      if (totals && (proven.files !== totals.files || proven.bytes !== totals.bytes)) {
        throw new SnapshotBroken('it does not hold what was put into it')
      }
      await snapshots.publishSnapshot(
        sql,
        session,
        { id, generation },
        { ...written, ...proven },
        keep,
      )
      const taken = { generation, size: written.size, ...proven }
      const ms = Math.round(performance.now() - started)
      log.info('snapshot taken', { sessionId: session.id, reason, ...taken, ms })
      await this.#removeDiscarded(session.id)
      return taken
    } catch (error) {
      await this.#giveUp(session, { id, generation, objectKey }, error)
      throw error
    }
  }

  /** Takes back an attempt that failed. What of it remains is collected later. */
  async #giveUp(
    session: OwnedSession,
    snapshot: { id: string; generation: number; objectKey: string },
    error: unknown,
  ): Promise<void> {
    const { sql, log } = this.#options
    const { id, generation } = snapshot
    if (error instanceof LeaseLost) return // the session has another owner: nothing is written any more
    log.warn('snapshot failed', { sessionId: session.id, generation, error })
    try {
      // The answer to the last write may have been lost on the way: what is current is never removed.
      if (!(await snapshots.discardSnapshot(sql, session, id))) return
      await this.#objects.remove([snapshot.objectKey])
      await snapshots.forgetDiscarded(sql, [id])
    } catch (cleanupError) {
      log.warn('failed snapshot left for later', {
        sessionId: session.id,
        generation,
        error: cleanupError,
      })
    }
  }

  async #removeDiscarded(sessionId?: string, olderThanMs = abandonedMs): Promise<number> {
    const { sql, log } = this.#options
    let removed = 0
    try {
      for (;;) {
        const batch = await snapshots.discardedSnapshots(sql, {
          sessionId,
          olderThanMs,
          limit: 100,
        })
        if (batch.length === 0) return removed
        await this.#objects.remove(batch.map(({ objectKey }) => objectKey))
        const ids = batch.map(({ id }) => id)
        await snapshots.forgetDiscarded(sql, ids)
        removed += batch.length
      }
    } catch (error) {
      // The rows stay, and lead the next cleanup to the objects.
      log.warn('old snapshots left for later', { sessionId, error })
      return removed
    }
  }

  async #keepTrying<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const { attempts, retryMs } = this.#options
    for (let attempt = 1; ; attempt++) {
      try {
        return await work()
      } catch (error) {
        if (!(error instanceof StoreUnavailable) || attempt === attempts) throw error
        await sleep(retryMs * 2 ** (attempt - 1), null, { signal })
      }
    }
  }

  #limit(signal?: AbortSignal): AbortSignal {
    const limit = AbortSignal.timeout(this.#options.limitMs)
    return signal ? AbortSignal.any([signal, limit]) : limit
  }
}
