import Joi from 'joi'
import { createLabel, deleteLabel, listLabels, updateLabel } from '../../shared/labels.ts'
import type { Label } from '../../shared/labels.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId, nothing, pageOf, paging, visibleText } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'

export const label = Joi.object<Label, true>({
  id: Joi.string().guid().required(),
  name: Joi.string().required(),
  color: Joi.string().required().description('`#rrggbb`'),
})

const name = visibleText().max(60).description('Unique in the workspace, however capitalised')
const color = Joi.string()
  .pattern(/^#[0-9a-f]{6}$/, 'a colour written as #rrggbb, in small letters')
  .description('`#rrggbb`')

type NewLabel = Omit<Label, 'id'>

const newLabel = Joi.object<NewLabel, true>({
  name: name.required(),
  color: color.default('#64748b'),
})
const changes = Joi.object<Partial<NewLabel>, true>({ name, color }).min(1)

const tags = ['labels']

/** What the chats of a workspace can be sorted by. */
export const labelsRoutes: Routes = async (app) => {
  const { sql } = app

  app.post(
    '/api/labels',
    {
      config: { access: 'manage', audit: 'label.created' },
      schema: {
        summary: 'Create a label',
        tags,
        headers: idempotent,
        body: newLabel,
        response: { 201: label, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { workspaceId } = request.user
      await app.answerOnce(request, reply, async (sql) => ({
        statusCode: 201,
        body: await createLabel(sql, { workspaceId, ...request.body }),
      }))
      return reply
    },
  )

  app.get(
    '/api/labels',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List the labels, newest first',
        tags,
        querystring: Joi.object<Paging, true>(paging),
        response: { 200: pageOf(label) },
      },
    },
    async ({ user, query }) => listLabels(sql, user.workspaceId, query),
  )

  app.patch(
    '/api/labels/:id',
    {
      config: { access: 'manage', audit: 'label.updated' },
      schema: {
        summary: 'Change a label, on all chats that have it',
        tags,
        params: byId,
        body: changes,
        response: { 200: label, 409: errorBody },
      },
    },
    async ({ user, params, body }) => updateLabel(sql, user.workspaceId, params.id, body),
  )

  app.delete(
    '/api/labels/:id',
    {
      config: { access: 'manage', audit: 'label.deleted' },
      schema: {
        summary: 'Delete a label, and take it off all chats',
        tags,
        params: byId,
        response: { 204: nothing },
      },
    },
    async ({ user, params }, reply) => {
      await deleteLabel(sql, user.workspaceId, params.id)
      return reply.code(204).send()
    },
  )
}
