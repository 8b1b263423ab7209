import Joi from 'joi'
import { findChat, listChats } from '../../shared/chats.ts'
import type { Chat } from '../../shared/chats.ts'
import { notFound } from '../../shared/errors.ts'
import { listMessages } from '../../shared/messages.ts'
import { askAction } from '../../shared/wa-actions.ts'
import type { ActionWish } from '../../shared/wa-actions.ts'
import { byId, nothing, pageOf, paging, uuid } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'
import { direction, message, messageStatus, messageType } from './messages.ts'

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
  assignee: Joi.valid(null).required(),
  labels: Joi.array().items(Joi.object()).required(),
})

interface Filter extends Paging {
  sessionId?: string
  unread?: boolean
  archived?: boolean
}

const filter = Joi.object<Filter, true>({
  ...paging,
  sessionId: uuid(),
  unread: Joi.boolean(),
  archived: Joi.boolean(),
})

const history = Joi.object<Paging & { offset?: number }, true>({
  ...paging,
  offset: Joi.number().integer().min(0).description('Instead of `cursor`; slower the deeper it is'),
})
  .oxor('cursor', 'offset')
  .messages({ 'object.oxor': '{#label} may carry "cursor" or "offset", not both' })

const tags = ['chats']

/** Conversations and what was said in them. */
export const chats: Routes = async (app) => {
  const { sql, notifier } = app

  app.get(
    '/api/chats',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List the chats, the one with the latest message first',
        tags,
        querystring: filter,
        response: { 200: pageOf(chat) },
      },
    },
    async ({ user, query }) => listChats(sql, user.workspaceId, query),
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

  async function ask(workspaceId: string, id: string, wish: ActionWish): Promise<null> {
    const found = await findChat(sql, workspaceId, id)
    if (!found) throw notFound('Chat')
    await askAction(sql, { workspaceId, sessionId: found.sessionId, chatId: id }, wish)
    notifier.nudge('awfar_outbox')
    return null
  }

  app.post(
    '/api/chats/:id/seen',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Mark a chat as read, here and on WhatsApp',
        tags,
        params: byId,
        response: { 202: nothing },
      },
    },
    async ({ user, params }, reply) =>
      reply.code(202).send(await ask(user.workspaceId, params.id, { kind: 'seen', payload: {} })),
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
        body: Joi.object<{ on: boolean }, true>({ on: Joi.boolean().default(true) }).optional(),
        response: { 202: nothing },
      },
    },
    async ({ user, params, body }, reply) =>
      reply.code(202).send(
        await ask(user.workspaceId, params.id, {
          kind: 'typing',
          payload: { on: body?.on ?? true },
        }),
      ),
  )
}
