import jwt from '@fastify/jwt'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { AppError } from '../../shared/errors.ts'
import { findSignedIn } from '../../shared/profiles.ts'
import type { ProfileRow, Role } from '../../shared/profiles.ts'

/** Who calls, and the family of refresh tokens the access token was given out with. */
export type Caller = ProfileRow & { family: string }

interface AccessToken {
  sub: string
  sid: string
  typ: 'access'
}

declare module '@fastify/jwt' {
  interface FastifyJWT {
    payload: AccessToken
    /** Set on every route that is not public. */
    user: Caller
  }
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Open to everybody; all other routes want an access token. */
    public?: boolean
    /** The roles that may call; everybody of the workspace when absent. */
    roles?: readonly Role[]
  }
  interface FastifyInstance {
    /** Who sent this request: undefined without an access token that is valid now. */
    identify(request: FastifyRequest): Promise<Caller | undefined>
    /** An access token for a person, bound to a family of refresh tokens: it dies with it. */
    signAccessToken(profileId: string, family: string): string
  }
}

/** Access tokens are short-lived: what they grant is looked up anew with each request, who they name is not. */
export const accessTokenSeconds = 15 * 60
const issuer = 'awfar'
const audience = 'awfar-api'

/**
 * Private by default: every route answers 401 without a valid access token, unless its config says `public: true`.
 * The person is looked up with each request, so that a removal, another role or a logout holds at once.
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

    app.decorate('signAccessToken', (profileId: string, family: string) =>
      app.jwt.sign({ sub: profileId, sid: family, typ: 'access' }),
    )
    app.decorate('identify', async ({ headers }: FastifyRequest) => {
      const token = verify(headers.authorization)
      if (!token) return undefined
      const profile = await findSignedIn(app.sql, token.sub, token.sid)
      return profile && { ...profile, family: token.sid }
    })

    // First who it is: the rate limiter, whose hook comes after this one, counts per person.
    app.addHook('onRequest', async (request) => {
      if (request.routeOptions.config.public) return
      const caller = await app.identify(request)
      if (caller) request.user = caller
    })
    // Then, when the attempt has been counted and before the body is read, whether they may.
    app.addHook('preParsing', async ({ user, is404, routeOptions: { config } }) => {
      if (config.public || is404) return
      if (!user) throw unauthorized()
      if (config.roles && !config.roles.includes(user.role)) {
        throw new AppError(403, 'FORBIDDEN', `This is for ${config.roles.join(' and ')} only.`)
      }
    })

    function verify(authorization = ''): AccessToken | undefined {
      const [, token] = /^Bearer ([\w-]+\.[\w-]+\.[\w-]+)$/i.exec(authorization) ?? []
      if (token === undefined) return undefined
      try {
        const claims = app.jwt.verify<AccessToken>(token)
        return claims.typ === 'access' ? claims : undefined
      } catch {
        return undefined
      }
    }
  },
  { name: 'auth', dependencies: ['errors'] },
)

export const unauthorized = () =>
  new AppError(401, 'UNAUTHORIZED', 'The access token is missing, wrong or expired: sign in.')
