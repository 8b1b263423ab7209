import { format } from 'node:util'
import type { FastifyBaseLogger, FastifyReply, FastifyRequest } from 'fastify'
import type { Logger } from '../shared/logger.ts'

type Serializers = Record<string, (value: never) => unknown>
type Level = 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace'

/** What a line tells of a request: its route, never its URL, whose query may carry tokens. */
const ours: Serializers = {
  req: (request: FastifyRequest) => ({
    method: request.method,
    route: request.routeOptions?.url,
  }),
  res: (reply: FastifyReply) => ({ statusCode: reply.statusCode }),
}

/** Our logger as Fastify calls one: pino's order of arguments (fields, message), and children that carry fields along. */
export function fastifyLogger(
  log: Logger,
  bindings: Record<string, unknown> = {},
  serializers: Serializers = ours,
): FastifyBaseLogger {
  const write =
    (level: Level) =>
    (first: unknown, message?: string, ...values: unknown[]) => {
      const fields = typeof first === 'string' ? {} : serialize(first, serializers)
      const text =
        typeof first !== 'string'
          ? message
          : message === undefined
            ? first
            : format(first, message, ...values)
      log.log({ ...bindings, ...fields, level, message: text ?? textOf(first) })
    }
  return {
    fatal: write('fatal'),
    error: write('error'),
    warn: write('warn'),
    info: write('info'),
    debug: write('debug'),
    trace: write('trace'),
    silent: () => {},
    get level() {
      return log.level
    },
    set level(level) {
      log.level = level
    },
    child: (more, options) =>
      fastifyLogger(
        log,
        { ...bindings, ...more },
        // Ours last: Fastify hands its own, which would log the URL.
        { ...serializers, ...(options?.serializers as Serializers | undefined), ...ours },
      ),
  }
}

function serialize(value: unknown, serializers: Serializers): Record<string, unknown> {
  if (value instanceof Error) return { error: value }
  if (typeof value !== 'object' || value === null) return {}
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => [key, serializers[key]?.(item as never) ?? item]),
  )
}

const textOf = (value: unknown) => (value instanceof Error ? value.message : 'fastify')
