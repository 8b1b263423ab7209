import Joi from 'joi'
import { acceptBatch } from '../../shared/batches.ts'
import { notFound } from '../../shared/errors.ts'
import { foresee } from '../../shared/forecast.ts'
import type { Forecast } from '../../shared/forecast.ts'
import { accept } from '../../shared/outbound.ts'
import { findMessage } from '../../shared/messages.ts'
import { messagesAfter, notThere, refused } from '../../shared/refusals.ts'
import { sessionToSend } from '../../shared/wa-sessions.ts'
import { draftOf, draftsOf, send, sessionId } from '../drafts.ts'
import { message } from '../message-schema.ts'
import { actorOf } from '../plugins/audit.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { levels, rowOfMany } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'
import { rejected } from './batches.ts'

const bulk = Joi.object<{ sessionId?: string; messages: unknown[] }, true>({
  sessionId,
  messages: Joi.array()
    .items(rowOfMany)
    .min(1)
    .max(1_000)
    .required()
    .description('Each as in a single send, without `sessionId`'),
}).meta(levels(2))

const forecast = Joi.object<Forecast>({
  sessionId: Joi.string().guid().required(),
  chatId: Joi.string().guid().allow(null).required(),
  waChatId: Joi.string().required(),
  blockedBy: Joi.array()
    .items(Joi.string())
    .required()
    .description('Why it would not be sent at all'),
  heldBy: Joi.string().allow(null).required(),
  notBefore: Joi.date().allow(null).required(),
  ahead: Joi.number()
    .integer()
    .required()
    .description(
      'Messages of the session that would leave first; of those that open a conversation, no more than may be opened by then',
    ),
  estimatedSendAt: Joi.date().allow(null).required(),
})

const tags = ['messages']

/** Accepting messages for sending, one or many. */
export const sendRoutes: Routes = async (app) => {
  const { sql, config } = app

  app.post(
    '/api/whatsapp/send',
    {
      config: { access: 'send', limit: 'messages' },
      schema: {
        summary: 'Send a message',
        description:
          'Accepted once it is stored; a worker sends it in order. Follow `status`. With `dryRun` nothing is written. What is `null` counts as not there. An id that is of nothing in the workspace is 404, one that does not fit is 422.',
        tags,
        querystring: Joi.object<{ dryRun: boolean }, true>({
          dryRun: Joi.boolean().default(false),
        }),
        headers: idempotent,
        body: send,
        response: {
          200: forecast,
          202: message,
          403: errorBody,
          404: errorBody,
          409: errorBody,
          422: errorBody,
        },
      },
    },
    async (request, reply) => {
      const { id, user, body, query } = request
      const { workspaceId } = user
      if (query.dryRun) {
        const sessionId = await sessionToSend(sql, workspaceId, body.sessionId)
        const draft = await draftOf(sql, workspaceId, body, user)
        const foreseen = await foresee(sql, workspaceId, { sessionId, ...draft }, config)
        if (!foreseen) throw notFound('Session')
        return reply.code(200).send(foreseen)
      }
      await app.answerOnce(request, reply, async (tx) => {
        const sessionId = await sessionToSend(tx, workspaceId, body.sessionId)
        const [outcome] = await accept(tx, {
          workspaceId,
          sessionId,
          sentBy: user.id,
          requestId: id,
          by: actorOf(request),
          messages: [await draftOf(tx, workspaceId, body, user)],
        })
        if ('refusal' in outcome!) {
          const { refusal } = outcome
          const pointedAt = {
            QUOTED_NOT_FOUND: body.quotedMessageId,
            LAST_MESSAGE_NOT_FOUND: body.ifLastMessageId,
          }
          if (refusal === 'QUOTED_NOT_FOUND' || refusal === 'LAST_MESSAGE_NOT_FOUND')
            throw (await findMessage(tx, workspaceId, pointedAt[refusal]!))
              ? refused(refusal)
              : notThere(refusal)
          if (refusal !== 'CONVERSATION_MOVED') throw refused(refusal)
          const newerMessages = await messagesAfter(tx, workspaceId, body.ifLastMessageId!)
          throw refused(refusal, { newerMessages })
        }
        return { statusCode: 202, body: outcome!.message }
      })
      return reply
    },
  )

  app.post(
    '/api/whatsapp/send/bulk',
    {
      bodyLimit: 16 * 1_048_576,
      config: { access: 'send', limit: 'messages' },
      schema: {
        summary: 'Send many messages',
        description:
          'Each is checked by itself: those that are wrong are listed in `rejected`, the others are accepted together. What they say may have 4 MB in all, texts of templates filled in; else nothing is accepted, and the answer is 413 `BATCH_TOO_LARGE`.',
        tags,
        headers: idempotent,
        body: bulk,
        response: {
          202: Joi.object({
            batchId: Joi.string().guid().required(),
            accepted: Joi.number().integer().required(),
            rejected,
          }),
          404: errorBody,
          413: errorBody,
          422: errorBody,
        },
      },
    },
    async (request, reply) => {
      const { id, user, body } = request
      const { workspaceId } = user
      await app.answerOnce(request, reply, async (tx) => {
        const sessionId = await sessionToSend(tx, workspaceId, body.sessionId)
        const { indexes, messages, rejected } = await draftsOf(tx, workspaceId, body.messages, user)
        const by = actorOf(request)
        const submission = { workspaceId, sessionId, sentBy: user.id, requestId: id, by, messages }
        return { statusCode: 202, body: await acceptBatch(tx, submission, indexes, rejected) }
      })
      return reply
    },
  )
}
