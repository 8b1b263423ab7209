import { execFile } from 'node:child_process'
import { access, constants, rm } from 'node:fs/promises'
import { randomUUID } from 'node:crypto'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import { fileTypeFromFile } from 'file-type'
import Joi from 'joi'
import { ConfigError } from './config.ts'
import { AppError } from './errors.ts'

/** The variable that says where ffmpeg is. */
export interface VoiceConfig {
  FFMPEG_PATH?: string
}

export const voiceSchema: Joi.PartialSchemaMap<VoiceConfig> = { FFMPEG_PATH: Joi.string() }

/** What a recording must be for WhatsApp to show it as a voice note. */
export const voiceType = 'audio/ogg; codecs=opus'

/** ffmpeg's names of what it may be given: it must not guess, since it also reads lists of other files. */
const demuxers: Record<string, string> = {
  'audio/mpeg': 'mp3',
  'audio/ogg': 'ogg',
  'audio/wav': 'wav',
  'audio/webm': 'matroska',
}
const patienceMs = 60_000

/** The ffmpeg to use: the one of FFMPEG_PATH, else the first in PATH, else undefined. Throws a ConfigError when FFMPEG_PATH is wrong. */
export async function findFfmpeg(
  { FFMPEG_PATH: named }: VoiceConfig,
  path = process.env['PATH'] ?? '',
): Promise<string | undefined> {
  if (named !== undefined) {
    if (await isExecutable(named)) return named
    throw new ConfigError(`Wrong settings: FFMPEG_PATH ${named} is not a program that can be run.`)
  }
  for (const folder of path.split(delimiter).filter((folder) => folder !== '')) {
    const candidate = join(folder, 'ffmpeg')
    if (await isExecutable(candidate)) return candidate
  }
  return undefined
}

const isExecutable = (file: string) =>
  access(file, constants.X_OK).then(
    () => true,
    () => false,
  )

/**
 * A recording as WhatsApp wants voice notes, ogg with opus in it. One that is so already is answered as it is; others are converted into a
 * new file in `dir`, which is the caller's to remove. Throws 422 VOICE_NOT_POSSIBLE when that takes an ffmpeg and there is none, when it is no
 * recording, or when it cannot be read.
 */
export async function toVoiceNote(
  { path, mimeType }: { path: string; mimeType: string },
  {
    dir,
    ffmpeg,
    signal,
  }: { dir: string; ffmpeg: string | undefined; signal?: AbortSignal | undefined },
): Promise<{ path: string; converted: boolean }> {
  if (await isVoiceNote(path)) return { path, converted: false }
  const demuxer = demuxers[mimeType]
  if (demuxer === undefined) throw notPossible('Only a recording can be a voice note.')
  if (ffmpeg === undefined) {
    throw notPossible(
      'A voice note must be ogg with opus in it: no ffmpeg is installed that could convert this recording.',
    )
  }
  const out = join(dir, `${randomUUID()}.ogg`)
  const args = ['-nostdin', '-v', 'error', '-protocol_whitelist', 'file', '-f', demuxer, '-i', path]
  const sound = ['-map', '0:a:0', '-vn', '-map_metadata', '-1', '-ac', '1', '-ar', '48000']
  const voice = ['-c:a', 'libopus', '-b:a', '32k', '-application', 'voip', '-f', 'ogg']
  try {
    await promisify(execFile)(ffmpeg, [...args, ...sound, ...voice, out], {
      timeout: patienceMs,
      killSignal: 'SIGKILL',
      ...(signal && { signal }),
    })
    if (!(await isVoiceNote(out))) throw new Error('not what was asked for')
    return { path: out, converted: true }
  } catch {
    await rm(out, { force: true })
    signal?.throwIfAborted()
    throw notPossible('ffmpeg could not convert this recording into a voice note.')
  }
}

/** Whether a file is ogg with opus in it. */
async function isVoiceNote(path: string): Promise<boolean> {
  return (await fileTypeFromFile(path))?.mime === voiceType
}

const notPossible = (why: string) => new AppError(422, 'VOICE_NOT_POSSIBLE', why)
