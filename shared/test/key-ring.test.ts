import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { inspect } from 'node:util'
import t from 'tap'
import { ConfigError } from '../config.ts'
import { KeyRing, openKeyRing, SealBroken, UnknownKey } from '../key-ring.ts'
import { root } from '../root.ts'

const value = (byte: number) => Buffer.alloc(32, byte).toString('base64')
const secret = Buffer.from('a data key')

await t.test('the first key seals, each of them opens, in the same context only', async (t) => {
  const old = KeyRing.parse(value(1))
  t.equal(old.current, 'k1')
  const sealed = old.seal(secret, 'here')
  const both = KeyRing.parse(` 2026:${value(2)} , k1:${value(1)}`)
  t.same([both.current, both.ids], ['2026', ['2026', 'k1']])
  t.same(both.open(sealed, 'here'), secret)
  t.same(both.seal(secret, 'here').keyId, '2026')
  t.throws(() => old.open(sealed, 'there'), SealBroken)
  t.throws(() => KeyRing.parse(value(3)).open(sealed, 'here'), SealBroken)
  t.throws(() => KeyRing.parse(`k2:${value(1)}`).open(sealed, 'here'), UnknownKey)
  t.throws(
    () => KeyRing.parse(`k1:${value(1)},k2:${value(1)}`).open({ ...sealed, keyId: 'k2' }, 'here'),
    SealBroken,
  )
  for (const box of ['', 'AAAA', sealed.box.slice(0, -4), `A${sealed.box.slice(1)}`]) {
    if (box !== sealed.box) t.throws(() => old.open({ ...sealed, box }, 'here'), SealBroken)
  }
})

await t.test('a nonce is used once', async (t) => {
  const ring = KeyRing.parse(value(1))
  const nonces = new Set<string>()
  for (let n = 0; n < 100_000; n++) nonces.add(ring.seal(secret, '').box.slice(0, 16))
  t.equal(nonces.size, 100_000)
})

await t.test('a wrong value is one sentence that quotes nothing', async (t) => {
  const short = Buffer.alloc(31, 5).toString('base64')
  const wrong = [
    '',
    ',',
    short,
    `k1:${short}`,
    `k1:${value(1)},`,
    `${value(1)},${value(2)}`,
    `a b:${value(1)}`,
    `:${value(1)}`,
    `k1:${value(1)}x`,
    `k1:${'!'.repeat(43)}=`,
  ]
  for (const text of wrong) {
    const error = thrown(() => KeyRing.parse(text))
    t.ok(error instanceof ConfigError, text)
    t.match(error.message, /^Wrong settings: entry \d of SESSION_ENCRYPTION_KEY /)
    t.notMatch(error.message, short)
    t.notMatch(error.message, value(1))
  }
})

await t.test('keys are never printed', async (t) => {
  const ring = KeyRing.parse(`k1:${value(0x41)}`)
  const printed = [inspect(ring, { depth: 9, showHidden: true }), JSON.stringify(ring)]
  for (const text of printed) t.notMatch(text, /QUFB|AAAA|41 41|4141/)
})

await t.test('without a value a key is made once, for this machine', async (t) => {
  const dataDir = join(t.testdir(), 'data')
  const open = (text?: string) => openKeyRing({ value: text, dataDir, production: false })
  const rings = await Promise.all(Array.from({ length: 20 }, () => open()))
  t.match(rings[0]!.current, /^local-[0-9a-f]{8}$/)
  const sealed = rings[0]!.seal(secret, 'x')
  for (const ring of rings) t.same(ring.open(sealed, 'x'), secret)
  t.same(readdirSync(dataDir), ['session-encryption.key'])
  t.equal(statSync(join(dataDir, 'session-encryption.key')).mode & 0o777, 0o600)

  const later = await open(value(1))
  t.equal(later.current, 'k1')
  t.same(later.open(sealed, 'x'), secret, 'what it sealed stays readable once a value is set')
  const elsewhere = await openKeyRing({
    value: undefined,
    dataDir: join(dataDir, 'b'),
    production: false,
  })
  t.not(elsewhere.current, rings[0]!.current, 'another machine’s key has another name')

  writeFileSync(join(dataDir, 'session-encryption.key'), '')
  await t.rejects(open(), { message: /session-encryption.key holds no key/ })
})

await t.test('processes that start at once get the same key', async (t) => {
  const dataDir = join(t.testdir(), 'data')
  const code = `
    import { openKeyRing } from './shared/key-ring.ts'
    const ring = await openKeyRing({ value: undefined, dataDir: process.argv[1], production: false })
    process.stdout.write(ring.current)`
  const names = await Promise.all(
    Array.from({ length: 4 }, async () => {
      const args = ['--import', 'tsx', '--input-type=module', '--eval', code, dataDir]
      const child = spawn(process.execPath, args, {
        cwd: root,
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      const [name] = await Promise.all([text(child.stdout), once(child, 'exit')])
      return name
    }),
  )
  t.equal(new Set(names).size, 1)
  t.match(
    readFileSync(join(dataDir, 'session-encryption.key'), 'utf8'),
    new RegExp(`^${names[0]}:`),
  )
})

await t.test('in production a missing value stops the process', async (t) => {
  const dataDir = t.testdir()
  mkdirSync(join(dataDir, 'x'))
  const missing = openKeyRing({ value: undefined, dataDir, production: true })
  t.ok((await missing.catch((error: unknown) => error)) instanceof ConfigError)
  await t.rejects(missing, {
    message: /SESSION_ENCRYPTION_KEY is missing.*openssl rand -base64 32/,
  })
  t.same(readdirSync(dataDir), ['x'])
  t.equal((await openKeyRing({ value: value(1), dataDir, production: true })).current, 'k1')
})

function thrown(work: () => unknown): Error {
  try {
    work()
  } catch (error) {
    return error as Error
  }
  return new Error('nothing was thrown')
}
