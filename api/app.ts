import { isUtf8 } from 'node:buffer'
import { randomUUID } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import cors from '@fastify/cors'
import helmet from '@fastify/helmet'
import Fastify, { LogController } from 'fastify'
import type { FastifyInstance } from 'fastify'
import type { Db } from '../shared/db.ts'
import type { KeyRing } from '../shared/key-ring.ts'
import type { Logger } from '../shared/logger.ts'
import type { ApiConfig } from './config.ts'
import { fastifyLogger } from './logger.ts'
import type { Mailer } from './mail.ts'
import { message } from './message-schema.ts'
import audit from './plugins/audit.ts'
import auth from './plugins/auth.ts'
import cookies from './plugins/cookies.ts'
import eventFeed from './plugins/event-feed.ts'
import type { FeedOptions } from './plugins/event-feed.ts'
import errors, { answer, answerUnreadable, errorBody, invalidJson } from './plugins/errors.ts'
import idempotency from './plugins/idempotency.ts'
import joi from './plugins/joi.ts'
import media from './plugins/media.ts'
import type { MediaOptions } from './plugins/media.ts'
import openapi from './plugins/openapi.ts'
import limits from './plugins/rate-limit.ts'
import signIn, { user } from './plugins/sign-in.ts'
import { apiKeysRoutes } from './routes/api-keys.ts'
import { auditLogRoutes } from './routes/audit-log.ts'
import { authRoutes } from './routes/auth.ts'
import { batchesRoutes } from './routes/batches.ts'
import { chat, chatsRoutes } from './routes/chats.ts'
import { clientConfigRoutes } from './routes/client-config.ts'
import { contact, contactsRoutes } from './routes/contacts.ts'
import { event, eventsRoutes } from './routes/events.ts'
import { healthRoutes } from './routes/health.ts'
import { invitationsRoutes } from './routes/invitations.ts'
import { label, labelsRoutes } from './routes/labels.ts'
import { linkingRoutes } from './routes/linking.ts'
import { mediaFilesRoutes } from './routes/media-files.ts'
import { media as mediaResource, mediaRoutes } from './routes/media.ts'
import { messagesRoutes } from './routes/messages.ts'
import { metricsRoutes } from './routes/metrics.ts'
import { note, notesRoutes } from './routes/notes.ts'
import { numbersRoutes } from './routes/numbers.ts'
import { pacingRoutes } from './routes/pacing.ts'
import { passwordsRoutes } from './routes/passwords.ts'
import { searchRoutes } from './routes/search.ts'
import { sendRoutes } from './routes/send.ts'
import { session, sessionsRoutes } from './routes/sessions.ts'
import { template, templatesRoutes } from './routes/templates.ts'
import { twoFactorRoutes } from './routes/two-factor.ts'
import { uploadsRoutes } from './routes/uploads.ts'
import { usersRoutes } from './routes/users.ts'
import { webhook, webhooksRoutes } from './routes/webhooks.ts'
import { workersRoutes } from './routes/workers.ts'
import { workspace, workspaceRoutes } from './routes/workspace.ts'
import { limitBodies } from './uploading.ts'

/** What the API is made of. */
export interface Parts {
  config: ApiConfig
  sql: Db
  log: Logger
  media?: MediaOptions
  events?: FeedOptions
  /** What seeds of second factors are sealed with. */
  keys: KeyRing
  mailer: Mailer
}

declare module 'fastify' {
  interface FastifyInstance {
    config: ApiConfig
    sql: Db
    keys: KeyRing
    mailer: Mailer
  }
}

const megabyte = 1_048_576

/** The API over these parts, which stay the caller's to close. */
export async function buildApp(parts: Parts): Promise<FastifyInstance> {
  const { config, sql, log, keys, mailer } = parts
  const app = Fastify({
    loggerInstance: fastifyLogger(log),
    logController: new LogController({
      disableRequestLogging: true, // one line a request, below
      requestIdLogLabel: 'requestId',
    }),
    trustProxy: trusted(config.TRUST_PROXY),
    genReqId,
    bodyLimit: megabyte,
    // A client that sends slowly, or nothing any more, gives its connection back.
    requestTimeout: 3_600_000, // of uploads; limitBodies() has the others
    connectionTimeout: 60_000,
    frameworkErrors: (error, request, reply) => void answer(error, request, reply),
    clientErrorHandler: (error, socket) => answerUnreadable(error, socket, randomUUID()),
  })

  limitBodies(app, 30_000)

  app.decorate('config', config)
  app.decorate('sql', sql)
  app.decorate('keys', keys)
  app.decorate('mailer', mailer)

  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id)
  })
  app.addHook('onResponse', async (request, reply) => {
    const route = request.routeOptions.url
    const level = route?.startsWith('/health') ? 'debug' : 'info'
    request.log[level](
      {
        method: request.method,
        route,
        status: reply.statusCode,
        ms: Math.round(reply.elapsedTime * 10) / 10,
        userId: (request.user as { id: string } | null)?.id,
        apiKeyId: (request.user as { apiKey: { id: string } | null } | null)?.apiKey?.id,
      },
      'request finished',
    )
  })

  // JSON only. An empty body counts as none: many clients name the type also when they send nothing.
  const parseJson = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body, done) => {
    if (body.length === 0) return done(null, undefined)
    // Decoded all the same it would say something that nobody has written.
    if (!isUtf8(body as Buffer)) return done(invalidJson)
    return parseJson(request, body.toString(), done)
  })

  await app.register(joi)
  await app.register(errors)
  await app.register(helmet, {
    contentSecurityPolicy: {
      useDefaults: false,
      directives: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
    },
  })
  if (config.CLIENT_ORIGIN.length > 0) {
    await app.register(cors, {
      origin: config.CLIENT_ORIGIN,
      credentials: true,
      methods: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'],
      exposedHeaders: [
        'X-Request-Id',
        'RateLimit-Limit',
        'RateLimit-Remaining',
        'RateLimit-Reset',
        'Retry-After',
        'Idempotency-Replayed',
      ],
      maxAge: 600,
    })
  }
  await app.register(cookies)
  await app.register(auth)
  await app.register(openapi, {
    components: {
      Error: errorBody,
      User: user,
      Session: session,
      Message: message,
      Chat: chat,
      Label: label,
      Note: note,
      Contact: contact,
      Template: template,
      Workspace: workspace,
      Media: mediaResource,
      Event: event,
      Webhook: webhook,
    },
  })
  await app.register(limits)
  await app.register(audit)
  await app.register(idempotency)

  await app.register(media, parts.media ?? {})
  await app.register(signIn)
  await app.register(eventFeed, parts.events ?? {})

  await app.register(metricsRoutes)
  await app.register(healthRoutes)
  await app.register(clientConfigRoutes)
  await app.register(authRoutes)
  await app.register(passwordsRoutes)
  await app.register(twoFactorRoutes)
  await app.register(usersRoutes)
  await app.register(invitationsRoutes)
  await app.register(apiKeysRoutes)
  await app.register(auditLogRoutes)
  await app.register(sessionsRoutes)
  await app.register(linkingRoutes)
  await app.register(workersRoutes)
  await app.register(pacingRoutes)
  await app.register(messagesRoutes)
  await app.register(sendRoutes)
  await app.register(batchesRoutes)
  await app.register(numbersRoutes)
  await app.register(mediaRoutes)
  await app.register(mediaFilesRoutes)
  await app.register(uploadsRoutes)
  await app.register(chatsRoutes)
  await app.register(notesRoutes)
  await app.register(labelsRoutes)
  await app.register(searchRoutes)
  await app.register(contactsRoutes)
  await app.register(templatesRoutes)
  await app.register(eventsRoutes)
  await app.register(webhooksRoutes)
  await app.register(workspaceRoutes)
  return app
}

/** So many proxies next to us, or those at these addresses, may say who the client is. */
const trusted = (proxies: number | string[]) =>
  typeof proxies === 'number' ? (_address: string, hop: number) => hop < proxies : proxies

/** The caller's id of the request when it is harmless in logs and headers, else one of ours. */
function genReqId({ headers }: Pick<IncomingMessage, 'headers'>): string {
  const given = headers['x-request-id']
  return typeof given === 'string' && /^[\w.-]{1,100}$/.test(given) ? given : randomUUID()
}
