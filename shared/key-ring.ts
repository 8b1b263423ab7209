import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createSecretKey,
  randomBytes,
} from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import { link, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ConfigError } from './config.ts'

/** Something small that was encrypted, and the name of the key that opens it. */
export interface Sealed {
  keyId: string
  /** Nonce, ciphertext and tag, in base64. */
  box: string
}

/** What was sealed does not open: it was altered, belongs to something else, or another key has the same name. */
export class SealBroken extends Error {
  constructor(keyId: string, options?: ErrorOptions) {
    super(
      `What key "${keyId}" sealed does not open: it was altered, or the key is not the one of that name.`,
      options,
    )
    this.name = 'SealBroken'
  }
}

/** The key something was sealed with is not among the keys. Only the operator can help. */
export class UnknownKey extends Error {
  constructor(keyId: string, known: string[]) {
    super(
      `Key "${keyId}" is needed and SESSION_ENCRYPTION_KEY does not have it (it has: ${known.join(', ')}); add it behind the others.`,
    )
    this.name = 'UnknownKey'
  }
}

/** Whether a failure says that something sealed cannot be opened with the keys there are. */
export const isSealFault = (error: unknown) =>
  error instanceof UnknownKey || error instanceof SealBroken

const algorithm = 'aes-256-gcm'
const nonceLength = 12
const tagLength = 16
const keyFile = 'session-encryption.key'

/**
 * The keys of SESSION_ENCRYPTION_KEY. The first one seals; each of them opens. The keys themselves never leave this object, and no way of
 * printing it shows them.
 */
export class KeyRing {
  readonly #keys: ReadonlyMap<string, KeyObject>
  /** The name of the key that seals. */
  readonly current: string

  private constructor(keys: Map<string, KeyObject>) {
    this.#keys = keys
    this.current = [...keys.keys()][0]!
  }

  /** Reads `keyId:base64, …`; a bare base64 gets the name k1. Throws a ConfigError that says which entry is wrong and quotes none. */
  static parse(text: string): KeyRing {
    const keys = new Map<string, KeyObject>()
    text.split(',').forEach((entry, index) => {
      const place = `Wrong settings: entry ${index + 1} of SESSION_ENCRYPTION_KEY`
      const [, id = 'k1', value = ''] = /^(?:([^:]*):)?(.*)$/s.exec(entry.trim()) ?? []
      if (!/^[\w.-]{1,64}$/.test(id)) {
        throw new ConfigError(`${place} has a name that is not made of letters, digits, _ . and -.`)
      }
      if (keys.has(id)) throw new ConfigError(`${place} has the same name as one before it.`)
      const bytes = decode(value)
      if (bytes?.length !== 32) {
        throw new ConfigError(
          `${place} is not the base64 of 32 bytes; make one with: openssl rand -base64 32`,
        )
      }
      keys.set(id, createSecretKey(bytes))
    })
    return new KeyRing(keys)
  }

  get ids(): string[] {
    return [...this.#keys.keys()]
  }

  /** These keys, and behind them those of `other` whose names are free. */
  with(other: KeyRing): KeyRing {
    return new KeyRing(
      new Map([...this.#keys, ...[...other.#keys].filter(([id]) => !this.#keys.has(id))]),
    )
  }

  /** Encrypts with the first key. `context` says what it belongs to: it opens in the same context only. */
  seal(plain: Buffer, context: string): Sealed {
    const nonce = randomBytes(nonceLength)
    const cipher = createCipheriv(algorithm, this.#keys.get(this.current)!, nonce)
    cipher.setAAD(bind(context, this.current))
    const box = Buffer.concat([nonce, cipher.update(plain), cipher.final(), cipher.getAuthTag()])
    return { keyId: this.current, box: box.toString('base64') }
  }

  /** Decrypts. Throws UnknownKey or SealBroken. */
  open({ keyId, box }: Sealed, context: string): Buffer {
    const key = this.#keys.get(keyId)
    if (!key) throw new UnknownKey(keyId, this.ids)
    try {
      const bytes = Buffer.from(box, 'base64')
      const decipher = createDecipheriv(algorithm, key, bytes.subarray(0, nonceLength), {
        authTagLength: tagLength,
      })
      decipher.setAAD(bind(context, keyId))
      decipher.setAuthTag(bytes.subarray(-tagLength))
      return Buffer.concat([
        decipher.update(bytes.subarray(nonceLength, -tagLength)),
        decipher.final(),
      ])
    } catch (cause) {
      throw new SealBroken(keyId, { cause })
    }
  }
}

/**
 * The keys logins are encrypted with. Without a value one is made and kept in `dataDir`, for this machine only; in production that is
 * refused, since the loss of one disk would then take the logins and their key together. A key made earlier stays readable
 * after a value was set.
 */
export async function openKeyRing({
  value,
  dataDir,
  production,
}: {
  value: string | undefined
  dataDir: string
  production: boolean
}): Promise<KeyRing> {
  const file = join(dataDir, keyFile)
  if (value !== undefined) {
    const ring = KeyRing.parse(value)
    const made = await readIfThere(file)
    return made === undefined ? ring : ring.with(parseFile(made, file))
  }
  if (production) {
    throw new ConfigError(
      'Wrong settings: SESSION_ENCRYPTION_KEY is missing, and in production no key is made up for you. Make one with: openssl rand -base64 32, and keep a copy of it apart from the database.',
    )
  }
  return parseFile((await readIfThere(file)) ?? (await makeKey(dataDir, file)), file)
}

async function makeKey(dataDir: string, file: string): Promise<string> {
  const key = randomBytes(32)
  // Named after itself: the made-up keys of two machines must not go by the same name.
  const id = `local-${createHash('sha256').update(key).digest('hex').slice(0, 8)}`
  await mkdir(dataDir, { recursive: true, mode: 0o700 })
  const draft = `${file}.${process.pid}-${randomBytes(4).toString('hex')}`
  try {
    await writeFile(draft, `${id}:${key.toString('base64')}\n`, { mode: 0o600, flush: true })
    // Of two processes the first one wins, and neither ever reads half a key.
    await link(draft, file).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error
    })
  } finally {
    await rm(draft, { force: true })
  }
  return readFile(file, 'utf8')
}

function parseFile(text: string, file: string): KeyRing {
  try {
    return KeyRing.parse(text)
  } catch {
    throw new ConfigError(
      `${file} holds no key (any more): bring it back, or move it away, which leaves the snapshots made with it unreadable.`,
    )
  }
}

async function readIfThere(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

/** Node reads past whatever is no base64; a key must be exactly what was meant. */
function decode(text: string): Buffer | undefined {
  if (!/^[A-Za-z0-9+/_-]+={0,2}$/.test(text)) return undefined
  return Buffer.from(text, 'base64')
}

const bind = (context: string, keyId: string) => Buffer.from(`${context}\n${keyId}`)
