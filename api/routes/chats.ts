import Joi from 'joi'
import { findChat, listChats, markRead, setLabels, updateChat } from '../../shared/chats.ts'
import type { Chat } from '../../shared/chats.ts'
import type { Sql } from '../../shared/db.ts'
import { AppError, notFound } from '../../shared/errors.ts'
import { listMessages } from '../../shared/messages.ts'
import { askAction } from '../../shared/wa-actions.ts'
import type { ActionWish } from '../../shared/wa-actions.ts'
import { direction, message, messageStatus, messageType } from '../message-schema.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId, nothing, pageOf, paging, uuid, visibleText } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'
import { label } from './labels.ts'

export const chat = Joi.object<Chat>({
  id: Joi.string().guid().required(),
  sessionId: Joi.string().guid().required(),
  waChatId: Joi.string().required(),
  name: Joi.string().allow(null).required(),
  isGroup: Joi.boolean().required(),
  contactId: Joi.string().guid().allow(null).required(),
  unreadCount: Joi.number().integer().min(0).required(),
  lastMessage: Joi.object({
    id: Joi.string().guid().required(),
    type: messageType.required(),
    body: Joi.string().allow(null, '').required(),
    direction: direction.required(),
    status: messageStatus.required(),
    createdAt: Joi.date().required(),
  })
    .allow(null)
    .required(),
  lastMessageAt: Joi.date().required(),
  archived: Joi.boolean().required(),
  assignee: Joi.object<NonNullable<Chat['assignee']>, true>({
    id: Joi.string().guid().required(),
    fullName: Joi.string().required(),
  })
    .allow(null)
    .required()
    .description('Who sees to it'),
  labels: Joi.array().items(label).required(),
})

interface Filter extends Paging {
  sessionId?: string
  search?: string
  unread?: boolean
  archived?: boolean
  assignee?: string
  label?: string
}

const filter = Joi.object<Filter, true>({
  ...paging,
  sessionId: uuid(),
  search: visibleText().max(100).description('Part of a name, or of a number'),
  unread: Joi.boolean(),
  archived: Joi.boolean(),
  assignee: uuid().allow('me', 'none').description('Of a person, `me`, or `none`: of nobody'),
  label: uuid(),
})

/** Beyond it the database would read more than it answers. */
const deepestOffset = 10_000

const history = Joi.object<Paging & { offset?: number }, true>({
  ...paging,
  offset: Joi.number()
    .integer()
    .min(0)
    .max(deepestOffset)
    .messages({
      'number.max':
        '{#label} must be at most {#limit}: go deeper with "cursor", the nextCursor of a page',
    })
    .description('Instead of `cursor`; slower the deeper it is'),
})
  .oxor('cursor', 'offset')
  .messages({ 'object.oxor': '{#label} may carry "cursor" or "offset", not both' })

interface Changes {
  archived?: boolean
  assigneeId?: string | null
}

const changes = Joi.object<Changes, true>({
  archived: Joi.boolean().description('Here only; the next message takes it back'),
  assigneeId: uuid().allow(null).description('Who sees to it; null: nobody'),
}).min(1)

const labelling = Joi.object<{ labelIds: string[] }, true>({
  labelIds: Joi.array().items(uuid()).max(20).unique().required(),
})

const tags = ['chats']

/** Conversations and what was said in them. */
export const chatsRoutes: Routes = async (app) => {
  const { sql } = app

  app.get(
    '/api/chats',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List the chats, the one with the latest message first',
        description:
          'A chat that gets a message while pages are read moves to the top and may be met twice, or not at all on later pages; no other chat is. Begin anew, or follow `/api/events`, to see it.',
        tags,
        querystring: filter,
        response: { 200: pageOf(chat) },
      },
    },
    async ({ user, query: { assignee, label, ...query } }) =>
      listChats(sql, user.workspaceId, {
        ...query,
        assigneeId: assignee === 'me' ? user.id : assignee === 'none' ? null : assignee,
        labelId: label,
      }),
  )

  app.get(
    '/api/chats/:id',
    {
      config: { access: 'read' },
      schema: { summary: 'Read a chat', tags, params: byId, response: { 200: chat } },
    },
    async ({ user, params }) => {
      const found = await findChat(sql, user.workspaceId, params.id)
      if (!found) throw notFound('Chat')
      return found
    },
  )

  app.patch(
    '/api/chats/:id',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Archive a chat, or assign it to somebody',
        tags,
        params: byId,
        body: changes,
        response: { 200: chat },
      },
    },
    async ({ user, params, body }) => updateChat(sql, user.workspaceId, params.id, body),
  )

  app.put(
    '/api/chats/:id/labels',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Put labels on a chat: these, and no other',
        tags,
        params: byId,
        body: labelling,
        response: { 200: chat },
      },
    },
    async ({ user, params, body }) => setLabels(sql, user.workspaceId, params.id, body.labelIds),
  )

  app.get(
    '/api/chats/:id/messages',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List the messages of a chat, newest first',
        tags,
        params: byId,
        querystring: history,
        response: { 200: pageOf(message) },
      },
    },
    async ({ user, params, query }) => {
      const found = await findChat(sql, user.workspaceId, params.id)
      if (!found) throw notFound('Chat')
      return listMessages(sql, user.workspaceId, found.id, query)
    },
  )

  /** Has the worker do something in a chat. */
  async function ask(on: Sql, workspaceId: string, id: string, wish: ActionWish): Promise<void> {
    const found = await findChat(on, workspaceId, id)
    if (!found) throw notFound('Chat')
    await askAction(on, { workspaceId, sessionId: found.sessionId, chatId: id }, wish)
  }

  app.post(
    '/api/chats/:id/seen',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Mark a chat as read, here and on WhatsApp',
        tags,
        params: byId,
        headers: idempotent,
        response: { 202: nothing },
      },
    },
    async (request, reply) => {
      const { user, params } = request
      await app.answerOnce(request, reply, (on) =>
        on.begin(async (tx) => {
          await ask(tx, user.workspaceId, params.id, { kind: 'seen', payload: {} }).catch(
            (error: unknown) => {
              // Here it is read all the same.
              if (!(error instanceof AppError) || error.code !== 'SESSION_GONE') throw error
            },
          )
          await markRead(tx, user.workspaceId, params.id)
          return { statusCode: 202, body: null }
        }),
      )
      return reply
    },
  )

  app.post(
    '/api/chats/:id/typing',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Show "typing…" in a chat, or no longer',
        description:
          'WhatsApp takes it off by itself after 25 s. It is of no use later: what cannot be shown within 30 s is dropped.',
        tags,
        params: byId,
        headers: idempotent,
        body: Joi.object<{ on: boolean }, true>({ on: Joi.boolean().default(true) }).optional(),
        response: { 202: nothing, 403: errorBody },
      },
    },
    async (request, reply) => {
      const { user, params, body } = request
      const payload = { on: body?.on ?? true }
      await app.answerOnce(request, reply, async (on) => {
        await ask(on, user.workspaceId, params.id, { kind: 'typing', payload })
        return { statusCode: 202, body: null }
      })
      return reply
    },
  )
}
