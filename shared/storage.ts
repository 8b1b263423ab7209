import { join } from 'node:path'
import Joi from 'joi'
import { ConfigError } from './config.ts'
import { LocalObjectStore } from './object-store-local.ts'
import { SupabaseObjectStore } from './object-store-supabase.ts'
import type { ObjectStore } from './object-store.ts'

/** The variables that say where objects are kept. */
export interface StorageConfig {
  SUPABASE_URL?: string
  SUPABASE_SERVICE_ROLE_KEY?: string
}

/** The variable that says what logins are encrypted with; its value is read by openKeyRing. */
export interface SessionKeyConfig {
  SESSION_ENCRYPTION_KEY?: string
}

export const storageSchema: Joi.PartialSchemaMap<StorageConfig> = {
  SUPABASE_URL: Joi.string().uri({ scheme: ['http', 'https'] }),
  SUPABASE_SERVICE_ROLE_KEY: Joi.string()
    .pattern(/^[\x21-\x7e]+$/)
    .messages({ 'string.pattern.base': '{#label} must be one word' }),
}

export const sessionKeySchema: Joi.PartialSchemaMap<SessionKeyConfig> = {
  SESSION_ENCRYPTION_KEY: Joi.string(),
}

/** The variables that say how many files are kept, and how long. */
export interface MediaConfig {
  MEDIA_QUOTA_MB?: number
}

export const mediaSchema: Joi.PartialSchemaMap<MediaConfig> = {
  MEDIA_QUOTA_MB: Joi.number().integer().min(1).max(1_000_000_000),
}

/** The most bytes a workspace may store; no limit when undefined. */
export const quotaOf = ({ MEDIA_QUOTA_MB: megabytes }: MediaConfig): number | undefined =>
  megabytes === undefined ? undefined : megabytes * 1_048_576

/** Supabase Storage, or, without one, a folder under DATA_DIR. Throws a ConfigError when half of the settings are there. */
export function openObjectStore(config: StorageConfig & { DATA_DIR: string }): ObjectStore {
  const { SUPABASE_URL: url, SUPABASE_SERVICE_ROLE_KEY: serviceRoleKey } = config
  if (url !== undefined && serviceRoleKey !== undefined) {
    return new SupabaseObjectStore({ url, serviceRoleKey })
  }
  if (url !== undefined || serviceRoleKey !== undefined) {
    throw new ConfigError(
      'Wrong settings: SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY go together; set both, or neither to keep objects under DATA_DIR.',
    )
  }
  return new LocalObjectStore(join(config.DATA_DIR, 'objects'))
}
