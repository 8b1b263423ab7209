import { fragment, violated } from './db.ts'
import type { Sql } from './db.ts'
import { AppError } from './errors.ts'

export type Role = 'owner' | 'admin' | 'agent'

export interface ProfileRow {
  id: string
  workspaceId: string
  email: string
  fullName: string
  role: Role
  passwordHash: string
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
    twoFactorEnabled: false,
    createdAt: row.createdAt,
  }
}

const columns = fragment`id, workspace_id, email, full_name, role, password_hash, created_at`

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
      insert into profiles (workspace_id, email, full_name, role, password_hash)
      values (${profile.workspaceId}, ${profile.email}, ${profile.fullName}, ${profile.role}, ${profile.passwordHash})
      returning ${columns}`
    return row!
  } catch (error) {
    if (violated(error) !== 'profiles_email') throw error
    throw new AppError(409, 'EMAIL_TAKEN', 'An account with this e-mail address exists already.')
  }
}

export async function findProfile(sql: Sql, id: string): Promise<ProfileRow | undefined> {
  const [row] = await sql<ProfileRow>`select ${columns} from profiles where id = ${id}`
  return row
}

/** The person with this e-mail address, however it is capitalised. */
export async function findProfileByEmail(sql: Sql, email: string): Promise<ProfileRow | undefined> {
  const [row] = await sql<ProfileRow>`
    select ${columns} from profiles where lower(email) = lower(${email})`
  return row
}

/** The person an access token names, unless the family of tokens it belongs to has ended. */
export async function findSignedIn(
  sql: Sql,
  id: string,
  family: string,
): Promise<ProfileRow | undefined> {
  const [row] = await sql<ProfileRow>`
    select ${columns} from profiles
    where id = ${id}
      and not exists (select from refresh_tokens where family = ${family} and revoked_at is not null)`
  return row
}
