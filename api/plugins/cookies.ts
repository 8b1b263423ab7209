import { createHmac, timingSafeEqual } from 'node:crypto'
import cookie from '@fastify/cookie'
import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { AppError } from '../../shared/errors.ts'
import { refreshDays } from '../../shared/refresh-tokens.ts'
import type { IssuedToken } from '../../shared/refresh-tokens.ts'
import type { ApiConfig } from '../config.ts'

/** How a person's tokens travel: in the body and the Authorization header, or in cookies scripts cannot read. */
export type Transport = 'bearer' | 'cookie'

// __Host-: set by this very host over a safe connection, for all paths; a neighbour under the same domain cannot plant one. Browsers
// count http://localhost and http://127.0.0.1 as safe.
export const accessCookie = '__Host-access'
export const refreshCookie = '__Host-refresh'
/** Readable: the page takes the token for X-CSRF-Token from here. */
export const csrfCookie = 'csrf'

/** Reads cookies. */
export default fp(
  async function cookies(app) {
    await app.register(cookie)
  },
  { name: 'cookies' },
)

/** Hands a sign-in to a browser. Answers the CSRF token that goes with it. */
export function setCookies(
  reply: FastifyReply,
  { COOKIE_SAME_SITE: sameSite, JWT_SECRET }: ApiConfig,
  accessToken: string,
  accessSeconds: number,
  { token, family }: IssuedToken,
): string {
  const common = { path: '/', secure: true, sameSite }
  const refreshSeconds = refreshDays * 86_400
  const csrf = csrfToken(JWT_SECRET, family)
  reply.setCookie(accessCookie, accessToken, { ...common, httpOnly: true, maxAge: accessSeconds })
  reply.setCookie(refreshCookie, token, { ...common, httpOnly: true, maxAge: refreshSeconds })
  reply.setCookie(csrfCookie, csrf, { ...common, maxAge: refreshSeconds })
  return csrf
}

/** Signs a browser out: all of its cookies go. */
export function clearCookies(reply: FastifyReply, { COOKIE_SAME_SITE: sameSite }: ApiConfig): void {
  for (const name of [accessCookie, refreshCookie, csrfCookie]) {
    reply.clearCookie(name, { path: '/', secure: true, sameSite })
  }
}

/**
 * Refuses a call that changes something when it does not carry the CSRF token of the sign-in its cookies belong to: a page of
 * somebody else can make a browser send the cookies, and cannot read the token. Throws 403 CSRF_INVALID.
 */
export function assertCsrf(
  { JWT_SECRET }: ApiConfig,
  { method, headers }: FastifyRequest,
  family: string | null,
): void {
  if (method === 'GET' || method === 'HEAD' || method === 'OPTIONS') return
  const given = headers['x-csrf-token']
  const expected = csrfToken(JWT_SECRET, family ?? '')
  if (typeof given === 'string' && family !== null) {
    const [a, b] = [Buffer.from(given), Buffer.from(expected)]
    if (a.length === b.length && timingSafeEqual(a, b)) return
  }
  throw new AppError(
    403,
    'CSRF_INVALID',
    'Send the CSRF token of this sign-in, which is in the cookie "csrf", as X-CSRF-Token.',
  )
}

/** Bound to the sign-in: the token of another one, planted in a browser, is worth nothing. */
export const csrfToken = (secret: string, family: string) =>
  createHmac('sha256', secret).update(`csrf\n${family}`).digest('base64url')
