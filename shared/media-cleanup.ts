import { removeAbandoned } from './media-files.ts'
import { mediaBucket, objectKey, openBucket, thumbnailKey } from './media-store.ts'
import type { MediaParts } from './media-store.ts'
import {
  discardedObjects,
  discardForgotten,
  expireOld,
  expirePending,
  forgetObjects,
  knownObjects,
  markMissing,
  storedObjects,
} from './media.ts'
import { uuidKey } from './pagination.ts'

/** What a cleanup removed. */
export interface Cleaned {
  /** Files that processes which died had left on this machine. */
  tempFiles: number
  /** Direct uploads nobody confirmed in time. */
  unconfirmed: number
  /** Files older than MEDIA_RETENTION_DAYS. */
  expired: number
  /** Objects nothing named any more. */
  forgotten: number
  /** Objects removed from the store. */
  objects: number
}

const batch = 500

/** Removes what has served its time, or never came to be. Every step is harmless to repeat, and to break off. */
export async function cleanMedia(
  { sql, store, dir }: Omit<MediaParts, 'quota'>,
  retentionDays: number | undefined,
): Promise<Cleaned> {
  const tempFiles = await removeAbandoned(dir)
  const unconfirmed = await expirePending(sql)
  let expired = 0
  if (retentionDays !== undefined) {
    for (;;) {
      const some = await expireOld(sql, retentionDays, batch)
      expired += some
      if (some < batch) break
    }
  }
  const forgotten = await discardForgotten(sql)
  await openBucket(store)

  let objects = 0
  for (let after: string | null = null; ;) {
    const some: Awaited<ReturnType<typeof discardedObjects>> = await discardedObjects(
      sql,
      batch,
      after,
    )
    const keys = some.flatMap(({ id, workspaceId }) => [
      objectKey(workspaceId, id),
      thumbnailKey(workspaceId, id),
    ])
    if (some.length > 0) await store.remove(mediaBucket, keys)
    // Those that may still be written stay on the list, and are removed once more.
    const closed = some.filter(({ late }) => !late).map(({ id }) => id)
    await forgetObjects(sql, closed)
    objects += closed.length
    if (some.length < batch) break
    after = some.at(-1)!.id
  }
  return { tempFiles, unconfirmed, expired, forgotten, objects }
}

/** What a comparison of the store with the database found. */
export interface Swept {
  /** Objects without a row, that were removed. */
  strangers: number
  /** Rows whose object is gone; their files are `failed` from now on. */
  lost: number
  /** Rows whose object is there again. */
  found: number
}

/** A younger object may have been put after its row was looked for. */
const youngMs = 24 * 3_600_000

/**
 * Compares the store with the database, in both directions. Neither can happen by a process that dies; they do by hand, or when one of the two
 * is restored from an older backup.
 */
export async function sweepMedia({
  sql,
  store,
}: Pick<MediaParts, 'sql' | 'store'>): Promise<Swept> {
  await openBucket(store)
  const swept: Swept = { strangers: 0, lost: 0, found: 0 }
  for await (const { key: workspace, folder } of store.list(mediaBucket)) {
    if (!folder || !uuidKey.test(workspace)) continue
    let keys: string[] = []
    const check = async () => {
      const known = await knownObjects(sql, [...new Set(keys.map(objectIdOf))])
      const strangers = keys.filter((key) => !known.has(objectIdOf(key)))
      if (strangers.length > 0) await store.remove(mediaBucket, strangers)
      swept.strangers += strangers.length
      keys = []
    }
    for await (const { key, folder, at } of store.list(mediaBucket, workspace)) {
      const isOurs = !folder && uuidKey.test(objectIdOf(key))
      if (!isOurs || at === undefined || Date.now() - at.getTime() < youngMs) continue
      keys.push(key)
      if (keys.length === batch) await check()
    }
    await check()
  }

  for (let after: string | null = null; ;) {
    const some: Awaited<ReturnType<typeof storedObjects>> = await storedObjects(sql, batch, after)
    for (const { id, workspaceId, missing } of some) {
      const there = (await store.stat(mediaBucket, objectKey(workspaceId, id))) !== undefined
      if (there !== missing) continue
      await markMissing(sql, id, !there)
      swept[there ? 'found' : 'lost'] += 1
    }
    if (some.length < batch) break
    after = some.at(-1)!.id
  }
  return swept
}

const objectIdOf = (key: string) =>
  key
    .split('/')
    .at(-1)!
    .replace(/-thumbnail$/, '')
