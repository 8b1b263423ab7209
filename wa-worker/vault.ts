import { randomBytes } from 'node:crypto'
import { mkdir, open, readdir, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../shared/db.ts'
import { errorText } from '../shared/errors.ts'
import { SealBroken, UnknownKey } from '../shared/key-ring.ts'
import type { KeyRing } from '../shared/key-ring.ts'
import type { Logger } from '../shared/logger.ts'
import { ObjectNotFound, StoreRefused, StoreUnavailable } from '../shared/object-store.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { assertFence, LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import * as snapshots from '../shared/wa-snapshots.ts'
import type { Snapshot } from '../shared/wa-snapshots.ts'
import { copyProfile } from './profile-copy.ts'
import { Decrypt, Encrypt, Meter, packFolder, SnapshotBroken, unpack } from './snapshot-format.ts'
import type { Totals } from './snapshot-format.ts'

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
  readonly #options: Required<VaultOptions>
  readonly #turns = new Map<string, Promise<unknown>>()
  #bucketReady: Promise<void> | undefined

  constructor(options: VaultOptions) {
    this.#options = {
      bucket: 'sessions',
      keep: 3,
      attempts: 3,
      retryMs: 1_000,
      limitMs: 600_000,
      ...options,
    }
  }

  /**
   * Stores a snapshot of a profile, also of one in use, and makes it the current one once it has been read back and proven. The older ones
   * stay until then, and the newest of them after that.
   * Throws LeaseLost, NothingToSnapshot, ProfileRestless, StoreUnavailable or StoreRefused; whatever it throws, what could be restored
   * before still can.
   */
  async take(session: OwnedSession, profile: string, options: TakeOptions): Promise<Taken> {
    const signal = this.#limit(options.signal)
    return this.#inTurn(session.id, signal, async () => {
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
    return this.#inTurn(session.id, signal, async () => {
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
            await this.#read(session, snapshot, { folder: draft, signal })
          })
          // Reading may have taken longer than the lease: this throws then.
          await snapshots.markRefused(sql, session, snapshot.id, false)
          await replace(profile, draft)
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
  async open(session: OwnedSession, snapshot: Snapshot): Promise<Readable> {
    const { store, bucket } = this.#options
    const key = this.#dataKey(session, snapshot)
    const source = await store.get(bucket, snapshot.objectKey)
    const decrypt = new Decrypt(key, objectContext(session, snapshot.generation))
    pipeline(source, decrypt).catch(() => {}) // reaches the reader of decrypt
    return decrypt
  }

  /** Takes in what open() gave, of this or of another session, as the new current generation. Throws as take() does. */
  async add(session: OwnedSession, contents: Readable, reason: string): Promise<Taken> {
    try {
      const signal = this.#limit()
      return await this.#inTurn(session.id, signal, () =>
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
    const { sql, keys } = this.#options
    const failed: { snapshot: Snapshot; why: string }[] = []
    let rotated = 0
    let after: string | null = null
    for (;;) {
      const batch = await snapshots.sealedOtherwise(sql, keys.current, { after, limit: 500 })
      for (const snapshot of batch) {
        const owner = { id: snapshot.sessionId, workspaceId: snapshot.workspaceId }
        try {
          const key = keys.seal(
            this.#dataKey(owner, snapshot),
            keyContext(owner, snapshot.generation),
          )
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
    await this.#ready()
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
    const { sql, keys, log, keep } = this.#options
    const started = performance.now()
    const generation = await snapshots.nextGeneration(sql, session)
    await this.#ready()
    const dataKey = randomBytes(32)
    const objectKey = `${session.workspaceId}/${session.id}/${generation}-${randomBytes(8).toString('hex')}`
    const key = keys.seal(dataKey, keyContext(session, generation))
    const begun = { generation, objectKey, key, reason }
    const id = await snapshots.beginSnapshot(sql, session, begun)
    try {
      const { stream, totals } = pack()
      const encrypt = new Encrypt(dataKey, objectContext(session, generation))
      const written = await this.#upload(objectKey, stream, encrypt, signal)
      const stored = {
        ...{ workspaceId: session.workspaceId, sessionId: session.id },
        ...{ generation, objectKey, ...written, ...(totals ?? { files: null, bytes: null }) },
        ...{ keyId: key.keyId, wrappedKey: key.box },
      }
      const proven = await this.#read(session, stored, { signal })
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

  async #upload(
    objectKey: string,
    stream: Readable,
    encrypt: Encrypt,
    signal: AbortSignal,
  ): Promise<{ size: number; sha256: string }> {
    const { store, bucket } = this.#options
    const meter = new Meter()
    const flow = pipeline(stream, encrypt, meter, { signal })
    const put = store.put(bucket, objectKey, meter, { signal })
    // A store that refused before it read anything would leave the flow waiting.
    put.catch(() => meter.destroy())
    await all(signal, flow, put)
    return { size: meter.size, sha256: meter.sha256 }
  }

  /** Reads a snapshot to its end and proves it: size, hash, decryption, contents. Throws SnapshotBroken and its like. */
  async #read(
    session: OwnedSession,
    snapshot: Pick<
      Snapshot,
      'generation' | 'objectKey' | 'keyId' | 'wrappedKey' | 'size' | 'sha256' | 'files' | 'bytes'
    >,
    { folder, signal }: { folder?: string; signal: AbortSignal },
  ): Promise<Totals> {
    const { store, bucket } = this.#options
    const dataKey = this.#dataKey(session, snapshot)
    const source = await orAborted(store.get(bucket, snapshot.objectKey), signal, (late) =>
      late.destroy(),
    )
    const meter = new Meter()
    const decrypt = new Decrypt(dataKey, objectContext(session, snapshot.generation))
    const flow = pipeline(source, meter, decrypt, { signal })
    const { files, bytes } = snapshot
    const expected = files === null || bytes === null ? undefined : { files, bytes }
    const unpacking = unpack(decrypt, {
      signal,
      ...(folder !== undefined && { folder }),
      ...(expected && { limit: expected }),
    })
    const [, totals] = await all(signal, flow, unpacking)
    if (meter.size !== snapshot.size || meter.sha256 !== snapshot.sha256) {
      throw new SnapshotBroken('it is not the object that was stored')
    }
    if (expected && (totals.files !== expected.files || totals.bytes !== expected.bytes)) {
      throw new SnapshotBroken('it holds less than was stored')
    }
    return totals
  }

  /** Takes back an attempt that failed. What of it remains is collected later. */
  async #giveUp(
    session: OwnedSession,
    snapshot: { id: string; generation: number; objectKey: string },
    error: unknown,
  ): Promise<void> {
    const { sql, store, bucket, log } = this.#options
    const { id, generation } = snapshot
    if (error instanceof LeaseLost) return // the session has another owner: nothing is written any more
    log.warn('snapshot failed', { sessionId: session.id, generation, error })
    try {
      // The answer to the last write may have been lost on the way: what is current is never removed.
      if (!(await snapshots.discardSnapshot(sql, session, id))) return
      await store.remove(bucket, [snapshot.objectKey])
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
    const { sql, store, bucket, log } = this.#options
    let removed = 0
    try {
      for (;;) {
        const batch = await snapshots.discardedSnapshots(sql, {
          sessionId,
          olderThanMs,
          limit: 100,
        })
        if (batch.length === 0) return removed
        await store.remove(
          bucket,
          batch.map(({ objectKey }) => objectKey),
        )
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

  #dataKey(
    session: Pick<OwnedSession, 'id' | 'workspaceId'>,
    { generation, keyId, wrappedKey }: Pick<Snapshot, 'generation' | 'keyId' | 'wrappedKey'>,
  ): Buffer {
    return this.#options.keys.open({ keyId, box: wrappedKey }, keyContext(session, generation))
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

  #ready(): Promise<void> {
    const { store, bucket } = this.#options
    this.#bucketReady ??= store.ensureBucket(bucket).catch((error: unknown) => {
      this.#bucketReady = undefined
      throw error
    })
    return this.#bucketReady
  }

  #limit(signal?: AbortSignal): AbortSignal {
    const limit = AbortSignal.timeout(this.#options.limitMs)
    return signal ? AbortSignal.any([signal, limit]) : limit
  }

  /** Does the work after what was asked for before; whoever cannot wait that long aborts, and then it is not done at all. */
  async #inTurn<T>(sessionId: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(sessionId) ?? Promise.resolve()
    let begun = false
    const begin = () => {
      signal.throwIfAborted()
      begun = true
    }
    const turn = before.then(begin, begin).then(work)
    this.#turns.set(sessionId, turn)
    const forget = () => {
      if (this.#turns.get(sessionId) === turn) this.#turns.delete(sessionId)
    }
    turn.then(forget, forget)
    await orAborted(
      before.catch(() => {}),
      signal,
    ).catch((error: unknown) => {
      if (!begun) throw error
    })
    return turn
  }
}

/** Settles as `promise` does, or rejects when the signal aborts; what is given after that goes to `late`. */
async function orAborted<T>(
  promise: Promise<T>,
  signal: AbortSignal,
  late: (value: T) => void = () => {},
): Promise<T> {
  let onAbort!: () => void
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason as Error)
    signal.addEventListener('abort', onAbort, { once: true })
    if (signal.aborted) onAbort()
  })
  try {
    return await Promise.race([promise, aborted])
  } catch (error) {
    if (signal.aborted) promise.then(late, () => {})
    throw error
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

type Owner = Pick<OwnedSession, 'id' | 'workspaceId'>

/** What a data key and an object belong to. They open nowhere else, whatever the rows say. */
const keyContext = ({ workspaceId, id }: Owner, generation: number) =>
  ['snapshot key', workspaceId, id, generation].join('\n')
const objectContext = ({ workspaceId, id }: Owner, generation: number) =>
  ['snapshot', workspaceId, id, generation].join('\n')

/** The generation itself is at fault, and an older one may do. */
const isUnusable = (error: unknown) =>
  error instanceof SnapshotBroken || error instanceof SealBroken || error instanceof ObjectNotFound

const isStoreFailure = (error: unknown) =>
  error instanceof StoreUnavailable || error instanceof StoreRefused

/** Waits for streams that end each other when one of them fails, and throws the failure that began it. */
async function all<A, B>(signal: AbortSignal, a: Promise<A>, b: Promise<B>): Promise<[A, B]> {
  const results = await Promise.allSettled([a, b])
  signal.throwIfAborted()
  const failures = results.filter((result) => result.status === 'rejected').map(reasonOf)
  if (failures.length > 0) {
    throw (
      failures.find(isStoreFailure) ??
      failures.find(isUnusable) ??
      failures.find(isCause) ??
      failures[0]
    )
  }
  return results.map((result) => (result as PromiseFulfilledResult<unknown>).value) as [A, B]
}

const reasonOf = ({ reason }: PromiseRejectedResult): unknown => reason

/** Not only the word that another stream ended. */
const isCause = (error: unknown) =>
  (error as NodeJS.ErrnoException).code !== 'ERR_STREAM_PREMATURE_CLOSE'

type Purpose = 'taking' | 'restoring' | 'replaced'

/** A folder beside the profile, so that a rename never crosses a file system. */
const aside = (profile: string, purpose: Purpose) =>
  `${profile}.${purpose}-${randomBytes(6).toString('hex')}`

/** Removes what an attempt that was killed has left: only the session's owner calls this, so nobody else is at it. */
async function clearAside(profile: string, ...purposes: Purpose[]): Promise<void> {
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
async function replace(profile: string, draft: string): Promise<void> {
  await clearAside(profile, 'replaced')
  await rename(profile, aside(profile, 'replaced')).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
  await rename(draft, profile)
  const folder = await open(dirname(profile), 'r')
  await folder.sync().finally(() => folder.close())
}
