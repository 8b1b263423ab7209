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
import type { ObjectStore } from '../object-store.ts'
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
