import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { AppError, notFound } from './errors.ts'
import type { Inspected } from './media-inspect.ts'
import type { MediaKind } from './media-types.ts'
import { newestFirst, newestPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'

export type MediaStatus = 'pending' | 'ready' | 'failed' | 'expired'

/** A file of a workspace, and what is known of its object in the store. */
export interface MediaRow {
  id: string
  workspaceId: string
  objectId: string | null
  kind: MediaKind
  mimeType: string
  size: number | null
  sha256: string | null
  filename: string | null
  width: number | null
  height: number | null
  duration: number | null
  thumbnail: boolean
  status: MediaStatus
  createdAt: Date
  position: string
}

/** A file as the API answers it. */
export interface Media {
  id: string
  kind: MediaKind
  mimeType: string
  size: number | null
  sha256: string | null
  filename: string | null
  status: MediaStatus
  createdAt: Date
  width: number | null
  height: number | null
  /** Seconds. */
  duration: number | null
  /** Whether there is a small picture of it. */
  thumbnail: boolean
}

/** The small form of a file, inside a Message. */
export type MessageMedia = Pick<Media, 'id' | 'kind' | 'mimeType' | 'size' | 'filename' | 'status'>

export const mediaResource = (row: MediaRow): Media => ({
  id: row.id,
  kind: row.kind,
  mimeType: row.mimeType,
  size: row.size,
  sha256: row.sha256,
  filename: row.filename,
  status: row.status,
  createdAt: row.createdAt,
  width: row.width,
  height: row.height,
  duration: row.duration,
  thumbnail: row.thumbnail,
})

export const messageMedia = (row: MessageMedia): MessageMedia => ({
  id: row.id,
  kind: row.kind,
  mimeType: row.mimeType,
  size: row.size,
  filename: row.filename,
  status: row.status,
})

/** Everything a MediaRow has; `f` is the media row, `o` its object. A file whose object the store has lost counts as failed. */
const columns = fragment`
  f.id, f.workspace_id, f.object_id, f.kind, f.mime_type, f.size, f.sha256, f.filename, f.width, f.height, f.duration,
  coalesce(o.thumbnail, false) as thumbnail, case when o.missing_since is null then f.status else 'failed' end as status,
  f.created_at, f.created_at::text as position`
const joined = fragment`left join media_objects o on o.id = f.object_id`

export async function findMedia(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<MediaRow | undefined> {
  const [row] = await sql<MediaRow>`
    select ${columns} from media f ${joined} where f.workspace_id = ${workspaceId} and f.id = ${id}`
  return row
}

/** The files of a workspace, newest first. */
export async function listMedia(
  sql: Sql,
  workspaceId: string,
  { kind, ...page }: PageWish & { kind?: MediaKind | undefined },
): Promise<Page<Media>> {
  const rows = await sql<MediaRow>`
    select ${columns} from media f ${joined}
    where f.workspace_id = ${workspaceId}
      ${kind === undefined ? fragment`` : fragment`and f.kind = ${kind}`}
      ${newestFirst(page, fragment`f.`)}`
  return newestPage(rows, page, mediaResource)
}

/**
 * One at a time in a workspace: whoever adds to what it stores, or takes from it. Else two uploads could share the last free byte of a quota,
 * and an object could be removed while somebody finds that he has the same bytes.
 */
const lockWorkspace = (tx: Sql, workspaceId: string) =>
  tx`select from workspaces where id = ${workspaceId} for no key update`

export interface Reservation {
  id: string
  /** The bytes are there already: nothing is to be put. */
  stored: boolean
}

/**
 * Makes room for bytes that are about to be put, or finds that the workspace has them. Throws 507 QUOTA_EXCEEDED when it would have more than
 * `quota` bytes then. The object must be put within `seconds`.
 */
export async function reserveObject(
  sql: Sql,
  {
    workspaceId,
    size,
    sha256,
    quota,
    seconds,
  }: {
    workspaceId: string
    size: number
    sha256?: string
    quota: number | undefined
    seconds: number
  },
): Promise<Reservation> {
  return sql.begin(async (tx) => {
    await lockWorkspace(tx, workspaceId)
    const [same] = await tx<{ id: string }>`
      select id from media_objects
      where workspace_id = ${workspaceId} and sha256 = ${sha256}::text and state = 'stored' and missing_since is null`
    if (same) {
      // The lock goes with this transaction. Until it is named by a file, nothing may take it for forgotten.
      await tx`update media_objects set writable_until = greatest(writable_until, now() + ${seconds} * interval '1 second') where id = ${same.id}`
      return { id: same.id, stored: true }
    }
    if (quota !== undefined) {
      const [used] = await tx<{ bytes: number }>`
        select coalesce(sum(size), 0)::bigint as bytes from media_objects
        where workspace_id = ${workspaceId} and state <> 'discarded'`
      if (used!.bytes + size > quota) {
        throw new AppError(
          507,
          'QUOTA_EXCEEDED',
          `The files of the workspace may have ${quota} bytes together; there are ${used!.bytes} already.`,
        )
      }
    }
    const [made] = await tx<{ id: string }>`
      insert into media_objects (workspace_id, size, writable_until)
      values (${workspaceId}, ${size}, now() + ${seconds} * interval '1 second') returning id`
    return { id: made!.id, stored: false }
  })
}

export interface NewMedia {
  /** The file that was waiting for these bytes; a new one when absent. */
  id?: string | undefined
  workspaceId: string
  objectId: string
  size: number
  sha256: string
  filename: string | null
  inspected: Inspected
}

/** The object was given up before it was complete. */
export class ObjectGone extends Error {
  constructor(id: string) {
    super(`Media object ${id} was discarded before it was complete.`)
    this.name = 'ObjectGone'
  }
}

/**
 * Makes a file of an object that is in the store. When the same bytes have arrived by another way meanwhile, the file names those, and its own
 * object is discarded. Throws ObjectGone, or 404 when the file that was waiting is gone.
 */
export async function completeMedia(sql: Sql, media: NewMedia): Promise<MediaRow> {
  const { workspaceId, objectId, size, sha256, filename, inspected } = media
  const { kind, mimeType, width, height, duration, thumbnail } = inspected
  return sql.begin(async (tx) => {
    await lockWorkspace(tx, workspaceId)
    // Touched, so that nothing takes it for forgotten before this transaction is over; the same of our own, below.
    const [same] = await tx<{ id: string; missing: boolean }>`
      update media_objects set writable_until = greatest(writable_until, now() + interval '1 minute')
      where workspace_id = ${workspaceId} and sha256 = ${sha256} and state = 'stored' and id <> ${objectId}
      returning id, missing_since is not null as missing`
    if (same?.missing) await discardObjects(tx, [same.id])
    const [own] =
      same && !same.missing
        ? await tx`update media_objects set state = 'discarded' where id = ${objectId} returning id`
        : await tx`
            update media_objects
            set state = 'stored', size = ${size}, sha256 = ${sha256}, thumbnail = ${thumbnail !== null},
                missing_since = null, writable_until = greatest(writable_until, now() + interval '1 minute')
            where id = ${objectId} and state <> 'discarded' returning id`
    if (!own) throw new ObjectGone(objectId)
    // The lost object's files are found again.
    if (same?.missing)
      await tx`update media set object_id = ${objectId} where object_id = ${same.id}`
    const named = same && !same.missing ? same.id : objectId
    const [row] =
      media.id === undefined
        ? await tx<{ id: string }>`
            insert into media (workspace_id, object_id, kind, mime_type, size, sha256, filename, width, height, duration, status)
            values (${workspaceId}, ${named}, ${kind}, ${mimeType}, ${size}, ${sha256}, ${filename}, ${width}, ${height}, ${duration}, 'ready')
            returning id`
        : await tx<{ id: string }>`
            update media
            set object_id = ${named}, kind = ${kind}, mime_type = ${mimeType}, size = ${size}, sha256 = ${sha256},
                filename = ${filename}, width = ${width}, height = ${height}, duration = ${duration}, status = 'ready'
            where id = ${media.id} and workspace_id = ${workspaceId} returning id`
    if (!row) throw notFound('Media')
    return (await findMedia(tx, workspaceId, row.id))!
  })
}

/** Notes a file that somebody is going to put into the store by himself, and its object. */
export async function addPending(
  sql: Sql,
  {
    workspaceId,
    objectId,
    kind,
    mimeType,
    size,
    filename,
    sha256 = null,
  }: {
    workspaceId: string
    objectId: string | null
    kind: MediaKind
    mimeType: string
    size: number | null
    filename: string | null
    sha256?: string | null
  },
): Promise<MediaRow> {
  const [row] = await sql<{ id: string }>`
    insert into media (workspace_id, object_id, kind, mime_type, size, filename, sha256)
    values (${workspaceId}, ${objectId}, ${kind}, ${mimeType}, ${size}, ${filename}, ${sha256}) returning id`
  return (await findMedia(sql, workspaceId, row!.id))!
}

/** Says that an inbound file will not come: `failed`, or `expired` when WhatsApp does not have it any more. */
export async function giveMediaUp(
  sql: Sql,
  workspaceId: string,
  id: string,
  status: 'failed' | 'expired',
): Promise<void> {
  await sql`
    update media set status = ${status} where id = ${id} and workspace_id = ${workspaceId} and status = 'pending'`
}

/** Gives an object up, unless a file names it: it is to be removed from the store then. `closed`: nobody writes it any more. */
export async function discardUnnamedObject(
  sql: Sql,
  id: string,
  closed: boolean,
): Promise<boolean> {
  const rows = await sql`
    update media_objects o
    set state = 'discarded', writable_until = case when ${closed}::boolean then now() else o.writable_until end
    where o.id = ${id} and not exists (select from media f where f.object_id = o.id) returning o.id`
  return rows.length === 1
}

const discardObjects = (tx: Sql, ids: string[]) =>
  tx`update media_objects set state = 'discarded' where id = any(${ids}::uuid[])`

/** A queued message needs the file: it waits in the outbox. `f` is the media row. */
const inUse = fragment`
  exists (select from outbox q join messages m on m.id = q.message_id where m.media_id = f.id)`

/**
 * Removes a file. Its object is discarded when no other file has the same bytes; its id is answered then. Throws 404, and 409 MEDIA_IN_USE while
 * a message that is queued needs it.
 */
export async function deleteMedia(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<string | undefined> {
  return sql.begin(async (tx) => {
    await lockWorkspace(tx, workspaceId)
    // A message that names it from now on waits for us, and fails; one that did before is seen below.
    const [row] = await tx<{ objectId: string | null }>`
      select object_id from media where id = ${id} and workspace_id = ${workspaceId} for update`
    if (!row) throw notFound('Media')
    const [deleted] = await tx`delete from media f where f.id = ${id} and not ${inUse} returning id`
    if (!deleted) {
      throw new AppError(409, 'MEDIA_IN_USE', 'A message that is queued needs the file.')
    }
    const [discarded] = await discardUnnamed(tx, row.objectId === null ? [] : [row.objectId])
    return discarded?.id
  })
}

/** Discards those of these objects that no file names, also when they are still waited for. Under the workspace's lock only. */
const discardUnnamed = (tx: Sql, ids: string[]) =>
  tx<{ id: string }>`
    update media_objects o set state = 'discarded'
    where o.id = any(${ids}::uuid[]) and o.state <> 'discarded' and not exists (select from media f where f.object_id = o.id)
    returning o.id`

/** Rejects what was put for a file: it is removed, and its object is discarded. Answers false when it does not wait any more; nothing happens then. */
export async function rejectPending(
  sql: Sql,
  { workspaceId, id, objectId }: MediaRow,
): Promise<boolean> {
  return sql.begin(async (tx) => {
    await lockWorkspace(tx, workspaceId)
    const [gone] = await tx`delete from media where id = ${id} and status = 'pending' returning id`
    if (gone && objectId !== null) await discardObjects(tx, [objectId])
    return gone !== undefined
  })
}

/** An object that was put, or may be. */
export interface MediaObject {
  id: string
  workspaceId: string
  size: number
  state: 'uploading' | 'stored' | 'discarded'
  writable: boolean
}

export async function findObject(sql: Sql, id: string): Promise<MediaObject | undefined> {
  const [row] = await sql<MediaObject>`
    select id, workspace_id, size, state, writable_until > now() as writable from media_objects where id = ${id}`
  return row
}

/** Gives up uploads that nobody confirmed in time. Answers how many. */
export async function expirePending(sql: Sql): Promise<number> {
  const rows = await sql`
    with late as (
      delete from media f using media_objects o
      where f.object_id = o.id and f.status = 'pending' and o.writable_until < now() - interval '1 hour'
      returning o.id
    )
    update media_objects o set state = 'discarded' from late where o.id = late.id returning o.id`
  return rows.length
}

/**
 * Discards objects that no file names: uploads whose process died, and what a removed workspace has left. Answers how many.
 */
export async function discardForgotten(sql: Sql): Promise<number> {
  const rows = await sql`
    update media_objects o set state = 'discarded'
    where o.state <> 'discarded' and o.writable_until < now()
      and not exists (select from media f where f.object_id = o.id)
    returning o.id`
  return rows.length
}

/** Takes the bytes of files that are older than so many days, unless a queued message needs them; the files are `expired` then. */
export async function expireOld(sql: Sql, days: number, limit: number): Promise<number> {
  const rows = await sql`
    with old as (
      select f.id from media f
      where f.status in ('ready', 'failed') and f.object_id is not null
        and f.created_at < now() - ${days} * interval '1 day' and not ${inUse}
      order by f.created_at limit ${limit} for update skip locked
    )
    update media f set status = 'expired', object_id = null from old where f.id = old.id returning f.id`
  return rows.length
}

/** Discarded objects, the oldest first; `late` ones may still be written, and are to be removed once more afterwards. */
export async function discardedObjects(
  sql: Sql,
  limit: number,
  after: string | null,
): Promise<{ id: string; workspaceId: string; late: boolean }[]> {
  return sql<{ id: string; workspaceId: string; late: boolean }>`
    select id, workspace_id, writable_until > now() as late from media_objects
    where state = 'discarded' ${after === null ? fragment`` : fragment`and id > ${after}`}
    order by id limit ${limit}`
}

/** Forgets discarded objects that are removed from the store. */
export async function forgetObjects(sql: Sql, ids: string[]): Promise<void> {
  await sql`
    delete from media_objects o
    where o.id = any(${ids}::uuid[]) and o.state = 'discarded' and o.writable_until <= now()
      and not exists (select from media f where f.object_id = o.id)`
}

/** Which of these objects are known at all. */
export async function knownObjects(sql: Sql, ids: string[]): Promise<Set<string>> {
  const rows = await sql<{ id: string }>`
    select id from media_objects where id = any(${ids}::uuid[])`
  return new Set(rows.map(({ id }) => id))
}

/** What the store should have, a batch at a time; `after` is the last one seen. Objects of the last hour are left out: they are just arriving. */
export async function storedObjects(
  sql: Sql,
  limit: number,
  after: string | null,
): Promise<{ id: string; workspaceId: string; missing: boolean }[]> {
  return sql<{ id: string; workspaceId: string; missing: boolean }>`
    select id, workspace_id, missing_since is not null as missing from media_objects
    where state = 'stored' and created_at < now() - interval '1 hour'
      ${after === null ? fragment`` : fragment`and id > ${after}`}
    order by id limit ${limit}`
}

/** Notes that the store has lost an object, or has it again. */
export async function markMissing(sql: Sql, id: string, missing: boolean): Promise<void> {
  await sql`
    update media_objects set missing_since = case when ${missing}::boolean then coalesce(missing_since, now()) end
    where id = ${id}`
}
