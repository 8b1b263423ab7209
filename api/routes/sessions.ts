import Joi from 'joi'
import { listGaps } from '../../shared/backfill.ts'
import type { Gap } from '../../shared/backfill.ts'
import { findImport } from '../../shared/history-imports.ts'
import type { HistoryImport } from '../../shared/history-imports.ts'
import { notFound } from '../../shared/errors.ts'
import {
  createSession,
  deleteSession,
  existingSession,
  listSessions,
  request as ask,
  sessionHistory,
  sessionResource,
  wantRunning,
  wantStopped,
} from '../../shared/wa-sessions.ts'
import type { HistoryEntry, Session } from '../../shared/wa-sessions.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId, nothing, pageOf, paging, visibleText } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'

const status = Joi.string().valid(
  'STOPPED',
  'STARTING',
  'SCAN_QR_CODE',
  'WORKING',
  'RECONNECTING',
  'LOGGED_OUT',
  'PASSKEY_REQUIRED',
  'EXPIRED',
  'FAILED',
)

export const session = Joi.object<Session, true>({
  id: Joi.string().guid().required(),
  name: Joi.string().required(),
  status: status.required(),
  reason: Joi.string().allow(null).required().description('Why it is in this state: a stable code'),
  since: Joi.date().required().description('When it came into this state'),
  desiredState: Joi.string().valid('running', 'stopped').required(),
  active: Joi.boolean().required().description('WORKING or RECONNECTING'),
  phone: Joi.string().allow(null).required(),
  pushName: Joi.string().allow(null).required(),
  engine: Joi.string().valid('webjs', 'simulator').required(),
  connectedAt: Joi.date().allow(null).required(),
  expiresAt: Joi.date().allow(null).required(),
  lastSeenAt: Joi.date().allow(null).required(),
  createdAt: Joi.date().required(),
})

const historyEntry = Joi.object<HistoryEntry, true>({
  from: status.required(),
  to: status.required(),
  reason: Joi.string().allow(null).required(),
  detail: Joi.string().allow(null).required(),
  worker: Joi.string().allow(null).required(),
  at: Joi.date().required(),
})

const gap = Joi.object<Gap, true>({
  chatId: Joi.string()
    .guid()
    .allow(null)
    .required()
    .description('Null for all the chats that were too many to be read'),
  waChatId: Joi.string().allow(null).required(),
  from: Joi.date().required(),
  to: Joi.date().required(),
  complete: Joi.boolean().required().description('No message of that time is missing'),
  at: Joi.date().required().description('When that was found out'),
})

const historyImport = Joi.object<HistoryImport, true>({
  status: Joi.string().valid('none', 'running', 'done').required(),
  from: Joi.date().allow(null).required(),
  to: Joi.date().allow(null).required().description('When the number was linked'),
  done: Joi.number().integer().required().description('Chats that have been read'),
  total: Joi.number().integer().required().description('Chats that are to be read'),
  messages: Joi.number().integer().required(),
  incomplete: Joi.number()
    .integer()
    .required()
    .description('Chats of which not everything of that time could be read'),
  startedAt: Joi.date().allow(null).required(),
  finishedAt: Joi.date().allow(null).required(),
})

interface NewSession {
  name: string
  start: boolean
  importHistoryDays?: number
}

const newSession = Joi.object<NewSession, true>({
  name: visibleText().max(64).required().description('Unique in the workspace'),
  start: Joi.boolean().default(true),
  importHistoryDays: Joi.number()
    .integer()
    .min(0)
    .max(365)
    .description('History to be read when a number is first linked; WA_HISTORY_DAYS when left out'),
})

const tags = ['sessions']
const list = Joi.object<Paging, true>(paging)

/** WhatsApp sessions: the API writes what is wanted of them, a worker makes it so. */
export const sessionsRoutes: Routes = async (app) => {
  const { sql, config } = app

  app.post(
    '/api/whatsapp/sessions',
    {
      config: { access: 'operate', audit: 'session.created' },
      schema: {
        summary: 'Create a session',
        tags,
        headers: idempotent,
        body: newSession,
        response: { 201: session, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { workspaceId } = request.user
      await app.answerOnce(request, reply, async (sql) => {
        const row = await createSession(sql, {
          workspaceId,
          engine: config.WA_ENGINE,
          expiryDays: config.SESSION_EXPIRY_DAYS,
          ...request.body,
        })
        return { statusCode: 201, body: sessionResource(row) }
      })
      sql.nudge('awfar_sessions')
      return reply
    },
  )

  app.get(
    '/api/whatsapp/sessions',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List the sessions, newest first',
        tags,
        querystring: list,
        response: { 200: pageOf(session) },
      },
    },
    async ({ user, query }) => listSessions(sql, user.workspaceId, query),
  )

  app.get(
    '/api/whatsapp/sessions/:id',
    {
      config: { access: 'read' },
      schema: { summary: 'Read a session', tags, params: byId, response: { 200: session } },
    },
    async ({ user, params }) =>
      sessionResource(await existingSession(sql, user.workspaceId, params.id)),
  )

  const commands = [
    ['/api/whatsapp/sessions/:id/start', 'Start a session', wantRunning],
    ['/api/whatsapp/sessions/:id/stop', 'Stop a session and keep its login', wantStopped],
    ['/api/whatsapp/sessions/:id/restart', 'Start a session afresh', asks('restart')],
    ['/api/whatsapp/sessions/:id/logout', 'Unlink the device of a session', asks('logout')],
  ] as const
  for (const [url, summary, write] of commands) {
    app.post(
      url,
      {
        config: { access: 'operate', audit: `session.${url.split('/').at(-1)!}_asked` },
        schema: {
          summary,
          description: 'Accepted at once, done by a worker. Calling it twice changes nothing more.',
          tags,
          params: byId,
          headers: idempotent,
          response: { 202: session },
        },
      },
      async (request, reply) => {
        const { user, params } = request
        await app.answerOnce(request, reply, async (sql) => {
          const row = await write(sql, user.workspaceId, params.id, config.SESSION_EXPIRY_DAYS)
          if (!row) throw notFound('Session')
          return { statusCode: 202, body: sessionResource(row) }
        })
        sql.nudge('awfar_sessions')
        return reply
      },
    )
  }

  app.delete(
    '/api/whatsapp/sessions/:id',
    {
      config: { access: 'manage', audit: 'session.deleted' },
      schema: {
        summary: 'Delete a session; its chats stay readable',
        tags,
        params: byId,
        response: { 204: nothing },
      },
    },
    async ({ user, params }, reply) => {
      if (!(await deleteSession(sql, user.workspaceId, params.id))) throw notFound('Session')
      sql.nudge('awfar_sessions')
      return reply.code(204).send()
    },
  )

  app.get(
    '/api/whatsapp/sessions/:id/history',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List the changes of its state, newest first',
        tags,
        params: byId,
        querystring: list,
        response: { 200: pageOf(historyEntry) },
      },
    },
    async ({ user, params, query }) => {
      const { id } = await existingSession(sql, user.workspaceId, params.id)
      return sessionHistory(sql, user.workspaceId, id, query)
    },
  )

  app.get(
    '/api/whatsapp/sessions/:id/history-import',
    {
      config: { access: 'read' },
      schema: {
        summary: 'Read how far the import of its history is',
        description:
          'What was said before the number was linked, read once where that is wished. Nothing is told of it, and nothing counts as unread.',
        tags,
        params: byId,
        response: { 200: historyImport },
      },
    },
    async ({ user, params }) => {
      const { id } = await existingSession(sql, user.workspaceId, params.id)
      return findImport(sql, user.workspaceId, id)
    },
  )

  app.get(
    '/api/whatsapp/sessions/:id/gaps',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List what was read again after times nobody listened, newest first',
        description:
          'One entry a chat that had news in such a time. Where `complete` is false, older messages of that time may be missing.',
        tags,
        params: byId,
        querystring: list,
        response: { 200: pageOf(gap) },
      },
    },
    async ({ user, params, query }) => {
      const { id } = await existingSession(sql, user.workspaceId, params.id)
      return listGaps(sql, user.workspaceId, id, query)
    },
  )
}

const asks =
  (kind: 'restart' | 'logout'): typeof wantRunning =>
  (sql, workspaceId, id, expiryDays) =>
    ask(sql, workspaceId, id, kind, expiryDays)
