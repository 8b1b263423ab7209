import Joi from 'joi'
import { baseSchema } from '../shared/config.ts'
import type { BaseConfig } from '../shared/config.ts'
import { pacingSchema } from '../shared/pacing.ts'
import type { PacingConfig } from '../shared/pacing.ts'
import { mediaSchema, sessionKeySchema, storageSchema } from '../shared/storage.ts'
import type { MediaConfig, SessionKeyConfig, StorageConfig } from '../shared/storage.ts'
import { voiceSchema } from '../shared/media-voice.ts'
import type { VoiceConfig } from '../shared/media-voice.ts'
import { webhookSchema } from '../shared/webhook-address.ts'
import type { WebhookConfig } from '../shared/webhook-address.ts'

/** The variables the worker reads. */
export interface WorkerConfig
  extends
    BaseConfig,
    StorageConfig,
    SessionKeyConfig,
    PacingConfig,
    MediaConfig,
    VoiceConfig,
    WebhookConfig {
  MEDIA_RETENTION_DAYS?: number
  PUPPETEER_EXECUTABLE_PATH?: string
  WA_BROWSER_ARGS: string[]
  WA_WEB_VERSION?: string
  WA_WEB_CACHE_DIR?: string
  WA_MAX_SESSIONS: number
  WA_LEASE_TTL_MS: number
  WA_START_TIMEOUT_MS: number
  WA_RECONNECT_DELAY_MS: number
  WA_QR_MAX_CODES: number
  WA_MEMORY_SOFT_LIMIT_MB: number
  WA_SNAPSHOT_INTERVAL_MS: number
  WA_MEDIA_MAX_MB: number
  WA_HISTORY_DAYS: number
  WA_SIMULATOR_SCAN_MS: number
  AUDIT_RETENTION_DAYS: number
}

const integer = (fallback: number, min: number, max: number) =>
  Joi.number().integer().min(min).max(max).default(fallback)

export const workerSchema: Joi.PartialSchemaMap<WorkerConfig> = {
  ...baseSchema,
  ...storageSchema,
  ...sessionKeySchema,
  ...pacingSchema,
  ...mediaSchema,
  ...voiceSchema,
  ...webhookSchema,
  MEDIA_RETENTION_DAYS: Joi.number().positive().max(36_500),
  PUPPETEER_EXECUTABLE_PATH: Joi.string(),
  WA_BROWSER_ARGS: Joi.string().custom(browserArgs).default([]),
  WA_WEB_VERSION: Joi.string().pattern(/^[\w.-]+$/),
  WA_WEB_CACHE_DIR: Joi.string(),
  WA_MAX_SESSIONS: integer(10, 1, 1_000),
  WA_LEASE_TTL_MS: integer(15_000, 1_000, 600_000),
  WA_START_TIMEOUT_MS: integer(180_000, 1_000, 3_600_000),
  WA_RECONNECT_DELAY_MS: integer(5_000, 10, 600_000),
  WA_QR_MAX_CODES: integer(12, 1, 1_000),
  WA_MEMORY_SOFT_LIMIT_MB: integer(1_500, 0, 1_000_000),
  WA_SNAPSHOT_INTERVAL_MS: integer(900_000, 1_000, 86_400_000),
  WA_MEDIA_MAX_MB: integer(100, 0, 2_048),
  WA_HISTORY_DAYS: integer(0, 0, 365),
  WA_SIMULATOR_SCAN_MS: integer(3_000, 0, 3_600_000),
  AUDIT_RETENTION_DAYS: integer(365, 7, 36_500),
}

/**
 * Chromium flags, separated by spaces. A value may itself hold spaces, as in `--host-resolver-rules=MAP a.example 127.0.0.1:1`, so a new
 * flag begins only at a space before two dashes; quotes around a flag or its value are taken off.
 */
export function browserArgs(text: string, helpers?: Joi.CustomHelpers): string[] | Joi.ErrorReport {
  const args = text
    .trim()
    .split(/\s+(?=['"]?--)/)
    .map((arg) => arg.replace(/^(['"])(.*)\1$/s, '$2').replace(/=(['"])(.*)\1$/s, '=$2'))
  if (helpers && args.some((arg) => !arg.startsWith('--'))) {
    return helpers.message({ custom: '{#label} must hold flags that begin with --' })
  }
  return args
}
