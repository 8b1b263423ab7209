import { createHash, randomBytes } from 'node:crypto'

export interface StoredMedia {
  bytes: Buffer
  /** Hexadecimal. */
  sha256: string
}

/** The bytes that were uploaded, by the path they are downloaded from. */
export class MediaStore {
  readonly #byPath = new Map<string, StoredMedia>()

  put(bytes: Buffer): { directPath: string; filehash: string; sha256: string } {
    const digest = createHash('sha256').update(bytes).digest()
    const directPath = `/mms/${randomBytes(12).toString('hex')}`
    const sha256 = digest.toString('hex')
    this.#byPath.set(directPath, { bytes, sha256 })
    return { directPath, filehash: digest.toString('base64'), sha256 }
  }

  get(directPath: string): StoredMedia | undefined {
    return this.#byPath.get(directPath)
  }

  /** WhatsApp keeps media for a while only: from now on it answers 404. */
  expire(directPath: string): void {
    this.#byPath.delete(directPath)
  }
}
