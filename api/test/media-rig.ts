import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import sharp from 'sharp'
import type { Test } from 'tap'
import type { Db } from '../../shared/db.ts'
import type { Media } from '../../shared/media.ts'
import { LocalObjectStore } from '../../shared/object-store-local.ts'
import { root } from '../../shared/root.ts'
import { FaultyStore } from '../../shared/test/faulty-store.ts'
import { appOver, signIn } from './app.ts'
import type { Person } from './app.ts'
import type { MediaOptions } from '../plugins/media.ts'

export const fixture = (name: string) =>
  readFileSync(join(root, 'shared/test/fixtures/media', name))

export const picture = (width = 40, height = 30) =>
  sharp({ create: { width, height, channels: 3, background: 'teal' } })
    .jpeg()
    .toBuffer()

export const pdf = Buffer.from('%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n')
export const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

/** The same file, made longer at its end, where readers of its type look no more. */
export const padded = (bytes: Buffer, size: number, filler = 0x20) =>
  Buffer.concat([bytes, Buffer.alloc(size - bytes.length, filler)])

export interface Answer<T = Media & { code: string; message: string }> {
  status: number
  headers: Headers
  body: T
}

/** An API that listens, its files in a folder of the test's own, and somebody who calls it. */
export async function mediaRig(
  t: Test,
  sql: Db,
  settings: Record<string, string> = {},
  options: MediaOptions = {},
) {
  const dir = t.testdir()
  const store = new FaultyStore(new LocalObjectStore(join(dir, 'objects')))
  const env = { DATA_DIR: dir, ...settings }
  const { app } = await appOver(t, sql, env, { store, ...options })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const port = (app.server.address() as AddressInfo).port
  const origin = `http://127.0.0.1:${port}`
  const person = await signIn({ app, sql })
  const filesIn = (folder: string) =>
    existsSync(folder)
      ? readdirSync(folder, { recursive: true, withFileTypes: true }).filter((file) =>
          file.isFile(),
        ).length
      : 0

  async function call<T = Media & { code: string; message: string }>(
    method: string,
    path: string,
    { who = person, body, headers }: { who?: Person; body?: object; headers?: object } = {},
  ): Promise<Answer<T>> {
    const form = body instanceof FormData
    const answer = await fetch(`${origin}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${who.token}`,
        ...(body && !form && { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body && { body: form ? body : JSON.stringify(body) }),
    })
    const text = await answer.text()
    return {
      status: answer.status,
      headers: answer.headers,
      body: (text === '' ? null : JSON.parse(text)) as T,
    }
  }

  return {
    app,
    sql,
    dir,
    store,
    port,
    origin,
    person,
    call,
    upload: (bytes: Buffer, name = 'file.bin', who = person) => {
      const form = new FormData()
      form.append('file', new Blob([new Uint8Array(bytes)]), name)
      return call('POST', '/api/upload/media', { who, body: form })
    },
    urlOf: async (mediaId: string, query = '') =>
      (await call<{ url: string }>('GET', `/api/upload/signed-url?mediaId=${mediaId}${query}`)).body
        .url,
    /** What an upload may leave: temporary files, files of the store, rows of files and of objects in use. */
    left: async (workspaceId = person.workspaceId) => {
      const [rows] = await sql<{ media: number; objects: number }>`
        select (select count(*)::int from media where workspace_id = ${workspaceId}) as media,
          (select count(*)::int from media_objects where workspace_id = ${workspaceId} and state <> 'discarded') as objects`
      return {
        temp: filesIn(join(dir, 'tmp')),
        stored: filesIn(join(dir, 'objects')),
        media: rows!.media,
        objects: rows!.objects,
      }
    },
  }
}

export type MediaRig = Awaited<ReturnType<typeof mediaRig>>

export const nothingLeft = { temp: 0, stored: 0, media: 0, objects: 0 }
