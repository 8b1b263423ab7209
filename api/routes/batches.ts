import Joi from 'joi'
import { cancelBatch, findBatch, listBatchMessages } from '../../shared/batches.ts'
import type { Batch, BatchMessage, RejectedRow } from '../../shared/batches.ts'
import { notFound } from '../../shared/errors.ts'
import { messageStatuses } from '../../shared/messages.ts'
import type { MessageStatus } from '../../shared/messages.ts'
import { message } from '../message-schema.ts'
import { byId, pageOf, paging } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'

const index = Joi.number()
  .integer()
  .required()
  .description('Its place in what was handed in, from 0')

/** Rows of a batch that were not accepted. */
export const rejected = Joi.array()
  .items(
    Joi.object<RejectedRow>({
      index,
      code: Joi.string().required(),
      message: Joi.string().required(),
    }),
  )
  .required()

const batch = Joi.object<Batch>({
  id: Joi.string().guid().required(),
  sessionId: Joi.string().guid().required(),
  accepted: Joi.number().integer().required(),
  rejected,
  statuses: Joi.object().pattern(Joi.string(), Joi.number().integer()).required(),
  createdAt: Joi.date().required(),
  cancelledAt: Joi.date().allow(null).required(),
})

const batchMessage = (message as Joi.ObjectSchema<BatchMessage>).keys({ index })

/** A message that was handed in never becomes one that was received. */
const statuses = messageStatuses.filter((status) => status !== 'received')

interface Query extends Paging {
  status?: MessageStatus
}

const tags = ['messages']

/** Messages that were handed in together. */
export const batchesRoutes: Routes = async (app) => {
  const { sql } = app

  app.get(
    '/api/batches/:id',
    {
      config: { access: 'read' },
      schema: {
        summary: 'Read how a batch is getting on',
        tags,
        params: byId,
        response: { 200: batch },
      },
    },
    async ({ user, params }) => {
      const found = await findBatch(sql, user.workspaceId, params.id)
      if (!found) throw notFound('Batch')
      return found
    },
  )

  app.get(
    '/api/batches/:id/messages',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List what was accepted of a batch, in the order it was handed in',
        tags,
        params: byId,
        querystring: Joi.object<Query, true>({
          ...paging,
          status: Joi.string()
            .valid(...statuses)
            .description('Those that have this status now'),
        }),
        response: { 200: pageOf(batchMessage) },
      },
    },
    async ({ user, params, query }) => {
      const page = await listBatchMessages(sql, user.workspaceId, params.id, query)
      if (!page) throw notFound('Batch')
      return page
    },
  )

  app.delete(
    '/api/batches/:id',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Cancel what is left of a batch',
        tags,
        params: byId,
        response: { 200: batch },
      },
    },
    async ({ user, params }) => {
      const cancelled = await cancelBatch(sql, user.workspaceId, params.id)
      if (!cancelled) throw notFound('Batch')
      return cancelled
    },
  )
}
