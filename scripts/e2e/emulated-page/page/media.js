/** Media: preparing, uploading and downloading. Bytes travel unencrypted; hashes are those of the bytes. */
/* global Blob, btoa, createImageBitmap, crypto, FormData, fetch, OffscreenCanvas */
import { guarded } from './faults.js'
import { Model } from './models.js'
import { define } from './modules.js'
import { link } from './session.js'

const blobs = new Map()
const mediaObjects = new Map()

class OpaqueData {
  #blob
  #url

  static async createFromData(data, mimetype) {
    const opaque = new OpaqueData()
    opaque.#blob = data instanceof Blob ? data : new Blob([data], { type: mimetype })
    return opaque
  }

  get type() {
    return this.#blob.type
  }
  get size() {
    return this.#blob.size
  }
  get blob() {
    return this.#blob
  }
  url() {
    return (this.#url ??= URL.createObjectURL(this.#blob))
  }
  autorelease() {
    URL.revokeObjectURL(this.#url)
  }
  formData() {
    const form = new FormData()
    form.append('file', this.#blob)
    return form
  }
}

/** Whether the model of media shows its private id, as it does since September 2026: what is spread of it takes that along. */
let showsPrivateId = true

export function hidePrivateId() {
  showsPrivateId = false
}

async function prepare(opaque, { asSticker, asGif, isPtt, asDocument }) {
  const kind = opaque.type.split('/')[0]
  const type = asDocument
    ? 'document'
    : ({ image: asSticker ? 'sticker' : 'image', video: 'video', audio: isPtt ? 'ptt' : 'audio' }[
        kind
      ] ?? 'document')
  const filehash = await sha256(opaque.blob)
  blobs.set(filehash, opaque.blob)
  const { type: mimetype, size, name: filename } = opaque.blob
  const data = { type, mimetype, size, filehash, isGif: asGif === true, mediaStage: 'RESOLVED' }
  const model = new Model(type === 'document' ? { ...data, filename } : data)
  model.mediaBlob = opaque
  if (showsPrivateId) model.__x_id = undefined
  return model
}

function getOrCreateMediaObject(filehash) {
  if (!mediaObjects.has(filehash)) {
    const consolidate = (data) => Object.assign(mediaObjects.get(filehash), data)
    mediaObjects.set(filehash, { filehash, contentInfo: {}, consolidate })
  }
  return mediaObjects.get(filehash)
}

async function upload(blob, filehash) {
  if (!link.isOpen) throw new Error('upload failed: no connection')
  const response = await fetch('/mms/upload', { method: 'POST', body: blob })
  if (!response.ok) throw new Error(`upload failed: ${response.status}`)
  const { directPath } = await response.json()
  return {
    url: new URL(directPath, 'https://mmg.whatsapp.net').href,
    directPath,
    mediaKey: btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(32)))),
    mediaKeyTimestamp: Math.floor(Date.now() / 1000),
    encFilehash: filehash,
    uploadHash: filehash,
    filehash,
  }
}

const uploadMedia = guarded('uploadMedia', async ({ mediaObject }) => {
  const entry = await upload(blobs.get(mediaObject.filehash), mediaObject.filehash)
  return { mediaEntry: { ...entry, mmsUrl: entry.url, deprecatedMms3Url: entry.url } }
})

const encryptAndUpload = guarded('encryptAndUpload', async ({ blob }) =>
  upload(blob, await sha256(blob)),
)

/** Whether a download has to say what kind of file it is after, as it does since September 2026. */
let checksKind = true

export function takeAnyKind() {
  checksKind = false
}

const downloadAndMaybeDecrypt = guarded(
  'downloadAndMaybeDecrypt',
  async ({ directPath, filehash, type, mimetype }) => {
    if (checksKind && !mimetype)
      throw new Error(`Unexpected mimetype application/octet-stream for media type ${type}`)
    if (!link.isOpen) throw new Error('download failed: no connection')
    const response = await fetch(directPath)
    if (!response.ok) throw Object.assign(new Error('download failed'), { status: response.status })
    const bytes = await response.blob()
    if (filehash && (await sha256(bytes)) !== filehash)
      throw new Error('downloaded media is damaged')
    return bytes.arrayBuffer()
  },
)

/** Gives a media message its mediaObject and mediaData; inbound media is fetched on demand. */
export function attachMedia(msg) {
  if (!msg.directPath) return
  const mediaData = { mediaStage: msg.id?.fromMe ? 'RESOLVED' : 'NEED_POKE' }
  const downloadMedia = async () => {
    mediaData.mediaStage = 'FETCHING'
    const { ok } = await fetch(msg.directPath, { method: 'HEAD' })
    mediaData.mediaStage = ok ? 'RESOLVED' : 'ERROR_MISSING'
  }
  const parts = { mediaData, downloadMedia, mediaObject: getOrCreateMediaObject(msg.filehash) }
  for (const [name, value] of Object.entries(parts)) {
    Object.defineProperty(msg, name, { value, enumerable: false })
  }
}

async function toWebpSticker(file) {
  const image = await createImageBitmap(file)
  const canvas = new OffscreenCanvas(512, 512)
  canvas.getContext('2d').drawImage(image, 0, 0, 512, 512)
  return canvas.convertToBlob({ type: 'image/webp' })
}

async function sha256(blob) {
  const digest = await crypto.subtle.digest('SHA-256', await blob.arrayBuffer())
  return btoa(String.fromCharCode(...new Uint8Array(digest)))
}

define({
  WAWebMediaOpaqueData: OpaqueData,
  WAWebPrepRawMedia: {
    prepRawMedia: (opaque, params) => ({
      waitForPrep: guarded('prepRawMedia', () => prepare(opaque, params)),
    }),
  },
  WAWebMediaStorage: { getOrCreateMediaObject },
  WAWebMmsMediaTypes: { msgToMediaType: ({ type }) => type, castToV4: (type) => type },
  WAWebMediaDataUtils: { shouldUseMediaCache: () => true },
  WAWebMediaInMemoryBlobCache: { InMemoryMediaBlobCache: { put: () => undefined } },
  WAWebMediaMmsV4Upload: { uploadMedia, uploadUnencryptedMedia: uploadMedia },
  WAWebUploadManager: { encryptAndUpload },
  WAWebStartMediaUploadQpl: { startMediaUploadQpl: () => ({}) },
  WAWebImageUtils: { toWebpSticker },
  WAWebDownloadManager: { downloadManager: { downloadAndMaybeDecrypt } },
  WAWebBackendJobsCommon: { mediaTypeFromProtobuf: () => null },
  WAWebE2EProtoUtils: { typeAttributeFromProtobuf: () => 'text' },
})
