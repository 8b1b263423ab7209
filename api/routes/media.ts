import { Readable } from 'node:stream'
import multipart from '@fastify/multipart'
import type { Multipart } from '@fastify/multipart'
import type { FastifyRequest } from 'fastify'
import Joi from 'joi'
import { AppError, notFound } from '../../shared/errors.ts'
import type { Fault } from '../../shared/errors.ts'
import { removeAbandoned } from '../../shared/media-files.ts'
import {
  isShown,
  mediaBucket,
  notReady,
  objectKey,
  removeMedia,
  receiveUpload,
  thumbnailKey,
} from '../../shared/media-store.ts'
import { sizeLimits, tooLarge } from '../../shared/media-types.ts'
import type { MediaKind } from '../../shared/media-types.ts'
import { findMedia, listMedia, mediaResource } from '../../shared/media.ts'
import type { Media } from '../../shared/media.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { nothing, pageOf, paging, uuid } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'
import { guardUploads } from '../uploading.ts'
import { fileUrl } from './media-files.ts'

export const mediaKind = Joi.string<MediaKind>().valid('image', 'video', 'document', 'audio')

export const media = Joi.object<Media, true>({
  id: Joi.string().guid().required(),
  kind: mediaKind.required(),
  mimeType: Joi.string().required().description('What the bytes say'),
  size: Joi.number().integer().allow(null).required().description('Bytes'),
  sha256: Joi.string().hex().length(64).allow(null).required(),
  filename: Joi.string().allow(null).required(),
  status: Joi.string().valid('pending', 'ready', 'failed', 'expired').required(),
  createdAt: Joi.date().required(),
  width: Joi.number().integer().allow(null).required(),
  height: Joi.number().integer().allow(null).required(),
  duration: Joi.number().allow(null).required().description('Seconds'),
  thumbnail: Joi.boolean().required().description('Whether there is a small picture of it'),
})

const filter = Joi.object<Paging & { kind?: MediaKind }, true>({ ...paging, kind: mediaKind })

interface WhichFile {
  mediaId: string
}

const whichFile = Joi.object<WhichFile, true>({ mediaId: uuid().required() })

interface UrlWish extends WhichFile {
  expiresIn: number
  thumbnail: boolean
}

const urlWish = Joi.object<UrlWish, true>({
  mediaId: uuid().required(),
  expiresIn: Joi.number().integer().min(1).max(86_400).default(3_600).description('Seconds'),
  thumbnail: Joi.boolean().default(false).description('The small picture instead of the file'),
})

const signedUrl = Joi.object<{ url: string; expiresAt: Date }, true>({
  url: Joi.string().uri().required(),
  expiresAt: Joi.date().required(),
})

const largest = Math.max(...Object.values(sizeLimits))
/** What may stand around the file in a form. */
const formBytes = 65_536

const tags = ['media']

/** Files: uploading them, finding them, getting at their bytes. */
export const mediaRoutes: Routes = async (app) => {
  const { sql, media: parts } = app

  await app.register(async (scope) => {
    await scope.register(multipart, {
      // The limit of a file is its kind's, and keeping it ends the reading; what is beyond a limit of the parser is read on and thrown away.
      limits: { fileSize: Infinity, files: 2, fields: 2, fieldSize: 1_024, parts: 4 },
    })
    guardUploads(scope, app.uploadPace)

    scope.post(
      '/api/upload/media',
      {
        config: { access: 'send', limit: 'uploads' },
        schema: {
          summary: 'Upload a file',
          description:
            'multipart/form-data with the file in the field `file`, and nothing else. Images up to 5 MB (jpeg, png, gif, webp), videos 50 MB (mp4, mpeg, quicktime, webm), documents 10 MB (pdf, doc, docx, xls, xlsx, txt), audio 15 MB (mp3, ogg, wav, webm); the type is what the bytes say. Each upload is a file of its own, also when the workspace has the same bytes already: those are stored, and counted, once.',
          tags,
          consumes: ['multipart/form-data'],
          headers: idempotent,
          response: { 201: media, 413: errorBody, 415: errorBody, 503: errorBody, 507: errorBody },
        },
      },
      async (request, reply) => {
        if (Number(request.headers['content-length'] ?? 0) > largest + formBytes) {
          throw tooLarge('video')
        }
        const { workspaceId } = request.user
        await withFile(request, (source, filename) =>
          receiveUpload(parts, { filename, source }, (upload) =>
            app.answerLongWorkOnce(
              request,
              reply,
              async () => ({
                statusCode: 201,
                body: mediaResource(await upload.keep(workspaceId)),
              }),
              `${upload.sha256} ${upload.filename}`,
            ),
          ),
        )
        return reply
      },
    )
  })

  app.get(
    '/api/upload',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List the files, newest first',
        tags,
        querystring: filter,
        response: { 200: pageOf(media) },
      },
    },
    async ({ user, query }) => listMedia(sql, user.workspaceId, query),
  )

  app.get(
    '/api/upload/signed-url',
    {
      config: { access: 'read' },
      schema: {
        summary: 'Get a URL of a file',
        description:
          'Whoever has the URL can read the file until it expires, also from an `<img>`. It ends earlier when the file is deleted.',
        tags,
        querystring: urlWish,
        response: { 200: signedUrl, 404: errorBody, 409: errorBody, 503: errorBody },
      },
    },
    async (request) => {
      const { mediaId, expiresIn: seconds, thumbnail } = request.query
      const row = await findMedia(sql, request.user.workspaceId, mediaId)
      if (!row) throw notFound('Media')
      const { workspaceId, objectId, mimeType } = row
      if (row.status !== 'ready' || objectId === null) throw notReady()
      if (thumbnail && !row.thumbnail) throw notFound('Thumbnail')
      const { urls } = parts.store
      if (!urls) return fileUrl(app, request, { mediaId, workspaceId, thumbnail }, seconds)
      const key = (thumbnail ? thumbnailKey : objectKey)(workspaceId, objectId)
      const download = thumbnail || isShown(mimeType) ? undefined : (row.filename ?? 'file')
      // Before the store is asked: its own clock begins later.
      const expiresAt = new Date(Date.now() + seconds * 1_000)
      return { url: await urls.read(mediaBucket, key, { seconds, download }), expiresAt }
    },
  )

  app.delete(
    '/api/upload/:mediaId',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Delete a file',
        description: 'Messages that carried it stay, without it.',
        tags,
        params: whichFile,
        response: { 204: nothing, 409: errorBody },
      },
    },
    async ({ user, params }, reply) => {
      await removeMedia(parts, user.workspaceId, params.mediaId)
      return reply.code(204).send(null)
    },
  )

  // Only a process that died leaves any, and then it is started again. Other machines than the worker's are cleaned nowhere else.
  app.addHook('onReady', async () => {
    const files = await removeAbandoned(parts.dir)
    if (files > 0) app.log.info({ files }, 'temporary files removed')
  })
}

/**
 * Gives the one file of a form to `keep`, while it arrives. Throws 400 when there is not exactly one, in the field `file` and alone.
 * What `keep` made of a file that turned out not to be alone, it must be able to undo.
 */
async function withFile<T>(
  request: FastifyRequest,
  keep: (source: Readable, filename: string) => Promise<T>,
): Promise<T> {
  if (!request.isMultipart()) throw wrongForm('must be multipart/form-data with a field "file"')
  const parts = request.parts()
  const first = await nextPart(parts)
  if (!first) throw wrongForm('is missing')
  if (first.type !== 'file' || first.fieldname !== 'file') {
    throw wrongForm('must be a file, and the only field of the form')
  }
  // The file ends for `keep` only when the form does: nothing is stored before it is known to be alone.
  const { file, filename } = first
  const alone = async function* () {
    try {
      for await (const chunk of file as AsyncIterable<Buffer>) yield chunk
    } catch {
      // The request ended, or broke off, before the form did.
      throw unreadableForm()
    }
    if (await nextPart(parts)) throw wrongForm('must be the only field of the form')
  }
  return keep(Readable.from(alone(), { objectMode: false }), filename)
}

type Parts = ReturnType<FastifyRequest['parts']>

/** The next part of a form; 400 when it is none. */
async function nextPart(parts: Parts): Promise<Multipart | undefined> {
  try {
    const next: IteratorResult<Multipart, unknown> = await parts.next()
    return next.done ? undefined : next.value
  } catch (error) {
    throw error instanceof AppError ? error : unreadableForm()
  }
}

const unreadableForm = () => wrongForm('is not a form that can be read')

function wrongForm(what: string): AppError {
  const fault: Fault = { path: 'body.file', message: `"body.file" ${what}` }
  return new AppError(400, 'VALIDATION_FAILED', fault.message, [fault])
}
