import type { FastifyReply } from 'fastify'
import fp from 'fastify-plugin'
import Joi from 'joi'
import type { Sql } from '../../shared/db.ts'
import { AppError } from '../../shared/errors.ts'
import { userResource } from '../../shared/profiles.ts'
import type { ProfileRow, User } from '../../shared/profiles.ts'
import { startFamily } from '../../shared/refresh-tokens.ts'
import type { IssuedToken } from '../../shared/refresh-tokens.ts'
import { accessTokenSeconds } from './auth.ts'
import { setCookies } from './cookies.ts'
import type { Transport } from './cookies.ts'

/** What a sign-in answers. With cookies the tokens are in them, and out of the reach of scripts. */
export interface SignedIn {
  user: User
  expiresIn: number
  accessToken?: string
  refreshToken?: string
  csrfToken?: string
}

export const user = Joi.object<User, true>({
  id: Joi.string().guid().required(),
  email: Joi.string().email().required(),
  fullName: Joi.string().required(),
  role: Joi.string().valid('owner', 'admin', 'agent').required(),
  workspaceId: Joi.string().guid().required(),
  twoFactorEnabled: Joi.boolean().required(),
  createdAt: Joi.date().required(),
})

export const signedIn = Joi.object<SignedIn>({
  user: user.required(),
  accessToken: Joi.string().description('Sent as `Authorization: Bearer …`; absent with cookies'),
  refreshToken: Joi.string().description('Good for one refresh, for 7 days; absent with cookies'),
  expiresIn: Joi.number().integer().required().description('Seconds the access token lives'),
  csrfToken: Joi.string().description('With cookies: to be sent as `X-CSRF-Token`'),
})

/** The field in which a sign-in chooses how its tokens travel. */
export const transport = () =>
  Joi.string()
    .valid('bearer', 'cookie')
    .default('bearer')
    .description('`cookie`: for browsers; the tokens come as httpOnly cookies')

declare module 'fastify' {
  interface FastifyInstance {
    /** Signs a person in, and answers them. Throws 401 when their password was changed a moment ago. */
    signIn(
      reply: FastifyReply,
      profile: ProfileRow,
      via: Transport,
      options?: { tx?: Sql },
    ): Promise<SignedIn>
    /** The answer for a sign-in that is there already. */
    answerSignIn(
      reply: FastifyReply,
      profile: ProfileRow,
      via: Transport,
      issued: IssuedToken,
    ): SignedIn
  }
}

/** How a sign-in is answered, whichever way it came about. */
export default fp(
  async function signIn(app) {
    app.decorate(
      'answerSignIn',
      (reply: FastifyReply, profile: ProfileRow, via: Transport, issued: IssuedToken) => {
        const accessToken = app.signAccessToken(profile.id, issued.family)
        const answer: SignedIn = { user: userResource(profile), expiresIn: accessTokenSeconds }
        reply.header('cache-control', 'no-store')
        return via === 'cookie'
          ? {
              ...answer,
              csrfToken: setCookies(reply, app.config, accessToken, accessTokenSeconds, issued),
            }
          : {
              user: answer.user,
              accessToken,
              refreshToken: issued.token,
              expiresIn: answer.expiresIn,
            }
      },
    )
    app.decorate(
      'signIn',
      async (
        reply: FastifyReply,
        profile: ProfileRow,
        via: Transport,
        { tx = app.sql }: { tx?: Sql } = {},
      ) => {
        const issued = await startFamily(tx, profile)
        if (!issued) throw invalidCredentials()
        return app.answerSignIn(reply, profile, via, issued)
      },
    )
  },
  { name: 'sign-in', dependencies: ['auth'] },
)

/** The same for an address that is not known and a password that is wrong, so that nobody learns who has an account. */
export const invalidCredentials = (statusCode: 401 | 403 = 401) =>
  new AppError(statusCode, 'INVALID_CREDENTIALS', 'The e-mail address or the password is wrong.')
