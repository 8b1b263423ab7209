import Joi from 'joi'
import {
  createApiKey,
  deleteApiKey,
  isAddressOrSubnet,
  listApiKeys,
} from '../../shared/api-keys.ts'
import type { ApiKey, Scope } from '../../shared/api-keys.ts'
import type { Sql } from '../../shared/db.ts'
import { notFound } from '../../shared/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId, nothing, pageOf, paging, visibleText } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'

const scopes = Joi.array()
  .items(Joi.string().valid('read', 'send', 'manage'))
  .min(1)
  .unique()
  .required()

const fields = {
  id: Joi.string().guid().required(),
  name: Joi.string().required(),
  scopes,
  prefix: Joi.string().required().description('How the key begins'),
  allowedIps: Joi.array().items(Joi.string()).required(),
  createdBy: Joi.string().guid().required().description('Whom it acts for'),
  expiresAt: Joi.date().allow(null).required(),
  lastUsedAt: Joi.date().allow(null).required().description('To the minute'),
  createdAt: Joi.date().required(),
}
const apiKey = Joi.object<ApiKey, true>(fields)

interface NewKey {
  name: string
  scopes: Scope[]
  expiresAt?: string
  allowedIps?: string[]
}

const newKey = Joi.object<NewKey, true>({
  name: visibleText().max(120).required(),
  scopes,
  expiresAt: Joi.string()
    .isoDate()
    .custom((text: string) => {
      if (Date.parse(text) > Date.now()) return text
      throw new Error('must be a time to come')
    })
    .description('Never when absent'),
  allowedIps: Joi.array()
    .max(50)
    .items(
      Joi.string()
        .max(64)
        .custom((text: string) => {
          if (isAddressOrSubnet(text)) return text
          throw new Error('must be an IP address, or a subnet such as 10.0.0.0/8')
        }),
    )
    .description('Where it may be used from; anywhere when absent'),
})

const tags = ['API keys']

/** Keys for machines. */
export const apiKeysRoutes: Routes = async (app) => {
  const { sql } = app

  app.post(
    '/api/api-keys',
    {
      config: { access: 'admin' },
      schema: {
        summary: 'Make an API key',
        description:
          'It acts for you within its scopes, is sent as `X-Api-Key`, and ends when you leave. `key` is shown this once.',
        tags,
        headers: idempotent,
        body: newKey,
        response: {
          201: Joi.object<ApiKey & { key: string }, true>({ ...fields, key: Joi.string() }),
        },
      },
    },
    async (request, reply) => {
      const { user, body } = request
      const make = async (tx: Sql) => {
        const made = await createApiKey(tx, user, body)
        const { id: targetId, name, scopes, expiresAt, allowedIps } = made
        const after = { name, scopes, expiresAt, allowedIps }
        const target = { targetType: 'api_key', targetId, after }
        await app.audit(request, { action: 'api_key.created', ...target }, { tx })
        return { statusCode: 201, body: made }
      }
      await app.answerOnce(request, reply, (sql) => sql.begin(make), { secret: true })
      return reply
    },
  )

  app.get(
    '/api/api-keys',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'List the API keys, newest first',
        tags,
        querystring: Joi.object<Paging, true>(paging),
        response: { 200: pageOf(apiKey) },
      },
    },
    async ({ user, query }) => listApiKeys(sql, user.workspaceId, query),
  )

  app.delete(
    '/api/api-keys/:id',
    {
      config: { access: 'admin' },
      schema: { summary: 'End an API key at once', tags, params: byId, response: { 204: nothing } },
    },
    async (request, reply) => {
      const { user, params } = request
      await sql.begin(async (tx) => {
        const gone = await deleteApiKey(tx, user.workspaceId, params.id)
        if (!gone) throw notFound('API key')
        const before = { name: gone.name, scopes: gone.scopes }
        const target = { targetType: 'api_key', targetId: params.id, before }
        await app.audit(request, { action: 'api_key.deleted', ...target }, { tx })
      })
      return reply.code(204).send()
    },
  )
}
