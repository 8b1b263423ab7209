import { randomBytes } from 'node:crypto'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { SealBroken } from '../shared/key-ring.ts'
import type { KeyRing, Sealed } from '../shared/key-ring.ts'
import { ObjectNotFound, StoreRefused, StoreUnavailable } from '../shared/object-store.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { Snapshot } from '../shared/wa-snapshots.ts'
import { orAborted } from './patience.ts'
import { Decrypt, Encrypt, Meter, SnapshotBroken, unpack } from './snapshot-format.ts'
import type { Totals } from './snapshot-format.ts'

/** Whose a snapshot is. */
export type Owner = Pick<OwnedSession, 'id' | 'workspaceId'>

/** A snapshot that is about to be written. */
export interface Draft {
  generation: number
  objectKey: string
  dataKey: Buffer
  /** The data key as it is kept. */
  key: Sealed
}

/** What a data key and an object belong to. They open nowhere else, whatever the rows say. */
const keyContext = ({ workspaceId, id }: Owner, generation: number) =>
  ['snapshot key', workspaceId, id, generation].join('\n')
const objectContext = ({ workspaceId, id }: Owner, generation: number) =>
  ['snapshot', workspaceId, id, generation].join('\n')

/** Snapshots as objects in a store, each encrypted with a key of its own: written, read and proven; which of them counts is not decided here. */
export class SnapshotObjects {
  readonly #store: ObjectStore
  readonly #keys: KeyRing
  readonly #bucket: string
  #bucketReady: Promise<void> | undefined

  constructor({ store, keys, bucket }: { store: ObjectStore; keys: KeyRing; bucket: string }) {
    this.#store = store
    this.#keys = keys
    this.#bucket = bucket
  }

  /** What new keys are sealed with. */
  get currentKey(): string {
    return this.#keys.current
  }

  /** Makes sure that there is a bucket. */
  ready(): Promise<void> {
    this.#bucketReady ??= this.#store.ensureBucket(this.#bucket).catch((error: unknown) => {
      this.#bucketReady = undefined
      throw error
    })
    return this.#bucketReady
  }

  /** A place and a key for a new generation. Writes nothing. */
  draft(owner: Owner, generation: number): Draft {
    const dataKey = randomBytes(32)
    return {
      generation,
      objectKey: `${owner.workspaceId}/${owner.id}/${generation}-${randomBytes(8).toString('hex')}`,
      dataKey,
      key: this.#keys.seal(dataKey, keyContext(owner, generation)),
    }
  }

  /** Encrypts a stream into the store. Throws StoreUnavailable or StoreRefused, or what the stream failed with. */
  async write(
    owner: Owner,
    { generation, objectKey, dataKey }: Draft,
    stream: Readable,
    signal: AbortSignal,
  ): Promise<{ size: number; sha256: string }> {
    const meter = new Meter()
    const encrypt = new Encrypt(dataKey, objectContext(owner, generation))
    const flow = pipeline(stream, encrypt, meter, { signal })
    const put = this.#store.put(this.#bucket, objectKey, meter, { signal })
    // A store that refused before it read anything would leave the flow waiting.
    put.catch(() => meter.destroy())
    await all(signal, flow, put)
    return { size: meter.size, sha256: meter.sha256 }
  }

  /** Reads a snapshot to its end and proves it: size, hash, decryption, contents. Throws what isUnusable() knows, UnknownKey, StoreUnavailable or StoreRefused. */
  async read(
    owner: Owner,
    snapshot: Pick<
      Snapshot,
      'generation' | 'objectKey' | 'keyId' | 'wrappedKey' | 'size' | 'sha256' | 'files' | 'bytes'
    >,
    { folder, signal }: { folder?: string; signal: AbortSignal },
  ): Promise<Totals> {
    const dataKey = this.#dataKey(owner, snapshot)
    const source = await orAborted(
      this.#store.get(this.#bucket, snapshot.objectKey),
      signal,
      (late) => late.destroy(),
    )
    const meter = new Meter()
    const decrypt = new Decrypt(dataKey, objectContext(owner, snapshot.generation))
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

  /** A snapshot's contents, decrypted. Proven only once the stream has ended without an error. */
  async open(owner: Owner, snapshot: Snapshot): Promise<Readable> {
    const dataKey = this.#dataKey(owner, snapshot)
    const source = await this.#store.get(this.#bucket, snapshot.objectKey)
    const decrypt = new Decrypt(dataKey, objectContext(owner, snapshot.generation))
    pipeline(source, decrypt).catch(() => {}) // reaches the reader of decrypt
    return decrypt
  }

  /** The snapshot's key, sealed with the first key of the ring. Throws UnknownKey or SealBroken. */
  reseal(owner: Owner, snapshot: Snapshot): Sealed {
    const dataKey = this.#dataKey(owner, snapshot)
    return this.#keys.seal(dataKey, keyContext(owner, snapshot.generation))
  }

  /** Removes objects; those that are not there count as removed. */
  async remove(objectKeys: string[]): Promise<void> {
    await this.#store.remove(this.#bucket, objectKeys)
  }

  #dataKey(
    owner: Owner,
    { generation, keyId, wrappedKey }: Pick<Snapshot, 'generation' | 'keyId' | 'wrappedKey'>,
  ): Buffer {
    return this.#keys.open({ keyId, box: wrappedKey }, keyContext(owner, generation))
  }
}

/** The generation itself is at fault, and an older one may do. */
export const isUnusable = (error: unknown) =>
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
