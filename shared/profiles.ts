import { unassign } from './chats.ts'
import { fragment } from './db.ts'
import { violated } from './db-errors.ts'
import type { Sql } from './db.ts'
import { AppError, notFound } from './errors.ts'
import { newestFirst, newestPage } from './pagination.ts'
import type { Page, PageWish } from './pagination.ts'

export type Role = 'owner' | 'admin' | 'agent'

export interface ProfileRow {
  id: string
  workspaceId: string
  email: string
  fullName: string
  role: Role
  passwordHash: string
  twoFactorEnabled: boolean
  createdAt: Date
}

/** A person as the API answers them. */
export interface User {
  id: string
  email: string
  fullName: string
  role: Role
  workspaceId: string
  twoFactorEnabled: boolean
  createdAt: Date
}

export function userResource(row: ProfileRow): User {
  return {
    id: row.id,
    email: row.email,
    fullName: row.fullName,
    role: row.role,
    workspaceId: row.workspaceId,
    twoFactorEnabled: row.twoFactorEnabled,
    createdAt: row.createdAt,
  }
}

/** The columns of a ProfileRow, for statements that call the table profiles `p`. */
export const profileColumns = fragment`
  p.id, p.workspace_id, p.email, p.full_name, p.role, p.password_hash, p.created_at,
  exists (select from two_factor f where f.profile_id = p.id and f.confirmed_at is not null) as two_factor_enabled`
const columns = profileColumns

/** Adds a person to a workspace. Throws 409 EMAIL_TAKEN when somebody has the address, however it is capitalised. */
export async function createProfile(
  sql: Sql,
  profile: {
    workspaceId: string
    email: string
    fullName: string
    role: Role
    passwordHash: string
  },
): Promise<ProfileRow> {
  try {
    const [row] = await sql<ProfileRow>`
      insert into profiles as p (workspace_id, email, full_name, role, password_hash)
      values (${profile.workspaceId}, ${profile.email}, ${profile.fullName}, ${profile.role}, ${profile.passwordHash})
      returning ${columns}`
    return row!
  } catch (error) {
    if (violated(error) !== 'profiles_email') throw error
    throw new AppError(
      409,
      'EMAIL_TAKEN',
      'An account with this e-mail address exists already: sign in to it.',
    )
  }
}

export async function findProfile(sql: Sql, id: string): Promise<ProfileRow | undefined> {
  const [row] = await sql<ProfileRow>`select ${columns} from profiles p where id = ${id}`
  return row
}

/** The person with this e-mail address, however it is capitalised. */
export async function findProfileByEmail(sql: Sql, email: string): Promise<ProfileRow | undefined> {
  const [row] = await sql<ProfileRow>`
    select ${columns} from profiles p where lower(email) = lower(${email})`
  return row
}

/** The person an access token names, unless the family of tokens it belongs to has ended. */
export async function findSignedIn(
  sql: Sql,
  id: string,
  family: string,
): Promise<ProfileRow | undefined> {
  const [row] = await sql<ProfileRow>`
    select ${columns} from profiles p
    where id = ${id}
      and not exists (select from refresh_tokens where family = ${family} and revoked_at is not null)`
  return row
}

/** The people of a workspace, newest first. */
export async function listProfiles(
  sql: Sql,
  workspaceId: string,
  page: PageWish,
): Promise<Page<User>> {
  const rows = await sql<ProfileRow & { position: string }>`
    select ${columns}, p.created_at::text as position from profiles p
    where workspace_id = ${workspaceId} ${newestFirst(page)}`
  return newestPage(rows, page, userResource)
}

/** The person of this workspace. Throws 404. */
export async function existingProfile(
  sql: Sql,
  workspaceId: string,
  id: string,
): Promise<ProfileRow> {
  const [row] = await sql<ProfileRow>`
    select ${columns} from profiles p where id = ${id} and workspace_id = ${workspaceId}`
  if (!row) throw notFound('User')
  return row
}

/** Changes a person's name. */
export async function renameProfile(sql: Sql, id: string, fullName: string): Promise<ProfileRow> {
  const [row] = await sql<ProfileRow>`
    update profiles p set full_name = ${fullName} where id = ${id} returning ${columns}`
  if (!row) throw notFound('User')
  return row
}

/** Sets a new password in place of the one with `oldHash`. False when somebody else has changed it meanwhile. */
export async function replacePassword(
  sql: Sql,
  id: string,
  oldHash: string,
  newHash: string,
): Promise<boolean> {
  const rows = await sql`
    update profiles set password_hash = ${newHash}
    where id = ${id} and password_hash = ${oldHash} returning id`
  return rows.length === 1
}

/** Who changes or removes whom. */
interface Deed {
  by: { id: string; workspaceId: string }
  id: string
}

/**
 * Lets one member of a workspace change another, in one transaction with `record`. An admin neither makes owners nor touches one
 * (403 FORBIDDEN), and the last owner stays (409 LAST_OWNER), also when two owners go at the same moment. Who loses the right
 * to invite loses the invitations they have made. Throws 404 for people of elsewhere.
 */
export async function changeMember(
  sql: Sql,
  by: Deed['by'],
  id: string,
  change: { role?: Role; fullName?: string },
  record: (tx: Sql, before: ProfileRow, after: ProfileRow) => Promise<void>,
): Promise<ProfileRow> {
  return sql.begin(async (tx) => {
    const before = await lockMember(tx, { by, id }, change.role)
    const role = change.role ?? before.role
    const [after] = await tx<ProfileRow>`
      update profiles p set role = ${role}, full_name = coalesce(${change.fullName}, full_name)
      where id = ${id} returning ${columns}`
    if (role !== before.role) await tx`delete from invitations where invited_by = ${id}`
    await record(tx, before, after!)
    return after!
  })
}

/** So many chats are taken off somebody in one transaction. */
const chatsAtOnce = 200

/**
 * Lets one member of a workspace remove another, or themselves, by the rules of changeMember(), and with `record` in one transaction. What was theirs goes with them: sign-ins, keys,
 * invitations; their chats are nobody's. Their messages stay as they are, and their name with them.
 */
export async function removeMember(
  sql: Sql,
  by: Deed['by'],
  id: string,
  record: (tx: Sql, before: ProfileRow) => Promise<void>,
): Promise<void> {
  await sql.begin((tx) => lockMember(tx, { by, id }, 'removed'))
  // Not many in one transaction: it would hold up the chats' messages, and what everybody is told.
  while ((await unassign(sql, by.workspaceId, id, chatsAtOnce)) === chatsAtOnce);
  await sql.begin(async (tx) => {
    // Again: it may be another's decision by now.
    const before = await lockMember(tx, { by, id }, 'removed')
    await unassign(tx, by.workspaceId, id, Number.MAX_SAFE_INTEGER)
    await tx`
      insert into former_members (id, workspace_id, full_name)
      select id, workspace_id, full_name from profiles where id = ${id}`
    await tx`delete from profiles where id = ${id}`
    await record(tx, before)
  })
}

/** The person, of whom nobody else decides until the end of the transaction. Throws 404, and 403 or 409 when the other may not do that to them. */
async function lockMember(
  tx: Sql,
  { by, id }: Deed,
  wanted: Role | 'removed' | undefined,
): Promise<ProfileRow> {
  // Changes of who is who happen one after the other. Not for update: whoever adds anything to the workspace would wait, and we perhaps for them.
  await tx`select id from workspaces where id = ${by.workspaceId} for no key update`
  const actor = await existingProfile(tx, by.workspaceId, by.id)
  const before = await existingProfile(tx, by.workspaceId, id)
  const role = wanted ?? before.role
  if (actor.role === 'agent' && actor.id !== before.id) throw forbidden
  if (actor.role !== 'owner' && role !== before.role) {
    if (before.role === 'owner' || role === 'owner' || actor.role !== 'admin') throw forbidden
  }
  if (actor.role !== 'owner' && before.role === 'owner') throw forbidden
  if (before.role === 'owner' && role !== 'owner') {
    const [others] = await tx`
      select id from profiles
      where workspace_id = ${by.workspaceId} and role = 'owner' and id <> ${id} limit 1`
    if (!others) {
      throw new AppError(409, 'LAST_OWNER', 'The last owner stays: make somebody else one first.')
    }
  }
  return before
}

const forbidden = new AppError(403, 'FORBIDDEN', 'Your role does not allow this.')
