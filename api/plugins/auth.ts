import { createHash } from 'node:crypto'
import jwt from '@fastify/jwt'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { findByApiKey } from '../../shared/api-keys.ts'
import type { Scope } from '../../shared/api-keys.ts'
import { AppError } from '../../shared/errors.ts'
import { findProfile, findSignedIn } from '../../shared/profiles.ts'
import type { ProfileRow, Role } from '../../shared/profiles.ts'
import { accessCookie, assertCsrf } from './cookies.ts'
import type { Transport } from './cookies.ts'

/**
 * Who may call a route. A key acts for the person who made it: it may what both that person's role and its scopes allow.
 *
 *            people           keys with the scope
 * public     everybody        everybody
 * self       every role       none
 * read       every role       read
 * send       every role       send
 * operate    every role       manage
 * manage     owner, admin     manage
 * admin      owner, admin     none
 */
export type Access = 'public' | keyof typeof rules

const everybody: readonly Role[] = ['owner', 'admin', 'agent']
const leaders: readonly Role[] = ['owner', 'admin']

interface Rule {
  roles: readonly Role[]
  /** Without one a route is for people only. */
  scope?: Scope
}

const rules = {
  self: { roles: everybody },
  read: { roles: everybody, scope: 'read' },
  send: { roles: everybody, scope: 'send' },
  operate: { roles: everybody, scope: 'manage' },
  manage: { roles: leaders, scope: 'manage' },
  admin: { roles: leaders },
} satisfies Record<string, Rule>

/** Who calls, and by what they showed it. */
export type Caller = ProfileRow & {
  /** The family of refresh tokens the access token was given out with; null for a key. */
  family: string | null
  /** The key that was used; null for a person. */
  apiKey: { id: string; scopes: Scope[] } | null
  transport: Transport | 'key'
}

interface AccessToken {
  sub: string
  sid: string
  typ: 'access'
  iat?: number
}

/** Says that a password was right and a code is missing. `sid` names the password: it dies with it. */
interface ChallengeToken {
  sub: string
  sid: string
  typ: 'challenge'
  via: Transport
  iat?: number
}

/** A route as it was registered. */
export interface RouteEntry {
  method: string
  url: string
  access: Access
}

declare module '@fastify/jwt' {
  interface FastifyJWT {
    payload: AccessToken | ChallengeToken
    /** Set on every route that is not public. */
    user: Caller
  }
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Who may call. Every route says so: one that does not stops the start. */
    access?: Access
  }
  interface FastifyInstance {
    /** Every route and who may call it. */
    routeTable: RouteEntry[]
    /** Who sent this request: undefined without an access token or a key that is valid now. */
    identify(request: FastifyRequest): Promise<Caller | undefined>
    /** An access token for a person, bound to a family of refresh tokens: it dies with it. */
    signAccessToken(profileId: string, family: string): string
    /** What the second step of a sign-in is asked for with, for five minutes. */
    signChallenge(profile: ProfileRow, via: Transport): string
    /** Whose sign-in goes on; undefined when the challenge is wrong, expired, or the password has changed since. */
    readChallenge(token: string): Promise<{ profile: ProfileRow; via: Transport } | undefined>
  }
}

/** Access tokens are short-lived: what they grant is looked up anew with each request, who they name is not. */
export const accessTokenSeconds = 15 * 60
const challengeSeconds = 5 * 60
const issuer = 'awfar'
const audience = 'awfar-api'

/**
 * Private by default: every route declares who may call it. The person is looked up with each request, so that a removal, another
 * role or a logout holds at once.
 */
export default fp(
  async function auth(app) {
    await app.register(jwt, {
      secret: app.config.JWT_SECRET,
      sign: {
        algorithm: 'HS256',
        expiresIn: `${accessTokenSeconds}s`,
        iss: issuer,
        aud: audience,
      },
      verify: {
        // Named, never taken from the token: else the token chooses how it is checked.
        algorithms: ['HS256'],
        allowedIss: issuer,
        allowedAud: audience,
        requiredClaims: ['iss', 'aud', 'sub', 'sid', 'typ', 'iat', 'exp'],
      },
    })

    app.decorate('routeTable', [])
    app.addHook('onRoute', (route) => {
      const { method, url } = route
      // The pages of @fastify/swagger-ui, which has no place to say it.
      if (url.startsWith('/documentation')) {
        route.config = { ...route.config, access: 'public', limit: 'none' }
      }
      const { access } = route.config ?? {}
      if (access === undefined) {
        throw new Error(`${String(method)} ${url} does not say who may call it: set config.access.`)
      }
      const methods = Array.isArray(method) ? method : [method]
      app.routeTable.push(...methods.map((name) => ({ method: name, url, access })))
    })

    app.decorate('signAccessToken', (profileId: string, family: string) =>
      app.jwt.sign({ sub: profileId, sid: family, typ: 'access' }),
    )
    app.decorate('signChallenge', ({ id, passwordHash }: ProfileRow, via: Transport) =>
      app.jwt.sign({ sub: id, sid: fingerprint(passwordHash), typ: 'challenge', via }),
    )
    app.decorate('readChallenge', async (token: string) => {
      const claims = verify(token)
      if (claims?.typ !== 'challenge') return undefined
      if (Date.now() / 1_000 - (claims.iat ?? 0) > challengeSeconds) return undefined
      const profile = await findProfile(app.sql, claims.sub)
      if (!profile || fingerprint(profile.passwordHash) !== claims.sid) return undefined
      return { profile, via: claims.via }
    })

    app.decorate('identify', async ({ headers, cookies, ip }: FastifyRequest) => {
      const { authorization, 'x-api-key': key } = headers
      // What a program sends on purpose goes before what a browser adds by itself.
      if (authorization === undefined && typeof key === 'string') {
        const found = await findByApiKey(app.sql, key, ip)
        if (!found) return undefined
        const apiKey = { id: found.keyId, scopes: found.scopes }
        return { ...found.profile, family: null, apiKey, transport: 'key' }
      }
      const [, bearer] = /^Bearer ([\w-]+\.[\w-]+\.[\w-]+)$/i.exec(authorization ?? '') ?? []
      const token = authorization === undefined ? cookies[accessCookie] : bearer
      const claims = token === undefined ? undefined : verify(token)
      if (claims?.typ !== 'access') return undefined
      const profile = await findSignedIn(app.sql, claims.sub, claims.sid)
      if (!profile) return undefined
      const transport = authorization === undefined ? 'cookie' : 'bearer'
      return { ...profile, family: claims.sid, apiKey: null, transport }
    })

    // First who it is: the rate limiter, whose hook comes after this one, counts per person.
    app.addHook('onRequest', async (request) => {
      if (request.routeOptions.config.access === 'public') return
      const caller = await app.identify(request)
      if (caller) request.user = caller
    })
    // Then, when the attempt has been counted and before the body is read, whether they may.
    app.addHook('preParsing', async (request) => {
      const { access } = request.routeOptions.config
      if (request.is404 || access === undefined || access === 'public') return
      const { user } = request
      if (!user) throw unauthorized()
      if (user.transport === 'cookie') assertCsrf(app.config, request, user.family)
      assertAllowed(user, access)
    })

    function verify(token: string): AccessToken | ChallengeToken | undefined {
      try {
        return app.jwt.verify(token)
      } catch {
        return undefined
      }
    }
  },
  { name: 'auth', dependencies: ['errors', 'cookies'] },
)

/** Whether somebody may call routes of this access, and do what is reserved for who may. */
export function may(user: Caller, access: Exclude<Access, 'public'>): boolean {
  const { roles, scope }: Rule = rules[access]
  if (!roles.includes(user.role)) return false
  return !user.apiKey || (scope !== undefined && user.apiKey.scopes.includes(scope))
}

function assertAllowed(user: Caller, access: Exclude<Access, 'public'>): void {
  if (may(user, access)) return
  const { roles, scope }: Rule = rules[access]
  if (!roles.includes(user.role)) {
    throw new AppError(403, 'FORBIDDEN', `This is for ${roles.join(' and ')} only.`)
  }
  if (scope === undefined) throw new AppError(403, 'FORBIDDEN', 'This is for people, not for keys.')
  throw new AppError(403, 'FORBIDDEN', `The key lacks the scope "${scope}".`)
}

/** What the documentation says of who may call. */
export function describeAccess(access: Access): string {
  if (access === 'public') return 'Open to everybody.'
  const { roles, scope }: Rule = rules[access]
  const people = roles.length === everybody.length ? 'everybody of the workspace' : roles.join(', ')
  return `For ${people}; ${scope === undefined ? 'not for API keys' : `API keys need the scope \`${scope}\``}.`
}

/** Tells passwords apart without telling them. */
const fingerprint = (hash: string) =>
  createHash('sha256').update(hash).digest('base64url').slice(0, 22)

/** Of whoever shows no token that holds. */
export const unauthorized = () =>
  new AppError(401, 'UNAUTHORIZED', 'The access token is missing, wrong or expired: sign in.')
