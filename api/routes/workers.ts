import Joi from 'joi'
import { listWorkers } from '../../shared/workers.ts'
import type { WorkerReport } from '../../shared/workers.ts'
import { pageOf, paging } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'

const worker = Joi.object<WorkerReport, true>({
  id: Joi.string().required(),
  host: Joi.string().required(),
  pid: Joi.number().integer().required(),
  alive: Joi.boolean().required().description('Heard of within the last minute'),
  capacity: Joi.number().integer().required().description('Sessions it takes at the most'),
  owned: Joi.number()
    .integer()
    .required()
    .description(
      'Sessions it owns, of all workspaces; one above its capacity while it logs one out',
    ),
  sessions: Joi.array()
    .items(
      Joi.object({
        id: Joi.string().guid().required(),
        name: Joi.string().required(),
        status: Joi.string().required(),
        memoryBytes: Joi.number().integer().allow(null).required(),
      }),
    )
    .required()
    .description('Those of your workspace'),
  startedAt: Joi.date().required(),
  heartbeatAt: Joi.date().required(),
})

/** Who runs the sessions. */
export const workersRoutes: Routes = async (app) => {
  app.get(
    '/api/workers',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'List the worker processes, what they own and what it costs',
        tags: ['service'],
        querystring: Joi.object<Paging, true>(paging),
        response: { 200: pageOf(worker) },
      },
    },
    async ({ user, query }) => listWorkers(app.sql, user.workspaceId, query),
  )
}
