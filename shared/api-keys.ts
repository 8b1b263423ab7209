import { BlockList, isIP, isIPv6 } from 'node:net'
import { fragment } from './db.ts'
import type { Sql } from './db.ts'
import { newestFirst, newestPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'
import { profileColumns } from './profiles.ts'
import type { ProfileRow } from './profiles.ts'
import { hashToken, newToken } from './tokens.ts'

export type Scope = 'read' | 'send' | 'manage'

/** A key as the API answers it; the key itself is shown once, when it is made. */
export interface ApiKey {
  id: string
  name: string
  scopes: Scope[]
  prefix: string
  allowedIps: string[]
  createdBy: string
  expiresAt: Date | null
  lastUsedAt: Date | null
  createdAt: Date
}

const columns = fragment`
  id, name, scopes, prefix, allowed_ips, profile_id as created_by, expires_at, last_used_at, created_at`

/** Makes a key that acts for a person. `key` is not stored and cannot be shown again. */
export async function createApiKey(
  sql: Sql,
  person: { id: string; workspaceId: string },
  {
    name,
    scopes,
    expiresAt,
    allowedIps = [],
  }: { name: string; scopes: Scope[]; expiresAt?: string | undefined; allowedIps?: string[] },
): Promise<ApiKey & { key: string }> {
  const key = `awf_${newToken()}`
  const [row] = await sql<ApiKey>`
    insert into api_keys (workspace_id, profile_id, name, prefix, key_hash, scopes, allowed_ips, expires_at)
    values (${person.workspaceId}, ${person.id}, ${name}, ${key.slice(0, 12)}, ${hashToken(key)}, ${scopes}, ${allowedIps}, ${expiresAt})
    returning ${columns}`
  return { ...row!, key }
}

/** The keys of a workspace, newest first. */
export async function listApiKeys(
  sql: Sql,
  workspaceId: string,
  page: PageWish,
): Promise<Page<ApiKey>> {
  const rows = await sql<ApiKey & { position: string }>`
    select ${columns}, created_at::text as position from api_keys
    where workspace_id = ${workspaceId} ${newestFirst(page)}`
  return newestPage(rows, page, ({ position: _, ...key }) => key)
}

/** Ends a key at once. Answers what it was; undefined when the workspace has none of this id. */
export async function deleteApiKey(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<ApiKey | undefined> {
  const [row] = await sql<ApiKey>`
    delete from api_keys where id = ${id} and workspace_id = ${workspaceId} returning ${columns}`
  return row
}

/** The person a key acts for, and what it may; undefined when it is wrong, expired, or used from an address it is not for. */
export async function findByApiKey(
  sql: Sql,
  key: string,
  address: string,
): Promise<{ profile: ProfileRow; keyId: string; scopes: Scope[] } | undefined> {
  const [row] = await sql<
    ProfileRow & { keyId: string; scopes: Scope[]; allowedIps: string[]; stale: boolean }
  >`
    select ${profileColumns}, k.id as key_id, k.scopes, k.allowed_ips,
      k.last_used_at is null or k.last_used_at < now() - interval '1 minute' as stale
    from api_keys k join profiles p on p.id = k.profile_id
    where k.key_hash = ${hashToken(key)} and (k.expires_at is null or k.expires_at > now())`
  if (!row) return undefined
  const { keyId, scopes, allowedIps, stale, ...profile } = row
  if (!isAllowed(allowedIps, address)) return undefined
  // To the minute: a busy key must not write with each request.
  if (stale) await sql`update api_keys set last_used_at = now() where id = ${keyId}`
  return { profile, keyId, scopes }
}

/** Whether `text` names an address, or a subnet as address/prefix. An IPv4 address in IPv6 clothes is neither. */
export function isAddressOrSubnet(text: string): boolean {
  const [address = '', prefix, ...rest] = text.split('/')
  const version = isIP(address)
  if (version === 0 || rest.length > 0 || /^::ffff:/i.test(address) || address.includes('%')) {
    return false
  }
  return (
    prefix === undefined ||
    (/^(0|[1-9]\d{0,2})$/.test(prefix) && Number(prefix) <= (version === 4 ? 32 : 128))
  )
}

function isAllowed(allowed: string[], address: string): boolean {
  if (allowed.length === 0) return true
  const list = new BlockList()
  for (const entry of allowed) {
    const [net = '', prefix] = entry.split('/')
    const family = isIPv6(net) ? 'ipv6' : 'ipv4'
    if (prefix === undefined) list.addAddress(net, family)
    else list.addSubnet(net, Number(prefix), family)
  }
  const plain = address.replace(/^::ffff:(?=\d+\.)/i, '')
  return list.check(plain, isIPv6(plain) ? 'ipv6' : 'ipv4')
}
