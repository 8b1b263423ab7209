import { createHash } from 'node:crypto'
import { normalizeIP } from '@fastify/rate-limit'
import type { FastifyReply } from 'fastify'
import type { Sql } from '../shared/db.ts'
import { AppError } from '../shared/errors.ts'
import { countHit } from '../shared/rate-limits.ts'

const windowMs = 15 * 60_000

/**
 * Wrong passwords an account may be tried with in 15 minutes: from one address, from one its owner has signed in from before, and from
 * all strange addresses together. Guessing from everywhere thus ends the guessing, and never locks out the owner where they have been before.
 */
const most = { address: 10, knownAddress: 50, strangers: 100 }
/** Wrong codes of a second factor, for which the password must be known. */
const mostCodes = 5

/** An address as attempts are counted: of IPv6 the network of one customer. */
const addressKey = (ip: string) => normalizeIP(ip)

/** Accounts that do not exist are counted like others: an answer must not tell them apart. */
const accountKey = (email: string) =>
  createHash('sha256').update(email.toLowerCase()).digest('base64url')

const keysOf = (email: string, ip: string) => ({
  here: `login:${accountKey(email)}:${addressKey(ip)}`,
  strangers: `login:${accountKey(email)}`,
})

/**
 * Counts an attempt before the password is looked at, so that of any number of parallel ones no more than the limit are. Throws 429
 * ACCOUNT_LOCKED, for a quarter of an hour at the most.
 */
export async function admitLogin(
  sql: Sql,
  reply: FastifyReply,
  email: string,
  ip: string,
): Promise<void> {
  const [known] = await sql`
    select from login_addresses a join profiles p on p.id = a.profile_id
    where lower(p.email) = lower(${email}) and a.address = ${addressKey(ip)} and a.last_at > now() - interval '90 days'`
  const keys = keysOf(email, ip)
  const here = await countHit(sql, keys.here, windowMs)
  if (here.hits > (known ? most.knownAddress : most.address)) throw locked(reply, here.ttlMs)
  if (known) return
  const all = await countHit(sql, keys.strangers, windowMs)
  if (all.hits > most.strangers) throw locked(reply, all.ttlMs)
}

/** The password was right: the address is known from now on, and its attempts are forgiven. */
export async function noteLogin(
  sql: Sql,
  { id, workspaceId, email }: { id: string; workspaceId: string; email: string },
  ip: string,
): Promise<void> {
  await sql`
    with forgiven as (delete from rate_limits where key = ${keysOf(email, ip).here})
    insert into login_addresses (profile_id, workspace_id, address) values (${id}, ${workspaceId}, ${addressKey(ip)})
    on conflict (profile_id, address) do update set last_at = now()`
}

/** A new password ends all locks of the account: its owner has shown who they are. */
export async function forgiveAll(sql: Sql, email: string): Promise<void> {
  const account = `login:${accountKey(email)}`
  await sql`delete from rate_limits where key = ${account} or key like ${`${account.replaceAll('_', '\\_')}:%`}`
}

/** Counts an attempt at a code, whichever kind it is. Throws 429 TOO_MANY_CODES. */
export async function admitCode(sql: Sql, reply: FastifyReply, profileId: string): Promise<void> {
  const { hits, ttlMs } = await countHit(sql, `code:${profileId}`, windowMs)
  if (hits <= mostCodes) return
  reply.header('retry-after', Math.ceil(ttlMs / 1_000))
  throw new AppError(429, 'TOO_MANY_CODES', 'Too many wrong codes; try again later.')
}

/** The code was right. */
export async function forgiveCodes(sql: Sql, profileId: string): Promise<void> {
  await sql`delete from rate_limits where key = ${`code:${profileId}`}`
}

function locked(reply: FastifyReply, ttlMs: number): AppError {
  reply.header('retry-after', Math.ceil(ttlMs / 1_000))
  return new AppError(
    429,
    'ACCOUNT_LOCKED',
    'Too many wrong passwords for this account; try again later, or reset the password.',
  )
}
