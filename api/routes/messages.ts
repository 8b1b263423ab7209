import Joi from 'joi'
import type { Sql } from '../../shared/db.ts'
import { AppError, notFound } from '../../shared/errors.ts'
import { acceptText, findMessage, messageResource } from '../../shared/messages.ts'
import type { Message } from '../../shared/messages.ts'
import { parseRecipient } from '../../shared/wa-id.ts'
import { findSession, someSessions } from '../../shared/wa-sessions.ts'
import { errorBody } from '../plugins/errors.ts'
import { byId, uuid, visibleText } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'

export const messageType = Joi.string().valid(
  'text',
  'image',
  'video',
  'document',
  'audio',
  'voice',
  'sticker',
  'location',
  'contact',
  'poll',
  'system',
  'unknown',
)

export const messageStatus = Joi.string().valid(
  'queued',
  'sending',
  'sent',
  'delivered',
  'read',
  'played',
  'failed',
  'unknown',
  'cancelled',
  'received',
)

export const direction = Joi.string().valid('inbound', 'outbound')

const moment = () => Joi.date().allow(null).required()

export const message = Joi.object<Message>({
  id: Joi.string().guid().required(),
  sessionId: Joi.string().guid().required(),
  chatId: Joi.string().guid().required(),
  waChatId: Joi.string().required(),
  waMessageId: Joi.string().allow(null).required(),
  direction: direction.required(),
  source: Joi.string().valid('api', 'phone', 'live', 'history', 'backfill').required(),
  type: messageType.required(),
  body: Joi.string().allow(null, '').required(),
  media: Joi.valid(null).required(),
  status: messageStatus.required(),
  ack: Joi.number().integer().min(-1).max(4).allow(null).required(),
  error: Joi.object({ code: Joi.string().required(), message: Joi.string().allow('').required() })
    .allow(null)
    .required(),
  attempts: Joi.number().integer().required(),
  notBefore: moment().description('A retry waits until then'),
  heldBy: Joi.string().allow(null).required().description('Why a queued message is waiting'),
  sendAt: Joi.valid(null).required(),
  quotedMessageId: Joi.string().guid().allow(null).required(),
  author: Joi.object({
    waId: Joi.string().required(),
    name: Joi.string().allow(null).required(),
    contactId: Joi.string().guid().allow(null).required(),
  })
    .allow(null)
    .required(),
  sentBy: Joi.object({ id: Joi.string().guid().required(), fullName: Joi.string().required() })
    .allow(null)
    .required(),
  reactions: Joi.array().items(Joi.object()).required(),
  editedAt: moment(),
  revokedAt: moment(),
  createdAt: Joi.date().required(),
  sentAt: moment(),
  deliveredAt: moment(),
  readAt: moment(),
})

interface Send {
  sessionId?: string
  /** The WhatsApp address; callers may write a phone number. */
  to: string
  message: string
}

const send = Joi.object<Send, true>({
  sessionId: uuid().description('May be left out when the workspace has one session'),
  to: Joi.string()
    .max(64)
    .custom(recipient)
    .messages({ 'any.custom': '{#label} {#error.message}' })
    .required()
    .description('`+1 234 567-890`, digits, or an address: `…@c.us`, `…@g.us`, `…@lid`'),
  message: visibleText().max(65_536).required(),
})

function recipient(to: string): string {
  const waId = parseRecipient(to)
  if (waId === undefined) {
    throw new Error('must be a phone number with its country code, or a WhatsApp address')
  }
  return waId
}

const tags = ['messages']

/** Sending and reading messages. */
export const messages: Routes = async (app) => {
  const { sql, notifier } = app

  app.post(
    '/api/whatsapp/send',
    {
      config: { access: 'send', limit: 'messages' },
      schema: {
        summary: 'Send a message',
        description: 'Accepted once it is stored; a worker sends it in order. Follow `status`.',
        tags,
        body: send,
        response: { 202: message, 404: errorBody, 422: errorBody },
      },
    },
    async ({ id, user, body }, reply) => {
      const { workspaceId } = user
      const row = await acceptText(sql, {
        workspaceId,
        sessionId: await sessionToSend(sql, workspaceId, body.sessionId),
        waChatId: body.to,
        body: body.message,
        sentBy: user.id,
        requestId: id,
      })
      notifier.nudge('awfar_outbox')
      return reply.code(202).send(messageResource(row))
    },
  )

  app.get(
    '/api/messages/:id',
    {
      config: { access: 'read' },
      schema: { summary: 'Read a message', tags, params: byId, response: { 200: message } },
    },
    async ({ user, params }) => {
      const row = await findMessage(sql, user.workspaceId, params.id)
      if (!row) throw notFound('Message')
      return messageResource(row)
    },
  )
}

/** The session that sends: the one named, else the only one of the workspace. */
async function sessionToSend(sql: Sql, workspaceId: string, named?: string): Promise<string> {
  if (named !== undefined) {
    if (!(await findSession(sql, workspaceId, named))) throw notFound('Session')
    return named
  }
  const [only, another] = await someSessions(sql, workspaceId)
  if (!only) throw new AppError(422, 'NO_SESSION', 'There is no session to send with; create one.')
  if (another) {
    throw new AppError(
      422,
      'SESSION_REQUIRED',
      'There are several sessions: name one in "sessionId".',
    )
  }
  return only.id
}
