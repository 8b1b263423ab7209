import type { FastifyReply, FastifyRequest } from 'fastify'
import Joi from 'joi'
import QRCode from 'qrcode'
import type { Sql } from '../../shared/db.ts'
import { AppError } from '../../shared/errors.ts'
import type { ProfileRow } from '../../shared/profiles.ts'
import * as twoFactor from '../../shared/two-factor.ts'
import { admitCode, admitLogin, forgiveCodes, noteLogin } from '../lockout.ts'
import { password, verifyPassword } from '../passwords.ts'
import { errorBody } from '../plugins/errors.ts'
import { nothing, text } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'
import { invalidCredentials, signedIn } from '../plugins/sign-in.ts'
import { describeSeed, newSeed, stepOf } from '../totp.ts'

const code = Joi.string()
  .pattern(/^\d{6}$/, 'six digits')
  .required()
const withCode = Joi.object<{ code: string }, true>({ code })
const backupCodes = Joi.object<{ backupCodes: string[] }, true>({
  backupCodes: Joi.array().items(Joi.string()).length(10).required().description('Shown this once'),
})
const challengeToken = text().max(2_000).required()

const tags = ['auth']

/** The second factor: an authenticator app, and codes for when the phone is lost. */
export const twoFactorRoutes: Routes = async (app) => {
  const { sql, keys } = app

  /**
   * Takes a code of the authenticator app in. It works once, also when it comes many times at the same moment. Throws `invalid`, or 429 after too
   * many wrong ones.
   */
  async function takeCode(
    reply: FastifyReply,
    profileId: string,
    code: string,
    invalid: AppError,
    { confirmed = true, tx = sql }: { confirmed?: boolean; tx?: Sql } = {},
  ): Promise<void> {
    await admitCode(sql, reply, profileId)
    const known = await twoFactor.seedOf(tx, keys, profileId)
    const step = known && known.confirmed === confirmed ? stepOf(known.seed, code) : undefined
    if (step === undefined || !(await twoFactor.useStep(tx, profileId, step))) throw invalid
    await forgiveCodes(sql, profileId)
  }

  app.post(
    '/api/auth/2fa/enroll',
    {
      config: { access: 'self', limit: 'auth', audit: 'two_factor.enrolled' },
      schema: {
        summary: 'Begin with a second factor',
        description: 'It counts once /api/auth/2fa/confirm was called with a code of the app.',
        tags,
        body: Joi.object({}).optional(),
        response: {
          200: Joi.object({
            secret: Joi.string().required().description('Base32, to be typed'),
            otpauthUrl: Joi.string().required(),
            qr: Joi.string().required().description('The URL as code to scan: a PNG as data URL'),
          }),
          409: errorBody,
        },
      },
    },
    async ({ user }, reply) => {
      const seed = newSeed()
      if (!(await twoFactor.enroll(sql, keys, user, seed))) throw alreadyOn()
      const described = describeSeed(seed, user.email)
      reply.header('cache-control', 'no-store')
      return { ...described, qr: await QRCode.toDataURL(described.otpauthUrl) }
    },
  )

  app.post(
    '/api/auth/2fa/confirm',
    {
      config: { access: 'self', limit: 'auth' },
      schema: {
        summary: 'Switch the second factor on, with a code of the app',
        tags,
        body: withCode,
        response: { 200: backupCodes, 403: errorBody, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { user, body } = request
      if (user.twoFactorEnabled) throw alreadyOn()
      await takeCode(reply, user.id, body.code, invalidCode(403), { confirmed: false })
      const codes = await sql.begin(async (tx) => {
        if (!(await twoFactor.confirm(tx, user.id))) throw alreadyOn()
        await app.audit(request, { action: 'two_factor.enabled' }, { tx })
        return twoFactor.renewBackupCodes(tx, user)
      })
      reply.header('cache-control', 'no-store')
      return { backupCodes: codes }
    },
  )

  app.post(
    '/api/auth/2fa/disable',
    {
      config: { access: 'self', limit: 'auth' },
      schema: {
        summary: 'Switch the second factor off',
        tags,
        body: Joi.object<{ password: string; code: string }, true>({
          password: password().required(),
          code,
        }),
        response: { 204: nothing, 403: errorBody },
      },
    },
    async (request, reply) => {
      const { user, body } = request
      await admitLogin(sql, reply, user.email, request.ip)
      if (!(await verifyPassword(body.password, user.passwordHash))) throw invalidCredentials(403)
      await noteLogin(sql, user, request.ip)
      await takeCode(reply, user.id, body.code, invalidCode(403))
      await sql.begin(async (tx) => {
        await twoFactor.removeTwoFactor(tx, user.id)
        await app.audit(request, { action: 'two_factor.disabled' }, { tx })
      })
      return reply.code(204).send()
    },
  )

  app.post(
    '/api/auth/2fa/backup-codes',
    {
      config: { access: 'self', limit: 'auth' },
      schema: {
        summary: 'Get ten new backup codes; the old ones die',
        tags,
        body: withCode,
        response: { 200: backupCodes, 403: errorBody },
      },
    },
    async (request, reply) => {
      const { user, body } = request
      await takeCode(reply, user.id, body.code, invalidCode(403))
      const codes = await sql.begin(async (tx) => {
        await app.audit(request, { action: 'two_factor.backup_codes_renewed' }, { tx })
        return twoFactor.renewBackupCodes(tx, user)
      })
      reply.header('cache-control', 'no-store')
      return { backupCodes: codes }
    },
  )

  const second = [
    {
      url: '/api/auth/2fa/verify',
      summary: 'Finish signing in with a code of the app',
      code,
      take: (reply: FastifyReply, { id }: ProfileRow, code: string) =>
        takeCode(reply, id, code, invalidCode(401)),
    },
    {
      url: '/api/auth/2fa/backup/verify',
      summary: 'Finish signing in with a backup code, which is used up',
      code: text().max(64).required(),
      take: async (reply: FastifyReply, { id }: ProfileRow, code: string) => {
        await admitCode(sql, reply, id)
        if (!(await twoFactor.useBackupCode(sql, id, code))) throw invalidCode(401)
        await forgiveCodes(sql, id)
      },
    },
  ]
  for (const { url, summary, code, take } of second) {
    app.post(
      url,
      {
        config: { access: 'public', limit: 'auth' },
        schema: {
          summary,
          tags,
          body: Joi.object<{ challengeToken: string; code: string }, true>({
            challengeToken,
            code,
          }),
          response: { 200: signedIn, 401: errorBody, 429: errorBody },
        },
      },
      async (request, reply) => {
        const challenge = await app.readChallenge(request.body.challengeToken)
        if (!challenge?.profile.twoFactorEnabled) {
          throw new AppError(
            401,
            'INVALID_CHALLENGE',
            'The challenge is wrong or expired: sign in with your password again.',
          )
        }
        const { profile, via } = challenge
        try {
          await take(reply, profile, request.body.code)
        } catch (error) {
          if (error instanceof AppError && error.statusCode === 401) {
            await noteFailure(request, profile)
          }
          throw error
        }
        const answer = await app.signIn(reply, profile, via)
        await app.audit(request, { action: 'auth.login', after: { by: url } }, { by: profile })
        return answer
      },
    )
  }

  const noteFailure = (request: FastifyRequest, { id: targetId, workspaceId }: ProfileRow) =>
    app.audit(
      request,
      { action: 'two_factor.code_refused', targetType: 'user', targetId },
      { workspaceId },
    )
}

const invalidCode = (statusCode: 401 | 403) =>
  new AppError(statusCode, 'INVALID_CODE', 'The code is wrong, or was used before.')

const alreadyOn = () =>
  new AppError(409, 'TWO_FACTOR_ENABLED', 'The second factor is on already; switch it off first.')
