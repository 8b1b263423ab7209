import type { Sql, Tag } from './db.ts'
import { AppError } from './errors.ts'
import { isSealFault } from './key-ring.ts'
import type { KeyRing } from './key-ring.ts'

/** A request that carries an Idempotency-Key. The fingerprint tells it from other requests with the same key. */
export interface KeyedRequest {
  workspaceId: string
  key: string
  fingerprint: Buffer
}

/** An answer as it went out, to the byte. */
export interface StoredAnswer {
  statusCode: number
  body: string
  /** The key the body is sealed with, when it holds a secret. */
  sealedWith: string | null
}

const context = ({ workspaceId, key }: Pick<KeyedRequest, 'workspaceId' | 'key'>) =>
  `answer\n${workspaceId}\n${key}`

/** The answer to a request, with its body sealed. */
export function sealAnswer(
  keys: KeyRing,
  request: KeyedRequest,
  { statusCode, body }: StoredAnswer,
): StoredAnswer {
  const { keyId, box } = keys.seal(Buffer.from(body), context(request))
  return { statusCode, body: box, sealedWith: keyId }
}

/** The body of a stored answer as it went out. Throws UnknownKey or SealBroken. */
export function bodyOf(
  keys: KeyRing,
  request: Pick<KeyedRequest, 'workspaceId' | 'key'>,
  { body, sealedWith }: Pick<StoredAnswer, 'body' | 'sealedWith'>,
): string {
  if (sealedWith === null) return body
  return keys.open({ keyId: sealedWith, box: body }, context(request)).toString()
}

/**
 * Takes a key until the end of the transaction: undefined when it is the caller's to use. Else the answer that is stored for this
 * request, or `taken` while another process works on it. Never waits. Throws 422 when the key belongs to another request.
 */
export async function takeKey(
  tx: Sql,
  request: KeyedRequest,
): Promise<StoredAnswer | 'taken' | undefined> {
  // A lock of the transaction, not of the database's session: it works behind a pooler and ends with the process.
  const locking = tx<{ mine: boolean }>`
    select pg_try_advisory_xact_lock(hashtextextended(${request.workspaceId}::text || ' ' || ${request.key}::text, 8)) as mine`
  // A statement of its own: one that locks and reads would read what was there before it had the lock. It need not wait for the answer, only for its turn.
  const [[lock], answer] = await Promise.all([locking, findAnswer(tx, request)])
  return lock!.mine ? answer : 'taken'
}

/** What is stored under a key, as takeKey() answers it, without taking it. */
export async function findAnswer(
  sql: Sql,
  { workspaceId, key, fingerprint }: KeyedRequest,
): Promise<StoredAnswer | 'taken' | undefined> {
  const [row] = await sql<{
    fingerprint: Buffer
    statusCode: number | null
    body: string | null
    sealedWith: string | null
  }>`
    select fingerprint, status_code, body, sealed_with from idempotency_keys
    where workspace_id = ${workspaceId} and key = ${key} and expires_at > now()`
  if (!row) return undefined
  if (!row.fingerprint.equals(fingerprint)) {
    throw new AppError(
      422,
      'IDEMPOTENCY_KEY_REUSED',
      'The Idempotency-Key was used for another request: take a new key for each.',
    )
  }
  const { statusCode, body, sealedWith } = row
  return statusCode === null || body === null ? 'taken' : { statusCode, body, sealedWith }
}

/** Stores the answer of a request, in the transaction that took its key. */
export async function storeAnswer(
  tx: Tag,
  { workspaceId, key, fingerprint }: KeyedRequest,
  { statusCode, body, sealedWith }: StoredAnswer,
  ttlHours: number,
): Promise<void> {
  await tx`
    insert into idempotency_keys as k (workspace_id, key, fingerprint, status_code, body, sealed_with, expires_at)
    values (${workspaceId}, ${key}, ${fingerprint}, ${statusCode}, ${body}, ${sealedWith}, now() + ${ttlHours} * interval '1 hour')
    on conflict (workspace_id, key) do update
    set fingerprint = excluded.fingerprint, status_code = excluded.status_code, body = excluded.body, sealed_with = excluded.sealed_with, claim = null,
      created_at = now(), expires_at = excluded.expires_at`
}

/**
 * Says, in the transaction that took the key, that work under it goes on after the transaction, for so many seconds at the most. Answers the claim
 * to settle it with; past its time the key is free again.
 */
export async function claimKey(
  tx: Sql,
  { workspaceId, key, fingerprint }: KeyedRequest,
  seconds: number,
): Promise<string> {
  const [row] = await tx<{ claim: string }>`
    insert into idempotency_keys as k (workspace_id, key, fingerprint, claim, expires_at)
    values (${workspaceId}, ${key}, ${fingerprint}, gen_random_uuid(), now() + ${seconds} * interval '1 second')
    on conflict (workspace_id, key) do update
    set fingerprint = excluded.fingerprint, status_code = null, body = null, sealed_with = null, claim = excluded.claim,
      created_at = now(), expires_at = excluded.expires_at
    returning claim`
  return row!.claim
}

/**
 * Stores the answer of claimed work, to be told again until `keepUntil` if that comes before its time. False when the claim had run out and was
 * taken over.
 */
export async function settleClaim(
  sql: Sql,
  { workspaceId, key }: KeyedRequest,
  claim: string,
  { statusCode, body }: StoredAnswer,
  { ttlHours, keepUntil }: { ttlHours: number; keepUntil?: Date | undefined },
): Promise<boolean> {
  const settled = await sql`
    update idempotency_keys
    set status_code = ${statusCode}, body = ${body}, claim = null,
      expires_at = least(now() + ${ttlHours} * interval '1 hour', ${keepUntil}::timestamptz)
    where workspace_id = ${workspaceId} and key = ${key} and claim = ${claim}
    returning key`
  return settled.length === 1
}

/** Gives a claimed key back, as if it had not been used. */
export async function dropClaim(
  sql: Sql,
  { workspaceId, key }: KeyedRequest,
  claim: string,
): Promise<void> {
  await sql`
    delete from idempotency_keys
    where workspace_id = ${workspaceId} and key = ${key} and claim = ${claim}`
}

/** Answers sealed with another key than the current one are sealed with it. Answers how many, and the keys of which did not open. */
export async function resealAnswers(
  sql: Sql,
  keys: KeyRing,
): Promise<{ resealed: number; failed: string[] }> {
  const rows = await sql<KeyedRequest & StoredAnswer>`
    select workspace_id, key, fingerprint, status_code, body, sealed_with from idempotency_keys
    where sealed_with <> ${keys.current} and expires_at > now()`
  const failed: string[] = []
  let resealed = 0
  for (const row of rows) {
    try {
      const { body, sealedWith } = sealAnswer(keys, row, { ...row, body: bodyOf(keys, row, row) })
      const changed = await sql`
        update idempotency_keys set body = ${body}, sealed_with = ${sealedWith}
        where workspace_id = ${row.workspaceId} and key = ${row.key} and body = ${row.body} returning key`
      resealed += changed.length
    } catch (error) {
      if (!isSealFault(error)) throw error
      failed.push(row.key)
    }
  }
  return { resealed, failed }
}

/** Removes the keys whose time is over, some thousands at a time. Answers how many. */
export async function removeExpiredKeys(sql: Sql, batch = 5_000): Promise<number> {
  let removed = 0
  for (;;) {
    const rows = await sql`
      delete from idempotency_keys where ctid = any(array(
        select ctid from idempotency_keys where expires_at < now() limit ${batch} for update skip locked))
      returning 1`
    removed += rows.length
    if (rows.length < batch) return removed
  }
}
