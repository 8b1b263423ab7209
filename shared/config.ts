import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import Joi from 'joi'
import { root } from './root.ts'

/** Exit code of a process whose settings are wrong (EX_CONFIG of sysexits.h): a restart cannot help. */
export const exitConfig = 78

/** A missing or wrong setting. The message is one sentence that names every one of them. */
export class ConfigError extends Error {}

/** The variables every process reads. */
export interface BaseConfig {
  NODE_ENV: string
  LOG_LEVEL: string
  LOG_DIR: string
  DATA_DIR: string
  DATABASE_URL?: string
  DATABASE_URL_DIRECT?: string
  PG_PREPARE: boolean
  SESSION_EXPIRY_DAYS: number
}

/** A folder: relative ones are taken from the project's root, so that the working directory never matters. */
const folder = (name: string) =>
  Joi.string()
    .default(resolve(root, name))
    .custom((value: string) => resolve(root, value))

const postgresUrl = Joi.string().uri({ scheme: ['postgres', 'postgresql'] })

export const baseSchema: Joi.PartialSchemaMap<BaseConfig> = {
  NODE_ENV: Joi.string().default('development'),
  LOG_LEVEL: Joi.string().valid('fatal', 'error', 'warn', 'info', 'debug', 'trace').default('info'),
  LOG_DIR: folder('logs'),
  DATA_DIR: folder('.data'),
  DATABASE_URL: postgresUrl,
  DATABASE_URL_DIRECT: postgresUrl,
  PG_PREPARE: Joi.boolean().truthy('on').falsy('off').default(true),
  SESSION_EXPIRY_DAYS: Joi.number().positive().max(36_500).default(30),
}

/** Reads `.env` in the project's root, if there is one. Variables that are already set win. */
export function loadEnv(): void {
  const file = resolve(root, '.env')
  if (existsSync(file)) process.loadEnvFile(file)
}

/**
 * The settings of a process, checked and with their defaults.
 * An empty variable counts as unset. Throws a ConfigError that names every fault; values are not quoted, they may be secrets.
 */
export function readEnv<T>(schema: Joi.PartialSchemaMap<T>, env = process.env): T {
  const result = Joi.object<T>()
    .keys(schema)
    .unknown(true)
    .empty('')
    .prefs({ abortEarly: false, stripUnknown: true, errors: { wrap: { label: false } } })
    .messages({
      'any.required': '{#label} is missing',
      'any.only': '{#label} must be one of {#valids}',
      'string.uriCustomScheme': '{#label} must be a URL that starts with {#scheme}://',
    })
    .validate(withoutEmpty(env))
  if (result.error) {
    const faults = result.error.details.map((detail) => detail.message).join('; ')
    throw new ConfigError(
      `Wrong settings: ${faults}. Each setting is explained in .env.example; set it in .env or in the environment.`,
    )
  }
  return result.value
}

/** Prints the sentence of a ConfigError and ends the process with exitConfig; rethrows anything else. */
export function exitOnConfigError(error: unknown): never {
  if (!(error instanceof ConfigError)) throw error
  process.stderr.write(error.message + '\n')
  process.exit(exitConfig)
}

const withoutEmpty = (env: NodeJS.ProcessEnv) =>
  Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ''))
