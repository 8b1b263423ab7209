import { createHash, randomUUID } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { Sql } from './db.ts'
import { AppError, notFound } from './errors.ts'
import { receiveAny, receiveMedia } from './media-files.ts'
import type { TempFile } from './media-files.ts'
import { inspectMedia } from './media-inspect.ts'
import type { Inspected } from './media-inspect.ts'
import { canonicalType, cleanFilename, kindOf } from './media-types.ts'
import type { MediaKind } from './media-types.ts'
import {
  addPending,
  completeMedia,
  deleteMedia,
  discardUnnamedObject,
  findMedia,
  findObject,
  forgetObjects,
  ObjectGone,
  rejectPending,
  reserveObject,
} from './media.ts'
import type { MediaRow } from './media.ts'
import { ObjectExists } from './object-store.ts'
import type { ObjectStore } from './object-store.ts'

/** The bucket of all files of all workspaces. */
export const mediaBucket = 'media'

/** An upload of ours must be over within this time; what is found later belongs to a process that died. */
const uploadSeconds = 3_600

/** What files are kept with. */
export interface MediaParts {
  sql: Sql
  store: ObjectStore
  /** Where files lie while they are looked at. */
  dir: string
  /** The most bytes a workspace may store; no limit when undefined. */
  quota: number | undefined
}

const opened = new WeakMap<ObjectStore, Promise<void>>()

/** Makes the bucket, if it is not there. Asks the store once; again after a failure. */
export function openBucket(store: ObjectStore): Promise<void> {
  let opening = opened.get(store)
  if (!opening) {
    opening = store.ensureBucket(mediaBucket).catch((error: unknown) => {
      opened.delete(store)
      throw error
    })
    opened.set(store, opening)
  }
  return opening
}

/** Objects are named by ids; what a person called the file is a column. */
export const objectKey = (workspaceId: string, objectId: string) => `${workspaceId}/${objectId}`
export const thumbnailKey = (workspaceId: string, objectId: string) =>
  `${objectKey(workspaceId, objectId)}-thumbnail`

/** A file somebody uploads, received and looked at, and not yet kept. */
export interface Upload {
  filename: string
  sha256: string
  /** When this resolves it is stored, whole and durably; when it rejects, nothing of it is left. Throws 507 QUOTA_EXCEEDED, StoreUnavailable. */
  keep(workspaceId: string): Promise<MediaRow>
}

/**
 * Receives a file somebody uploads and gives it to `use`; what `use` has not kept is gone after it. Throws what receiveMedia(), inspectMedia() and
 * `use` throw.
 */
export async function receiveUpload<T>(
  parts: MediaParts,
  { filename: given, source }: { filename: string; source: Readable },
  use: (upload: Upload) => Promise<T>,
): Promise<T> {
  const file = await receiveMedia(source, parts.dir)
  try {
    const inspected = await inspectMedia(file.path, file.size)
    const filename = cleanFilename(given, inspected.mimeType)
    return await use({
      filename,
      sha256: file.sha256,
      keep: async (workspaceId) => {
        try {
          return await keep(parts, { workspaceId, filename, file, inspected })
        } finally {
          // Before anybody is told.
          await rm(file.path, { force: true })
        }
      },
    })
  } finally {
    await rm(file.path, { force: true })
  }
}

/**
 * Keeps a file that WhatsApp gave for the pending media row `id`: of any type, up to `maxBytes`. `kind` and `mimeType` are what WhatsApp
 * says; a type of ours is taken from the bytes only. Throws 413, 507, 404 when the row is gone, StoreUnavailable.
 */
export async function storeInboundMedia(
  parts: MediaParts,
  {
    workspaceId,
    id,
    source,
    maxBytes,
  }: { workspaceId: string; id: string; source: Readable; maxBytes: number },
): Promise<MediaRow> {
  const pending = await findMedia(parts.sql, workspaceId, id)
  if (!pending) throw notFound('Media')
  if (pending.status === 'ready') {
    source.destroy()
    return pending
  }
  const file = await receiveAny(source, parts.dir, maxBytes)
  try {
    const inspected = await inspectInbound(file, pending)
    const filename =
      pending.filename === null ? null : cleanFilename(pending.filename, inspected.mimeType)
    return await keep(parts, { id, workspaceId, filename, file, inspected })
  } finally {
    await rm(file.path, { force: true })
  }
}

/** Notes a file that WhatsApp announced and nobody has fetched yet. */
export async function announceInboundMedia(
  sql: Sql,
  {
    workspaceId,
    kind,
    mimeType,
    size,
    filename,
  }: {
    workspaceId: string
    kind: MediaKind
    mimeType: string
    size: number | null
    filename: string | null
  },
): Promise<MediaRow> {
  const type = canonicalType(mimeType)
  return addPending(sql, {
    workspaceId,
    objectId: null,
    kind,
    mimeType: /^[\w.+-]{1,60}\/[\w.+-]{1,80}$/.test(type) ? type : unknownType,
    size,
    filename: filename === null ? null : cleanFilename(filename, type),
  })
}

const unknownType = 'application/octet-stream'

async function inspectInbound(file: TempFile, { kind, mimeType }: MediaRow): Promise<Inspected> {
  try {
    const inspected = await inspectMedia(file.path, file.size, { anySize: true })
    // A picture sent as a document stays a document.
    return { ...inspected, kind }
  } catch (error) {
    if (!(error instanceof AppError)) throw error
    // Kept all the same, and never shown as something its bytes do not say.
    const nothing = { width: null, height: null, duration: null, thumbnail: null }
    return { ...nothing, kind, mimeType: kindOf(mimeType) ? unknownType : mimeType }
  }
}

/** Puts a file into the store, unless its bytes are there, and makes it a row. */
async function keep(
  parts: MediaParts,
  {
    id,
    workspaceId,
    filename,
    file,
    inspected,
  }: {
    id?: string
    workspaceId: string
    filename: string | null
    file: TempFile
    inspected: Inspected
  },
): Promise<MediaRow> {
  const { sql, quota } = parts
  const { size, sha256 } = file
  const reserved = await reserveObject(sql, {
    workspaceId,
    size,
    sha256,
    quota,
    seconds: uploadSeconds,
  })
  const row = { id, workspaceId, objectId: reserved.id, size, sha256, filename, inspected }
  if (reserved.stored) return completeMedia(sql, row)
  try {
    await put(parts, workspaceId, reserved.id, file, inspected)
    const complete = await completeMedia(sql, row)
    // The same bytes have arrived twice at the same time.
    if (complete.objectId !== reserved.id)
      await dropObject(parts, workspaceId, reserved.id, { closed: true })
    return complete
  } catch (error) {
    await dropObject(parts, workspaceId, reserved.id, { closed: true })
    throw error
  }
}

async function put(
  { store }: MediaParts,
  workspaceId: string,
  objectId: string,
  file: TempFile,
  { mimeType, thumbnail }: Inspected,
): Promise<void> {
  await openBucket(store)
  await store.put(mediaBucket, objectKey(workspaceId, objectId), createReadStream(file.path), {
    size: file.size,
    contentType: servedType(mimeType),
  })
  if (thumbnail) await putThumbnail(store, workspaceId, objectId, thumbnail)
}

const putThumbnail = (
  store: ObjectStore,
  workspaceId: string,
  objectId: string,
  thumbnail: Buffer,
) =>
  store.put(mediaBucket, thumbnailKey(workspaceId, objectId), Readable.from([thumbnail]), {
    size: thumbnail.length,
    contentType: thumbnailType,
  })

export const thumbnailType = 'image/webp'

/** What a browser is told a file is: only what its bytes were found to be. */
export const servedType = (mimeType: string) => (kindOf(mimeType) ? mimeType : unknownType)

/** Whether a browser may show a file in place; anything else it is told to keep. */
export const isShown = (mimeType: string) => /^(image|audio|video)\//.test(servedType(mimeType))

/**
 * Gives an object up and removes it, as far as database and store answer: the cleanup does the rest. Says nothing of its own failure. `closed`
 * says that nobody can be writing it any more.
 */
async function dropObject(
  parts: MediaParts,
  workspaceId: string,
  objectId: string,
  { closed }: { closed: boolean },
): Promise<void> {
  try {
    // Another outcome is possible when the database's answer was lost: the object is in use then, and stays.
    const gone = await discardUnnamedObject(parts.sql, objectId, closed)
    if (gone) await removeObject(parts, workspaceId, objectId)
  } catch {
    // The cleanup finds the row.
  }
}

/** Removes a discarded object from the store; the row goes too when nothing can be written under its name any more. */
async function removeObject(
  { sql, store }: MediaParts,
  workspaceId: string,
  objectId: string,
): Promise<void> {
  await store.remove(mediaBucket, [
    objectKey(workspaceId, objectId),
    thumbnailKey(workspaceId, objectId),
  ])
  await forgetObjects(sql, [objectId])
}

/**
 * Removes a file, and its object when nobody else has the same bytes. Throws 404, 409 MEDIA_IN_USE. The file is gone when this resolves; an
 * object that the store would not remove now is removed by the cleanup.
 */
export async function removeMedia(
  parts: MediaParts,
  workspaceId: string,
  id: string,
): Promise<void> {
  const objectId = await deleteMedia(parts.sql, workspaceId, id)
  if (objectId !== undefined) await removeObject(parts, workspaceId, objectId).catch(() => {})
}

/** A file somebody wants to put into the store by himself. */
export interface Wish {
  workspaceId: string
  filename: string
  /** Of those that are taken. */
  mimeType: string
  size: number
  sha256?: string | undefined
}

/** Makes room for a direct upload: the object may be put within `seconds`, and counts from now on. Throws 507 QUOTA_EXCEEDED. */
export async function expectUpload(
  { sql, quota }: Pick<MediaParts, 'sql' | 'quota'>,
  { workspaceId, filename, mimeType, size, sha256 }: Wish,
  seconds: number,
): Promise<MediaRow & { objectId: string }> {
  return sql.begin(async (tx) => {
    const { id: objectId } = await reserveObject(tx, { workspaceId, size, quota, seconds })
    const row = await addPending(tx, {
      workspaceId,
      objectId,
      kind: kindOf(mimeType)!,
      mimeType,
      size,
      filename: cleanFilename(filename, mimeType),
      sha256: sha256 ?? null,
    })
    return { ...row, objectId }
  })
}

/**
 * Looks at what arrived in a direct upload and makes it a file. A file that is confirmed already is answered as it is. Throws 404; 409
 * UPLOAD_INCOMPLETE while nothing has arrived; 413, 415 or 422 UPLOAD_MISMATCH when it is not what was announced, and then it is gone.
 */
export async function confirmUpload(
  parts: MediaParts,
  workspaceId: string,
  id: string,
): Promise<MediaRow> {
  const { sql, store, dir } = parts
  const row = await findMedia(sql, workspaceId, id)
  if (!row) throw notFound('Media')
  if (row.status === 'ready') return row
  const { objectId } = row
  if (row.status !== 'pending' || objectId === null) {
    throw new AppError(409, 'MEDIA_NOT_READY', 'The file is not one that was to be uploaded.')
  }
  const key = objectKey(workspaceId, objectId)
  const info = await store.stat(mediaBucket, key)
  if (!info) throw new AppError(409, 'UPLOAD_INCOMPLETE', 'Nothing has been uploaded yet.')

  let file: TempFile | undefined
  try {
    if (info.size !== row.size) throw mismatch(`has ${info.size} bytes, not ${row.size}`)
    file = await receiveMedia(await store.get(mediaBucket, key), dir)
    if (row.sha256 !== null && file.sha256 !== row.sha256) throw mismatch('has another SHA-256')
    const inspected = await inspectMedia(file.path, file.size)
    const filename = cleanFilename(row.filename ?? '', inspected.mimeType)
    const { size, sha256 } = file
    const { contentType } = info
    if (contentType !== undefined && contentType !== inspected.mimeType) {
      // The store would tell others what the uploader said. It is kept anew under its true type, and the first object is given up.
      const kept = await keep(parts, { id, workspaceId, filename, file, inspected })
      await dropObject(parts, workspaceId, objectId, { closed: false })
      return kept
    }
    if (inspected.thumbnail) {
      await putThumbnail(store, workspaceId, objectId, inspected.thumbnail).catch((error) => {
        // Of a confirmation that broke off, or is under way: the same picture of the same bytes.
        if (!(error instanceof ObjectExists)) throw error
      })
    }
    const ready = { id, workspaceId, objectId, size, sha256, filename, inspected }
    return await completeMedia(sql, ready)
  } catch (error) {
    if (error instanceof AppError && error.statusCode < 500 && error.statusCode !== 404) {
      // Somebody who confirmed it at the same time may have found it good: then it stays.
      const rejected = await rejectPending(sql, row)
      if (rejected) await removeObject(parts, workspaceId, objectId).catch(() => {})
    }
    // Deleted, rejected or expired meanwhile.
    throw error instanceof ObjectGone ? notFound('Media') : error
  } finally {
    if (file) await rm(file.path, { force: true })
  }
}

const mismatch = (what: string) =>
  new AppError(422, 'UPLOAD_MISMATCH', `What was uploaded ${what}; it was removed.`)

/** Whether a direct upload of this file may still be put, and how large it must be. */
export async function expectedUpload(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<{ key: string; size: number } | undefined> {
  const row = await findMedia(sql, workspaceId, id)
  if (row?.status !== 'pending' || row.objectId === null || row.size === null) return undefined
  const object = await findObject(sql, row.objectId)
  return object?.state === 'uploading' && object.writable
    ? { key: objectKey(workspaceId, object.id), size: row.size }
    : undefined
}

/**
 * The bytes of a ready file, as a file of the caller's in `dir`, checked against their SHA-256: what the worker hands to WhatsApp. The caller
 * removes it. Throws ObjectNotFound, StoreUnavailable, or an Error when they are not what was stored.
 */
export async function openMediaFile(
  store: ObjectStore,
  media: Pick<MediaRow, 'workspaceId' | 'objectId' | 'size' | 'sha256' | 'status'>,
  dir: string,
): Promise<string> {
  const { workspaceId, objectId, size, sha256, status } = media
  if (status !== 'ready' || objectId === null) throw notReady()
  await mkdir(dir, { recursive: true, mode: 0o700 })
  const path = join(dir, randomUUID())
  const hash = createHash('sha256')
  let read = 0
  try {
    const source = await store.get(mediaBucket, objectKey(workspaceId, objectId))
    await pipeline(
      source,
      async function* (chunks: AsyncIterable<Buffer>) {
        for await (const chunk of chunks) {
          read += chunk.length
          hash.update(chunk)
          yield chunk
        }
      },
      createWriteStream(path, { flags: 'wx', mode: 0o600 }),
    )
    if (read !== size || hash.digest('hex') !== sha256) {
      throw new Error(`Media object ${objectId} is not what was stored.`)
    }
    return path
  } catch (error) {
    await rm(path, { force: true })
    throw error
  }
}

export const notReady = () =>
  new AppError(409, 'MEDIA_NOT_READY', 'The file is not there (yet): see its status.')
