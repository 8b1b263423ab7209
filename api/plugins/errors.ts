import { STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import Joi from 'joi'
import { isDatabaseAway } from '../../shared/db-errors.ts'
import { AppError, notFound } from '../../shared/errors.ts'
import { ObjectNotFound, StoreRefused, StoreUnavailable } from '../../shared/object-store.ts'
import type { Fault } from '../../shared/errors.ts'
import { faultsOf } from './joi.ts'

/** Every refusal and failure, on every path, has this body. */
export interface ErrorBody {
  statusCode: number
  code: string
  error: string
  message: string
  requestId: string
  details?: Fault[]
  newerMessages?: object[]
}

export const errorBody = Joi.object<ErrorBody, true>({
  statusCode: Joi.number().integer().required(),
  code: Joi.string().required().description('Stable; made for programs'),
  error: Joi.string().required().description('The name of the status'),
  message: Joi.string().required().description('Made for people'),
  requestId: Joi.string().required(),
  details: Joi.array().items(
    Joi.object<Fault, true>({
      path: Joi.string().required().description('Such as body.to'),
      message: Joi.string().required(),
    }),
  ),
  newerMessages: Joi.array()
    .items(Joi.object())
    .description('With `CONVERSATION_MOVED`: the later messages, newest first'),
})

/** Seconds after which a caller may try again what failed with 503. */
const retryAfter = '5'

/** A body that cannot be read. */
export const invalidJson = new AppError(400, 'INVALID_JSON', 'The body is not valid JSON.')

/** Fastify's own refusals, and what we call them. */
const renamed: Record<string, AppError> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: new AppError(
    415,
    'UNSUPPORTED_MEDIA_TYPE',
    'A body must be sent as application/json.',
  ),
  FST_ERR_CTP_BODY_TOO_LARGE: new AppError(413, 'BODY_TOO_LARGE', 'The body is too large.'),
  FST_ERR_CTP_INVALID_JSON_BODY: invalidJson,
}

/** Answers everything that is thrown, and every path nobody serves, in the one shape of errors. */
export default fp(
  async function errors(app) {
    app.setErrorHandler((error: FastifyError, request, reply) => answer(error, request, reply))
    app.setNotFoundHandler(() => {
      throw notFound('Path')
    })
  },
  { name: 'errors', dependencies: ['joi'] },
)

/** Answers an error. Server faults are logged here and told to nobody. */
export function answer(error: Error, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const told = tellable(error, request)
  if (told.statusCode >= 500) {
    const level = told.statusCode > 500 ? 'warn' : 'error'
    request.log[level]({ error, route: request.routeOptions.url }, 'request failed')
  }
  if (told.statusCode === 503) reply.header('retry-after', retryAfter)
  if (told.statusCode === 401) reply.header('www-authenticate', 'Bearer')
  return reply
    .code(told.statusCode)
    .header('x-request-id', request.id)
    .send(bodyOf(told, request.id))
}

/** Answers a client whose request was so malformed that Node could not read it. */
export function answerUnreadable(error: Error & { code?: string }, socket: Socket, id: string) {
  if (error.code === 'ECONNRESET' || socket.destroyed || !socket.writable) return
  const told =
    {
      HPE_HEADER_OVERFLOW: new AppError(431, 'HEADERS_TOO_LARGE', 'The headers are too large.'),
      ERR_HTTP_REQUEST_TIMEOUT: new AppError(
        408,
        'REQUEST_TIMEOUT',
        'The request came too slowly.',
      ),
    }[error.code ?? ''] ?? new AppError(400, 'BAD_REQUEST', 'The request is not valid HTTP.')
  const body = JSON.stringify(bodyOf(told, id))
  socket.end(
    `HTTP/1.1 ${told.statusCode} ${STATUS_CODES[told.statusCode]}\r\n` +
      `Content-Type: application/json; charset=utf-8\r\nContent-Length: ${Buffer.byteLength(body)}\r\n` +
      `X-Request-Id: ${id}\r\nConnection: close\r\n\r\n${body}`,
  )
}

function tellable(error: Error & Partial<FastifyError>, request: FastifyRequest): AppError {
  if (error instanceof AppError) return error
  if (isDatabaseAway(error)) {
    return new AppError(503, 'DATABASE_UNAVAILABLE', 'The database does not answer; try again.')
  }
  if (error instanceof StoreUnavailable) {
    return new AppError(503, 'STORE_UNAVAILABLE', 'The file store does not answer; try again.')
  }
  // Lost, or removed while it was being asked for.
  if (error instanceof ObjectNotFound) return notFound('File')
  // Its status is the store's answer to us, not ours to the caller.
  if (error instanceof StoreRefused) return internalError()
  const { code = '', statusCode = 500 } = error
  if (code === 'FST_ERR_VALIDATION') {
    const faults = faultsOf(request)
    const message = faults.map((fault) => fault.message).join('; ')
    return new AppError(400, 'VALIDATION_FAILED', message, faults)
  }
  if (renamed[code]) return renamed[code]
  // secure-json-parse refuses __proto__ and constructor.prototype with a bare SyntaxError.
  if (error instanceof SyntaxError && statusCode === 400) return invalidJson
  if (statusCode >= 400 && statusCode < 500) {
    const name = STATUS_CODES[statusCode] ?? 'Refused'
    return new AppError(statusCode, name.toUpperCase().replaceAll(/\W+/g, '_'), error.message)
  }
  if (statusCode === 503) {
    return new AppError(503, 'SERVICE_UNAVAILABLE', 'The service is not available; try again.')
  }
  return internalError()
}

const internalError = () => new AppError(500, 'INTERNAL_ERROR', 'Something went wrong on our side.')

function bodyOf(
  { statusCode, code, message, details, more }: AppError,
  requestId: string,
): ErrorBody {
  return {
    statusCode,
    code,
    error: STATUS_CODES[statusCode] ?? 'Error',
    message,
    requestId,
    ...(details && { details }),
    ...more,
  }
}
