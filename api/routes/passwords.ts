import Joi from 'joi'
import { AppError } from '../../shared/errors.ts'
import { isResetOpen, startReset, takeReset } from '../../shared/password-resets.ts'
import { findProfile, replacePassword } from '../../shared/profiles.ts'
import { endFamilies } from '../../shared/refresh-tokens.ts'
import { admitLogin, forgiveAll, noteLogin } from '../lockout.ts'
import { assertStrong, hashPassword, newPassword, password, verifyPassword } from '../passwords.ts'
import { errorBody } from '../plugins/errors.ts'
import { nothing, text } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'
import { invalidCredentials } from '../plugins/sign-in.ts'
import { email } from './auth.ts'

const tags = ['auth']

/** Changing a password, and getting back in without one. */
export const passwordsRoutes: Routes = async (app) => {
  const { sql, config, mailer } = app

  app.post(
    '/api/auth/password',
    {
      config: { access: 'self', limit: 'auth' },
      schema: {
        summary: 'Change your password; your other sign-ins end',
        tags,
        body: Joi.object<{ currentPassword: string; newPassword: string }, true>({
          currentPassword: password().required(),
          newPassword: newPassword().required(),
        }),
        response: { 204: nothing, 403: errorBody, 429: errorBody },
      },
    },
    async (request, reply) => {
      const { user, body, ip } = request
      // Who took over a sign-in must not find out the password with it.
      await admitLogin(sql, reply, user.email, ip)
      if (!(await verifyPassword(body.currentPassword, user.passwordHash))) {
        await app.audit(request, { action: 'auth.password_change_failed' })
        throw invalidCredentials(403)
      }
      await assertStrong(body.newPassword, {
        minScore: config.PASSWORD_MIN_SCORE,
        about: [user.email, user.fullName],
        path: 'body.newPassword',
      })
      const hash = await hashPassword(body.newPassword)
      await sql.begin(async (tx) => {
        if (!(await replacePassword(tx, user.id, user.passwordHash, hash))) {
          throw invalidCredentials(403)
        }
        await endFamilies(tx, user.id, user.family ?? undefined)
        await noteLogin(tx, user, ip)
        await app.audit(request, { action: 'auth.password_changed' }, { tx })
      })
      return reply.code(204).send()
    },
  )

  app.post(
    '/api/auth/password/forgot',
    {
      config: { access: 'public', limit: 'auth' },
      schema: {
        summary: 'Have a link to set a new password sent',
        description: 'Answers the same whether the address is known or not.',
        tags,
        body: Joi.object<{ email: string }, true>({ email: email().required() }),
        response: { 204: nothing },
      },
    },
    async (request, reply) => {
      // Answered first: what a known address costs more must not be measurable.
      void reply.code(204).send()
      await reply
      if (!mailer.enabled) {
        request.log.warn('password reset asked for, and SMTP_URL is not set')
        return reply
      }
      const reset = await startReset(sql, request.body.email)
      if (!reset) return reply
      const { workspaceId, profileId: targetId } = reset
      const deed = { action: 'auth.password_reset_asked', targetType: 'user', targetId }
      await app.audit(request, deed, { workspaceId })
      mailer.send({
        to: reset.email,
        subject: 'Set a new password',
        text: letter('Somebody, probably you, asked for a new password.', 'reset', reset.token),
      })
      return reply
    },
  )

  app.post(
    '/api/auth/password/reset',
    {
      config: { access: 'public', limit: 'auth' },
      schema: {
        summary: 'Set a new password with a token from an e-mail; all sign-ins end',
        tags,
        body: Joi.object<{ token: string; password: string }, true>({
          token: text().max(200).required(),
          password: newPassword().required(),
        }),
        response: { 204: nothing, 400: errorBody },
      },
    },
    async (request, reply) => {
      const { token, password } = request.body
      if (!(await isResetOpen(sql, token))) throw invalidToken()
      await assertStrong(password, {
        minScore: config.PASSWORD_MIN_SCORE,
        about: [],
        path: 'body.password',
      })
      const hash = await hashPassword(password)
      await sql.begin(async (tx) => {
        const profileId = await takeReset(tx, token)
        const profile = profileId === undefined ? undefined : await findProfile(tx, profileId)
        if (!profile) throw invalidToken()
        if (!(await replacePassword(tx, profile.id, profile.passwordHash, hash))) {
          throw invalidToken()
        }
        await endFamilies(tx, profile.id)
        await forgiveAll(tx, profile.email)
        await app.audit(request, { action: 'auth.password_reset' }, { by: profile, tx })
      })
      return reply.code(204).send()
    },
  )

  function letter(reason: string, page: string, token: string): string {
    const [origin] = config.CLIENT_ORIGIN
    const link = origin === undefined ? '' : `\n\n${origin}/${page}-password?token=${token}`
    return `${reason}${link}\n\nThe token, good for one hour: ${token}\n\nIf it was not you, nothing has to be done.\n`
  }
}

/** Of the token of an invitation or of a password reset. */
export const invalidToken = () =>
  new AppError(400, 'INVALID_TOKEN', 'The token is wrong, used or expired.')
