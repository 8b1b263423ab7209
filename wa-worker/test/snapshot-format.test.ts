import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import tar from 'tar-stream'
import type { Pack } from 'tar-stream'
import { Decrypt, Encrypt, packFolder, SnapshotBroken, unpack } from '../snapshot-format.ts'
import { filesOf } from './vault-rig.ts'

type Entry = Parameters<Pack['entry']>[0]

const dataKey = Buffer.alloc(32, 7)

/** A compressed tar with one entry, as somebody with bad intentions would make it. */
async function archiveOf(header: Entry, text = 'x'): Promise<Readable> {
  const archive = tar.pack()
  if (header.type === undefined || header.type === 'file') archive.entry(header, text)
  else archive.entry(header)
  archive.finalize()
  return Readable.from([gzipSync(await buffer(archive))])
}

await t.test('what an archive must not hold is refused before it is written', async (t) => {
  const folder = join(t.testdir(), 'in', 'here')
  mkdirSync(folder, { recursive: true })
  const bad: Entry[] = [
    { name: '../outside' },
    { name: 'a/../../outside' },
    { name: '/tmp/awfar-outside' },
    { name: 'a/./b' },
    { name: 'a//b' },
    { name: 'a\\..\\b' },
    { name: 'link', type: 'symlink', linkname: '/etc/passwd' },
    { name: 'link', type: 'link', linkname: '/etc/passwd' },
    { name: 'pipe', type: 'fifo' },
    { name: 'device', type: 'character-device', devmajor: 1, devminor: 3 },
    { name: '../outside', type: 'directory' },
  ]
  for (const header of bad) {
    const what = `${header.type ?? 'file'} ${header.name}`
    await t.rejects(unpack(await archiveOf(header), { folder }), SnapshotBroken, what)
  }
  t.notOk(existsSync(join(folder, '../outside')))
  t.notOk(existsSync('/tmp/awfar-outside'))
  t.same([...filesOf(folder)], [])
})

await t.test('more than was stored, or the same twice, is refused', async (t) => {
  const folder = t.testdir()
  const large = await archiveOf({ name: 'a' }, 'x'.repeat(10_000))
  await t.rejects(unpack(large, { folder, limit: { files: 1, bytes: 9_999 } }), SnapshotBroken)
  const archive = tar.pack()
  archive.entry({ name: 'a' }, 'one')
  archive.entry({ name: 'a' }, 'two')
  archive.finalize()
  const twice = gzipSync(await buffer(archive))
  await t.rejects(unpack(Readable.from([twice]), { folder }))
  const limit = { files: 1, bytes: 100 }
  await t.rejects(unpack(Readable.from([twice]), { limit }), SnapshotBroken)
})

await t.test('an archive that is no archive, or half of one, is refused', async (t) => {
  const whole = await buffer(await archiveOf({ name: 'a' }, 'x'.repeat(5_000)))
  const broken = {
    nothing: Buffer.alloc(0),
    noise: Buffer.from('this is no gzip'),
    half: whole.subarray(0, whole.length >> 1),
    'no tar': gzipSync(Buffer.alloc(2_000, 'z')),
  }
  for (const [what, bytes] of Object.entries(broken)) {
    const unpacked = unpack(Readable.from([bytes]), {}).then(({ files }) => {
      if (files === 0) throw new SnapshotBroken('empty')
    })
    await t.rejects(unpacked, SnapshotBroken, what)
  }
})

await t.test('names in any script and files of any size come back', async (t) => {
  const folder = t.testdir({ from: {}, to: {} })
  const from = join(folder, 'from')
  const long = 'd'.repeat(90)
  mkdirSync(join(from, long, long), { recursive: true })
  const files = new Map([
    [`${long}/${long}/${'f'.repeat(90)}`, 'deep'],
    ['empty', ''],
    ['ñ ☀️.txt', 'sun'],
    ['odd', 'x'.repeat(511)],
    ['whole', 'x'.repeat(512)],
  ])
  for (const [path, text] of files) writeFileSync(join(from, path), text)
  const { stream, totals } = packFolder(from)
  const unpacked = await unpack(stream, { folder: join(folder, 'to') })
  t.same(unpacked, { files: files.size, bytes: 4 + 0 + 3 + 511 + 512 })
  t.same(unpacked, totals)
  t.same(filesOf(join(folder, 'to')), new Map([...files].sort(([a], [b]) => (a < b ? -1 : 1))))
})

await t.test('a folder that goes away while it is packed fails the stream', async (t) => {
  const { stream } = packFolder(join(t.testdir(), 'not-there'))
  await t.rejects(buffer(stream), { code: 'ENOENT' })
})

await t.test('a stream decrypts however it is cut into pieces', async (t) => {
  const plain = Buffer.from('some text that is longer than a tag')
  const sealed = await buffer(Readable.from([plain]).pipe(new Encrypt(dataKey, 'a')))
  for (const length of [1, 3, 16, 17, sealed.length]) {
    const pieces: Buffer[] = []
    for (let at = 0; at < sealed.length; at += length) pieces.push(sealed.subarray(at, at + length))
    t.same(await buffer(Readable.from(pieces).pipe(new Decrypt(dataKey, 'a'))), plain)
  }
  const open = (bytes: Buffer, key = dataKey, context = 'a') =>
    buffer(Readable.from([bytes]).pipe(new Decrypt(key, context)))
  await t.rejects(open(sealed, Buffer.alloc(32, 8)), SnapshotBroken)
  await t.rejects(open(sealed, dataKey, 'b'), SnapshotBroken)
  await t.rejects(open(sealed.subarray(0, 30)), SnapshotBroken)
  await t.rejects(open(Buffer.alloc(0)), SnapshotBroken)
})

await t.test('no nonce and no ciphertext comes twice', async (t) => {
  const nonces = new Set<string>()
  for (let n = 0; n < 10_000; n++) {
    const encrypt = new Encrypt(dataKey, 'a')
    nonces.add((encrypt.read() as Buffer).subarray(8, 20).toString('hex'))
    encrypt.destroy()
  }
  t.equal(nonces.size, 10_000)
})

await t.test('a reader that goes away ends the packing', async (t) => {
  const folder = t.testdir({ large: 'x'.repeat(3_000_000) })
  const { stream } = packFolder(folder)
  const reader = new PassThrough()
  stream.pipe(reader)
  await new Promise((resolve) => reader.once('data', resolve))
  stream.destroy()
  t.ok(stream.destroyed)
})
