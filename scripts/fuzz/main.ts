/**
 * npm run fuzz [-- --seed N --share 0.1 --only name]: throws random input at whatever reads input. Nothing may crash, answer 5xx or hang. What once
 * failed is kept in corpus/ and tried first. Ends with the line "N inputs, N failures".
 */
import { randomUUID } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { parseArgs } from 'node:util'
import { gzipSync } from 'node:zlib'
import fc from 'fast-check'
import { buildApp } from '../../api/app.ts'
import { apiSchema } from '../../api/config.ts'
import type { ApiConfig } from '../../api/config.ts'
import { isAddressOrSubnet } from '../../shared/api-keys.ts'
import { readEnv } from '../../shared/config.ts'
import { connect } from '../../shared/db.ts'
import { openDatabase } from '../../shared/embedded-postgres.ts'
import { AppError, errorText } from '../../shared/errors.ts'
import { KeyRing } from '../../shared/key-ring.ts'
import { createLogger } from '../../shared/logger.ts'
import { migrate } from '../../shared/migrations.ts'
import { eventId, parseEventId } from '../../shared/events.ts'
import { decodeCursor, encodeCursor, numberKey, uuidKey } from '../../shared/pagination.ts'
import { createProfile } from '../../shared/profiles.ts'
import { root } from '../../shared/root.ts'
import { parseRecipient } from '../../shared/wa-id.ts'
import { hostOf, isPublicAddress } from '../../shared/webhook-address.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import { Decrypt, SnapshotBroken, unpack } from '../../wa-worker/snapshot-format.ts'

/** One reader of input: what to throw at it, how often, and what must hold. */
interface Target {
  name: string
  runs: number
  /** Tries so many inputs, those of the corpus first. */
  fuzz: (numRuns: number, corpus: unknown[]) => Promise<Outcome>
}

interface Outcome {
  tried: number
  slowestMs: number
  /** The smallest input that fails, and how. */
  failure?: { input: unknown; why: string }
}

/** No input may keep us for longer. */
const hangMs = 10_000

const { values: options } = parseArgs({
  options: { seed: { type: 'string' }, share: { type: 'string' }, only: { type: 'string' } },
})
const seed = Number(options.seed ?? Date.now() % 2 ** 31)
const share = Number(options.share ?? 1)

const folder = await mkdtemp(join(tmpdir(), 'awfar-fuzz-'))
const log = createLogger('fuzz', { level: 'error', stdout: false })
const database = await openDatabase({ dataDir: folder }, log)
await migrate(database.url)
const sql = connect(database.url, { applicationName: 'awfar-fuzz' })
const off = { GENERAL: 'off', AUTH: 'off', MESSAGES: 'off', UPLOADS: 'off' }
const app = await buildApp({
  config: readEnv<ApiConfig>(apiSchema, {
    DATA_DIR: folder,
    JWT_SECRET: 'only-for-fuzzing-0123456789abcdef-0123456789',
    ...Object.fromEntries(Object.entries(off).map(([name, rule]) => [`RATE_LIMIT_${name}`, rule])),
  }),
  sql,
  log,
  keys: KeyRing.parse(Buffer.alloc(32, 7).toString('base64')),
  mailer: { enabled: false, send: () => {}, close: async () => {} },
})
const workspaceId = await createWorkspace(sql, 'Fuzz')
const newOwner = async () => {
  const email = `${randomUUID()}@example.com`
  const person = { workspaceId, email, fullName: 'Ada', role: 'owner', passwordHash: 'x' } as const
  return (await createProfile(sql, person)).id
}
const ownerId = await newOwner()
await newOwner()
/** A sign-in of its own for each request: some of them sign out. */
const bearer = () => `Bearer ${app.signAccessToken(ownerId, randomUUID())}`

const anyText = fc.oneof(
  fc.string(),
  fc.string({ unit: 'binary' }),
  fc.string({ unit: 'grapheme' }),
  fc.constantFrom(
    '',
    '\0',
    '__proto__',
    'constructor',
    '-1',
    '1e999',
    'null',
    "'",
    '%00',
    '%',
    '\u202e',
    '𝕏'.repeat(50),
  ),
)
const phoneLike = fc.string({
  unit: fc.constantFrom(...'0123456789+-() @.cuslidgwhatp'),
  maxLength: 40,
})
const key = fc.oneof(
  anyText,
  fc.constantFrom(
    'to',
    'message',
    'name',
    'email',
    'password',
    'fullName',
    'role',
    'scopes',
    'token',
    'code',
    'sessionId',
    'phone',
    'start',
    'allowedIps',
    'expiresAt',
    'refreshToken',
    'challengeToken',
    'transport',
    'url',
    'events',
    'secret',
    'keepHours',
  ),
)
const value = fc.oneof(
  { weight: 3, arbitrary: anyText },
  { weight: 2, arbitrary: fc.jsonValue() },
  { weight: 2, arbitrary: phoneLike },
  { weight: 1, arbitrary: fc.uuid() },
  { weight: 1, arbitrary: fc.emailAddress() },
  {
    weight: 1,
    arbitrary: fc.constantFrom(true, false, null, 0, -1, 1e308, [], {}, 'owner', 'cookie', [
      'read',
    ]),
  },
)
const routes = app.routeTable.filter(
  ({ url, method }) =>
    method !== 'HEAD' &&
    !url.startsWith('/documentation') &&
    !url.endsWith('pairing-code') &&
    // It does not end.
    url !== '/api/events',
)
const request = fc.record({
  route: fc.constantFrom(...routes.map(({ method, url }) => `${method} ${url}`)),
  ids: fc.array(fc.oneof(anyText, fc.uuid()), { minLength: 1, maxLength: 2 }),
  query: fc.dictionary(
    fc.oneof(
      anyText,
      fc.constantFrom('limit', 'cursor', 'search', 'unread', 'format', 'action', 'from', 'offset'),
    ),
    fc.oneof(anyText, fc.integer().map(String)),
    { maxKeys: 3 },
  ),
  body: fc.oneof(
    {
      weight: 6,
      arbitrary: fc.dictionary(key, value, { maxKeys: 6 }).map((body) => JSON.stringify(body)),
    },
    { weight: 1, arbitrary: fc.json() },
    { weight: 1, arbitrary: anyText },
  ),
  type: fc.oneof(
    { weight: 9, arbitrary: fc.constant('application/json') },
    { weight: 1, arbitrary: fc.constantFrom('text/plain', 'application/json; charset=x', '') },
  ),
  signedIn: fc.boolean(),
})

/** The beginnings of files that are taken, so that some get further than the first look. */
const beginning = fc.constantFrom(
  Buffer.alloc(0),
  Buffer.from('%PDF-1.4\n'),
  Buffer.from('text'),
  Buffer.from('GIF89a'),
  Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
  Buffer.from([0xff, 0xd8, 0xff]),
  Buffer.from('OggS'),
  Buffer.from('PK\x03\x04'),
  Buffer.from([0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1]),
  Buffer.from('\0\0\0\x18ftypmp42'),
)
const part = fc
  .record({
    name: fc.oneof({ weight: 6, arbitrary: fc.constant('file') }, anyText),
    filename: fc.option(anyText),
    type: fc.option(fc.oneof(anyText, fc.constantFrom('image/jpeg', 'application/json'))),
    beginning,
    rest: fc.uint8Array({ maxLength: 500 }),
  })
  .map(({ name, filename, type, beginning, rest }) => {
    const disposition = `form-data; name="${name}"${filename === null ? '' : `; filename="${filename}"`}`
    const head = `--x\r\ncontent-disposition: ${disposition}\r\n${type === null ? '' : `content-type: ${type}\r\n`}\r\n`
    return Buffer.concat([Buffer.from(head), beginning, rest, Buffer.from('\r\n')])
  })
/** A form, often with something cut off or changed. */
const form = fc.record({
  type: fc.oneof(
    { weight: 9, arbitrary: fc.constant('multipart/form-data; boundary=x') },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        'multipart/form-data',
        'multipart/form-data; boundary=',
        'multipart/form-data; boundary="x"; charset=utf-16',
        'multipart/mixed; boundary=x',
      ),
    },
  ),
  body: fc
    .record({
      parts: fc.array(part, { maxLength: 3 }),
      kept: fc.oneof({ weight: 3, arbitrary: fc.constant(1) }, fc.double({ min: 0, max: 1 })),
      changes: fc.array(fc.tuple(fc.nat(4_000), fc.nat(255)), { maxLength: 2 }),
    })
    .map(({ parts, kept, changes }) => {
      const whole = Buffer.concat([...parts, Buffer.from('--x--\r\n')])
      for (const [at, byte] of changes) if (at < whole.length) whole[at] = byte
      return whole.subarray(0, Math.ceil(whole.length * kept)).toString('base64')
    }),
})

const cursorLike = fc.oneof(
  anyText,
  fc.base64String(),
  fc
    .tuple(anyText, anyText)
    .map((parts) => Buffer.from(JSON.stringify(parts)).toString('base64url')),
  fc.json().map((text) => Buffer.from(text).toString('base64url')),
  fc
    .tuple(fc.date({ noInvalidDate: true }), fc.uuid())
    .map(([at, key]) =>
      encodeCursor({ at: at.toISOString().replace('T', ' ').replace('Z', '+00'), key }),
    ),
)

/** An archive of our own with some bytes changed, or no archive at all. */
const sound = gzipSync(Buffer.alloc(4_096, 7))
const damaged = fc
  .oneof(
    fc.uint8Array({ maxLength: 2_000 }).map((bytes) => Buffer.from(bytes)),
    fc.uint8Array({ maxLength: 2_000 }).map((bytes) => gzipSync(bytes)),
    fc.array(fc.tuple(fc.nat(sound.length - 1), fc.nat(255)), { maxLength: 5 }).map((changes) => {
      const bytes = Buffer.from(sound)
      for (const [at, byte] of changes) bytes[at] = byte
      return bytes
    }),
  )
  .map((bytes) => bytes.toString('base64'))

/** A URL cannot hold half a character. */
const wellFormed = (text: string) => Buffer.from(text, 'utf8').toString('utf8')

const targets: Target[] = [
  target('recipients', 80_000, fc.oneof(anyText, phoneLike), (to) => {
    const waId = parseRecipient(to)
    if (waId !== undefined && !/^\d+(-\d+)?@(c\.us|g\.us|lid)$/.test(waId)) throw new Error(waId)
  }),
  target('cursors', 70_000, cursorLike, (text) => {
    for (const pattern of [uuidKey, numberKey]) {
      try {
        const { at, key } = decodeCursor(text, pattern)
        if (Number.isNaN(Date.parse(at.replace(' ', 'T').replace(/([+-]\d\d)$/, '$1:00'))))
          throw new Error(at)
        if (!pattern.test(key)) throw new Error(key)
      } catch (error) {
        if (!(error instanceof AppError && error.statusCode === 400)) throw error
      }
    }
  }),
  target(
    'addresses',
    30_000,
    fc.oneof(
      anyText,
      fc.ipV4(),
      fc.ipV6(),
      fc.tuple(fc.ipV6(), fc.nat(200)).map(([ip, bits]) => `${ip}/${bits}`),
    ),
    (text) => {
      isAddressOrSubnet(text)
    },
  ),
  target(
    'event ids',
    20_000,
    fc.oneof(
      anyText,
      fc.uuid(),
      fc.record({ tx: fc.maxSafeNat(), id: fc.maxSafeNat() }).map(eventId),
    ),
    (text) => {
      const position = parseEventId(text)
      if (position && eventId(position) !== text.toLowerCase()) throw new Error(text)
    },
  ),
  target(
    'webhook urls',
    30_000,
    fc.oneof(
      anyText,
      fc.webUrl({ withFragments: true, withQueryParameters: true }),
      fc.ipV4Extended().map((ip) => `http://${ip}/`),
      fc.ipV6().map((ip) => `http://[${ip}]/`),
    ),
    (text) => {
      if (!URL.canParse(text)) return
      const host = hostOf(new URL(text))
      if (isPublicAddress(host) && isIP(host) === 0) throw new Error(host)
    },
  ),
  target('http', 16_000, request, async ({ route, ids, query, body, type, signedIn }) => {
    const [method, url] = route.split(' ') as ['GET' | 'POST', string]
    let next = 0
    const path = url.replaceAll(/:\w+/g, () =>
      encodeURIComponent(wellFormed(ids[next++ % ids.length] ?? '') || 'x'),
    )
    const search = new URLSearchParams(query).toString()
    const answer = await app.inject({
      method,
      url: `${path}${search && `?${search}`}`,
      headers: {
        ...(signedIn && { authorization: bearer() }),
        ...(method !== 'GET' && type !== '' && { 'content-type': type }),
      },
      ...(method !== 'GET' && { payload: body }),
    })
    // 503: bcrypt's queue is full, or no worker is there for /health/ready.
    if (answer.statusCode >= 500 && answer.statusCode !== 503)
      throw new Error(`${answer.statusCode}`)
  }),
  target('multipart', 5_000, form, async ({ type, body }) => {
    const answer = await app.inject({
      method: 'POST',
      url: '/api/upload/media',
      headers: { authorization: bearer(), 'content-type': type },
      payload: Buffer.from(body, 'base64'),
    })
    if (answer.statusCode >= 500) throw new Error(`${answer.statusCode}`)
    const temporary = await readdir(join(folder, 'tmp', 'media')).catch(() => [])
    if (temporary.length > 0) throw new Error(`${temporary.length} temporary files are left`)
  }),
  target('snapshots', 4_000, damaged, async (base64) => {
    const bytes = Buffer.from(base64, 'base64')
    const refused = await unpack(Readable.from([bytes]), {
      folder: join(folder, 'out'),
      limit: { files: 5, bytes: 10_000 },
    }).then(
      () => undefined,
      (error: unknown) => error,
    )
    if (refused !== undefined && !(refused instanceof Error)) throw new Error('not an error')
    const decrypt = new Decrypt(Buffer.alloc(32, 7), 'a')
    const opened = await Readable.from([bytes])
      .pipe(decrypt)
      .toArray()
      .then(
        () => true,
        () => false,
      )
    if (opened) throw new SnapshotBroken('random bytes were taken for a snapshot of ours')
  }),
]

function target<T>(
  name: string,
  runs: number,
  inputs: fc.Arbitrary<T>,
  check: (input: T) => void | Promise<void>,
): Target {
  return {
    name,
    runs,
    async fuzz(numRuns, corpus) {
      let slowestMs = 0
      const property = fc.asyncProperty(inputs, async (input) => {
        const begun = performance.now()
        await check(input)
        slowestMs = Math.max(slowestMs, performance.now() - begun)
      })
      const examples = corpus.map((input): [T] => [input as T])
      const result = await fc.check(property, { seed, numRuns, timeout: hangMs, examples })
      const [input] = result.counterexample ?? []
      const why = errorText(result.errorInstance)
      return {
        tried: result.numRuns,
        slowestMs,
        ...(result.failed && { failure: { input, why } }),
      }
    },
  }
}

let total = 0
let failures = 0
console.log(`seed ${seed}`)
for (const { name, runs, fuzz } of targets) {
  if (options.only !== undefined && options.only !== name) continue
  const file = join(root, 'scripts', 'fuzz', 'corpus', `${name}.json`)
  const corpus = existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as unknown[]) : []
  const started = performance.now()
  const { tried, slowestMs, failure } = await fuzz(Math.max(1, Math.round(runs * share)), corpus)
  total += tried
  const took = `${Math.round((performance.now() - started) / 1_000)} s`
  console.log(`${name}: ${tried} inputs in ${took}, slowest ${Math.round(slowestMs)} ms`)
  if (!failure) continue
  failures += 1
  console.log(`  FAILED: ${failure.why}\n  ${JSON.stringify(failure.input)}`)
  await writeFile(file, `${JSON.stringify([...corpus, failure.input], null, 2)}\n`)
}
console.log(`${total} inputs, ${failures} failures`)
process.exitCode = failures === 0 ? 0 : 1

await app.close()
await sql.close()
await database.release()
await rm(folder, { recursive: true, force: true })
