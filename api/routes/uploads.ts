import { Readable } from 'node:stream'
import Joi from 'joi'
import { AppError, notFound } from '../../shared/errors.ts'
import {
  confirmUpload,
  expectedUpload,
  expectUpload,
  mediaBucket,
  objectKey,
  openBucket,
} from '../../shared/media-store.ts'
import {
  canonicalType,
  kindOf,
  sizeLimits,
  tooLarge,
  unsupportedType,
} from '../../shared/media-types.ts'
import { mediaResource } from '../../shared/media.ts'
import { ObjectExists } from '../../shared/object-store.ts'
import type { Resumable } from '../../shared/object-store.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { exactUuid, nothing, text, uuid } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'
import { guardUploads } from '../uploading.ts'
import { signature } from './media-files.ts'
import { media } from './media.ts'

interface SignWish {
  filename: string
  mimeType: string
  size: number
  sha256?: string
}

const signWish = Joi.object<SignWish, true>({
  filename: text().min(1).max(4_096).required(),
  mimeType: Joi.string().max(200).required().description('One of those that are taken'),
  size: Joi.number().integer().min(1).required().description('Bytes, exactly'),
  sha256: Joi.string()
    .pattern(/^[0-9a-f]{64}$/, 'a SHA-256 in lower-case hex')
    .description('Checked at confirmation when given'),
})

interface Signed {
  mediaId: string
  url: string
  method: 'PUT'
  headers: Record<string, string>
  expiresAt: Date
  resumable?: Resumable
}

const signed = Joi.object<Signed, true>({
  mediaId: Joi.string().guid().required(),
  url: Joi.string().uri().required(),
  method: Joi.string().valid('PUT').required(),
  headers: Joi.object().pattern(Joi.string(), Joi.string()).required(),
  expiresAt: Joi.date().required(),
  resumable: Joi.object<Resumable, true>({
    endpoint: Joi.string().uri().required(),
    headers: Joi.object().pattern(Joi.string(), Joi.string()).required(),
    metadata: Joi.object().pattern(Joi.string(), Joi.string()).required(),
    chunkSize: Joi.number().integer().required(),
  }).description('The same upload by the TUS protocol, when the store has it'),
})

interface Named {
  workspaceId: string
  mediaId: string
}

const named = Joi.object<Named, true>({
  workspaceId: exactUuid().required(),
  mediaId: exactUuid().required(),
})

/** How long a direct upload may take to arrive, in seconds. */
const putSeconds = 7_200

const tags = ['media']

/** Uploads that go straight to the store: announced, put, confirmed. */
export const uploadsRoutes: Routes = async (app) => {
  const { media: parts, urlSigner } = app
  const { store, sql } = parts

  app.post(
    '/api/uploads/sign',
    {
      config: { access: 'send', limit: 'uploads' },
      schema: {
        summary: 'Begin a direct upload',
        description:
          'Put the file to `url` with these headers, then confirm it. The room is taken from now on; an upload that is not confirmed expires.',
        tags,
        headers: idempotent,
        body: signWish,
        response: { 201: signed, 413: errorBody, 415: errorBody, 503: errorBody, 507: errorBody },
      },
    },
    async (request, reply) => {
      const { filename, size, sha256 } = request.body
      const { workspaceId } = request.user
      const mimeType = canonicalType(request.body.mimeType)
      const kind = kindOf(mimeType)
      if (!kind) throw unsupportedType('Files of this type are not taken.')
      if (size > sizeLimits[kind]) throw tooLarge(kind)
      await app.answerLongWorkOnce(request, reply, async () => {
        await openBucket(store)
        const wish = { workspaceId, filename, mimeType, size, sha256 }
        const { id: mediaId, objectId } = await expectUpload(parts, wish, putSeconds)
        if (store.urls) {
          const key = objectKey(workspaceId, objectId)
          const put = await store.urls.put(mediaBucket, key, mimeType)
          return {
            statusCode: 201,
            body: { mediaId, method: 'PUT', ...put },
            keepUntil: put.expiresAt,
          }
        }
        const { expires, signature, expiresAt } = urlSigner.sign(
          { use: 'put', workspaceId, mediaId },
          putSeconds,
        )
        const base = `${request.protocol}://${request.host}`
        const url = `${base}/api/uploads/${workspaceId}/${mediaId}?expires=${expires}&signature=${signature}`
        const headers = { 'content-type': mimeType }
        return {
          statusCode: 201,
          body: { mediaId, url, method: 'PUT', headers, expiresAt },
          keepUntil: expiresAt,
        }
      })
      return reply
    },
  )

  app.post(
    '/api/uploads/confirm',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Confirm a direct upload',
        description:
          'Looks at what arrived: size, type and, when it was announced, SHA-256. What is not as announced, or not taken at all, is removed. May be repeated.',
        tags,
        body: Joi.object<{ mediaId: string }, true>({ mediaId: uuid().required() }),
        response: {
          200: media,
          404: errorBody,
          409: errorBody,
          413: errorBody,
          415: errorBody,
          422: errorBody,
          503: errorBody,
        },
      },
    },
    async ({ user, body }) =>
      mediaResource(await confirmUpload(parts, user.workspaceId, body.mediaId)),
  )

  await app.register(async (scope: typeof app) => {
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('*', (_request, payload, done) => done(null, payload))
    guardUploads(scope, app.uploadPace)

    scope.put(
      '/api/uploads/:workspaceId/:mediaId',
      {
        config: { access: 'public', limit: 'none' },
        schema: {
          summary: 'Put the file of a direct upload',
          description: 'By a URL of `POST /api/uploads/sign` only, and once.',
          tags,
          params: named,
          querystring: signature,
          response: {
            204: nothing,
            403: errorBody,
            409: errorBody,
            413: errorBody,
            503: errorBody,
          },
        },
      },
      async (request, reply) => {
        const { workspaceId, mediaId } = request.params
        urlSigner.verify({ use: 'put', workspaceId, mediaId }, request.query)
        const expected = await expectedUpload(sql, workspaceId, mediaId)
        if (!expected) throw notFound('Upload')
        const announced = request.headers['content-length']
        if (announced !== undefined) checkSize(Number(announced), expected.size)
        const source = exactly(request.body as Readable | undefined, expected.size)
        await store
          .put(mediaBucket, expected.key, source, { size: expected.size })
          .catch((error) => {
            throw error instanceof ObjectExists
              ? new AppError(409, 'ALREADY_UPLOADED', 'The file has been uploaded already.')
              : error
          })
        return reply.code(204).send(null)
      },
    )
  })
}

/** Passes a body on that has exactly so many bytes; of a longer one nothing more is read. */
function exactly(body: Readable | undefined, size: number): Readable {
  const counted = async function* () {
    let seen = 0
    for await (const chunk of (body ?? []) as AsyncIterable<Buffer>) {
      seen += chunk.length
      if (seen > size) checkSize(seen, size)
      yield chunk
    }
    checkSize(seen, size)
  }
  return Readable.from(counted(), { objectMode: false })
}

function checkSize(given: number, size: number): void {
  if (given > size) {
    throw new AppError(413, 'FILE_TOO_LARGE', `The upload was announced with ${size} bytes.`)
  }
  if (given < size) {
    const message = `The upload was announced with ${size} bytes, and has ${given}.`
    throw new AppError(400, 'VALIDATION_FAILED', message, [{ path: 'body', message }])
  }
}
