import Joi from 'joi'
import { AppError } from '../../shared/errors.ts'
import {
  createProfile,
  findProfile,
  findProfileByEmail,
  renameProfile,
  userResource,
} from '../../shared/profiles.ts'
import type { User } from '../../shared/profiles.ts'
import { endFamilies, endFamily, familyOf, rotateToken } from '../../shared/refresh-tokens.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import { admitLogin, noteLogin } from '../lockout.ts'
import {
  assertNotBusy,
  assertStrong,
  hashPassword,
  newPassword,
  password,
  verifyPassword,
} from '../passwords.ts'
import { unauthorized } from '../plugins/auth.ts'
import { assertCsrf, clearCookies, refreshCookie } from '../plugins/cookies.ts'
import type { Transport } from '../plugins/cookies.ts'
import { errorBody } from '../plugins/errors.ts'
import { nothing, text, visibleText } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'
import { invalidCredentials, signedIn, transport, user } from '../plugins/sign-in.ts'

/** The address of an account. */
export const email = () =>
  text()
    .max(254)
    .email({ tlds: { allow: false } })

/** What a person is called. */
export const personName = () => visibleText().max(120)

const refreshToken = text().max(200)

interface Registration {
  email: string
  password: string
  fullName: string
  workspaceName?: string
  transport: Transport
}

const registration = Joi.object<Registration, true>({
  email: email().required(),
  password: newPassword().required(),
  fullName: personName().required(),
  workspaceName: personName().description('The name of the person when absent'),
  transport: transport(),
})

const credentials = Joi.object<{ email: string; password: string; transport: Transport }, true>({
  email: email().required(),
  password: password().required(),
  transport: transport(),
})

const challenge = Joi.object<{ twoFactorRequired: boolean; challengeToken: string }, true>({
  twoFactorRequired: Joi.boolean().valid(true).required(),
  challengeToken: Joi.string()
    .required()
    .description('For /api/auth/2fa/verify or /api/auth/2fa/backup/verify, within five minutes'),
})

const tags = ['auth']

/** Accounts and sign-in. */
export const authRoutes: Routes = async (app) => {
  const { sql, config } = app

  app.post(
    '/api/auth/register',
    {
      config: { access: 'public', limit: 'auth' },
      schema: {
        summary: 'Found a workspace and become its owner',
        description:
          'Takes no `Idempotency-Key`: keys are of a workspace. It is done once all the same: repeated it is 409 `EMAIL_TAKEN`, and whoever missed the first answer signs in.',
        tags,
        body: registration,
        response: { 201: signedIn, 403: errorBody, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { email, password, fullName, workspaceName = fullName, transport } = request.body
      if (!config.ALLOW_REGISTRATION) {
        throw new AppError(
          403,
          'REGISTRATION_CLOSED',
          'Registration is closed; ask for an invitation.',
        )
      }
      assertNotBusy()
      await assertStrong(password, {
        minScore: config.PASSWORD_MIN_SCORE,
        about: [email, fullName, workspaceName],
        path: 'body.password',
      })
      const passwordHash = await hashPassword(password)
      const answer = await sql.begin(async (tx) => {
        const workspaceId = await createWorkspace(tx, workspaceName)
        const person = { workspaceId, email, fullName, role: 'owner', passwordHash } as const
        const profile = await createProfile(tx, person)
        const target = { targetType: 'workspace', targetId: workspaceId }
        await app.audit(request, { action: 'workspace.created', ...target }, { by: profile, tx })
        await noteLogin(tx, profile, request.ip)
        return app.signIn(reply, profile, transport, { tx })
      })
      return reply.code(201).send(answer)
    },
  )

  app.post(
    '/api/auth/login',
    {
      config: { access: 'public', limit: 'auth' },
      schema: {
        summary: 'Sign in',
        tags,
        body: credentials,
        response: { 200: Joi.alternatives(signedIn, challenge), 401: errorBody, 429: errorBody },
      },
    },
    async (request, reply) => {
      const { email, password, transport } = request.body
      assertNotBusy()
      await admitLogin(sql, reply, email, request.ip)
      const profile = await findProfileByEmail(sql, email)
      // An unknown address and a wrong password differ neither in the answer nor in the time it takes.
      if (!(await verifyPassword(password, profile?.passwordHash)) || !profile) {
        if (profile) {
          const { id: targetId, workspaceId } = profile
          const deed = { action: 'auth.login_failed', targetType: 'user', targetId }
          await app.audit(request, deed, { workspaceId })
        }
        throw invalidCredentials()
      }
      await noteLogin(sql, profile, request.ip)
      if (profile.twoFactorEnabled) {
        reply.header('cache-control', 'no-store')
        return { twoFactorRequired: true, challengeToken: app.signChallenge(profile, transport) }
      }
      const answer = await app.signIn(reply, profile, transport)
      await app.audit(request, { action: 'auth.login' }, { by: profile })
      return answer
    },
  )

  app.post(
    '/api/auth/refresh',
    {
      config: { access: 'public', limit: 'auth' },
      schema: {
        summary: 'Trade a refresh token for new tokens',
        description:
          'A refresh token works once. Using it again ends the whole sign-in. Without a body the cookie is taken, with X-CSRF-Token.',
        tags,
        body: Joi.object<{ refreshToken?: string }, true>({ refreshToken }).optional(),
        response: { 200: signedIn, 401: errorBody, 403: errorBody },
      },
    },
    async (request, reply) => {
      const inBody = request.body?.refreshToken
      const token = inBody ?? request.cookies[refreshCookie]
      if (token === undefined) throw missingRefreshToken()
      if (inBody === undefined) {
        const owner = await familyOf(sql, token)
        if (!owner) throw invalidRefreshToken()
        assertCsrf(config, request, owner.family)
      }
      const { issued, reusedOf } = await rotateToken(sql, token)
      if (reusedOf !== undefined) {
        const by = await findProfile(sql, reusedOf)
        if (by) await app.audit(request, { action: 'auth.refresh_token_reused' }, { by })
      }
      const profile = issued && (await findProfile(sql, issued.profileId))
      if (!profile) {
        if (inBody === undefined) clearCookies(reply, config)
        throw invalidRefreshToken()
      }
      return app.answerSignIn(reply, profile, inBody === undefined ? 'cookie' : 'bearer', issued)
    },
  )

  app.post(
    '/api/auth/logout',
    {
      // Public, since the access token may have expired: the refresh token says whose sign-in ends.
      config: { access: 'public' },
      schema: {
        summary: 'Sign out',
        description: 'Ends the sign-in of the refresh token and that of the access token, if sent.',
        tags,
        body: Joi.object<{ refreshToken?: string }, true>({ refreshToken }).optional(),
        response: { 204: nothing, 401: errorBody, 403: errorBody },
      },
    },
    async (request, reply) => {
      const inBody = request.body?.refreshToken
      const inCookie = request.cookies[refreshCookie]
      const caller = await app.identify(request)
      if (caller?.apiKey) throw unauthorized()
      const named = inBody === undefined ? undefined : await familyOf(sql, inBody)
      const browsers =
        inBody === undefined &&
        request.headers.authorization === undefined &&
        inCookie !== undefined
          ? await familyOf(sql, inCookie)
          : undefined
      if (inBody === undefined && !caller && !browsers) throw unauthorized()
      if (caller?.transport === 'cookie') assertCsrf(config, request, caller.family)
      if (browsers) assertCsrf(config, request, browsers.family)

      for (const family of [named?.family, browsers?.family, caller?.family]) {
        if (family) await endFamily(sql, family)
      }
      const profileId = caller?.id ?? named?.profileId ?? browsers?.profileId
      const by = profileId === undefined ? undefined : await findProfile(sql, profileId)
      if (by) await app.audit(request, { action: 'auth.logout' }, { by })
      if (inCookie !== undefined) clearCookies(reply, config)
      return reply.code(204).send()
    },
  )

  app.post(
    '/api/auth/logout-all',
    {
      config: { access: 'self', audit: 'auth.logout_all' },
      schema: {
        summary: 'Sign out everywhere',
        tags,
        body: Joi.object({}).optional(),
        response: { 204: nothing },
      },
    },
    async ({ user }, reply) => {
      await endFamilies(sql, user.id)
      if (user.family !== null) await endFamily(sql, user.family)
      if (user.transport === 'cookie') clearCookies(reply, config)
      return reply.code(204).send()
    },
  )

  const me = Joi.object<{ user: User }, true>({ user: user.required() })
  app.get(
    '/api/auth/me',
    {
      config: { access: 'read' },
      schema: { summary: 'Who is signed in', tags, response: { 200: me } },
    },
    async (request) => ({ user: userResource(request.user) }),
  )

  app.patch(
    '/api/auth/me',
    {
      config: { access: 'self' },
      schema: {
        summary: 'Change your own profile',
        tags,
        body: Joi.object<{ fullName: string }, true>({ fullName: personName().required() }),
        response: { 200: me },
      },
    },
    async (request) => {
      const { id: targetId, fullName } = request.user
      const after = await renameProfile(sql, targetId, request.body.fullName)
      await app.audit(request, {
        action: 'user.updated',
        targetType: 'user',
        targetId,
        before: { fullName },
        after: { fullName: after.fullName },
      })
      return { user: userResource(after) }
    },
  )
}

const invalidRefreshToken = () =>
  new AppError(401, 'INVALID_REFRESH_TOKEN', 'The refresh token is wrong, used or expired.')

function missingRefreshToken(): AppError {
  const message = '"refreshToken" is required'
  return new AppError(400, 'VALIDATION_FAILED', message, [{ path: 'body.refreshToken', message }])
}
