import Joi from 'joi'
import { notFound } from '../../shared/errors.ts'
import {
  createTemplate,
  deleteTemplate,
  existingTemplate,
  listTemplates,
  parseTemplate,
  previewTemplate,
  templateResource,
  updateTemplate,
} from '../../shared/templates.ts'
import type { Template, Values, Variable } from '../../shared/templates.ts'
import { templateValues } from '../drafts.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId, nothing, pageOf, paging, visibleText } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'

export const template = Joi.object<Template, true>({
  id: Joi.string().guid().required(),
  name: Joi.string().required(),
  body: Joi.string().required(),
  variables: Joi.array()
    .items(
      Joi.object<Variable, true>({
        name: Joi.string().required(),
        fallback: Joi.string().allow(null, '').required().description('null: a value is needed'),
      }),
    )
    .required(),
  createdAt: Joi.date().required(),
  updatedAt: Joi.date().required(),
})

const name = visibleText().max(120).description('Unique in the workspace, however capitalised')
const body = visibleText()
  .max(4096)
  .custom((text: string) => {
    parseTemplate(text, true)
    return text
  })
  .description(
    'With variables: `{{name}}`, or `{{name|there}}` with a fallback, in which there is no `{`',
  )

interface NewTemplate {
  name: string
  body: string
}

const newTemplate = Joi.object<NewTemplate, true>({ name: name.required(), body: body.required() })
const changes = Joi.object<Partial<NewTemplate>, true>({ name, body }).min(1)

const preview = Joi.object<{ body: string; missing: string[] }, true>({
  body: Joi.string().required().description('What is missing stays as it is written'),
  missing: Joi.array().items(Joi.string()).required().description('Variables without a value'),
})

const tags = ['templates']

/** Texts with variables, to be sent again and again. */
export const templatesRoutes: Routes = async (app) => {
  const { sql } = app

  app.post(
    '/api/templates',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Create a template',
        tags,
        headers: idempotent,
        body: newTemplate,
        response: { 201: template, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { workspaceId } = request.user
      await app.answerOnce(request, reply, async (sql) => {
        const row = await createTemplate(sql, { workspaceId, ...request.body })
        return { statusCode: 201, body: templateResource(row) }
      })
      return reply
    },
  )

  app.get(
    '/api/templates',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List the templates, newest first',
        tags,
        querystring: Joi.object<Paging, true>(paging),
        response: { 200: pageOf(template) },
      },
    },
    async ({ user, query }) => listTemplates(sql, user.workspaceId, query),
  )

  app.get(
    '/api/templates/:id',
    {
      config: { access: 'read' },
      schema: { summary: 'Read a template', tags, params: byId, response: { 200: template } },
    },
    async ({ user, params }) =>
      templateResource(await existingTemplate(sql, user.workspaceId, params.id)),
  )

  app.patch(
    '/api/templates/:id',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Change a template',
        tags,
        params: byId,
        body: changes,
        response: { 200: template, 409: errorBody },
      },
    },
    async ({ user, params, body }) => {
      const row = await updateTemplate(sql, user.workspaceId, params.id, body)
      if (!row) throw notFound('Template')
      return templateResource(row)
    },
  )

  app.delete(
    '/api/templates/:id',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Delete a template',
        tags,
        params: byId,
        response: { 204: nothing },
      },
    },
    async ({ user, params }, reply) => {
      if (!(await deleteTemplate(sql, user.workspaceId, params.id))) throw notFound('Template')
      return reply.code(204).send()
    },
  )

  app.post(
    '/api/templates/:id/preview',
    {
      config: { access: 'read' },
      schema: {
        summary: 'See what a template says with these values',
        tags,
        params: byId,
        body: Joi.object<{ variables: Values }, true>({ variables: templateValues.default({}) }),
        response: { 200: preview, 422: errorBody },
      },
    },
    async ({ user, params, body }) => {
      const row = await existingTemplate(sql, user.workspaceId, params.id)
      return previewTemplate(row, body.variables)
    },
  )
}
