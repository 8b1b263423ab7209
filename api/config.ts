import { isIP } from 'node:net'
import Joi from 'joi'
import { baseSchema } from '../shared/config.ts'
import type { BaseConfig } from '../shared/config.ts'
import { pacingSchema } from '../shared/pacing.ts'
import type { PacingConfig } from '../shared/pacing.ts'
import { mediaSchema, sessionKeySchema, storageSchema } from '../shared/storage.ts'
import type { MediaConfig, SessionKeyConfig, StorageConfig } from '../shared/storage.ts'
import { webhookSchema } from '../shared/webhook-address.ts'
import type { WebhookConfig } from '../shared/webhook-address.ts'
import type { EngineKind } from '../shared/wa-sessions.ts'

/** So many requests in so many milliseconds. */
export interface Limit {
  max: number
  windowMs: number
}

/** The variables the API reads. Their meaning stands in .env.example. */
export interface ApiConfig
  extends BaseConfig, PacingConfig, StorageConfig, MediaConfig, SessionKeyConfig, WebhookConfig {
  PORT: number
  HOST: string
  JWT_SECRET: string
  CLIENT_ORIGIN: string[]
  TRUST_PROXY: number | string[]
  RATE_LIMIT_GENERAL: Limit | 'off'
  RATE_LIMIT_AUTH: Limit | 'off'
  RATE_LIMIT_MESSAGES: Limit | 'off'
  RATE_LIMIT_UPLOADS: Limit | 'off'
  ALLOW_REGISTRATION: boolean
  PASSWORD_MIN_SCORE: number
  COOKIE_SAME_SITE: 'strict' | 'lax' | 'none'
  PUBLIC_URL?: string
  REDIS_URL?: string
  SMTP_URL?: string
  MAIL_FROM: string
  METRICS_TOKEN?: string
  WA_ENGINE: EngineKind
  IDEMPOTENCY_TTL_HOURS: number
}

/** A string that `parse` turns into a setting; what it throws is told as the fault. */
const parsed = <T>(parse: (text: string) => T) =>
  Joi.string()
    .custom((text: string) => parse(text))
    .messages({ 'any.custom': '{#label} {#error.message}' })

const limit = (max: number, windowMs: number) => parsed(parseLimit).default({ max, windowMs })

const second = 1_000
const minute = 60 * second
const hour = 60 * minute

/** What the API reads from its environment, with its defaults. */
export const apiSchema: Joi.PartialSchemaMap<ApiConfig> = {
  ...baseSchema,
  // To foretell when a message will leave.
  ...pacingSchema,
  ...storageSchema,
  ...mediaSchema,
  ...sessionKeySchema,
  ...webhookSchema,
  PORT: Joi.number().port().default(3001),
  HOST: Joi.string()
    .hostname()
    .when('NODE_ENV', {
      is: 'production',
      then: Joi.string().default('0.0.0.0'),
      otherwise: Joi.string().default('127.0.0.1'),
    }),
  JWT_SECRET: Joi.string().min(32).required(),
  CLIENT_ORIGIN: parsed((text) => split(text).map(parseOrigin)).default([]),
  TRUST_PROXY: parsed(parseTrustProxy).default(0),
  RATE_LIMIT_GENERAL: limit(100, 15 * minute),
  RATE_LIMIT_AUTH: limit(5, 15 * minute),
  RATE_LIMIT_MESSAGES: limit(30, minute),
  RATE_LIMIT_UPLOADS: limit(10, hour),
  ALLOW_REGISTRATION: Joi.boolean().truthy('on').falsy('off').default(true),
  PASSWORD_MIN_SCORE: Joi.number().integer().min(0).max(4).default(1),
  COOKIE_SAME_SITE: Joi.string().valid('strict', 'lax', 'none').default('strict'),
  PUBLIC_URL: Joi.string().uri({ scheme: ['http', 'https'] }),
  REDIS_URL: Joi.string().uri({ scheme: ['redis', 'rediss'] }),
  SMTP_URL: Joi.string().uri({ scheme: ['smtp', 'smtps'] }),
  MAIL_FROM: Joi.string().max(320).default('Awfar <noreply@localhost>'),
  METRICS_TOKEN: Joi.string().min(16),
  WA_ENGINE: Joi.string().valid('webjs', 'simulator').default('webjs'),
  IDEMPOTENCY_TTL_HOURS: Joi.number().positive().max(8_760).default(24),
}

function parseLimit(text: string): Limit | 'off' {
  if (text === 'off') return 'off'
  const [, max, count = '1', unit] = /^(\d{1,9})\/(\d{1,4})?(s|m|h|d)$/.exec(text) ?? []
  const windowMs = Number(count) * { s: second, m: minute, h: hour, d: 24 * hour }[unit ?? 's']!
  if (max === undefined || Number(max) === 0 || windowMs === 0) {
    throw new Error('must look like 100/15m (requests / time in s, m, h or d) or be off')
  }
  return { max: Number(max), windowMs }
}

/** Answers in CORS are compared with the browser's Origin header letter by letter, so only its exact form will do. */
function parseOrigin(text: string): string {
  if (!/^https?:[^*]*$/.test(text) || !URL.canParse(text) || new URL(text).origin !== text) {
    throw new Error(
      'must list exact origins, such as https://app.example.com, separated by commas: no path, no trailing slash, no *',
    )
  }
  return text
}

/**
 * The number of proxies in front of the API, or their addresses and subnets. Never "everybody": whoever is trusted may
 * write any client address, and with it choose the rate limit that counts for him.
 */
function parseTrustProxy(text: string): number | string[] {
  if (/^\d$/.test(text)) return Number(text)
  const proxies = split(text)
  if (proxies.length > 0 && proxies.every(isSubnet)) return proxies
  throw new Error(
    'must be the number of proxies in front (0 to 9) or their addresses and subnets, separated by commas',
  )
}

function isSubnet(text: string): boolean {
  if (/^(loopback|linklocal|uniquelocal)$/.test(text)) return true
  const [address = '', prefix, ...rest] = text.split('/')
  const version = isIP(address)
  // An IPv4 address in IPv6 clothes counts its prefix from another end: easily far too wide.
  if (version === 0 || rest.length > 0 || address.toLowerCase().startsWith('::ffff:')) return false
  if (prefix === undefined) return true
  return /^[1-9]\d{0,2}$/.test(prefix) && Number(prefix) <= (version === 4 ? 32 : 128)
}

const split = (text: string) =>
  text
    .split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '')
