import { createHmac, hkdfSync, timingSafeEqual } from 'node:crypto'
import { AppError } from '../shared/errors.ts'

/** What a URL lets somebody do. */
export type UrlUse = 'read' | 'thumbnail' | 'put'

export interface SignedFor {
  use: UrlUse
  workspaceId: string
  mediaId: string
}

export interface Signature {
  /** Seconds since 1970, as they stand in the URL. */
  expires: string
  signature: string
}

export interface UrlSigner {
  /** The parts of a URL that let its holder do one thing with one file until `seconds` are over. */
  sign(what: SignedFor, seconds: number): Signature & { expiresAt: Date }
  /** Throws 403 URL_INVALID when these were not signed for this, 403 URL_EXPIRED when their time is over. */
  verify(what: SignedFor, given: Signature): void
}

/**
 * Signs the URLs under which the API itself serves and takes files. Its key is derived from JWT_SECRET for this use only, so neither can a token
 * pass for a signature nor the other way round.
 */
export function createUrlSigner(jwtSecret: string, now = () => Date.now()): UrlSigner {
  const key = Buffer.from(hkdfSync('sha256', jwtSecret, '', 'awfar media urls v1', 32))
  const mac = ({ use, workspaceId, mediaId }: SignedFor, expires: string) =>
    createHmac('sha256', key)
      .update([use, workspaceId, mediaId, expires].join('\n'))
      .digest('base64url')

  return {
    sign(what, seconds) {
      const expires = Math.floor(now() / 1_000) + seconds
      const signature = mac(what, String(expires))
      return { expires: String(expires), signature, expiresAt: new Date(expires * 1_000) }
    },
    verify(what, { expires, signature }) {
      // As text: several base64 texts stand for the same bytes.
      const right = Buffer.from(mac(what, expires))
      const given = Buffer.from(signature)
      if (given.length !== right.length || !timingSafeEqual(given, right)) {
        throw new AppError(403, 'URL_INVALID', 'The URL was not made by us, or was changed.')
      }
      if (now() >= Number(expires) * 1_000) {
        throw new AppError(403, 'URL_EXPIRED', 'The URL has expired: ask for a new one.')
      }
    },
  }
}
