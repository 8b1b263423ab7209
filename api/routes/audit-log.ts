import Joi from 'joi'
import { listAudit } from '../../shared/audit-log.ts'
import type { AuditEntry, AuditFilter } from '../../shared/audit-log.ts'
import { pageOf, paging, text, uuid } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'

const entry = Joi.object<AuditEntry, true>({
  id: Joi.number().integer().required(),
  at: Joi.date().required(),
  actor: Joi.object({
    type: Joi.string().valid('person', 'api_key', 'anonymous').required(),
    id: Joi.string().guid().allow(null).required(),
    name: Joi.string().allow(null).required().description('As it was then'),
  }).required(),
  action: Joi.string().required().description('Such as `user.updated`'),
  target: Joi.object({ type: Joi.string().required(), id: Joi.string().allow(null).required() })
    .allow(null)
    .required(),
  before: Joi.object().allow(null).required(),
  after: Joi.object().allow(null).required(),
  ip: Joi.string().allow(null).required(),
  userAgent: Joi.string().allow(null).required(),
  requestId: Joi.string().allow(null).required(),
})

const filter = Joi.object<AuditFilter, true>({
  action: text().max(100),
  actorId: uuid(),
  targetType: text().max(100),
  targetId: text().max(100),
  from: Joi.date().iso().description('That time or later'),
  to: Joi.date().iso().description('Before that time'),
  ...paging,
})

/** Who did what. */
export const auditLogRoutes: Routes = async (app) => {
  app.get(
    '/api/audit-log',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Read the audit log, newest first',
        tags: ['audit log'],
        querystring: filter,
        response: { 200: pageOf(entry) },
      },
    },
    async ({ user, query }) => listAudit(app.sql, user.workspaceId, query),
  )
}
