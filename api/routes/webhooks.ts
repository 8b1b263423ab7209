import Joi from 'joi'
import type { Sql } from '../../shared/db.ts'
import { AppError, notFound } from '../../shared/errors.ts'
import { eventTypes } from '../../shared/events.ts'
import { hostOf, PrivateAddress, resolveHost } from '../../shared/webhook-address.ts'
import { listDeliveries, redeliver } from '../../shared/webhook-deliveries.ts'
import type { Delivery, DeliveryStatus } from '../../shared/webhook-deliveries.ts'
import { secretBytes } from '../../shared/webhook-secrets.ts'
import {
  createWebhook,
  deleteWebhook,
  findWebhook,
  listWebhooks,
  rotateSecret,
  updateWebhook,
} from '../../shared/webhooks.ts'
import type { Wanted, Webhook } from '../../shared/webhooks.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId, nothing, pageOf, paging, uuid } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'
import { eventType } from './events.ts'

const wanted = Joi.array()
  .items(Joi.string().valid('*', ...eventTypes))
  .min(1)
  .unique()
  .description('Types of events; `*` for all')

const fields = {
  id: Joi.string().guid().required(),
  url: Joi.string().required(),
  events: wanted.required(),
  enabled: Joi.boolean().required(),
  circuit: Joi.object({
    state: Joi.string().valid('closed', 'open', 'half_open').required(),
    failures: Joi.number().integer().required().description('In a row'),
    retryAt: Joi.date().allow(null).required(),
  }).required(),
  lastSuccessAt: Joi.date().allow(null).required(),
  lastFailureAt: Joi.date().allow(null).required(),
  lastError: Joi.string().allow(null).required(),
  previousSecretUntil: Joi.date()
    .allow(null)
    .required()
    .description('Until then deliveries are signed with the secret before this one, too'),
  createdAt: Joi.date().required(),
  updatedAt: Joi.date().required(),
}
export const webhook = Joi.object<Webhook, true>(fields)
const withSecret = Joi.object<Webhook & { secret: string }, true>({
  ...fields,
  secret: Joi.string().required().description('Shown this once'),
})

const delivery = Joi.object<Delivery, true>({
  id: Joi.string().guid().required(),
  eventId: Joi.string().guid().required().description('The `webhook-id` it is posted under'),
  type: eventType.required(),
  status: Joi.string().valid('pending', 'delivered', 'dead').required(),
  attempts: Joi.number().integer().required(),
  nextAttemptAt: Joi.date()
    .allow(null)
    .required()
    .description('null: there is none, or another delivery of the same chat comes first'),
  lastAttemptAt: Joi.date().allow(null).required(),
  responseStatus: Joi.number().integer().allow(null).required(),
  error: Joi.string().allow(null).required(),
  duration: Joi.number().integer().allow(null).required().description('Milliseconds'),
  createdAt: Joi.date().required(),
  deliveredAt: Joi.date().allow(null).required(),
})

const url = Joi.string()
  .max(2048)
  .pattern(/^[\x21-\x7e]+$/, 'visible ASCII characters')
  .custom((text: string) => {
    const parsed = URL.canParse(text) ? new URL(text) : undefined
    if (!parsed || !/^https?:$/.test(parsed.protocol)) {
      throw new Error('must be a URL that begins with https:// or http://')
    }
    if (parsed.username !== '' || parsed.password !== '' || parsed.hash !== '') {
      throw new Error('must have no user name, password or fragment')
    }
    return parsed.href
  })

const secret = Joi.string()
  .max(100)
  .custom((text: string) => {
    if (secretBytes(text)) return text
    throw new Error('must be whsec_ and the base64 of 24 to 64 bytes')
  })
  .description('Made up when absent')

interface NewWebhook {
  url: string
  events: Wanted[]
  secret?: string
  enabled?: boolean
}

const newWebhook = Joi.object<NewWebhook, true>({
  url: url.required(),
  events: wanted.required(),
  secret,
  enabled: Joi.boolean(),
})
const changes = Joi.object<Omit<NewWebhook, 'secret'>, true>({
  url,
  events: wanted,
  enabled: Joi.boolean().description('false: nothing becomes a delivery, and what waits waits'),
}).min(1)
const rotation = Joi.object<{ secret?: string; keepHours: number }, true>({
  secret,
  keepHours: Joi.number()
    .integer()
    .min(0)
    .max(168)
    .default(24)
    .description('So long the secret before it counts, too'),
}).optional()

interface ByDelivery {
  id: string
  deliveryId: string
}

const tags = ['webhooks']
const resolveMs = 3_000

/** Where events are posted to. */
export const webhooksRoutes: Routes = async (app) => {
  const { sql, keys, config } = app

  /** Refuses what leads into private networks. Of a name that does not resolve now nothing is known: it is looked at again before every post. */
  async function assertPublic(text: string): Promise<void> {
    if (config.WEBHOOK_ALLOW_PRIVATE) return
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, resolveMs)
    })
    try {
      await Promise.race([resolveHost(hostOf(new URL(text)), false), late])
    } catch (error) {
      if (!(error instanceof PrivateAddress)) return
      throw new AppError(422, 'PRIVATE_ADDRESS', 'The URL must lead to a public address.', [
        { path: 'body.url', message: error.message },
      ])
    } finally {
      clearTimeout(timer)
    }
  }

  app.post(
    '/api/webhooks',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Make a webhook',
        description:
          'Events from now on are posted to it, signed as Standard Webhooks says; `secret` is shown this once. An answer that is no 2xx, a redirect, or none within 12 seconds is tried again, ever more rarely, for 24 hours.',
        tags,
        headers: idempotent,
        body: newWebhook,
        response: { 201: withSecret, 409: errorBody, 422: errorBody },
      },
    },
    async (request, reply) => {
      const { user, body } = request
      await assertPublic(body.url)
      const make = async (tx: Sql) => {
        const made = await createWebhook(tx, keys, user.workspaceId, body)
        const { id: targetId, url, events, enabled } = made
        const target = { targetType: 'webhook', targetId, after: { url, events, enabled } }
        await app.audit(request, { action: 'webhook.created', ...target }, { tx })
        return { statusCode: 201, body: made }
      }
      await app.answerOnce(request, reply, (sql) => sql.begin(make), { secret: true })
      return reply
    },
  )

  app.get(
    '/api/webhooks',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'List the webhooks, newest first',
        tags,
        querystring: Joi.object<Paging, true>(paging),
        response: { 200: pageOf(webhook) },
      },
    },
    async ({ user, query }) => listWebhooks(sql, user.workspaceId, query),
  )

  app.get(
    '/api/webhooks/:id',
    {
      config: { access: 'manage' },
      schema: { summary: 'Read a webhook', tags, params: byId, response: { 200: webhook } },
    },
    async ({ user, params }) => existing(user.workspaceId, params.id),
  )

  async function existing(workspaceId: string, id: string): Promise<Webhook> {
    const found = await findWebhook(sql, workspaceId, id)
    if (!found) throw notFound('Webhook')
    return found
  }

  app.patch(
    '/api/webhooks/:id',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Change a webhook',
        description:
          'With another URL, or enabled again, its circuit is closed and what waits is tried at once.',
        tags,
        params: byId,
        body: changes,
        response: { 200: webhook, 422: errorBody },
      },
    },
    async (request) => {
      const { user, params, body } = request
      const { url: oldUrl, events, enabled } = await existing(user.workspaceId, params.id)
      if (body.url !== undefined) await assertPublic(body.url)
      return sql.begin(async (tx) => {
        const changed = await updateWebhook(tx, user.workspaceId, params.id, body)
        if (!changed) throw notFound('Webhook')
        const before = { url: oldUrl, events, enabled }
        const target = { targetType: 'webhook', targetId: params.id, before, after: body }
        await app.audit(request, { action: 'webhook.changed', ...target }, { tx })
        return changed
      })
    },
  )

  app.delete(
    '/api/webhooks/:id',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Delete a webhook, with what is on its way to it',
        tags,
        params: byId,
        response: { 204: nothing },
      },
    },
    async (request, reply) => {
      const { user, params } = request
      await sql.begin(async (tx) => {
        const gone = await deleteWebhook(tx, user.workspaceId, params.id)
        if (!gone) throw notFound('Webhook')
        const { url, events, enabled } = gone
        const target = {
          targetType: 'webhook',
          targetId: params.id,
          before: { url, events, enabled },
        }
        await app.audit(request, { action: 'webhook.deleted', ...target }, { tx })
      })
      return reply.code(204).send()
    },
  )

  app.post(
    '/api/webhooks/:id/rotate-secret',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Give a webhook another secret',
        description:
          'Deliveries are signed with both until the old one counts no longer: `webhook-signature` then holds two signatures.',
        tags,
        params: byId,
        headers: idempotent,
        body: rotation,
        response: { 200: withSecret },
      },
    },
    async (request, reply) => {
      const { user, params, body } = request
      const rotate = async (tx: Sql) => {
        const rotated = await rotateSecret(tx, keys, user.workspaceId, params.id, {
          secret: body?.secret,
          keepHours: body?.keepHours ?? 24,
        })
        if (!rotated) throw notFound('Webhook')
        const target = { targetType: 'webhook', targetId: params.id }
        await app.audit(request, { action: 'webhook.secret_rotated', ...target }, { tx })
        return { statusCode: 200, body: rotated }
      }
      await app.answerOnce(request, reply, (sql) => sql.begin(rotate), { secret: true })
      return reply
    },
  )

  app.get(
    '/api/webhooks/:id/deliveries',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'List the deliveries of a webhook, newest first',
        description: 'They are kept for seven days, as the events they tell of.',
        tags,
        params: byId,
        querystring: Joi.object<Paging & { status?: DeliveryStatus }, true>({
          ...paging,
          status: Joi.string().valid('pending', 'delivered', 'dead'),
        }),
        response: { 200: pageOf(delivery) },
      },
    },
    async ({ user, params, query }) => {
      const { id } = await existing(user.workspaceId, params.id)
      return listDeliveries(sql, user.workspaceId, id, query)
    },
  )

  app.post(
    '/api/webhooks/:id/deliveries/:deliveryId/redeliver',
    {
      config: { access: 'manage', audit: 'webhook.redelivered' },
      schema: {
        summary: 'Have a delivery made once more',
        description: 'Under the same `webhook-id`, at once and beside the order.',
        tags,
        params: Joi.object<ByDelivery, true>({
          id: uuid().required(),
          deliveryId: uuid().required(),
        }),
        headers: idempotent,
        response: { 202: delivery },
      },
    },
    async (request, reply) => {
      const { user, params } = request
      await app.answerOnce(request, reply, async (tx) => {
        const again = await redeliver(tx, user.workspaceId, params.id, params.deliveryId)
        if (!again) throw notFound('Delivery')
        return { statusCode: 202, body: again }
      })
      app.sql.nudge('awfar_events')
      return reply
    },
  )
}
