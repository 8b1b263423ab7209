import { Readable } from 'node:stream'
import { create as contentDisposition } from 'content-disposition'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import Joi from 'joi'
import { notFound } from '../../shared/errors.ts'
import {
  isShown,
  mediaBucket,
  objectKey,
  servedType,
  thumbnailKey,
  thumbnailType,
} from '../../shared/media-store.ts'
import { findMedia } from '../../shared/media.ts'
import type { MediaRow } from '../../shared/media.ts'
import type { ByteRange } from '../../shared/object-store.ts'
import { errorBody } from '../plugins/errors.ts'
import type { Routes } from '../plugins/joi.ts'
import { exactUuid } from '../plugins/joi.ts'
import type { Signature } from '../media-urls.ts'

interface Named {
  workspaceId: string
  mediaId: string
}

const named = Joi.object<Named, true>({
  workspaceId: exactUuid().required(),
  mediaId: exactUuid().required(),
})

export const signature = Joi.object<Signature, true>({
  expires: Joi.string().max(20).required(),
  signature: Joi.string().max(100).required(),
})

const bytes = { content: { '*/*': { schema: Joi.binary() } } }

/** Files, as the API serves them itself when the store has no URLs of its own. */
export const mediaFilesRoutes: Routes = async (app) => {
  for (const use of ['read', 'thumbnail'] as const) {
    app.get(
      `/api/files/:workspaceId/:mediaId${use === 'thumbnail' ? '/thumbnail' : ''}`,
      {
        config: { access: 'public', limit: 'none' },
        schema: {
          summary: use === 'read' ? 'Read a file' : 'Read the small picture of an image',
          description: 'By a URL of `GET /api/upload/signed-url` only.',
          tags: ['media'],
          params: named,
          querystring: signature,
          response: { 200: bytes, 206: bytes, 403: errorBody },
        },
      },
      async (request, reply) => {
        const { workspaceId, mediaId } = request.params
        app.urlSigner.verify({ use, workspaceId, mediaId }, request.query)
        const row = await findMedia(app.sql, workspaceId, mediaId)
        if (row?.status !== 'ready' || row.objectId === null) throw notFound('File')
        if (use === 'thumbnail' && !row.thumbnail) throw notFound('File')
        const maxAge = Math.max(0, Number(request.query.expires) - Math.floor(Date.now() / 1_000))
        return serve(app, request, reply, row, use === 'thumbnail', maxAge)
      },
    )
  }
}

/** The URL under which this API serves a file, for so many seconds. */
export function fileUrl(
  app: FastifyInstance,
  { protocol, host }: FastifyRequest,
  { workspaceId, mediaId, thumbnail }: Named & { thumbnail: boolean },
  seconds: number,
): { url: string; expiresAt: Date } {
  const use = thumbnail ? 'thumbnail' : 'read'
  const signed = app.urlSigner.sign({ use, workspaceId, mediaId }, seconds)
  const path = `/api/files/${workspaceId}/${mediaId}${thumbnail ? '/thumbnail' : ''}`
  const query = `expires=${signed.expires}&signature=${signed.signature}`
  return { url: `${protocol}://${host}${path}?${query}`, expiresAt: signed.expiresAt }
}

async function serve(
  app: FastifyInstance,
  request: FastifyRequest,
  reply: FastifyReply,
  row: MediaRow,
  thumbnail: boolean,
  maxAge: number,
): Promise<FastifyReply> {
  const { store } = app.media
  const { workspaceId, objectId, mimeType, sha256, filename } = row
  const key = (thumbnail ? thumbnailKey : objectKey)(workspaceId, objectId!)
  const info = await store.stat(mediaBucket, key)
  if (!info) throw notFound('File')
  const { size } = info
  const etag = `"${sha256}${thumbnail ? '-thumbnail' : ''}"`
  const shown = thumbnail || isShown(mimeType)
  reply.headers({
    'content-type': thumbnail ? thumbnailType : servedType(mimeType),
    'content-disposition': contentDisposition(thumbnail ? undefined : (filename ?? 'file'), {
      type: shown ? 'inline' : 'attachment',
    }),
    'cache-control': `private, max-age=${maxAge}, immutable`,
    etag,
    'accept-ranges': 'bytes',
    // Whatever is in it, it runs nothing and is taken for nothing else; but any page may show it.
    'content-security-policy': "sandbox; default-src 'none'",
    'x-content-type-options': 'nosniff',
    'cross-origin-resource-policy': 'cross-origin',
  })
  if (isKnown(request.headers['if-none-match'], etag)) return reply.code(304).send()

  const condition = request.headers['if-range']
  const applies = condition === undefined || condition === etag
  const range = applies ? parseRange(request.headers.range, size) : undefined
  if (range === 'none') {
    return reply
      .code(416)
      .header('content-range', `bytes */${size}`)
      .header('content-length', 0)
      .send()
  }
  const { start, end } = range ?? { start: 0, end: size - 1 }
  if (range) reply.code(206).header('content-range', `bytes ${start}-${end}/${size}`)
  reply.header('content-length', end - start + 1)
  // Node leaves the body of an answer to HEAD away; a stream has no length Fastify could put in the place of ours.
  const head = request.method === 'HEAD'
  return reply.send(head ? Readable.from([]) : await store.get(mediaBucket, key, range))
}

/** Whether one of the tags a client has is this one; a proxy that compresses has made it a weak one. */
const isKnown = (header: string | undefined, etag: string) =>
  header?.split(',').some((tag) => ['*', etag, `W/${etag}`].includes(tag.trim())) ?? false

/** The one range that is asked for; undefined for the whole file, also when several are; `none` when there is no such part. */
function parseRange(header: string | undefined, size: number): ByteRange | 'none' | undefined {
  const [, first, last] = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? '') ?? []
  if (first === undefined || last === undefined || (first === '' && last === '')) return undefined
  if (first === '') {
    const length = Math.min(Number(last), size)
    return length === 0 ? 'none' : { start: size - length, end: size - 1 }
  }
  const start = Number(first)
  const end = last === '' ? size - 1 : Math.min(Number(last), size - 1)
  if (last !== '' && Number(last) < start) return undefined
  return start >= size ? 'none' : { start, end }
}
