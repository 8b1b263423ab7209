import { rm } from 'node:fs/promises'
import type { Sql } from '../shared/db.ts'
import { AppError, errorText } from '../shared/errors.ts'
import type { MediaContent } from '../shared/message-content.ts'
import { findMedia } from '../shared/media.ts'
import { openMediaFile } from '../shared/media-store.ts'
import { toVoiceNote, voiceType } from '../shared/media-voice.ts'
import { ObjectNotFound, StoreUnavailable } from '../shared/object-store.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { EngineError } from './engine/engine.ts'
import type { OutgoingMedia } from './engine/engine.ts'

/** A file on this machine's disk, for as long as it takes to send it. */
export interface Attachment {
  content: OutgoingMedia
  remove(): Promise<void>
}

/** Fetches the files of messages from the media store. */
export class Attachments {
  readonly #sql: Sql
  readonly #store: ObjectStore
  readonly #dir: string
  readonly #ffmpeg: string | undefined

  constructor({
    sql,
    store,
    dir,
    ffmpeg,
  }: {
    sql: Sql
    store: ObjectStore
    dir: string
    ffmpeg: string | undefined
  }) {
    this.#sql = sql
    this.#store = store
    this.#dir = dir
    this.#ffmpeg = ffmpeg
  }

  /**
   * Fetches a file, checked against its hash; a voice note is converted where it has to be. The caller removes it. Throws an EngineError: MEDIA_GONE and
   * VOICE_NOT_POSSIBLE for good, MEDIA_STORE_UNAVAILABLE and MEDIA_UNREADABLE for now.
   */
  async fetch(workspaceId: string, content: MediaContent): Promise<Attachment> {
    const { mediaId } = content
    const media = mediaId === null ? undefined : await findMedia(this.#sql, workspaceId, mediaId)
    if (media?.status !== 'ready') throw gone()
    const files: string[] = []
    const remove = async () => {
      for (const file of files) await rm(file, { force: true })
    }
    try {
      const path = await openMediaFile(this.#store, media, this.#dir)
      files.push(path)
      if (content.type !== 'voice') return { content: { ...content, path }, remove }
      const voice = await toVoiceNote(
        { path, mimeType: media.mimeType },
        { dir: this.#dir, ffmpeg: this.#ffmpeg },
      )
      if (voice.converted) files.push(voice.path)
      return { content: { ...content, mimeType: voiceType, path: voice.path }, remove }
    } catch (error) {
      await remove()
      if (error instanceof ObjectNotFound) throw gone()
      if (error instanceof StoreUnavailable) {
        throw new EngineError('transient', 'MEDIA_STORE_UNAVAILABLE', error.message, {
          cause: error,
        })
      }
      if (error instanceof AppError)
        throw new EngineError('permanent', error.code, error.message, { cause: error })
      // Nothing has been sent: a full disk, a store that refuses, bytes that are not those that were stored.
      throw new EngineError('transient', 'MEDIA_UNREADABLE', errorText(error), { cause: error })
    }
  }
}

const gone = () => new EngineError('permanent', 'MEDIA_GONE', 'The file of this message is gone.')
