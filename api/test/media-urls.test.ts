import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import t from 'tap'
import { SupabaseObjectStore } from '../../shared/object-store-supabase.ts'
import { testDb } from '../../shared/test/db.ts'
import { startStorageStandIn } from '../../shared/test/storage-stand-in.ts'
import { createUrlSigner } from '../media-urls.ts'
import { errorShape, jwtSecret, signIn } from './app.ts'
import { fixture, mediaRig, padded, pdf, picture, sha256 } from './media-rig.ts'

const { sql } = await testDb(t)

interface Signed {
  mediaId: string
  url: string
  method: string
  headers: Record<string, string>
  expiresAt: string
}

const wish = (bytes: Buffer, mimeType: string, filename = 'a') => ({
  filename,
  mimeType,
  size: bytes.length,
})
const put = (url: string, bytes: Buffer, headers: Record<string, string> = {}) =>
  fetch(url, { method: 'PUT', body: new Uint8Array(bytes), headers })

/** What waits for `opened` goes on when `open` is called. */
function gate(): { open: () => void; opened: Promise<void> } {
  let open = () => {}
  const opened = new Promise<void>((resolve) => (open = resolve))
  return { open, opened }
}

void t.test('a URL changed at any byte is refused', async (t) => {
  const { app, upload, urlOf } = await mediaRig(t, sql)
  const { body } = await upload(await picture())
  const { pathname, search } = new URL(await urlOf(body.id))
  const path = pathname + search
  const read = async (url: string) => (await app.inject({ url })).statusCode
  t.equal(await read(path), 200)
  const wrong: string[] = []
  let tried = 0
  for (let at = 1; at < path.length; at++) {
    const [before, after] = [path.slice(0, at), path.slice(at + 1)]
    const others = ['0', 'A', '-', '%', ''].filter((other) => other !== path[at])
    for (const url of [...others.map((other) => before + other + after), before]) {
      tried += 1
      const status = await read(url)
      if (status < 400 || status >= 500) wrong.push(`${status} ${url}`)
    }
  }
  t.strictSame(wrong, [])
  t.ok(tried > 900)
  for (const suffix of ['A', '&x=1', '&expires=9999999999', '&signature=', '%00']) {
    t.ok((await read(path + suffix)) >= 400, suffix)
  }
})

void t.test('a URL is good until its second, and not one longer', (t) => {
  let now = 1_700_000_000_000
  const signer = createUrlSigner(jwtSecret, () => now)
  const what = { use: 'read', workspaceId: randomUUID(), mediaId: randomUUID() } as const
  const signed = signer.sign(what, 60)
  t.equal(signed.expiresAt.getTime(), now + 60_000)
  now += 59_000
  t.doesNotThrow(() => signer.verify(what, signed))
  now += 999
  t.doesNotThrow(() => signer.verify(what, signed))
  now += 1
  t.throws(() => signer.verify(what, signed), { code: 'URL_EXPIRED', statusCode: 403 })
  now += 1_000
  t.throws(() => signer.verify(what, signed), { code: 'URL_EXPIRED' })
  const later = { ...signed, expires: String(Number(signed.expires) + 100) }
  t.throws(() => signer.verify(what, later), { code: 'URL_INVALID' })
  for (const other of [
    { ...what, use: 'put' as const },
    { ...what, use: 'thumbnail' as const },
    { ...what, workspaceId: randomUUID() },
    { ...what, mediaId: randomUUID() },
  ]) {
    t.throws(() => signer.verify(other, signed), { code: 'URL_INVALID' })
  }
  t.throws(() => createUrlSigner(`${jwtSecret}x`, () => now - 9e6).verify(what, signed), {
    code: 'URL_INVALID',
  })
  t.end()
})

void t.test('an expired URL is refused by the API', async (t) => {
  const { upload, urlOf } = await mediaRig(t, sql)
  const { body } = await upload(pdf)
  const url = await urlOf(body.id, '&expiresIn=1')
  const expires = Number(new URL(url).searchParams.get('expires')) * 1_000
  const clock = t.intercept(Date, 'now', { value: () => expires - 1, configurable: true })
  t.equal((await fetch(url)).status, 200)
  clock.restore()
  t.intercept(Date, 'now', { value: () => expires, configurable: true })
  t.match(await (await fetch(url)).json(), errorShape(403, 'URL_EXPIRED'))
})

void t.test('a URL dies with its file', async (t) => {
  const { upload, urlOf, call } = await mediaRig(t, sql)
  const { body } = await upload(pdf)
  const url = await urlOf(body.id)
  await call('DELETE', `/api/upload/${body.id}`)
  t.match(await (await fetch(url)).json(), errorShape(404, 'NOT_FOUND'))
})

void t.test('parts of a file are served', async (t) => {
  const { upload, urlOf } = await mediaRig(t, sql)
  const bytes = padded(await picture(), 20_000)
  const { body } = await upload(bytes)
  const url = await urlOf(body.id)
  const read = async (range: string, headers = {}) => {
    const answer = await fetch(url, { headers: { range, ...headers } })
    const read = Buffer.from(await answer.arrayBuffer())
    return { status: answer.status, range: answer.headers.get('content-range'), read }
  }
  for (const [range, start, end] of [
    ['bytes=0-0', 0, 0],
    ['bytes=10-99', 10, 99],
    ['bytes=19999-', 19_999, 19_999],
    ['bytes=5-999999', 5, 19_999],
    ['bytes=-7', 19_993, 19_999],
    ['bytes=-999999', 0, 19_999],
  ] as const) {
    const part = await read(range)
    t.match(part, { status: 206, range: `bytes ${start}-${end}/20000` }, range)
    t.ok(part.read.equals(bytes.subarray(start, end + 1)), range)
  }
  for (const range of ['bytes=20000-', 'bytes=-0', 'bytes=30000-40000']) {
    t.match(await read(range), { status: 416, range: 'bytes */20000' }, range)
  }
  for (const range of ['bytes=5-1', 'bytes=0-1,5-6', 'lines=1-2', 'bytes=-', 'bytes=a-b']) {
    t.match(await read(range), { status: 200, range: null }, range)
  }
  const etag = `"${body.sha256}"`
  t.match(await read('bytes=0-0', { 'if-range': etag }), { status: 206 })
  t.match(await read('bytes=0-0', { 'if-range': '"other"' }), { status: 200 })
  for (const known of [etag, `W/${etag}`, `"other", ${etag}`, '*']) {
    t.equal((await fetch(url, { headers: { 'if-none-match': known } })).status, 304, known)
  }
  for (const known of ['"other"', `"other${etag}`, body.sha256!, `x${etag}`]) {
    t.equal((await fetch(url, { headers: { 'if-none-match': known } })).status, 200, known)
  }
  const head = await fetch(url, { method: 'HEAD' })
  t.match([head.status, head.headers.get('content-length')], [200, '20000'])
  t.equal((await head.text()).length, 0)
})

void t.test('what a browser could run is kept, not shown', async (t) => {
  const { upload, urlOf } = await mediaRig(t, sql)
  for (const [bytes, name] of [
    [pdf, 'a.pdf'],
    [Buffer.from('alert(1)'), 'a.js'],
    [fixture('letter.docx'), 'a.docx'],
  ] as const) {
    const { headers } = await fetch(await urlOf((await upload(bytes, name)).body.id))
    t.match(headers.get('content-disposition'), /^attachment; filename=a\.(pdf|js\.txt|docx)$/)
    t.equal(headers.get('x-content-type-options'), 'nosniff')
  }
})

void t.test('a hostile file name is harmless where it is told', async (t) => {
  const { upload, urlOf } = await mediaRig(t, sql)
  const bytes = await picture()
  for (const name of [
    '../../etc/passwd',
    '..%2f..%2fa.jpg',
    'a"; filename="evil.html',
    'a\r\nset-cookie: x=1.jpg',
    'gpj.\u202eexe',
    'C:\\fakepath\\CON',
    'ü'.repeat(4_096),
  ]) {
    const { status, body } = await upload(bytes, name)
    t.match([status, body.filename], [201, /^[^"\\/;\u202e\r\n]{1,200}\.jpg$/], name)
    const { headers } = await fetch(await urlOf(body.id))
    const told = /^inline; filename=("[^"\\/]*"|[\w.-]+)(; filename\*=UTF-8''[\w.%-]+)?$/
    t.match(headers.get('content-disposition'), told, name)
    t.equal(headers.get('set-cookie'), null)
  }
})

void t.test('a file is put directly, confirmed, and is one like all others', async (t) => {
  const { call, left, urlOf, upload } = await mediaRig(t, sql)
  const bytes = await picture()
  const body = { ...wish(bytes, 'image/jpeg', 'x.jpg'), sha256: sha256(bytes) }
  const signed = await call<Signed>('POST', '/api/uploads/sign', { body })
  t.match(signed, {
    status: 201,
    body: { method: 'PUT', headers: { 'content-type': 'image/jpeg' } },
  })
  const { mediaId, url, headers } = signed.body
  const confirm = () => call('POST', '/api/uploads/confirm', { body: { mediaId } })
  t.match((await confirm()).body, errorShape(409, 'UPLOAD_INCOMPLETE'))
  t.match((await call('GET', `/api/upload/signed-url?mediaId=${mediaId}`)).body, {
    code: 'MEDIA_NOT_READY',
  })

  t.equal((await put(url, bytes, headers)).status, 204)
  t.match(await (await put(url, bytes, headers)).json(), errorShape(409, 'ALREADY_UPLOADED'))
  const [one, two] = await Promise.all([confirm(), confirm()])
  t.match(one, { status: 200, body: { id: mediaId, kind: 'image', width: 40, status: 'ready' } })
  t.strictSame(two.body, one.body)
  t.strictSame((await confirm()).body, one.body, 'it may be repeated')
  t.strictSame(await left(), { temp: 0, stored: 2, media: 1, objects: 1 })
  const read = await fetch(await urlOf(mediaId))
  t.ok(bytes.equals(Buffer.from(await read.arrayBuffer())))
  t.equal((await put(url, bytes, headers)).status, 404, 'nothing is taken under it any more')

  await upload(bytes)
  t.equal((await left()).stored, 2, 'the bytes are shared')
})

void t.test('bytes that are there already are not kept twice by a direct upload', async (t) => {
  const { call, left, upload, urlOf } = await mediaRig(t, sql)
  await upload(pdf)
  const body = wish(pdf, 'application/pdf', 'x.pdf')
  const { mediaId, url } = (await call<Signed>('POST', '/api/uploads/sign', { body })).body
  await put(url, pdf)
  t.equal((await call('POST', '/api/uploads/confirm', { body: { mediaId } })).status, 200)
  t.match(await left(), { temp: 0, media: 2, objects: 1 })
  t.equal((await fetch(await urlOf(mediaId))).status, 200)
})

void t.test('what arrives otherwise than announced is refused, and gone', async (t) => {
  const { call, left } = await mediaRig(t, sql)
  const bytes = await picture()
  const sign = async (announced: object) =>
    (await call<Signed>('POST', '/api/uploads/sign', { body: announced })).body
  const confirm = (mediaId: string) => call('POST', '/api/uploads/confirm', { body: { mediaId } })

  const jpeg = wish(bytes, 'image/jpeg')
  const first = await sign(jpeg)
  t.match(await (await put(first.url, Buffer.concat([bytes, pdf]))).json(), { statusCode: 413 })
  t.match(await (await put(first.url, bytes.subarray(1))).json(), { statusCode: 400 })
  t.equal((await left()).stored, 0)

  const lie = await sign(wish(Buffer.from('<svg onload="x"/>'), 'text/plain'))
  t.equal((await put(lie.url, Buffer.from('<svg onload="x"/>'))).status, 204)
  t.match((await confirm(lie.mediaId)).body, errorShape(415, 'UNSUPPORTED_MEDIA_TYPE'))
  const hash = await sign({ ...jpeg, sha256: '0'.repeat(64) })
  await put(hash.url, bytes)
  t.match((await confirm(hash.mediaId)).body, errorShape(422, 'UPLOAD_MISMATCH'))
  t.match((await confirm(hash.mediaId)).body, errorShape(404, 'NOT_FOUND'))
  t.match(await left(), { temp: 0, stored: 0, media: 1, objects: 1 }, 'only the first still waits')

  const other = await sign(wish(bytes, 'application/pdf'))
  await put(other.url, bytes)
  t.match((await confirm(other.mediaId)).body, { kind: 'image', mimeType: 'image/jpeg' })
})

void t.test('a confirmation that fails beside one that does not takes nothing away', async (t) => {
  const { call, left, store, urlOf } = await mediaRig(t, sql)
  const bytes = await picture()
  const body = { ...wish(bytes, 'image/jpeg'), sha256: sha256(bytes) }
  const { mediaId, url } = (await call<Signed>('POST', '/api/uploads/sign', { body })).body
  await put(url, bytes)
  const confirm = () => call('POST', '/api/uploads/confirm', { body: { mediaId } })
  // Both have found the upload waiting when the first reads its bytes; the second reads others, once the first is through.
  const through = gate()
  const begun = gate()
  store.changeResult = (source) => {
    source.destroy()
    begun.open()
    return Readable.from(
      (async function* () {
        await through.opened
        yield Buffer.alloc(bytes.length, 0x61)
      })(),
    )
  }
  const failing = confirm()
  await begun.opened
  store.heal()
  t.match(await confirm(), { status: 200, body: { status: 'ready' } })
  through.open()
  t.match((await failing).body, errorShape(422, 'UPLOAD_MISMATCH'))
  t.strictSame(await left(), { temp: 0, stored: 2, media: 1, objects: 1 })
  const read = await fetch(await urlOf(mediaId))
  t.ok(bytes.equals(Buffer.from(await read.arrayBuffer())))
})

void t.test('a direct upload that is deleted gives its room back', async (t) => {
  const { call, left, upload } = await mediaRig(t, sql, { MEDIA_QUOTA_MB: '1' })
  const large = padded(pdf, 1_000_000)
  const body = wish(large, 'application/pdf')
  const { mediaId, url } = (await call<Signed>('POST', '/api/uploads/sign', { body })).body
  t.match((await upload(large)).body, errorShape(507, 'QUOTA_EXCEEDED'))
  await put(url, large)
  t.equal((await call('DELETE', `/api/upload/${mediaId}`)).status, 204)
  t.strictSame(await left(), { temp: 0, stored: 0, media: 0, objects: 0 })
  t.equal((await put(url, large)).status, 404)
  const confirmed = await call('POST', '/api/uploads/confirm', { body: { mediaId } })
  t.match(confirmed.body, errorShape(404, 'NOT_FOUND'))
  t.equal((await upload(large)).status, 201)
})

void t.test('a direct upload that is deleted while it is confirmed is not found', async (t) => {
  const { call, left, store } = await mediaRig(t, sql)
  const body = wish(pdf, 'application/pdf')
  const { mediaId, url } = (await call<Signed>('POST', '/api/uploads/sign', { body })).body
  await put(url, pdf)
  const deleted = gate()
  const begun = gate()
  store.changeResult = (source) => {
    begun.open()
    return Readable.from(
      (async function* () {
        await deleted.opened
        for await (const chunk of source as AsyncIterable<Buffer>) yield chunk
      })(),
    )
  }
  const confirming = call('POST', '/api/uploads/confirm', { body: { mediaId } })
  await begun.opened
  t.equal((await call('DELETE', `/api/upload/${mediaId}`)).status, 204)
  deleted.open()
  t.match((await confirming).body, errorShape(404, 'NOT_FOUND'))
  t.strictSame(await left(), { temp: 0, stored: 0, media: 0, objects: 0 })
})

void t.test('wishes that cannot be fulfilled are refused at once', async (t) => {
  const { call, left } = await mediaRig(t, sql)
  const sign = async (body: object) => (await call('POST', '/api/uploads/sign', { body })).body
  const good = { filename: 'a.jpg', mimeType: 'image/jpeg', size: 5_242_880 }
  t.match(await sign({ ...good, size: 5_242_881 }), errorShape(413, 'FILE_TOO_LARGE'))
  for (const mimeType of ['image/svg+xml', 'text/html', 'application/zip', '__proto__', 'x']) {
    t.match(await sign({ ...good, mimeType }), errorShape(415, 'UNSUPPORTED_MEDIA_TYPE'), mimeType)
  }
  const bad = { filename: '', mimeType: 5, size: 0, sha256: 'x', extra: 1 }
  const paths = ['extra', 'filename', 'mimeType', 'sha256', 'size']
  const refused = (await sign(bad)) as unknown as { details: { path: string }[] }
  t.strictSame(
    refused.details.map(({ path }) => path).sort(),
    paths.map((name) => `body.${name}`),
  )
  t.equal((await left()).media, 0)
  t.match(await sign(good), { mediaId: String })
})

void t.test('a URL for putting does not read, nor the other way round', async (t) => {
  const rig = await mediaRig(t, sql)
  const { call, upload, urlOf, person } = rig
  const { body: file } = await upload(pdf)
  const read = new URL(await urlOf(file.id))
  const body = wish(pdf, 'application/pdf')
  const signed = (await call<Signed>('POST', '/api/uploads/sign', { body })).body
  const write = new URL(signed.url)
  const at = (id: string, kind: string, { search }: URL) =>
    `${rig.origin}/api/${kind}/${person.workspaceId}/${id}${search}`
  const eve = await signIn({ app: rig.app, sql })
  for (const [method, url] of [
    ['PUT', at(file.id, 'uploads', read)],
    ['PUT', at(signed.mediaId, 'uploads', read)],
    ['GET', at(signed.mediaId, 'files', write)],
    ['GET', at(file.id, 'files', write)],
    ['GET', `${at(file.id, 'files', read).replace('?', '/thumbnail?')}`],
    ['GET', at(file.id, 'files', read).replace(person.workspaceId, eve.workspaceId)],
    ['PUT', at(signed.mediaId, 'uploads', write).replace(person.workspaceId, eve.workspaceId)],
  ] as const) {
    const answer = await fetch(url, { method, ...(method === 'PUT' && { body: 'x' }) })
    t.match(await answer.json(), errorShape(403, 'URL_INVALID'), `${method} ${url}`)
  }
  const token = { expires: '9999999999', signature: person.token.split('.')[2]! }
  const forged = `${rig.origin}/api/files/${person.workspaceId}/${file.id}?${new URLSearchParams(token).toString()}`
  t.equal((await fetch(forged)).status, 403, 'a token is no signature')
})

void t.test('with Supabase files are put and read at the store', async (t) => {
  const standIn = await startStorageStandIn()
  t.teardown(() => standIn.close())
  const store = new SupabaseObjectStore({
    url: standIn.url,
    serviceRoleKey: standIn.serviceRoleKey,
  })
  const { call, upload, urlOf } = await mediaRig(t, sql, {}, { store })
  const bytes = await picture()
  const { body } = await upload(bytes, 'a.jpg')
  const url = await urlOf(body.id)
  t.ok(url.startsWith(standIn.url))
  const read = await fetch(url)
  t.equal(read.headers.get('content-type'), 'image/jpeg')
  t.ok(bytes.equals(Buffer.from(await read.arrayBuffer())))
  t.equal(
    (await fetch(await urlOf(body.id, '&thumbnail=true'))).headers.get('content-type'),
    'image/webp',
  )
  const document = await fetch(await urlOf((await upload(pdf, 'ñ.pdf')).body.id))
  t.match(document.headers.get('content-disposition'), /^attachment/)

  for (const [announced, sent] of [
    ['audio/mp3', 'audio/mpeg'],
    ['audio/mpeg', 'text/html'],
  ] as const) {
    const sound = padded(fixture('tone.mp3'), 3_000, announced.length)
    const signed = await call<Signed & { resumable: object }>('POST', '/api/uploads/sign', {
      body: wish(sound, announced, 'tone.mp3'),
    })
    t.match(signed.body, {
      headers: { 'content-type': 'audio/mpeg' },
      resumable: { endpoint: `${standIn.url}/storage/v1/upload/resumable/sign` },
    })
    t.equal((await put(signed.body.url, sound, { 'content-type': sent })).status, 200)
    const { mediaId } = signed.body
    const confirmed = await call('POST', '/api/uploads/confirm', { body: { mediaId } })
    t.match(confirmed, {
      status: 200,
      body: { kind: 'audio', mimeType: 'audio/mpeg', duration: 1.08 },
    })
    const served = await fetch(await urlOf(mediaId))
    t.equal(served.headers.get('content-type'), 'audio/mpeg', 'whatever the uploader called it')
    t.ok(sound.equals(Buffer.from(await served.arrayBuffer())))
    t.equal((await call('DELETE', `/api/upload/${mediaId}`)).status, 204)
  }
  t.equal(standIn.buckets.get('media')!.size, 3, 'the picture, its thumbnail, the document')
  standIn.behave('overloaded')
  t.match((await upload(pdf.subarray(0, 20))).body, errorShape(503, 'STORE_UNAVAILABLE'))
  t.equal((await call('GET', `/api/upload/signed-url?mediaId=${body.id}`)).status, 503)
})
