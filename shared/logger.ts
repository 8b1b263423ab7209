import { join } from 'node:path'
import winston from 'winston'
import { RotatingFile } from './rotating-file.ts'

export type Logger = winston.Logger

/** pino's names, so that Fastify, the worker and LOG_LEVEL speak of the same levels. */
const levels = { fatal: 0, error: 1, warn: 2, info: 3, debug: 4, trace: 5 }

/** Values under these keys never reach a log line, at any depth. */
const secret =
  /^(password|currentPassword|newPassword|passwordHash|token|accessToken|refreshToken|challengeToken|csrfToken|backupCodes|secret|authorization|cookie|set-cookie|x-api-key|x-csrf-token|apiKey|qr|body|databaseUrl)$/i

/**
 * A logger that writes JSON lines to stdout, to `all.log` and, from level error up, to `error.log` in `dir`.
 * Call it as `log.info('session started', { sessionId })`: a constant message in the past tense, every variable a field.
 */
export function createLogger(
  name: string,
  { level, dir, stdout = true }: { level: string; dir?: string; stdout?: boolean },
): Logger {
  const transports: winston.transport[] = stdout ? [new winston.transports.Console()] : []
  if (dir !== undefined) {
    transports.push(
      new RotatingFile({ filename: join(dir, 'all.log') }),
      new RotatingFile({ filename: join(dir, 'error.log'), level: 'error' }),
    )
  }
  return winston.createLogger({
    level,
    levels,
    silent: transports.length === 0,
    exitOnError: false,
    defaultMeta: { service: name, pid: process.pid },
    format: winston.format.combine(safe(), winston.format.timestamp(), winston.format.json()),
    transports,
  })
}

/** Redacts secrets and unfolds errors, which JSON would turn into {}. */
const safe = winston.format((info) => {
  for (const key of Object.keys(info)) {
    if (key !== 'level' && key !== 'message') info[key] = clean(key, info[key], 0)
  }
  return info
})

function clean(key: string, value: unknown, depth: number): unknown {
  if (value === undefined || value === null) return value
  if (secret.test(key)) return '[redacted]'
  if (value instanceof Error) return describe(value, depth)
  if (value instanceof Date) return value
  if (typeof value === 'bigint') return String(value)
  if (typeof value !== 'object') return value
  if (depth === 6) return '[too deep]'
  if (Array.isArray(value)) return value.map((item) => clean('', item, depth + 1))
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [name, clean(name, item, depth + 1)]),
  )
}

function describe(error: Error, depth: number): Record<string, unknown> {
  const { code } = error as { code?: unknown }
  return {
    type: error.name,
    message: error.message,
    ...(code !== undefined && { code }),
    stack: error.stack,
    ...(error.cause !== undefined && { cause: clean('cause', error.cause, depth + 1) }),
  }
}
