import Joi from 'joi'
import { findChat } from '../../shared/chats.ts'
import { AppError, notFound } from '../../shared/errors.ts'
import { createNote, deleteNote, editNote, existingNote, listNotes } from '../../shared/notes.ts'
import type { Note } from '../../shared/notes.ts'
import { may } from '../plugins/auth.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId, nothing, pageOf, paging, uuid, visibleText } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'

export const note = Joi.object<Note, true>({
  id: Joi.string().guid().required(),
  chatId: Joi.string().guid().required(),
  author: Joi.object<NonNullable<Note['author']>, true>({
    id: Joi.string().guid().required(),
    fullName: Joi.string().required(),
  })
    .allow(null)
    .required()
    .description('null: they have left'),
  body: Joi.string().required(),
  createdAt: Joi.date().required(),
  editedAt: Joi.date().allow(null).required(),
})

const written = Joi.object<{ body: string }, true>({ body: visibleText().max(10_000).required() })
const ofChat = Joi.object<{ id: string; noteId: string }, true>({
  id: uuid().required(),
  noteId: uuid().required(),
})

const tags = ['notes']

/** What colleagues tell each other about a chat. Nothing of it is ever sent. */
export const notesRoutes: Routes = async (app) => {
  const { sql } = app

  app.post(
    '/api/chats/:id/notes',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Add a note to a chat; it is never sent',
        tags,
        params: byId,
        headers: idempotent,
        body: written,
        response: { 201: note },
      },
    },
    async (request, reply) => {
      const { user, params, body } = request
      await app.answerOnce(request, reply, async (sql) => ({
        statusCode: 201,
        body: await createNote(sql, user, params.id, body.body),
      }))
      return reply
    },
  )

  app.get(
    '/api/chats/:id/notes',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List the notes of a chat, newest first',
        tags,
        params: byId,
        querystring: Joi.object<Paging, true>(paging),
        response: { 200: pageOf(note) },
      },
    },
    async ({ user, params, query }) => {
      if (!(await findChat(sql, user.workspaceId, params.id))) throw notFound('Chat')
      return listNotes(sql, user.workspaceId, params.id, query)
    },
  )

  app.patch(
    '/api/chats/:id/notes/:noteId',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Change a note of one’s own',
        tags,
        params: ofChat,
        body: written,
        response: { 200: note },
      },
    },
    async ({ user, params, body }) => {
      const key = { workspaceId: user.workspaceId, chatId: params.id, id: params.noteId }
      const { author } = await existingNote(sql, key)
      if (author?.id !== user.id) throw notYours()
      return editNote(sql, key, body.body)
    },
  )

  app.delete(
    '/api/chats/:id/notes/:noteId',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Delete a note: one’s own, or as an owner or admin any',
        tags,
        params: ofChat,
        response: { 204: nothing },
      },
    },
    async ({ user, params }, reply) => {
      const key = { workspaceId: user.workspaceId, chatId: params.id, id: params.noteId }
      const { author } = await existingNote(sql, key)
      if (author?.id !== user.id && !may(user, 'manage')) throw notYours()
      await deleteNote(sql, key)
      return reply.code(204).send()
    },
  )
}

const notYours = () => new AppError(403, 'FORBIDDEN', 'The note is somebody else’s.')
