import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import sharp from 'sharp'
import t from 'tap'
import type { Media } from '../../shared/media.ts'
import { ObjectNotFound, StoreRefused, StoreUnavailable } from '../../shared/object-store.ts'
import { accept } from '../../shared/outbound.ts'
import { testDb } from '../../shared/test/db.ts'
import { untilLocked } from '../../shared/test/locks.ts'
import { errorShape, signIn } from './app.ts'
import { fixture, mediaRig, nothingLeft, padded, pdf, picture, sha256 } from './media-rig.ts'

const { sql } = await testDb(t)

void t.test('a file is stored, described, and read back by its URL', async (t) => {
  const { upload, urlOf, left } = await mediaRig(t, sql)
  const bytes = await picture(800, 600)
  const { status, body } = await upload(bytes, 'Foto vom Büro.jpeg')
  t.equal(status, 201)
  t.match(body, {
    id: String,
    kind: 'image',
    mimeType: 'image/jpeg',
    size: bytes.length,
    sha256: sha256(bytes),
    filename: 'Foto vom Büro.jpeg',
    status: 'ready',
    width: 800,
    height: 600,
    duration: null,
    thumbnail: true,
  })
  t.strictSame(await left(), { temp: 0, stored: 2, media: 1, objects: 1 })

  const read = await fetch(await urlOf(body.id))
  t.match(Object.fromEntries(read.headers), {
    'content-type': 'image/jpeg',
    'content-length': String(bytes.length),
    'content-disposition': /^inline; filename="Foto vom B.*ro\.jpeg"; filename\*=UTF-8''/,
    'content-security-policy': "sandbox; default-src 'none'",
    'x-content-type-options': 'nosniff',
    'cross-origin-resource-policy': 'cross-origin',
    'cache-control': /^private, max-age=3\d{3}, immutable$/,
    'accept-ranges': 'bytes',
  })
  t.ok(bytes.equals(Buffer.from(await read.arrayBuffer())))

  const small = await fetch(await urlOf(body.id, '&thumbnail=true'))
  t.equal(small.headers.get('content-type'), 'image/webp')
  const thumbnail = await sharp(await small.arrayBuffer()).metadata()
  t.match(thumbnail, { format: 'webp', width: 320, height: 240 })
})

void t.test('every kind is told by its bytes, with what is known of it', async (t) => {
  const { upload } = await mediaRig(t, sql)
  for (const [name, kind, mimeType, duration] of [
    ['tone.mp3', 'audio', 'audio/mpeg', 1],
    ['tone.ogg', 'audio', 'audio/ogg', 1],
    ['tone-vorbis.ogg', 'audio', 'audio/ogg', 1],
    ['tone.wav', 'audio', 'audio/wav', 1],
    ['tone.webm', 'audio', 'audio/webm', 1],
    ['clip.webm', 'video', 'video/webm', 1],
    ['clip.mp4', 'video', 'video/mp4', 1],
    ['clip.mov', 'video', 'video/quicktime', null],
    ['clip.mpeg', 'video', 'video/mpeg', null],
    ['letter.doc', 'document', 'application/msword', null],
    ['table.xls', 'document', 'application/vnd.ms-excel', null],
    [
      'letter.docx',
      'document',
      'application/vnd.openxmlformats-officedocument.wordprocessingml.document',
      null,
    ],
    [
      'table.xlsx',
      'document',
      'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet',
      null,
    ],
  ] as const) {
    const { status, body } = await upload(fixture(name), name)
    t.match([status, body], [201, { kind, mimeType, filename: name, thumbnail: false }], name)
    t.equal(body.duration === null ? null : Math.round(body.duration), duration, name)
  }
  const formats = [
    ['png', 'image/png'],
    ['gif', 'image/gif'],
    ['webp', 'image/webp'],
  ] as const
  for (const [format, mimeType] of formats) {
    const bytes = await sharp(await picture())
      .toFormat(format)
      .toBuffer()
    const expected = { kind: 'image', mimeType, width: 40, height: 30, thumbnail: true }
    t.match((await upload(bytes)).body, expected, format)
  }
  t.match((await upload(pdf, 'a.pdf')).body, { kind: 'document', mimeType: 'application/pdf' })
  t.match((await upload(Buffer.from('Grüße\n'), 'a.csv')).body, {
    kind: 'document',
    mimeType: 'text/plain',
    filename: 'a.csv',
  })
})

void t.test(
  'the same bytes are stored once, and live as long as one file names them',
  async (t) => {
    const { upload, call, left, urlOf } = await mediaRig(t, sql)
    const bytes = await picture()
    const both = await Promise.all([upload(bytes, 'one.jpg'), upload(bytes, 'two.jpg')])
    const third = await upload(bytes, 'three.jpg')
    const ids = [...both, third].map(({ body }) => body.id)
    t.equal(new Set(ids).size, 3, 'each is a file of its own')
    t.match(third.body, { filename: 'three.jpg', width: 40 })
    t.strictSame(await left(), { temp: 0, stored: 2, media: 3, objects: 1 })

    for (const id of ids.slice(0, 2)) {
      t.equal((await call('DELETE', `/api/upload/${id}`)).status, 204)
    }
    const last = await fetch(await urlOf(ids[2]!))
    t.ok(bytes.equals(Buffer.from(await last.arrayBuffer())))
    t.equal((await call('DELETE', `/api/upload/${ids[2]}`)).status, 204)
    t.strictSame(await left(), nothingLeft)
    t.match((await call('DELETE', `/api/upload/${ids[2]}`)).body, errorShape(404, 'NOT_FOUND'))
    t.equal((await upload(bytes)).status, 201, 'and they may come again')
  },
)

void t.test('what others have is not shared, and not found', async (t) => {
  const rig = await mediaRig(t, sql)
  const eve = await signIn({ app: rig.app, sql })
  const bytes = await picture()
  const mine = await rig.upload(bytes)
  const theirs = await rig.upload(bytes, 'b.jpg', eve)
  t.equal((await rig.left()).stored, 4, 'two objects and two thumbnails')
  for (const [method, path] of [
    ['GET', `/api/upload/signed-url?mediaId=${mine.body.id}`],
    ['DELETE', `/api/upload/${mine.body.id}`],
  ] as const) {
    t.match((await rig.call(method, path, { who: eve })).body, errorShape(404, 'NOT_FOUND'))
  }
  const confirm = { who: eve, body: { mediaId: mine.body.id } }
  t.match((await rig.call('POST', '/api/uploads/confirm', confirm)).body, { code: 'NOT_FOUND' })
  const list = await rig.call<{ data: Media[] }>('GET', '/api/upload', { who: eve })
  t.match(list.body.data, [{ id: theirs.body.id }])
  t.equal(list.body.data.length, 1)
})

void t.test('files are listed, newest first', async (t) => {
  const { upload, call } = await mediaRig(t, sql)
  const ids: string[] = []
  for (const [name, bytes] of [
    ['a.pdf', pdf],
    ['b.jpg', await picture()],
    ['c.txt', Buffer.from('c')],
  ] as const) {
    ids.unshift((await upload(bytes, name)).body.id)
  }
  type List = { data: Media[]; nextCursor: string | null }
  const list = async (query: string) => (await call<List>('GET', `/api/upload${query}`)).body
  const first = await list('?limit=2')
  t.strictSame(
    first.data.map(({ id }) => id),
    ids.slice(0, 2),
  )
  const second = await list(`?limit=2&cursor=${first.nextCursor}`)
  t.match(second, { data: [{ id: ids[2] }], nextCursor: null })
  t.match(await list('?kind=image'), { data: [{ id: ids[1] }] })
  t.match(await list('?kind=sound'), { code: 'VALIDATION_FAILED' })
})

void t.test('a form that is none, or has not just the file, is refused', async (t) => {
  const { call, left, origin, person } = await mediaRig(t, sql)
  const bytes = new Blob([new Uint8Array(await picture())])
  const forms: [string, (form: FormData) => void][] = [
    ['no field', () => {}],
    ['another field', (form) => form.append('picture', bytes, 'a.jpg')],
    ['text instead of a file', (form) => form.append('file', 'text')],
    [
      'two files',
      (form) => {
        form.append('file', bytes, 'a.jpg')
        form.append('file', bytes, 'b.jpg')
      },
    ],
    [
      'a field behind',
      (form) => {
        form.append('file', bytes, 'a.jpg')
        form.append('note', 'x')
      },
    ],
    [
      'a field before',
      (form) => {
        form.append('note', 'x')
        form.append('file', bytes, 'a.jpg')
      },
    ],
    ['an empty file', (form) => form.append('file', new Blob([]), 'a.jpg')],
    ['prototype', (form) => form.append('__proto__', bytes, 'a.jpg')],
  ]
  for (const [what, fill] of forms) {
    const form = new FormData()
    fill(form)
    const { body } = await call('POST', '/api/upload/media', { body: form })
    t.match(
      body,
      { ...errorShape(400, 'VALIDATION_FAILED'), details: [{ path: 'body.file' }] },
      what,
    )
  }
  const json = await call('POST', '/api/upload/media', { body: { file: 'x' } })
  t.match(json.body, errorShape(400, 'VALIDATION_FAILED'))
  const none = await call('POST', '/api/upload/media')
  t.match(none.body, errorShape(400, 'VALIDATION_FAILED'))
  const unbounded = await call('POST', '/api/upload/media', {
    headers: { 'content-type': 'multipart/form-data' },
  })
  t.match(unbounded.body, errorShape(400, 'VALIDATION_FAILED'))
  // Complete as HTTP, and ending in the middle of the form.
  const file = '--x\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello'
  for (const cut of [file, `${file}\r\n--x`, file.slice(0, 30), '--x\r\n']) {
    const answer = await fetch(`${origin}/api/upload/media`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${person.token}`,
        'content-type': 'multipart/form-data; boundary=x',
      },
      body: cut,
    })
    t.match(await answer.json(), errorShape(400, 'VALIDATION_FAILED'), JSON.stringify(cut))
  }
  t.strictSame(await left(), nothingLeft)
})

void t.test('a file that a queued message needs stays', async (t) => {
  const { upload, call, person, left } = await mediaRig(t, sql)
  const { body } = await upload(await picture())
  await call('POST', '/api/whatsapp/sessions', { body: { name: 'Sales', start: false } })
  const sent = await call('POST', '/api/whatsapp/send', {
    body: { to: '1234567890', message: 'look' },
  })
  await sql`update messages set media_id = ${body.id} where id = ${sent.body.id}`
  t.match((await call('DELETE', `/api/upload/${body.id}`)).body, errorShape(409, 'MEDIA_IN_USE'))
  t.equal((await left()).media, 1)
  await sql`delete from outbox where message_id = ${sent.body.id}`
  const version = () => sql`
    select xmin::text from messages where id = ${sent.body.id} and workspace_id = ${person.workspaceId}`
  const before = await version()
  t.equal((await call('DELETE', `/api/upload/${body.id}`)).status, 204)
  t.match((await call('GET', `/api/messages/${sent.body.id}`)).body, { media: null })
  t.strictSame(await version(), before, 'there may be many: they are not written anew')
})

void t.test('a picture whose file was deleted is not sent again without it', async (t) => {
  const { upload, call } = await mediaRig(t, sql)
  const { body } = await upload(await picture())
  await call('POST', '/api/whatsapp/sessions', { body: { name: 'Sales', start: false } })
  const sent = await call('POST', '/api/whatsapp/send', {
    body: { to: '12025550101', mediaId: body.id },
  })
  const url = `/api/messages/${sent.body.id}`
  await call('DELETE', url)
  t.equal((await call('DELETE', `/api/upload/${body.id}`)).status, 204)
  t.match((await call('POST', `${url}/retry`)).body, errorShape(409, 'MEDIA_GONE'))
})

void t.test('a file that is deleted while it is being sent is not found', async (t) => {
  const { upload, call } = await mediaRig(t, sql)
  const { id } = (await upload(await picture())).body
  await call('POST', '/api/whatsapp/sessions', { body: { name: 'Sales', start: false } })
  const body = { to: '12025550101', mediaId: id }
  let sending: ReturnType<typeof call> | undefined
  await sql.begin(async (tx) => {
    // As a deletion does it.
    await tx`select from media where id = ${id} for update`
    await tx`delete from media where id = ${id}`
    sending = call('POST', '/api/whatsapp/send', { body, headers: { 'idempotency-key': 'one' } })
    await untilLocked(sql)
  })
  t.match((await sending!).body, errorShape(404, 'NOT_FOUND'))
})

void t.test('a file that is sent while it is being deleted stays', async (t) => {
  const { upload, call, person } = await mediaRig(t, sql)
  const { id } = (await upload(await picture())).body
  const session = await call('POST', '/api/whatsapp/sessions', {
    body: { name: 'Sales', start: false },
  })
  const picked = { mediaId: id, mimeType: 'image/jpeg', filename: 'a.jpeg', caption: null }
  let deleting: ReturnType<typeof call> | undefined
  await sql.begin(async (tx) => {
    await accept(tx, {
      ...{
        workspaceId: person.workspaceId,
        sessionId: session.body.id,
        sentBy: null,
        requestId: '',
      },
      messages: [{ waChatId: '12025550101@c.us', content: { ...picked, type: 'image' } }],
    })
    deleting = call('DELETE', `/api/upload/${id}`)
    await untilLocked(sql)
  })
  t.match((await deleting!).body, errorShape(409, 'MEDIA_IN_USE'))
})

void t.test('a workspace stores no more than its quota, however many upload at once', async (t) => {
  const { upload, left, call } = await mediaRig(t, sql, { MEDIA_QUOTA_MB: '1' })
  const files = Array.from({ length: 8 }, (_, i) => padded(pdf, 300_000, 0x61 + i))
  const answers = await Promise.all(files.map((bytes) => upload(bytes)))
  t.equal(answers.filter(({ status }) => status === 201).length, 3)
  for (const { status, body } of answers) {
    if (status !== 201) t.match(body, errorShape(507, 'QUOTA_EXCEEDED'))
  }
  t.strictSame(await left(), { temp: 0, stored: 3, media: 3, objects: 3 })
  const kept = answers.findIndex(({ status }) => status === 201)
  t.equal((await upload(files[kept]!)).status, 201, 'what is there already needs no room')
  const sign = { filename: 'a.pdf', mimeType: 'application/pdf', size: 300_000 }
  t.match((await call('POST', '/api/uploads/sign', { body: sign })).body, {
    code: 'QUOTA_EXCEEDED',
  })
})

void t.test('a store that is away is told, and nothing is left', async (t) => {
  const { upload, left, store, call } = await mediaRig(t, sql)
  const bytes = await picture()
  const away = () => {
    throw new StoreUnavailable('test')
  }
  store.beforePut = away
  const refused = await upload(bytes)
  t.match(refused.body, errorShape(503, 'STORE_UNAVAILABLE'))
  t.ok(refused.headers.get('retry-after'))
  t.strictSame(await left(), nothingLeft)
  // It took the file, and broke before it said so.
  store.heal()
  store.afterPut = away
  t.equal((await upload(bytes)).status, 503)
  t.strictSame(await left(), nothingLeft)

  store.heal()
  const { body } = await upload(bytes)
  store.beforeRemove = away
  t.equal((await call('DELETE', `/api/upload/${body.id}`)).status, 204)
  t.match(await left(), { media: 0, stored: 2 }, 'the cleanup removes the object')
  store.beforeGet = away
  const health = await call<{ checks: object }>('GET', '/health/ready')
  t.match(health.body.checks, { mediaStore: { status: 'fail' } })
  store.heal()
  const healthy = await call<{ checks: object }>('GET', '/health/ready')
  t.match(healthy.body.checks, { mediaStore: { status: 'ok' } })
})

void t.test('a store that goes away in the middle leaves nothing, and loses nothing', async (t) => {
  const { upload, left, store, call, urlOf } = await mediaRig(t, sql)
  const bytes = await picture(300, 200)
  const away = () => {
    throw new StoreUnavailable('test')
  }

  const breaking = (source: Readable) =>
    Readable.from(
      (async function* () {
        for await (const chunk of source as AsyncIterable<Buffer>) {
          yield chunk.subarray(0, 100)
          away()
        }
      })(),
    )

  store.changeSource = breaking
  t.match((await upload(bytes)).body, errorShape(503, 'STORE_UNAVAILABLE'))
  t.strictSame(await left(), nothingLeft, 'after half a file')

  store.heal()
  let puts = 0
  store.beforePut = () => {
    puts += 1
    if (puts === 2) away()
  }
  t.match((await upload(bytes)).body, errorShape(503, 'STORE_UNAVAILABLE'))
  t.strictSame(await left(), nothingLeft, 'after the file, without its thumbnail')

  store.heal()
  const wish = { filename: 'a.jpg', mimeType: 'image/jpeg', size: bytes.length }
  const signed = await call<{ mediaId: string; url: string }>('POST', '/api/uploads/sign', {
    body: wish,
  })
  const { mediaId, url } = signed.body
  const put = async () => (await fetch(url, { method: 'PUT', body: new Uint8Array(bytes) })).status
  const confirm = () => call('POST', '/api/uploads/confirm', { body: { mediaId } })
  store.beforePut = away
  t.equal(await put(), 503)
  store.heal()
  t.equal(await put(), 204, 'a direct upload may be put again')
  store.beforeGet = away
  t.match((await confirm()).body, errorShape(503, 'STORE_UNAVAILABLE'))
  store.heal()
  store.changeResult = breaking
  t.match((await confirm()).body, errorShape(503, 'STORE_UNAVAILABLE'))
  store.heal()
  t.match(await confirm(), { status: 200, body: { status: 'ready', width: 300 } })

  store.beforeGet = away
  t.equal((await fetch(await urlOf(mediaId))).status, 503)
  store.heal()
  t.ok(bytes.equals(Buffer.from(await (await fetch(await urlOf(mediaId))).arrayBuffer())))
})

void t.test('a store that refuses us is our fault, and not told', async (t) => {
  const { upload, left, store, call, urlOf } = await mediaRig(t, sql)
  const { body } = await upload(pdf)
  const url = await urlOf(body.id)
  const before = await left()
  for (const refusal of [
    new StoreRefused(403, 'signature verification failed'),
    new StoreRefused(404, 'Bucket not found'),
    new StoreRefused(413, "raise the bucket's size limit"),
  ]) {
    const refuse = () => {
      throw refusal
    }
    store.beforePut = refuse
    const refused = await upload(await picture())
    t.match(refused.body, errorShape(500, 'INTERNAL_ERROR'), refusal.message)
    t.notMatch(JSON.stringify(refused.body), refusal.message)
    t.strictSame(await left(), before)
    store.heal()
    store.beforeGet = refuse
    t.match(await (await fetch(url)).json(), errorShape(500, 'INTERNAL_ERROR'))
    store.heal()
  }
  t.equal((await call('DELETE', `/api/upload/${body.id}`)).status, 204)
})

void t.test('an object the store has lost is not found', async (t) => {
  const { upload, store, urlOf } = await mediaRig(t, sql)
  const { body } = await upload(pdf)
  const url = await urlOf(body.id)
  // Removed between two calls of the store.
  store.changeResult = (source) => {
    source.destroy()
    throw new ObjectNotFound('media', 'gone')
  }
  t.match(await (await fetch(url)).json(), errorShape(404, 'NOT_FOUND'))
})

void t.test('uploads are limited as a class of their own', async (t) => {
  const { upload, call } = await mediaRig(t, sql, { RATE_LIMIT_UPLOADS: '2/1h' })
  t.equal((await upload(pdf)).status, 201)
  const sign = { filename: 'a.pdf', mimeType: 'application/pdf', size: 10 }
  t.equal((await call('POST', '/api/uploads/sign', { body: sign })).status, 201)
  t.match((await upload(pdf)).body, errorShape(429, 'RATE_LIMITED'))
  t.equal((await call('GET', '/api/upload')).status, 200)
})

void t.test('wrong questions for a URL are refused', async (t) => {
  const { upload, call } = await mediaRig(t, sql)
  const { body } = await upload(pdf)
  for (const [query, path] of [
    ['', 'query.mediaId'],
    ['?mediaId=1', 'query.mediaId'],
    [`?mediaId=${body.id}&expiresIn=0`, 'query.expiresIn'],
    [`?mediaId=${body.id}&expiresIn=86401`, 'query.expiresIn'],
    [`?mediaId=${body.id}&expiresIn=-1`, 'query.expiresIn'],
    [`?mediaId=${body.id}&expiresIn=1e9`, 'query.expiresIn'],
  ] as const) {
    const answer = await call('GET', `/api/upload/signed-url${query}`)
    t.match(answer.body, { ...errorShape(400, 'VALIDATION_FAILED'), details: [{ path }] }, query)
  }
  for (const query of [`mediaId=${randomUUID()}`, `mediaId=${body.id}&thumbnail=true`]) {
    const answer = await call('GET', `/api/upload/signed-url?${query}`)
    t.match(answer.body, errorShape(404, 'NOT_FOUND'), query)
  }
})

void t.test('an upload with a key is kept once; other bytes under it are refused', async (t) => {
  const { call, left, person } = await mediaRig(t, sql)
  const put = (bytes: Buffer) => {
    const form = new FormData()
    form.append('file', new Blob([new Uint8Array(bytes)]), 'offer.pdf')
    return call('POST', '/api/upload/media', {
      who: person,
      body: form,
      headers: { 'idempotency-key': 'k' },
    })
  }
  const first = await put(pdf)
  const again = await put(pdf)
  t.equal(first.status, 201)
  t.strictSame(again.body, first.body)
  t.equal(again.headers.get('idempotency-replayed'), 'true')
  t.match(await put(Buffer.concat([pdf, Buffer.from('\n')])), {
    status: 422,
    body: { code: 'IDEMPOTENCY_KEY_REUSED' },
  })
  t.match(await left(), { temp: 0, media: 1, objects: 1 })
})

void t.test('a file is sent as what it is, or as what is wanted', async (t) => {
  const { call, upload } = await mediaRig(t, sql)
  await call('POST', '/api/whatsapp/sessions', { body: { name: 'Sales', start: false } })
  const send = (body: object) =>
    call<object>('POST', '/api/whatsapp/send', { body: { to: '12025550101', ...body } })
  const image = (await upload(await picture(40, 30), 'a.jpeg')).body
  const audio = (await upload(fixture('tone.ogg'), 'tone.ogg')).body
  t.match(await send({ mediaId: image.id, caption: 'Look' }), {
    status: 202,
    body: {
      type: 'image',
      body: 'Look',
      media: {
        id: image.id,
        kind: 'image',
        mimeType: 'image/jpeg',
        filename: 'a.jpeg',
        status: 'ready',
      },
    },
  })
  t.match(await send({ mediaId: image.id, asDocument: true }), { body: { type: 'document' } })
  t.match(await send({ mediaId: audio.id, asVoice: true }), { body: { type: 'voice' } })
  t.match(await send({ mediaId: audio.id, asVoice: true, asDocument: false }), {
    body: { type: 'voice' },
  })
  t.match(await send({ message: 'x', asVoice: false }), { body: { type: 'text' } })
  t.match(await send({ mediaId: audio.id }), { body: { type: 'audio' } })
  t.match(await send({ mediaId: image.id, asVoice: true }), {
    status: 422,
    body: { code: 'VOICE_NOT_POSSIBLE' },
  })
  t.match(await send({ mediaId: audio.id, caption: 'x' }), {
    status: 422,
    body: { code: 'CAPTION_NOT_POSSIBLE' },
  })
  t.match(await send({ mediaId: randomUUID() }), { status: 404 })
  for (const wrong of [
    { message: 'x', caption: 'y' },
    { message: 'x', asVoice: true },
    { mediaId: audio.id, asVoice: true, asDocument: true },
  ]) {
    t.match(await send(wrong), { status: 400 }, JSON.stringify(wrong))
  }
  t.match(await call('DELETE', `/api/upload/${image.id}`), {
    status: 409,
    body: { code: 'MEDIA_IN_USE' },
  })
})
