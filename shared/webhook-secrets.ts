import { createHmac, randomBytes } from 'node:crypto'

const form = /^whsec_(.+)$/

export const newSecret = () => `whsec_${randomBytes(32).toString('base64')}`

/**
 * The bytes of a secret as Standard Webhooks writes it, `whsec_` and the base64 of 24 to 64 bytes; undefined when it is none. Padding and all must be right: not every
 * consumer's library reads what ours would.
 */
export function secretBytes(secret: string): Buffer | undefined {
  const [, text = ''] = form.exec(secret) ?? []
  const bytes = Buffer.from(text, 'base64')
  const isWhole = bytes.toString('base64') === text
  return isWhole && bytes.length >= 24 && bytes.length <= 64 ? bytes : undefined
}

/** The headers of a delivery as Standard Webhooks wants them: signed with each of the secrets, so that one may take the other's place. */
export function signatureHeaders(
  secrets: Buffer[],
  id: string,
  seconds: number,
  body: string,
): Record<string, string> {
  const signatures = secrets.map((secret) => {
    const signature = createHmac('sha256', secret).update(`${id}.${seconds}.${body}`)
    return `v1,${signature.digest('base64')}`
  })
  return {
    'webhook-id': id,
    'webhook-timestamp': String(seconds),
    'webhook-signature': signatures.join(' '),
  }
}
