import Joi from 'joi'
import {
  changeMember,
  existingProfile,
  listProfiles,
  removeMember,
  userResource,
} from '../../shared/profiles.ts'
import type { ProfileRow, Role } from '../../shared/profiles.ts'
import { endFamilies } from '../../shared/refresh-tokens.ts'
import { AppError } from '../../shared/errors.ts'
import { removeTwoFactor } from '../../shared/two-factor.ts'
import { errorBody } from '../plugins/errors.ts'
import { byId, nothing, pageOf, paging } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'
import { user } from '../plugins/sign-in.ts'
import { personName } from './auth.ts'

const change = Joi.object<{ role?: Role; fullName?: string }, true>({
  role: Joi.string().valid('owner', 'admin', 'agent'),
  fullName: personName(),
}).min(1)

const tags = ['users']

/** The people of the workspace. */
export const usersRoutes: Routes = async (app) => {
  const { sql } = app

  app.get(
    '/api/users',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'List the people of the workspace, newest first',
        tags,
        querystring: Joi.object<Paging, true>(paging),
        response: { 200: pageOf(user) },
      },
    },
    async ({ user, query }) => listProfiles(sql, user.workspaceId, query),
  )

  app.get(
    '/api/users/:id',
    {
      config: { access: 'manage' },
      schema: { summary: 'Read a person', tags, params: byId, response: { 200: user } },
    },
    async ({ user, params }) =>
      userResource(await existingProfile(sql, user.workspaceId, params.id)),
  )

  app.patch(
    '/api/users/:id',
    {
      config: { access: 'admin' },
      schema: {
        summary: 'Change the role or the name of a person',
        description:
          'Holds at once, also for tokens already given out. Admins neither make nor change owners; the last owner stays.',
        tags,
        params: byId,
        body: change,
        response: { 200: user, 409: errorBody },
      },
    },
    async (request) => {
      const { user, params, body } = request
      const after = await changeMember(sql, user, params.id, body, (tx, before, after) =>
        app.audit(
          request,
          {
            action: 'user.updated',
            targetType: 'user',
            targetId: params.id,
            before: seen(before),
            after: seen(after),
          },
          { tx },
        ),
      )
      return userResource(after)
    },
  )

  app.delete(
    '/api/users/:id',
    {
      config: { access: 'admin' },
      schema: {
        summary: 'Remove a person, with their sign-ins, API keys and open invitations',
        description: 'Their messages stay, and say under the same name who sent them.',
        tags,
        params: byId,
        response: { 204: nothing, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { user, params } = request
      await removeMember(sql, user, params.id, (tx, before) =>
        app.audit(
          request,
          {
            action: 'user.removed',
            targetType: 'user',
            targetId: params.id,
            before: { ...seen(before), email: before.email },
          },
          { tx },
        ),
      )
      return reply.code(204).send()
    },
  )

  app.post(
    '/api/users/:id/2fa/reset',
    {
      config: { access: 'admin' },
      schema: {
        summary: 'Take away the second factor of a person who lost it; their sign-ins end',
        description: 'Not your own: `/api/auth/2fa/disable` does that, with password and code.',
        tags,
        params: byId,
        body: Joi.object({}).optional(),
        response: { 204: nothing, 403: errorBody, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { user, params } = request
      // Else a stolen access token would be enough to be rid of what is to make up for it.
      if (params.id === user.id) {
        throw new AppError(403, 'FORBIDDEN', 'Switch your own off with your password and a code.')
      }
      await changeMember(sql, user, params.id, {}, async (tx) => {
        if (!(await removeTwoFactor(tx, params.id))) {
          throw new AppError(409, 'TWO_FACTOR_DISABLED', 'This person has no second factor.')
        }
        await endFamilies(tx, params.id)
        const target = { targetType: 'user', targetId: params.id }
        await app.audit(request, { action: 'two_factor.reset', ...target }, { tx })
      })
      return reply.code(204).send()
    },
  )
}

const seen = ({ role, fullName }: ProfileRow) => ({ role, fullName })
