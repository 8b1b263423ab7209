import { randomBytes, scrypt } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { link, open, rm, stat } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import Joi from 'joi'
import { Decrypt, Encrypt, SnapshotBroken, unpack } from '../wa-worker/snapshot-format.ts'

/** What an exported login says of itself, in the clear. It is proven by the decryption. */
export interface LoginHead {
  engine: string
  name: string
  takenAt: Date
}

/** A file is a line of JSON with the head and a salt, then an encrypted snapshot whose context is that very line. */
const format = 'awfar-login-1'
const headLimit = 4_096
const firstLine = Joi.object<LoginHead & { format: string; salt: string }, true>({
  format: Joi.string().valid(format).required(),
  engine: Joi.string().required(),
  name: Joi.string().required(),
  takenAt: Joi.date().required(),
  salt: Joi.string().base64().required(),
}).required()

/** Makes each guess at a passphrase cost some tenths of a second and 128 MB. */
const cost = { N: 2 ** 17, r: 8, p: 1, maxmem: 256 * 2 ** 20 }

/** Throws when something is there: asked before anybody types a passphrase. */
export async function mustBeNew(file: string): Promise<void> {
  const there = await stat(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
  if (there) throw new Error(`${file} is there already, and is not replaced (EEXIST).`)
}

/** Writes a login to a new file, encrypted. The file is there as a whole or not at all, and never replaces one. */
export async function writeLogin(
  file: string,
  passphrase: string,
  head: LoginHead,
  contents: Readable,
): Promise<void> {
  const draft = `${file}.${randomBytes(4).toString('hex')}`
  const salt = randomBytes(16).toString('base64')
  const line = JSON.stringify({ format, ...head, salt })
  const handle = await open(draft, 'wx', 0o600)
  try {
    await handle.writeFile(`${line}\n`)
    const encrypt = new Encrypt(await derive(passphrase, salt), line)
    await pipeline(contents, encrypt, async (encrypted: AsyncIterable<Buffer>) => {
      for await (const chunk of encrypted) await handle.writeFile(chunk)
    })
    await handle.sync()
    await link(draft, file)
  } finally {
    contents.destroy()
    await handle.close()
    await rm(draft, { force: true })
  }
}

/** The contents of a file that writeLogin made, read to the end and proven before they are given. */
export async function readLogin(file: string, passphrase: string): Promise<Readable> {
  const { line, salt } = await readFirst(file)
  const key = await derive(passphrase, salt)
  const decrypted = () => {
    const source = createReadStream(file, { start: Buffer.byteLength(line) + 1 })
    const decrypt = new Decrypt(key, line)
    pipeline(source, decrypt).catch(() => {}) // reaches the reader of decrypt
    return decrypt
  }
  try {
    await unpack(decrypted(), {})
  } catch (error) {
    if (!(error instanceof SnapshotBroken)) throw error
    throw new Error(`${file} does not open: the passphrase is wrong, or the file was altered.`, {
      cause: error,
    })
  }
  return decrypted()
}

export async function readHead(file: string): Promise<LoginHead> {
  return (await readFirst(file)).head
}

/** The first line of the file, and what it says. */
async function readFirst(file: string): Promise<{ line: string; head: LoginHead; salt: string }> {
  const line = await readLine(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'EISDIR') return ''
    throw error
  })
  const said = firstLine.validate(parsed(line))
  if (said.error) throw new Error(`${file} is no exported login.`)
  const { salt, engine, name, takenAt } = said.value
  return { line, head: { engine, name, takenAt }, salt }
}

async function readLine(file: string): Promise<string> {
  const handle = await open(file, 'r')
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(headLimit), 0, headLimit, 0)
    const end = buffer.subarray(0, bytesRead).indexOf('\n')
    return buffer.subarray(0, Math.max(0, end)).toString('utf8')
  } finally {
    await handle.close()
  }
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}

function derive(passphrase: string, salt: string): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    scrypt(passphrase.normalize('NFKC'), Buffer.from(salt, 'base64'), 32, cost, (error, key) =>
      error ? reject(error) : resolve(key),
    )
  })
}
