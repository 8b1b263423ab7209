import Joi from 'joi'
import type { Sql } from '../../shared/db.ts'
import { AppError, notFound } from '../../shared/errors.ts'
import { longestText } from '../../shared/message-content.ts'
import { findMessage, messageResource } from '../../shared/messages.ts'
import type { Message, MessageRow } from '../../shared/messages.ts'
import { cancel, editQueued, retry } from '../../shared/waiting-messages.ts'
import { askAction } from '../../shared/wa-actions.ts'
import type { ActionWish } from '../../shared/wa-actions.ts'
import { message } from '../message-schema.ts'
import { may } from '../plugins/auth.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId, visibleText } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'

const tags = ['messages']

const oneEmoji = new RegExp(String.raw`^\p{RGI_Emoji}$`, 'v')

/** One emoji, or nothing to take a reaction back. Many programs leave out U+FE0F, which asks for the picture of what is a letter as well; WhatsApp's own write it. */
const emoji = Joi.string()
  .allow('')
  .max(64)
  .custom((value: string) => {
    const qualified = value
      .replaceAll('\ufe0f', '')
      .replace(/(?!\p{Emoji_Presentation})\p{Emoji}(?!\p{Emoji_Modifier})/gu, '$&\ufe0f')
    if (!oneEmoji.test(qualified)) throw new Error('must be one emoji, or empty')
    return qualified
  })
  .description('One emoji, or empty')

/** Reading messages, and what can be done to one. */
export const messagesRoutes: Routes = async (app) => {
  const { sql } = app

  async function existing(workspaceId: string, id: string, on = sql as Sql): Promise<MessageRow> {
    const row = await findMessage(on, workspaceId, id)
    if (!row) throw notFound('Message')
    return row
  }

  /** Has the worker change a message on WhatsApp. Answers the message as it is then. */
  async function change(on: Sql, row: MessageRow, wish: ActionWish): Promise<Message> {
    await askAction(on, row, wish)
    return messageResource(await existing(row.workspaceId, row.id, on))
  }

  app.get(
    '/api/messages/:id',
    {
      config: { access: 'read' },
      schema: { summary: 'Read a message', tags, params: byId, response: { 200: message } },
    },
    async ({ user, params }) => messageResource(await existing(user.workspaceId, params.id)),
  )

  app.patch(
    '/api/messages/:id',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Edit a message',
        description:
          'In place while it is queued (200), on WhatsApp once it was sent (202), or when it is queued again and may be out; then not to a recipient who has opted out.',
        tags,
        params: byId,
        body: Joi.object<{ message: string }, true>({
          message: visibleText().max(longestText).required(),
        }),
        response: { 200: message, 202: message, 403: errorBody, 409: errorBody },
      },
    },
    async ({ user, params, body }, reply) => {
      const row = await existing(user.workspaceId, params.id)
      if (row.direction !== 'outbound' || !hasText(row)) {
        throw new AppError(409, 'NOT_EDITABLE', 'Only texts and captions of our own can be edited.')
      }
      // The reason was given for that text.
      if (row.optOutOverride !== null && !may(user, 'manage'))
        throw new AppError(
          403,
          'FORBIDDEN',
          'Only owners and admins may edit what is sent in spite of an opt-out.',
        )
      return sql.begin(async (tx) => {
        const edited = await editQueued(tx, user.workspaceId, row.id, body.message)
        if (edited) return messageResource(edited)
        const now = await existing(user.workspaceId, row.id, tx)
        if (now.revokedAt || ['failed', 'unknown', 'cancelled'].includes(now.status)) {
          throw new AppError(409, 'NOT_EDITABLE', 'The message is not on WhatsApp.')
        }
        reply.code(202)
        return change(tx, now, {
          kind: 'edit',
          messageId: now.id,
          payload: { body: body.message },
        })
      })
    },
  )

  app.delete(
    '/api/messages/:id',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Cancel a queued message, or delete a sent one for everyone',
        description:
          'What may be out when it is cancelled has the error `OUTCOME_UNKNOWN`, and can be deleted for everyone.',
        tags,
        params: byId,
        querystring: Joi.object<{ forEveryone: boolean }, true>({
          forEveryone: Joi.boolean().default(false),
        }),
        response: { 200: message, 202: message, 409: errorBody },
      },
    },
    async ({ user, params, query }, reply) => {
      const row = await existing(user.workspaceId, params.id)
      if (row.direction !== 'outbound') {
        throw new AppError(409, 'NOT_REVOCABLE', 'Only messages of our own can be deleted.')
      }
      // In one transaction, so that a try that fails finds the deletion, or the deletion a message that waits again.
      return sql.begin(async (tx) => {
        const now = await cancel(tx, user.workspaceId, row.id)
        if (!now) throw notFound('Message')
        const mayBeOut = now.errorCode === 'OUTCOME_UNKNOWN'
        if (now.status === 'cancelled' && !(query.forEveryone && mayBeOut))
          return messageResource(now)
        if (now.status === 'failed') throw notOnWhatsApp()
        if (!query.forEveryone) {
          const sentence = `The message is ${now.status}: it cannot be cancelled any more.`
          throw new AppError(409, 'ALREADY_SENT', sentence)
        }
        reply.code(202)
        if (now.revokedAt || isBeingDeleted(now)) return messageResource(now)
        return change(tx, now, { kind: 'revoke', messageId: now.id, payload: {} })
      })
    },
  )

  app.post(
    '/api/messages/:id/reaction',
    {
      config: { access: 'send', limit: 'messages' },
      schema: {
        summary: 'React to a message; an empty emoji takes the reaction back',
        tags,
        params: byId,
        headers: idempotent,
        body: Joi.object<{ emoji: string }, true>({ emoji: emoji.required() }),
        response: { 202: message, 403: errorBody, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { user, params, body } = request
      await app.answerOnce(request, reply, async (tx) => {
        const row = await existing(user.workspaceId, params.id, tx)
        if (row.revokedAt || ['failed', 'cancelled'].includes(row.status)) throw notOnWhatsApp()
        const wish = { kind: 'react', messageId: row.id, payload: { emoji: body.emoji } } as const
        return { statusCode: 202, body: await change(tx, row, wish) }
      })
      return reply
    },
  )

  app.post(
    '/api/messages/:id/retry',
    {
      config: { access: 'send', limit: 'messages' },
      schema: {
        summary: 'Send a message again that failed, was cancelled or is unknown',
        description:
          'For its `sendAt` where that is still ahead, else at once. Under the same id: what did go out is found and not sent twice. Only after a refusal by WhatsApp it travels under a new one. What was deleted for everyone, or has lost its file (`MEDIA_GONE`), is not sent again.',
        tags,
        params: byId,
        headers: idempotent,
        response: { 202: message, 403: errorBody, 409: errorBody },
      },
    },
    async (request, reply) => {
      await app.answerOnce(request, reply, async (tx) => {
        const row = await retry(tx, request.user.workspaceId, request.params.id)
        if (!row) throw notFound('Message')
        return { statusCode: 202, body: messageResource(row) }
      })
      return reply
    },
  )
}

const hasText = ({ type }: MessageRow) => ['text', 'image', 'video', 'document'].includes(type)

const isBeingDeleted = ({ actions }: MessageRow) =>
  actions?.some(({ kind, status }) => kind === 'deletion' && status === 'pending') ?? false

const notOnWhatsApp = () => new AppError(409, 'NOT_ON_WHATSAPP', 'The message is not on WhatsApp.')
