import { randomUUID } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import t from 'tap'
import type { Test } from 'tap'
import { cleanMedia, sweepMedia } from '../media-cleanup.ts'
import {
  announceInboundMedia,
  expectUpload,
  mediaBucket,
  objectKey,
  openBucket,
  openMediaFile,
  storeInboundMedia,
  receiveUpload,
} from '../media-store.ts'
import { findMedia, messageMedia } from '../media.ts'
import { LocalObjectStore } from '../object-store-local.ts'
import { createWorkspace } from '../workspaces.ts'
import { testDb } from './db.ts'
import { FaultyStore } from './faulty-store.ts'

const { sql } = await testDb(t)
const pdf = (name: string) => Buffer.from(`%PDF-1.4\n${name}\n%%EOF\n`)
const nothing = { tempFiles: 0, unconfirmed: 0, expired: 0, forgotten: 0, objects: 0 }

async function rig(t: Test) {
  await sql`delete from media`
  await sql`delete from media_objects`
  const folder = t.testdir()
  const store = new FaultyStore(new LocalObjectStore(join(folder, 'objects')))
  await openBucket(store)
  const parts = { sql, store, dir: join(folder, 'tmp'), quota: undefined }
  const workspaceId = await createWorkspace(sql, 'Test')
  return {
    ...parts,
    folder,
    workspaceId,
    parts,
    keep: (name: string) =>
      receiveUpload(parts, { filename: name, source: Readable.from([pdf(name)]) }, (upload) =>
        upload.keep(workspaceId),
      ),
    objects: () =>
      readdirSync(join(folder, 'objects', mediaBucket), { recursive: true, withFileTypes: true })
        .filter((file) => file.isFile())
        .map((file) => file.name),
  }
}

void t.test('what is in use stays', async (t) => {
  const { parts, keep, objects } = await rig(t)
  await keep('a')
  await sql`update media_objects set writable_until = now() - interval '1 day', created_at = now() - interval '1 day'`
  t.strictSame(await cleanMedia(parts, undefined), nothing)
  t.strictSame(await sweepMedia(parts), { strangers: 0, lost: 0, found: 0 })
  t.equal(objects().length, 1)
})

void t.test('old temporary files, unconfirmed uploads and forgotten objects go', async (t) => {
  const { parts, dir, store, workspaceId, objects } = await rig(t)
  mkdirSync(dir, { recursive: true })
  for (const name of ['old', 'young']) writeFileSync(join(dir, name), 'x')
  const then = new Date(Date.now() - 3_700_000)
  utimesSync(join(dir, 'old'), then, then)

  const wish = { workspaceId, filename: 'a', mimeType: 'application/pdf', size: 5 }
  const late = await expectUpload(parts, wish, 60)
  await expectUpload(parts, wish, 60)
  await store.put(mediaBucket, objectKey(workspaceId, late.objectId), Readable.from(['12345']))
  await sql`update media_objects set writable_until = now() - interval '61 minutes' where id = ${late.objectId}`
  const [dead] = await sql<{ id: string }>`
    insert into media_objects (workspace_id, size, writable_until)
    values (${workspaceId}, 5, now() - interval '1 second') returning id`
  await store.put(mediaBucket, objectKey(workspaceId, dead!.id), Readable.from(['12345']))

  store.beforeRemove = () => {
    throw new Error('away')
  }
  await t.rejects(cleanMedia(parts, undefined), { message: 'away' })
  store.heal()
  t.match(await cleanMedia(parts, undefined), { objects: 2 }, 'what broke off goes on')
  t.strictSame(readdirSync(dir), ['young'])
  t.strictSame(objects(), [])
  const [left] = await sql`
    select (select count(*)::int from media) as media, (select count(*)::int from media_objects) as objects`
  t.strictSame(left, { media: 1, objects: 1 }, 'the one that may still come')
  t.strictSame(await cleanMedia(parts, undefined), nothing)
})

void t.test('an object that may still be written is removed again', async (t) => {
  const { parts, store, workspaceId, objects } = await rig(t)
  const wish = { workspaceId, filename: 'a', mimeType: 'application/pdf', size: 5 }
  const { id, objectId } = await expectUpload(parts, wish, 60)
  await sql`delete from media where id = ${id}`
  await sql`update media_objects set state = 'discarded'`
  t.match(await cleanMedia(parts, undefined), { objects: 0 })
  await store.put(mediaBucket, objectKey(workspaceId, objectId), Readable.from(['12345']))
  await sql`update media_objects set writable_until = now()`
  t.match(await cleanMedia(parts, undefined), { objects: 1 })
  t.strictSame(objects(), [])
})

void t.test(
  'files past their time lose their bytes, once no queued message needs them',
  async (t) => {
    const { parts, keep, workspaceId, objects } = await rig(t)
    const [old, needed, young] = [await keep('old'), await keep('needed'), await keep('young')]
    await sql`update media set created_at = now() - interval '31 days' where id = any(${[old.id, needed.id]})`
    await sql`update media_objects set writable_until = now()`
    const [session] = await sql<{ id: string }>`
    insert into wa_sessions (workspace_id, name, engine) values (${workspaceId}, 'Sales', 'simulator') returning id`
    const [chat] = await sql<{ id: string }>`
    insert into chats (workspace_id, session_id, wa_chat_id)
    values (${workspaceId}, ${session!.id}, '1@c.us') returning id`
    const [message] = await sql<{ id: string }>`
    insert into messages (workspace_id, session_id, chat_id, direction, source, type, status, media_id)
    values (${workspaceId}, ${session!.id}, ${chat!.id}, 'outbound', 'api', 'document', 'queued', ${needed.id})
    returning id`
    await sql`
    insert into outbox (message_id, workspace_id, session_id, chat_id)
    values (${message!.id}, ${workspaceId}, ${session!.id}, ${chat!.id})`

    t.match(await cleanMedia(parts, undefined), { expired: 0 }, 'off by default')
    t.match(await cleanMedia(parts, 30), { expired: 1, objects: 1 })
    t.match(await findMedia(sql, workspaceId, old.id), { status: 'expired', filename: 'old.pdf' })
    t.match(await findMedia(sql, workspaceId, young.id), { status: 'ready' })
    t.match(await findMedia(sql, workspaceId, needed.id), { status: 'ready' })
    await sql`delete from outbox`
    t.match(await cleanMedia(parts, 30), { expired: 1, objects: 1 })
    t.equal(objects().length, 1)
  },
)

void t.test('store and database are compared both ways', async (t) => {
  const { parts, keep, folder, store, workspaceId, objects } = await rig(t)
  const file = await keep('a')
  const path = join(folder, 'objects', mediaBucket, objectKey(workspaceId, file.objectId!))
  const stranger = objectKey(workspaceId, randomUUID())
  const young = objectKey(workspaceId, randomUUID())
  for (const key of [stranger, `${stranger}-thumbnail`, young, 'not-ours/object']) {
    await store.put(mediaBucket, key, Readable.from(['x']))
  }
  const then = new Date(Date.now() - 25 * 3_600_000)
  for (const key of [stranger, `${stranger}-thumbnail`, 'not-ours/object']) {
    utimesSync(join(folder, 'objects', mediaBucket, key), then, then)
  }
  t.strictSame(await sweepMedia(parts), { strangers: 2, lost: 0, found: 0 })
  t.equal(objects().length, 3)

  const bytes = readFileSync(path)
  rmSync(path)
  t.match(await sweepMedia(parts), { lost: 0 }, 'it might just be arriving')
  await sql`update media_objects set created_at = now() - interval '2 hours'`
  t.match(await sweepMedia(parts), { lost: 1 })
  t.match(await findMedia(sql, workspaceId, file.id), { status: 'failed' })
  writeFileSync(path, bytes)
  t.match(await sweepMedia(parts), { lost: 0, found: 1 })
  t.match(await findMedia(sql, workspaceId, file.id), { status: 'ready' })

  rmSync(path)
  await sweepMedia(parts)
  const again = await keep('a')
  t.match(
    await findMedia(sql, workspaceId, file.id),
    { status: 'ready' },
    'healed by the same bytes',
  )
  t.not(again.objectId, file.objectId)
})

void t.test('inbound files are announced, kept as they are, and opened for sending', async (t) => {
  const { parts, store, dir, workspaceId } = await rig(t)
  const announce = (kind: 'image' | 'document', mimeType: string, filename: string | null) =>
    announceInboundMedia(sql, { workspaceId, kind, mimeType, size: null, filename })
  const receive = (id: string, bytes: Buffer, maxBytes = 1_000) =>
    storeInboundMedia(parts, { workspaceId, id, source: Readable.from([bytes]), maxBytes })

  const document = await announce('document', 'application/zip', '../a.zip')
  t.match(messageMedia(document), { status: 'pending', filename: 'a.zip', size: null })
  const zip = Buffer.from('PK\x03\x04 something')
  const ready = await receive(document.id, zip)
  t.match(ready, { status: 'ready', mimeType: 'application/zip', size: zip.length })
  t.match(await receive(document.id, pdf('other')), { sha256: ready.sha256 }, 'only once')
  const path = await openMediaFile(store, ready, dir)
  t.ok(readFileSync(path).equals(zip))
  rmSync(path)
  await t.rejects(openMediaFile(store, { ...ready, sha256: '0'.repeat(64) }, dir), {
    message: /not what was stored/,
  })

  const lie = await announce('image', 'image/png', null)
  t.match(await receive(lie.id, Buffer.from('<html>')), {
    kind: 'image',
    mimeType: 'application/octet-stream',
    filename: null,
  })
  const large = await announce('document', 'text/plain', null)
  await t.rejects(receive(large.id, Buffer.alloc(1_001, 0x61)), { code: 'FILE_TOO_LARGE' })
  t.strictSame(readdirSync(dir), [])
  await t.rejects(receive(randomUUID(), zip), { code: 'NOT_FOUND' })
  await t.rejects(openMediaFile(store, large, dir), { code: 'MEDIA_NOT_READY' })
})
