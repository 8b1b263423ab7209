import { once } from 'node:events'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import t from 'tap'
import { sizeLimits } from '../../shared/media-types.ts'
import type { MediaKind } from '../../shared/media-types.ts'
import { testDb } from '../../shared/test/db.ts'
import { until } from '../../shared/test/until.ts'
import { errorShape } from './app.ts'
import { fixture, mediaRig, nothingLeft, padded, pdf, picture } from './media-rig.ts'
import type { MediaRig } from './media-rig.ts'

const { sql } = await testDb(t)

const boundary = 'xxxxxxxx'
const formHead = `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="a.bin"\r\n\r\n`

/** An upload by hand, so that what is sent, and when, is known. */
async function dial({ port, person }: MediaRig, headers: string): Promise<Socket> {
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  await new Promise((resolve) => socket.once('connect', resolve))
  socket.write(
    `POST /api/upload/media HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${person.token}\r\n` +
      `content-type: multipart/form-data; boundary=${boundary}\r\n${headers}\r\n\r\n`,
  )
  return socket
}

/** What may be read of a connection before it is known that it is too much: a few buffers of 64 KB, one behind the other. */
const chunkWindow = 524_288

/** What the server answers, until it closes its half. */
function answerOf(socket: Socket): Promise<string> {
  let text = ''
  socket.on('data', (chunk: Buffer) => (text += chunk.toString()))
  return new Promise((resolve) => {
    socket.once('end', () => resolve(text))
    socket.once('close', () => resolve(text))
  })
}

/** An mp4 with a box of nothing at its end. */
function longMp4(size: number): Buffer {
  const clip = fixture('clip.mp4')
  const box = Buffer.alloc(size - clip.length)
  box.writeUInt32BE(box.length)
  box.write('free', 4)
  return Buffer.concat([clip, box])
}

/** A wav that says how long it is. */
function longWav(size: number): Buffer {
  const wav = padded(fixture('tone.wav'), size, 0x80)
  wav.writeUInt32LE(size - 8, 4)
  const data = wav.indexOf('data')
  wav.writeUInt32LE(size - data - 8, data + 4)
  return wav
}

const makers: Record<MediaKind, (size: number) => Promise<Buffer> | Buffer> = {
  image: async (size) => padded(await picture(), size),
  video: longMp4,
  document: (size) => padded(pdf, size),
  audio: longWav,
}

for (const [kind, limit] of Object.entries(sizeLimits) as [MediaKind, number][]) {
  void t.test(`${kind}: ${limit} bytes are taken, one more is not`, async (t) => {
    const { upload, call, left } = await mediaRig(t, sql)
    const refused = await upload(await makers[kind](limit + 1))
    t.match(refused.body, errorShape(413, 'FILE_TOO_LARGE'))
    t.strictSame(await left(), nothingLeft)
    const taken = await upload(await makers[kind](limit))
    t.match(taken, { status: 201, body: { kind, size: limit } })
    t.equal((await call('DELETE', `/api/upload/${taken.body.id}`)).status, 204)
    t.strictSame(await left(), nothingLeft)
  })
}

const beginnings: Record<MediaKind, Buffer> = {
  image: await picture(),
  video: fixture('clip.mp4'),
  document: pdf,
  audio: fixture('tone.wav'),
}

for (const [kind, limit] of Object.entries(sizeLimits) as [MediaKind, number][]) {
  void t.test(`${kind}: an endless upload is stopped, and its client is told`, async (t) => {
    const rig = await mediaRig(t, sql)
    const accepted = once(rig.app.server, 'connection') as Promise<[Socket]>
    const socket = await dial(rig, 'transfer-encoding: chunked')
    const [connection] = await accepted
    const answer = answerOf(socket)
    const chunk = Buffer.alloc(65_536, 0x20)
    const write = (bytes: Buffer | string) => {
      socket.write(`${bytes.length.toString(16)}\r\n`)
      socket.write(bytes)
      return socket.write('\r\n')
    }
    write(formHead)
    write(beginnings[kind])
    let open = true
    socket.once('close', () => (open = false))
    void (async () => {
      while (open) {
        if (!write(chunk))
          await Promise.race([
            new Promise((resolve) => socket.once('drain', resolve)),
            new Promise((resolve) => socket.once('close', resolve)),
          ])
        await new Promise((resolve) => setImmediate(resolve))
      }
    })()
    t.match(await answer, /^HTTP\/1\.1 413 [^]*connection: close[^]*FILE_TOO_LARGE/i)
    const beyond = connection.bytesRead - limit
    t.ok(beyond > 0 && beyond < chunkWindow, `${beyond} bytes more than the limit were read`)
    await until('the connection is gone', () => !open)
    t.strictSame(await rig.left(), nothingLeft)
  })
}

void t.test('nothing more is read once an upload is refused', async (t) => {
  const rig = await mediaRig(t, sql)
  const connections: Socket[] = []
  rig.app.server.on('connection', (socket: Socket) => connections.push(socket))
  const size = sizeLimits.video
  const cases: [string, string, RegExp][] = [
    ['of a type that is not taken', `content-length: ${size}`, / 415 /],
    ['announced too large', `content-length: ${size * 2}`, / 413 /],
    ['by nobody', `content-length: ${size}\r\nauthorization: Bearer x.y.z`, / 401 /],
  ]
  for (const [what, headers, status] of cases) {
    connections.length = 0
    const socket = await dial(
      what === 'by nobody' ? { ...rig, person: { ...rig.person, token: 'x.y.z' } } : rig,
      headers.split('\r\n')[0]!,
    )
    const answer = answerOf(socket)
    socket.write(formHead)
    socket.write(Buffer.concat([Buffer.from('MZ'), Buffer.alloc(20_000_000, 1)]))
    t.match(await answer, status, what)
    t.ok(connections[0]!.bytesRead < 1_000_000, `${what}: ${connections[0]!.bytesRead} bytes read`)
    socket.destroy()
  }
  t.strictSame(await rig.left(), nothingLeft)
})

void t.test('an upload that breaks off anywhere leaves nothing', async (t) => {
  const rig = await mediaRig(t, sql)
  const bytes = padded(await picture(), 300_000)
  const whole = Buffer.concat([
    Buffer.from(formHead),
    bytes,
    Buffer.from(`\r\n--${boundary}--\r\n`),
  ])
  const points = [0, 10, formHead.length, formHead.length + 1, formHead.length + 4_000]
  for (let i = 0; i < 15; i++) points.push(Math.floor(Math.random() * (whole.length - 20)))
  points.push(whole.length - 20, whole.length - 1)
  let closed = 0
  for (const point of points) {
    const socket = await dial(rig, `content-length: ${whole.length}`)
    socket.once('close', () => (closed += 1))
    socket.write(whole.subarray(0, point), () => socket.destroy())
  }
  await until('all are gone', () => closed === points.length)
  const connections = () =>
    new Promise<number>((resolve) =>
      rig.app.server.getConnections((_error, count) => resolve(count)),
    )
  await until('the server has noticed', async () => (await connections()) === 0)
  await until('all is removed', async () => (await rig.left()).temp === 0)
  t.strictSame(await rig.left(), nothingLeft, `at ${points.join()}`)
})

void t.test('an upload that crawls is cut', async (t) => {
  const rig = await mediaRig(t, sql, {}, { pace: { everyMs: 100, bytes: 1_000 } })
  const socket = await dial(rig, 'content-length: 5000000')
  socket.write(formHead)
  const drip = setInterval(() => socket.write('x'), 10)
  t.teardown(() => clearInterval(drip))
  const ended = new Promise((resolve) => socket.once('close', resolve))
  t.equal(await answerOf(socket), '')
  await ended
  await until('all is removed', async () => (await rig.left()).temp === 0)
  t.strictSame(await rig.left(), nothingLeft)
})
