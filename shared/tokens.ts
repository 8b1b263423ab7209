import { createHash, randomBytes } from 'node:crypto'

/** A secret nobody can guess: 32 random bytes. */
export const newToken = () => randomBytes(32).toString('base64url')

/** What is stored of such a secret. It cannot be guessed, so a plain hash keeps it. */
export const hashToken = (token: string) => createHash('sha256').update(token).digest()
