import { parseFile } from 'music-metadata'
import sharp from 'sharp'
import { AppError } from './errors.ts'
import { detectType, kindOf, sizeLimits, tooLarge, unsupportedType } from './media-types.ts'
import type { MediaKind } from './media-types.ts'

/** What a file turned out to be. */
export interface Inspected {
  kind: MediaKind
  mimeType: string
  width: number | null
  height: number | null
  /** Seconds; null when the file does not say. */
  duration: number | null
  /** A small WebP picture of an image. */
  thumbnail: Buffer | null
}

/** More than any phone takes at once, and no more than 160 MB while it is made small. */
const maxPixels = 40_000_000
const thumbnailPixels = 320

// Of the many formats the library reads, only those that are taken: the others have had most of its faults.
sharp.block({ operation: ['VipsForeignLoad'] })
sharp.unblock({
  operation: [
    'VipsForeignLoadJpeg',
    'VipsForeignLoadPng',
    'VipsForeignLoadNsgif',
    'VipsForeignLoadWebp',
  ],
})
sharp.cache(false)
sharp.concurrency(1)

/** Pictures being unpacked at the same time: each may need the memory of maxPixels. */
const places = 2
let taken = 0
const waiting: (() => void)[] = []

async function inTurn<T>(work: () => Promise<T>): Promise<T> {
  if (taken >= places) await new Promise<void>((resolve) => waiting.push(resolve))
  else taken += 1
  try {
    return await work()
  } finally {
    // The place is handed on, or given back.
    const next = waiting.shift()
    if (next) next()
    else taken -= 1
  }
}

/**
 * Reads a file whose bytes were never trusted: what it is, how large, how long. Throws 415 when it is of no type that is taken or is damaged,
 * 413 when it has more bytes (unless it may be of `anySize`) or pixels than its kind may have.
 */
export async function inspectMedia(
  path: string,
  size: number,
  { anySize = false }: { anySize?: boolean } = {},
): Promise<Inspected> {
  const detected = await detectType(path)
  const sound = /^(audio|video)\//.test(detected) ? await readSound(path, detected) : undefined
  const mimeType = detected === 'video/webm' && !sound?.hasVideo ? 'audio/webm' : detected
  const kind = kindOf(mimeType)!
  if (!anySize && size > sizeLimits[kind]) throw tooLarge(kind)
  const nothing = { width: null, height: null, duration: null, thumbnail: null }
  if (kind === 'image')
    return { ...nothing, kind, mimeType, ...(await inTurn(() => readImage(path))) }
  return { ...nothing, kind, mimeType, duration: sound?.duration ?? null }
}

async function readImage(path: string): Promise<Pick<Inspected, 'width' | 'height' | 'thumbnail'>> {
  // The first picture only, of those that move.
  const open = (limitInputPixels: number | false) =>
    sharp(path, { limitInputPixels, failOn: 'error', sequentialRead: true, pages: 1 })
  try {
    // Reads no more than the header: the size a file claims costs nothing.
    const { autoOrient } = await open(false).metadata()
    const { width, height } = autoOrient
    if (width * height > maxPixels) {
      throw new AppError(413, 'FILE_TOO_LARGE', 'A picture may have up to 40 million pixels.')
    }
    const thumbnail = await open(maxPixels)
      .timeout({ seconds: 20 })
      .autoOrient()
      .resize(thumbnailPixels, thumbnailPixels, { fit: 'inside', withoutEnlargement: true })
      .webp({ quality: 70 })
      .toBuffer()
    return { width, height, thumbnail }
  } catch (error) {
    if (error instanceof AppError) throw error
    throw unsupportedType('The picture is damaged.')
  }
}

/** MPEG program streams are known by their first bytes only: nothing here reads more of them. */
const unread = new Set(['video/mpeg'])

async function readSound(
  path: string,
  mimeType: string,
): Promise<{ duration: number | null; hasVideo: boolean }> {
  if (unread.has(mimeType)) return { duration: null, hasVideo: true }
  try {
    const { format } = await parseFile(path, { skipCovers: true })
    const { duration, hasAudio = false, hasVideo = false } = format
    if (mimeType.startsWith('audio/') ? !hasAudio || hasVideo : !hasAudio && !hasVideo) {
      throw new Error('nothing to hear or see')
    }
    // Two bytes make an mp3; so much else has them that there must be something to hear behind them.
    if (mimeType === 'audio/mpeg' && !duration) throw new Error('no frames')
    const known = duration !== undefined && Number.isFinite(duration) && duration >= 0
    return { duration: known ? Math.round(duration * 1_000) / 1_000 : null, hasVideo }
  } catch {
    throw unsupportedType('The recording is damaged.')
  }
}
