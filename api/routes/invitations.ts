import Joi from 'joi'
import type { Sql } from '../../shared/db.ts'
import { AppError, notFound } from '../../shared/errors.ts'
import {
  invite,
  isInvited,
  listInvitations,
  takeInvitation,
  withdrawInvitation,
} from '../../shared/invitations.ts'
import type { Invitation } from '../../shared/invitations.ts'
import { createProfile } from '../../shared/profiles.ts'
import type { Role } from '../../shared/profiles.ts'
import { noteLogin } from '../lockout.ts'
import { assertStrong, hashPassword, newPassword } from '../passwords.ts'
import type { Transport } from '../plugins/cookies.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId, nothing, pageOf, paging, text } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'
import { signedIn, transport } from '../plugins/sign-in.ts'
import { email, personName } from './auth.ts'
import { invalidToken } from './passwords.ts'

const role = Joi.string().valid('owner', 'admin', 'agent')

const invitation = Joi.object<Invitation, true>({
  id: Joi.string().guid().required(),
  email: Joi.string().required(),
  role: role.required(),
  invitedBy: Joi.string().guid().required(),
  expiresAt: Joi.date().required(),
  createdAt: Joi.date().required(),
})

const tags = ['users']

/** How people join a workspace. */
export const invitationsRoutes: Routes = async (app) => {
  const { sql, config, mailer } = app

  app.post(
    '/api/invitations',
    {
      config: { access: 'admin' },
      schema: {
        summary: 'Invite somebody; an earlier invitation of the address is replaced',
        description:
          'The token is shown here once. It is sent by e-mail, too, when SMTP_URL is set.',
        tags,
        headers: idempotent,
        body: Joi.object<{ email: string; role: Role }, true>({
          email: email().required(),
          role: role.default('agent'),
        }),
        response: {
          201: Joi.object<{ invitation: Invitation; token: string }, true>({
            invitation: invitation.required(),
            token: Joi.string().required(),
          }),
          409: errorBody,
        },
      },
    },
    async (request, reply) => {
      const { user, body } = request
      if (body.role === 'owner' && user.role !== 'owner') {
        throw new AppError(403, 'FORBIDDEN', 'Only owners make owners.')
      }
      let token: string | undefined
      const make = async (tx: Sql) => {
        const made = await invite(tx, user, body)
        if (!made) {
          throw new AppError(409, 'EMAIL_TAKEN', 'Somebody of the workspace has this address.')
        }
        const deed = {
          action: 'invitation.created',
          targetType: 'invitation',
          targetId: made.invitation.id,
          after: { email: body.email, role: body.role },
        }
        await app.audit(request, deed, { tx })
        token = made.token
        return { statusCode: 201, body: made }
      }
      await app.answerOnce(request, reply, (sql) => sql.begin(make), { secret: true })
      if (token !== undefined)
        mailer.send({ to: body.email, subject: 'You are invited', text: letter(token) })
      return reply
    },
  )

  app.get(
    '/api/invitations',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'List the open invitations, newest first',
        tags,
        querystring: Joi.object<Paging, true>(paging),
        response: { 200: pageOf(invitation) },
      },
    },
    async ({ user, query }) => listInvitations(sql, user.workspaceId, query),
  )

  app.delete(
    '/api/invitations/:id',
    {
      config: { access: 'admin' },
      schema: {
        summary: 'Take an invitation back',
        tags,
        params: byId,
        response: { 204: nothing },
      },
    },
    async (request, reply) => {
      const { user, params } = request
      await sql.begin(async (tx) => {
        const gone = await withdrawInvitation(tx, user.workspaceId, params.id)
        if (!gone) throw notFound('Invitation')
        const { email, role } = gone
        const target = { targetType: 'invitation', targetId: params.id, before: { email, role } }
        await app.audit(request, { action: 'invitation.withdrawn', ...target }, { tx })
      })
      return reply.code(204).send()
    },
  )

  interface Acceptance {
    token: string
    password: string
    fullName: string
    transport: Transport
  }

  app.post(
    '/api/invitations/accept',
    {
      config: { access: 'public', limit: 'auth' },
      schema: {
        summary: 'Join a workspace with the token of an invitation',
        tags,
        body: Joi.object<Acceptance, true>({
          token: text().max(200).required(),
          password: newPassword().required(),
          fullName: personName().required(),
          transport: transport(),
        }),
        response: { 201: signedIn, 400: errorBody, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { token, password, fullName, transport } = request.body
      if (!(await isInvited(sql, token))) throw invalidToken()
      await assertStrong(password, {
        minScore: config.PASSWORD_MIN_SCORE,
        about: [fullName],
        path: 'body.password',
      })
      const passwordHash = await hashPassword(password)
      const answer = await sql.begin(async (tx) => {
        const taken = await takeInvitation(tx, token)
        if (!taken) throw invalidToken()
        const { workspaceId, email, role } = taken
        const person = { workspaceId, email, role, fullName, passwordHash }
        const profile = await createProfile(tx, person)
        const deed = {
          action: 'invitation.accepted',
          targetType: 'user',
          targetId: profile.id,
          after: { email, role },
        }
        await app.audit(request, deed, { by: profile, tx })
        await noteLogin(tx, profile, request.ip)
        return app.signIn(reply, profile, transport, { tx })
      })
      return reply.code(201).send(answer)
    },
  )

  function letter(token: string): string {
    const [origin] = config.CLIENT_ORIGIN
    const link = origin === undefined ? '' : `\n\n${origin}/accept-invitation?token=${token}`
    return `You are invited to join a workspace.${link}\n\nThe token, good for seven days: ${token}\n`
  }
}
