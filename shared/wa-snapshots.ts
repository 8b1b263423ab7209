import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import type { Sealed } from './key-ring.ts'
import { assertFence, LeaseLost } from './wa-session-leases.ts'
import type { OwnedSession } from './wa-session-transitions.ts'

export type SnapshotState = 'uploading' | 'verified' | 'archived' | 'discarded'

/** An encrypted copy of a login in the object store. */
export interface Snapshot {
  id: string
  workspaceId: string
  sessionId: string
  generation: number
  objectKey: string
  keyId: string
  wrappedKey: string
  size: number | null
  sha256: string | null
  files: number | null
  bytes: number | null
  reason: string
  worker: string
  state: SnapshotState
  createdAt: Date
  verifiedAt: Date | null
  archivedAt: Date | null
  archivedFor: string | null
  /** When a restore found that it cannot be used; null when it was good the last time, or was never tried. */
  refusedAt: Date | null
}

/** What was measured of an object while it was written, and once more while it was read back. */
export interface Contents {
  size: number
  sha256: string
  files: number
  bytes: number
}

/** The snapshot was discarded while it was being taken: the login was put away, or the upload took longer than anybody waits. */
export class SnapshotDiscarded extends Error {
  constructor(generation: number) {
    super(`Snapshot ${generation} was discarded before it was complete.`)
    this.name = 'SnapshotDiscarded'
  }
}

const columns = fragment`
  n.id, n.workspace_id, n.session_id, n.generation, n.object_key, n.key_id, n.wrapped_key, n.size, n.sha256, n.files, n.bytes,
  n.reason, n.worker, n.state, n.created_at, n.verified_at, n.archived_at, n.archived_for, n.refused_at`

/** The number of the next snapshot of the session. Throws LeaseLost. */
export async function nextGeneration(sql: Sql, session: OwnedSession): Promise<number> {
  const [row] = await sql<{ generation: number }>`
    update wa_sessions set snapshot_counter = snapshot_counter + 1
    where id = ${session.id} and workspace_id = ${session.workspaceId} and fence = ${session.fence}
    returning snapshot_counter as generation`
  if (!row) throw new LeaseLost(session.id)
  return row.generation
}

/** Notes a snapshot that is about to be uploaded: from now on its object is found, whatever happens. Throws LeaseLost. */
export async function beginSnapshot(
  sql: Sql,
  session: OwnedSession,
  snapshot: { generation: number; objectKey: string; key: Sealed; reason: string },
): Promise<string> {
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    const [row] = await tx<{ id: string }>`
      insert into wa_snapshots (workspace_id, session_id, generation, object_key, key_id, wrapped_key, reason, worker, fence)
      values (${session.workspaceId}, ${session.id}, ${snapshot.generation}, ${snapshot.objectKey},
              ${snapshot.key.keyId}, ${snapshot.key.box}, ${snapshot.reason}, ${session.worker}, ${session.fence})
      returning id`
    return row!.id
  })
}

/**
 * Makes a snapshot that was proven the current one, and marks what is older than the newest `keep` that can be used for removal.
 * Throws LeaseLost, or SnapshotDiscarded.
 */
export async function publishSnapshot(
  sql: Sql,
  session: OwnedSession,
  { id, generation }: { id: string; generation: number },
  { size, sha256, files, bytes }: Contents,
  keep: number,
): Promise<void> {
  await sql.begin(async (tx) => {
    const [owned] = await tx`
      update wa_sessions set snapshot_generation = ${generation}
      where id = ${session.id} and fence = ${session.fence} returning id`
    if (!owned) throw new LeaseLost(session.id)
    const [row] = await tx`
      update wa_snapshots
      set state = 'verified', verified_at = now(), size = ${size}, sha256 = ${sha256}, files = ${files}, bytes = ${bytes}
      where id = ${id} and state = 'uploading' returning id`
    if (!row) throw new SnapshotDiscarded(generation)
    await discardBeyond(tx, session.id, 'verified', keep)
  })
}

/**
 * Marks a snapshot that failed for removal. False when it is complete all the same, which happens when the answer to publishSnapshot was
 * lost on the way: its object must stay. Throws LeaseLost.
 */
export async function discardSnapshot(
  sql: Sql,
  session: OwnedSession,
  id: string,
): Promise<boolean> {
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    await tx`update wa_snapshots set state = 'discarded' where id = ${id} and state = 'uploading'`
    const [row] = await tx<Pick<Snapshot, 'state'>>`select state from wa_snapshots where id = ${id}`
    return row === undefined || row.state === 'discarded'
  })
}

/**
 * Puts the session's snapshots away: none is restored by itself any more, the newest `keep` stay for a person. One that is just being
 * taken will not become current. Throws LeaseLost.
 */
export async function archiveSnapshots(
  sql: Sql,
  session: OwnedSession,
  reason: string,
  keep: number,
): Promise<number> {
  return sql.begin(async (tx) => {
    const [owned] = await tx`
      update wa_sessions set snapshot_generation = null, login_ended_fence = fence
      where id = ${session.id} and fence = ${session.fence} returning id`
    if (!owned) throw new LeaseLost(session.id)
    await tx`update wa_snapshots set state = 'discarded' where session_id = ${session.id} and state = 'uploading'`
    const archived = await tx`
      update wa_snapshots set state = 'archived', archived_at = now(), archived_for = ${reason}
      where session_id = ${session.id} and state = 'verified' returning id`
    await discardBeyond(tx, session.id, 'archived', keep)
    return archived.length
  })
}

/** Marks every snapshot of the session for removal. Throws LeaseLost. */
export async function discardAll(sql: Sql, session: OwnedSession): Promise<void> {
  await sql.begin(async (tx) => {
    const [owned] = await tx`
      update wa_sessions set snapshot_generation = null, login_ended_fence = fence
      where id = ${session.id} and fence = ${session.fence} returning id`
    if (!owned) throw new LeaseLost(session.id)
    await tx`update wa_snapshots set state = 'discarded' where session_id = ${session.id}`
  })
}

/**
 * What a restore may use, the newest first; with `before`, only generations older than that. Throws LeaseLost: who lost the session must not
 * start it.
 */
export async function restorableSnapshots(
  sql: Sql,
  session: OwnedSession,
  before?: number,
): Promise<Snapshot[]> {
  return sql.begin(async (tx) => {
    await assertFence(tx, session)
    return tx<Snapshot>`
      select ${columns} from wa_snapshots n
      where n.session_id = ${session.id} and n.workspace_id = ${session.workspaceId} and n.state = 'verified'
        ${before === undefined ? fragment`` : fragment`and n.generation < ${before}`}
      order by n.generation desc`
  })
}

/** Writes down what a restore found out about a snapshot. Throws LeaseLost. */
export async function markRefused(
  sql: Sql,
  session: OwnedSession,
  id: string,
  refused: boolean,
): Promise<void> {
  await sql.begin(async (tx) => {
    await assertFence(tx, session)
    await tx`
      update wa_snapshots set refused_at = ${refused ? fragment`now()` : fragment`null`}
      where id = ${id} and (refused_at is null) = ${refused}`
  })
}

/** Every snapshot of a session a person may choose from, the newest first. */
export async function listSnapshots(sql: Sql, sessionId: string): Promise<Snapshot[]> {
  return sql<Snapshot>`
    select ${columns} from wa_snapshots n
    where n.session_id = ${sessionId} and n.state in ('verified', 'archived')
    order by n.generation desc`
}

/**
 * Marks for removal what nobody will finish, begun `olderThanMs` ago, and what belongs to no session any more.
 */
export async function discardAbandoned(sql: Sql, olderThanMs: number): Promise<void> {
  await sql`
    update wa_snapshots n set state = 'discarded'
    where (n.state = 'uploading' and n.created_at < now() - ${olderThanMs} * interval '1 ms')
       or (n.state <> 'discarded' and not exists (select from wa_sessions s where s.id = n.session_id))`
}

/**
 * Snapshots whose object is to be removed, the oldest first. One that was never completed waits until it is `olderThanMs` old: its upload may
 * still be under way.
 */
export async function discardedSnapshots(
  sql: Sql,
  {
    sessionId,
    olderThanMs,
    limit,
  }: { sessionId?: string | undefined; olderThanMs: number; limit: number },
): Promise<{ id: string; objectKey: string }[]> {
  return sql<{ id: string; objectKey: string }>`
    select id, object_key from wa_snapshots
    where state = 'discarded'
      and (verified_at is not null or created_at < now() - ${olderThanMs} * interval '1 ms')
      ${sessionId === undefined ? fragment`` : fragment`and session_id = ${sessionId}`}
    order by created_at limit ${limit}`
}

/** Forgets snapshots whose objects are removed. */
export async function forgetDiscarded(sql: Sql, ids: string[]): Promise<void> {
  await sql`delete from wa_snapshots where id = any(${ids}) and state = 'discarded'`
}

/** Snapshots whose keys are not sealed by this key, a batch at a time; `after` is the last one seen. */
export async function sealedOtherwise(
  sql: Sql,
  keyId: string,
  { after, limit }: { after: string | null; limit: number },
): Promise<Snapshot[]> {
  return sql<Snapshot>`
    select ${columns} from wa_snapshots n
    where n.key_id <> ${keyId} and n.state <> 'discarded' ${after === null ? fragment`` : fragment`and n.id > ${after}`}
    order by n.id limit ${limit}`
}

/** Replaces the sealed key of a snapshot by the same key, sealed anew. False when somebody else did so meanwhile. */
export async function replaceKey(
  sql: Sql,
  { id, wrappedKey }: Pick<Snapshot, 'id' | 'wrappedKey'>,
  key: Sealed,
): Promise<boolean> {
  const rows = await sql`
    update wa_snapshots set key_id = ${key.keyId}, wrapped_key = ${key.box}
    where id = ${id} and wrapped_key = ${wrappedKey} returning id`
  return rows.length === 1
}

/** Keeps the newest `keep` that can be used; of those that were refused, as many that are newer than the last of these. */
async function discardBeyond(
  tx: Sql,
  sessionId: string,
  state: SnapshotState,
  keep: number,
): Promise<void> {
  await tx`
    with ranked as (
      select id, row_number() over (partition by refused_at is null order by generation desc) as rank,
        count(*) filter (where refused_at is null) over (order by generation desc) as usable
      from wa_snapshots where session_id = ${sessionId} and state = ${state})
    update wa_snapshots n set state = 'discarded' from ranked r
    where n.id = r.id and (r.rank > ${keep} or (n.refused_at is not null and r.usable >= ${keep}))`
}

/** The newest snapshot of a session that may be restored, and the fence it was taken under; with `before`, of those older than that generation. */
export async function currentSnapshot(
  sql: Sql,
  session: Pick<OwnedSession, 'id' | 'workspaceId'>,
  before?: number,
): Promise<{ generation: number; fence: number } | undefined> {
  const [row] = await sql<{ generation: number; fence: number }>`
    select generation, fence from wa_snapshots
    where workspace_id = ${session.workspaceId} and session_id = ${session.id} and state = 'verified'
      ${before === undefined ? fragment`` : fragment`and generation < ${before}`}
    order by generation desc limit 1`
  return row
}

/** The fence under which the session's login was last put away or destroyed; null when it never was. */
export async function loginEndedUnder(
  sql: Sql,
  { id }: Pick<OwnedSession, 'id'>,
): Promise<number | null> {
  const [row] = await sql<{ fence: number | null }>`
    select login_ended_fence as fence from wa_sessions where id = ${id}`
  return row?.fence ?? null
}
