import Joi from 'joi'
import { AppError } from '../../shared/errors.ts'
import {
  createProfile,
  findProfile,
  findProfileByEmail,
  userResource,
} from '../../shared/profiles.ts'
import type { ProfileRow, User } from '../../shared/profiles.ts'
import { endFamily, endFamilyOf, rotateToken, startFamily } from '../../shared/refresh-tokens.ts'
import type { IssuedToken } from '../../shared/refresh-tokens.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import { hashPassword, verifyPassword } from '../passwords.ts'
import { accessTokenSeconds, unauthorized } from '../plugins/auth.ts'
import { errorBody } from '../plugins/errors.ts'
import { nothing, text, visibleText } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'

interface Tokens {
  user: User
  accessToken: string
  refreshToken: string
  expiresIn: number
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

const tokens = Joi.object<Tokens, true>({
  user: user.required(),
  accessToken: Joi.string().required().description('Sent as `Authorization: Bearer …`'),
  refreshToken: Joi.string().required().description('Good for one refresh, for 7 days'),
  expiresIn: Joi.number().integer().required().description('Seconds the access token lives'),
})

const email = text()
  .max(254)
  .email({ tlds: { allow: false } })

// bcrypt reads 72 bytes and stops at NUL: what it would not read is refused, never cut off.
const password = text().max(72, 'utf8').messages({
  'string.max':
    '{#label} must be at most 72 bytes long (letters with accents and emoji take several)',
})
const name = visibleText().max(120)
const refreshToken = text().max(200)

interface Registration {
  email: string
  password: string
  fullName: string
  workspaceName?: string
}

const registration = Joi.object<Registration, true>({
  email: email.required(),
  password: password.min(8).required(),
  fullName: name.required(),
  workspaceName: name.description('The name of the person when absent'),
})

const credentials = Joi.object<{ email: string; password: string }, true>({
  email: email.required(),
  password: password.required(),
})

/** Accounts and sign-in. */
export const auth: Routes = async (app) => {
  const { sql, config } = app

  const answer = (profile: ProfileRow, { token, family }: IssuedToken): Tokens => ({
    user: userResource(profile),
    accessToken: app.signAccessToken(profile.id, family),
    refreshToken: token,
    expiresIn: accessTokenSeconds,
  })

  app.post(
    '/api/auth/register',
    {
      config: { public: true, limit: 'auth' },
      schema: {
        summary: 'Found a workspace and become its owner',
        tags: ['auth'],
        body: registration,
        response: { 201: tokens, 403: errorBody, 409: errorBody },
      },
    },
    async ({ body }, reply) => {
      if (!config.ALLOW_REGISTRATION) {
        throw new AppError(
          403,
          'REGISTRATION_CLOSED',
          'Registration is closed; ask for an invitation.',
        )
      }
      const passwordHash = await hashPassword(body.password)
      const { email, fullName, workspaceName = fullName } = body
      const tokens = await sql.begin(async (tx) => {
        const workspaceId = await createWorkspace(tx, workspaceName)
        const person = { workspaceId, email, fullName, role: 'owner', passwordHash } as const
        const profile = await createProfile(tx, person)
        return answer(profile, await startFamily(tx, profile.id))
      })
      return reply.code(201).send(tokens)
    },
  )

  app.post(
    '/api/auth/login',
    {
      config: { public: true, limit: 'auth' },
      schema: {
        summary: 'Sign in',
        tags: ['auth'],
        body: credentials,
        response: { 200: tokens, 401: errorBody },
      },
    },
    async ({ body }) => {
      const profile = await findProfileByEmail(sql, body.email)
      // An unknown address and a wrong password differ neither in the answer nor in the time it takes.
      if (!(await verifyPassword(body.password, profile?.passwordHash)) || !profile) {
        throw new AppError(
          401,
          'INVALID_CREDENTIALS',
          'The e-mail address or the password is wrong.',
        )
      }
      return answer(profile, await startFamily(sql, profile.id))
    },
  )

  app.post(
    '/api/auth/refresh',
    {
      config: { public: true, limit: 'auth' },
      schema: {
        summary: 'Trade a refresh token for new tokens',
        description: 'A refresh token works once. Using it again ends the whole sign-in.',
        tags: ['auth'],
        body: Joi.object<{ refreshToken: string }, true>({ refreshToken: refreshToken.required() }),
        response: { 200: tokens, 401: errorBody },
      },
    },
    async ({ body }) => {
      const issued = await rotateToken(sql, body.refreshToken)
      const profile = issued && (await findProfile(sql, issued.profileId))
      if (!profile) {
        throw new AppError(
          401,
          'INVALID_REFRESH_TOKEN',
          'The refresh token is wrong, used or expired.',
        )
      }
      return answer(profile, issued)
    },
  )

  app.post(
    '/api/auth/logout',
    {
      // Public, since the access token may have expired: the refresh token says whose sign-in ends.
      config: { public: true },
      schema: {
        summary: 'Sign out',
        description: 'Ends the sign-in of the refresh token and that of the access token, if sent.',
        tags: ['auth'],
        body: Joi.object<{ refreshToken?: string }, true>({ refreshToken }).optional(),
        response: { 204: nothing, 401: errorBody },
      },
    },
    async (request, reply) => {
      const token = request.body?.refreshToken
      const caller = await app.identify(request)
      if (token === undefined && !caller) throw unauthorized()
      if (token !== undefined) await endFamilyOf(sql, token)
      if (caller) await endFamily(sql, caller.family)
      return reply.code(204).send()
    },
  )

  app.get(
    '/api/auth/me',
    {
      schema: {
        summary: 'Who is signed in',
        tags: ['auth'],
        response: { 200: Joi.object<{ user: User }, true>({ user: user.required() }) },
      },
    },
    async (request) => ({ user: userResource(request.user) }),
  )
}
