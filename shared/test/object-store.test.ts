import { randomBytes, randomUUID } from 'node:crypto'
import { readdirSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import t from 'tap'
import type { Test } from 'tap'
import { LocalObjectStore } from '../object-store-local.ts'
import { SupabaseObjectStore } from '../object-store-supabase.ts'
import { ObjectExists, ObjectNotFound, StoreRefused, StoreUnavailable } from '../object-store.ts'
import type { ObjectStore, StoreUrls } from '../object-store.ts'
import { startStorageStandIn } from './storage-stand-in.ts'

/** What every object store promises. */
async function contract(t: Test, store: ObjectStore): Promise<void> {
  const bucket = `awfar-test-${randomUUID().slice(0, 8)}`
  const put: string[] = []
  const keep = async (key: string, bytes: Buffer) => {
    put.push(key)
    await store.put(bucket, key, Readable.from([bytes]), { size: bytes.length })
  }
  const read = async (key: string) => buffer(await store.get(bucket, key))
  t.teardown(() => store.remove(bucket, put))

  await t.test('a bucket is made when it is used first, by as many as like', async (t) => {
    await t.rejects(store.put(bucket, 'a/b', Readable.from(['x'])), StoreRefused)
    await t.rejects(store.get(bucket, 'a/b'), StoreRefused, 'a missing bucket is no missing object')
    await Promise.all([store.ensureBucket(bucket), store.ensureBucket(bucket)])
    await store.ensureBucket(bucket)
  })

  await t.test('what was put is read, byte for byte, and gone when removed', async (t) => {
    const bytes = randomBytes(3_000_001)
    await keep('some/folder/object-1.bin', bytes)
    t.ok(bytes.equals(await read('some/folder/object-1.bin')))
    await store.remove(bucket, ['some/folder/object-1.bin', 'never/there'])
    await t.rejects(store.get(bucket, 'some/folder/object-1.bin'), ObjectNotFound)
    await t.rejects(store.get(bucket, 'never/there'), ObjectNotFound)
  })

  await t.test('nothing is empty, and nothing is replaced', async (t) => {
    await keep('empty', Buffer.alloc(0))
    t.equal((await read('empty')).length, 0)
    await keep('once', Buffer.from('first'))
    await t.rejects(store.put(bucket, 'once', Readable.from(['second'])), ObjectExists)
    t.equal((await read('once')).toString(), 'first')
  })

  await t.test('an object is there as a whole or not at all', async (t) => {
    const broken = Readable.from(
      (async function* () {
        yield randomBytes(500_000)
        throw new Error('the disk went away')
      })(),
      { objectMode: false },
    )
    await t.rejects(store.put(bucket, 'broken', broken), { message: 'the disk went away' })
    await t.rejects(store.put(bucket, 'short', Readable.from([Buffer.from('abc')]), { size: 4 }), {
      message: 'The object has 3 bytes, not 4.',
    })
    const stop = new AbortController()
    const endless = new Readable({
      read() {
        this.push(Buffer.alloc(1_000))
        setImmediate(() => stop.abort(new Error('enough')))
      },
    })
    await t.rejects(store.put(bucket, 'endless', endless, { signal: stop.signal }))
    t.ok(endless.destroyed, 'and its source is let go')
    for (const key of ['broken', 'short', 'endless']) {
      await t.rejects(store.get(bucket, key), ObjectNotFound)
    }
  })

  await t.test('a part of an object is read alone', async (t) => {
    const bytes = randomBytes(100_000)
    await keep('ranges', bytes)
    for (const [start, end] of [
      [0, 0],
      [0, 99_999],
      [5, 70_000],
      [99_999, 99_999],
    ] as const) {
      const part = await buffer(await store.get(bucket, 'ranges', { start, end }))
      t.ok(part.equals(bytes.subarray(start, end + 1)), `${start}-${end}`)
    }
    await t.rejects(store.get(bucket, 'never/there', { start: 0, end: 1 }), ObjectNotFound)
  })

  await t.test('what is known of an object is told without reading it', async (t) => {
    await keep('known', Buffer.from('12345'))
    t.match(await store.stat(bucket, 'known'), { size: 5 })
    t.equal(await store.stat(bucket, 'never/there'), undefined)
    await t.rejects(store.stat('no-such-bucket-anywhere', 'known'), StoreRefused)
  })

  await t.test('objects are listed, folder by folder', async (t) => {
    for (const key of ['list/a', 'list/b', 'list/deeper/c']) await keep(key, Buffer.from('x'))
    const listed = async (folder?: string) => {
      const found: string[] = []
      for await (const { key, folder: isFolder, at } of store.list(bucket, folder)) {
        if (!isFolder) t.ok(Math.abs(at!.getTime() - Date.now()) < 600_000, 'and since when')
        found.push(isFolder ? `${key}/` : key)
      }
      return found.sort()
    }
    t.strictSame(await listed('list'), ['list/a', 'list/b', 'list/deeper/'])
    t.strictSame(await listed('list/deeper'), ['list/deeper/c'])
    t.strictSame(await listed('list/nothing'), [])
    t.ok((await listed()).includes('list/'))
  })

  if (store.urls) await urlContract(t, bucket, store, store.urls, put)

  await t.test('a key that leads elsewhere is refused before anything is called', async (t) => {
    const bad = [
      '',
      '/a',
      'a/',
      'a//b',
      '../a',
      'a/../b',
      'a/.b',
      '.',
      'a b',
      'ñ',
      'a\\b',
      'a%2e',
      'a?b',
    ]
    for (const key of [...bad, 'x'.repeat(513)]) {
      await t.rejects(store.put(bucket, key, Readable.from(['x'])), {
        name: 'StoreRefused',
        statusCode: 400,
      })
      await t.rejects(store.get(bucket, key), { name: 'StoreRefused', statusCode: 400 })
      await t.rejects(store.remove(bucket, [key]), { name: 'StoreRefused', statusCode: 400 })
    }
    await t.rejects(store.ensureBucket('../x'), { name: 'StoreRefused', statusCode: 400 })
  })
}

/** What a store promises that others may read and write by URLs. */
async function urlContract(
  t: Test,
  bucket: string,
  store: ObjectStore,
  urls: StoreUrls,
  made: string[],
): Promise<void> {
  const bytes = randomBytes(50_000)
  const contentType = 'image/png'

  await t.test('an object is read by a URL', async (t) => {
    made.push('by-url')
    await store.put(bucket, 'by-url', Readable.from([bytes]), { contentType })
    t.match(await store.stat(bucket, 'by-url'), { size: 50_000, contentType })
    const shown = await fetch(await urls.read(bucket, 'by-url', { seconds: 60 }))
    t.equal(shown.status, 200)
    t.equal(shown.headers.get('content-type'), contentType)
    t.ok(bytes.equals(Buffer.from(await shown.arrayBuffer())))
    const download = 'Rechnung 1 – ñ.png'
    const kept = await fetch(await urls.read(bucket, 'by-url', { seconds: 60, download }))
    t.match(kept.headers.get('content-disposition'), encodeURIComponent(download))
    await kept.arrayBuffer()
    await t.rejects(urls.read(bucket, 'never/there', { seconds: 60 }), ObjectNotFound)
  })

  await t.test('an object is put by a URL, once', async (t) => {
    made.push('put/by-url')
    const { url, headers, expiresAt } = await urls.put(bucket, 'put/by-url', contentType)
    t.ok(expiresAt.getTime() > Date.now())
    const first = await fetch(url, { method: 'PUT', headers, body: bytes })
    t.equal(first.status, 200)
    t.match(await store.stat(bucket, 'put/by-url'), { size: 50_000, contentType })
    const second = await fetch(url, { method: 'PUT', headers, body: 'other' })
    t.match(await second.json(), { statusCode: '409' })
    t.ok(bytes.equals(await buffer(await store.get(bucket, 'put/by-url'))))
  })

  await t.test('a URL is for one object and one use', async (t) => {
    const put = await urls.put(bucket, 'put/never', contentType)
    const read = await urls.read(bucket, 'by-url', { seconds: 60 })
    const swap = (url: string, from: string, to: string) => url.replace(from, to)
    for (const [url, method] of [
      [swap(read, 'by-url', 'put/by-url'), 'GET'],
      [swap(read, '/sign/', '/upload/sign/'), 'PUT'],
      [swap(put.url, '/upload/sign/', '/sign/'), 'GET'],
      [swap(put.url, 'put/never', 'put/elsewhere'), 'PUT'],
    ] as const) {
      const answer = await fetch(url, { method, ...(method === 'PUT' && { body: 'x' }) })
      t.equal(answer.status, 400, `${method} ${new URL(url).pathname}`)
      await answer.text()
    }
    t.equal(await store.stat(bucket, 'put/never'), undefined)
  })

  await t.test('an object is put in pieces', async (t) => {
    made.push('put/pieces')
    const { resumable } = await urls.put(bucket, 'put/pieces', contentType)
    const tus = { 'tus-resumable': '1.0.0', ...resumable.headers }
    const metadata = Object.entries(resumable.metadata)
      .map(([name, value]) => `${name} ${Buffer.from(value).toString('base64')}`)
      .join(',')
    const large = randomBytes(resumable.chunkSize + 1_000)
    const begun = await fetch(resumable.endpoint, {
      method: 'POST',
      headers: { ...tus, 'upload-length': String(large.length), 'upload-metadata': metadata },
    })
    t.equal(begun.status, 201)
    const location = new URL(begun.headers.get('location')!, resumable.endpoint)
    for (const from of [0, resumable.chunkSize]) {
      const piece = await fetch(location, {
        method: 'PATCH',
        headers: {
          ...tus,
          'content-type': 'application/offset+octet-stream',
          'upload-offset': String(from),
        },
        body: large.subarray(from, from + resumable.chunkSize),
      })
      t.equal(piece.status, 204)
    }
    t.match(await store.stat(bucket, 'put/pieces'), { size: large.length, contentType })
    t.ok(large.equals(await buffer(await store.get(bucket, 'put/pieces'))))
  })
}

await t.test('a folder on this machine', async (t) => {
  const folder = join(t.testdir(), 'objects')
  const store = new LocalObjectStore(folder)
  await contract(t, store)

  await t.test('is readable by its owner only, and leaves no drafts', async (t) => {
    await store.ensureBucket('sessions')
    await store.put('sessions', 'a/b', Readable.from(['x']))
    for (const path of ['', 'sessions', 'sessions/a', 'sessions/.drafts']) {
      t.equal(statSync(join(folder, path)).mode & 0o777, 0o700, path)
    }
    t.equal(statSync(join(folder, 'sessions/a/b')).mode & 0o777, 0o600)
    t.same(readdirSync(join(folder, 'sessions/.drafts')), [])
  })

  await t.test('drafts of a process that died are cleared away after an hour', async (t) => {
    const old = join(folder, 'sessions/.drafts/old')
    const young = join(folder, 'sessions/.drafts/young')
    for (const file of [old, young]) writeFileSync(file, 'x')
    utimesSync(old, new Date(Date.now() - 3_700_000), new Date(Date.now() - 3_700_000))
    await store.ensureBucket('sessions')
    t.same(readdirSync(join(folder, 'sessions/.drafts')), ['young'])
  })

  await t.test('a folder that is gone is not an absent object', async (t) => {
    await rm(folder, { recursive: true })
    await t.rejects(store.get('sessions', 'a/b'), StoreRefused)
  })
})

await t.test('Supabase Storage, by the stand-in', async (t) => {
  const standIn = await startStorageStandIn()
  t.teardown(() => standIn.close())
  const options = { url: standIn.url, serviceRoleKey: standIn.serviceRoleKey }
  const store = new SupabaseObjectStore(options)
  const hasty = new SupabaseObjectStore({ ...options, patienceMs: 300 })
  await contract(t, store)
  await store.ensureBucket('sessions')
  await store.put('sessions', 'kept', Readable.from([randomBytes(200_000)]))

  await t.test('a public bucket is refused', async (t) => {
    await fetch(`${standIn.url}/storage/v1/bucket`, {
      method: 'POST',
      headers: { authorization: `Bearer ${standIn.serviceRoleKey}` },
      body: JSON.stringify({ id: 'open', public: true }),
    })
    await t.rejects(store.ensureBucket('open'), { name: 'StoreRefused', message: /public/ })
  })

  await t.test('a wrong key is refused, and never quoted', async (t) => {
    const stranger = new SupabaseObjectStore({ ...options, serviceRoleKey: 'wrong' })
    await t.rejects(stranger.get('sessions', 'kept'), { name: 'StoreRefused', statusCode: 403 })
    await t.rejects(stranger.ensureBucket('sessions'), { name: 'StoreRefused', statusCode: 403 })
    const unsendable = new SupabaseObjectStore({ ...options, serviceRoleKey: 'secret\u0007value' })
    const failure = unsendable.get('sessions', 'kept').then(
      () => new Error('it was sent'),
      (error: Error) => error,
    )
    const { name, message, stack } = await failure
    t.equal(name, 'StoreUnavailable')
    t.notMatch(`${message}${stack}${JSON.stringify(await failure)}`, /secret/)
  })

  for (const manner of ['overloaded', 'silent'] as const) {
    await t.test(`a store that is ${manner} is unavailable, in time`, async (t) => {
      standIn.behave(manner)
      await t.rejects(hasty.get('sessions', 'kept'), StoreUnavailable)
      await t.rejects(hasty.remove('sessions', ['kept']), StoreUnavailable)
      await t.rejects(hasty.ensureBucket('sessions'), StoreUnavailable)
      const bytes = randomBytes(3_000_000)
      await t.rejects(hasty.put('sessions', 'late', Readable.from([bytes])), StoreUnavailable)
      standIn.behave('normal')
    })
  }

  for (const manner of ['stuck', 'cut'] as const) {
    await t.test(`a download that is ${manner} fails instead of ending early`, async (t) => {
      standIn.behave(manner)
      await t.rejects(hasty.get('sessions', 'kept').then(buffer), StoreUnavailable)
      standIn.behave('normal')
      t.equal((await buffer(await store.get('sessions', 'kept'))).length, 200_000)
    })
  }

  await t.test('an object too large for the bucket says what to do', async (t) => {
    standIn.behave('small')
    await t.rejects(store.put('sessions', 'large', Readable.from([randomBytes(2_000)])), {
      name: 'StoreRefused',
      statusCode: 413,
      message: /size limit/,
    })
    standIn.behave('normal')
  })

  await t.test('a slow reader is not late', async (t) => {
    const stream = await hasty.get('sessions', 'kept')
    let bytes = 0
    for await (const chunk of stream) {
      bytes += (chunk as Buffer).length
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    t.equal(bytes, 200_000)
  })

  await t.test('a server that is not there is unavailable', async (t) => {
    const nowhere = new SupabaseObjectStore({ ...options, url: 'http://127.0.0.1:9' })
    await t.rejects(nowhere.get('sessions', 'kept'), StoreUnavailable)
  })
})

const url = process.env['SUPABASE_URL']
const serviceRoleKey = process.env['SUPABASE_SERVICE_ROLE_KEY']
const unset =
  url && serviceRoleKey ? false : 'SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY are not set'
await t.test('Supabase Storage itself', { skip: unset }, async (t) => {
  await contract(t, new SupabaseObjectStore({ url: url!, serviceRoleKey: serviceRoleKey! }))
})
