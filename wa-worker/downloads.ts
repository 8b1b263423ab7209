import { randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { isDatabaseAway } from '../shared/db-errors.ts'
import { AppError } from '../shared/errors.ts'
import type { Logger } from '../shared/logger.ts'
import { delayFetch, dueFetches, endFetch } from '../shared/media-fetches.ts'
import type { MediaFetch } from '../shared/media-fetches.ts'
import { storeInboundMedia } from '../shared/media-store.ts'
import type { MediaParts } from '../shared/media-store.ts'
import { findMedia } from '../shared/media.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { retryBackoff } from './backoff.ts'
import { Desks } from './desks.ts'
import type { Desk } from './desks.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine } from './engine/engine.ts'

export interface DownloadOptions extends MediaParts {
  worker: string
  log: Logger
  /** Larger files are not fetched. */
  maxBytes: number
  pollMs?: number
  /** Tries that fail before a file is given up. */
  maxAttempts?: number
  /** How long a file is tried for, however little its failures are its own fault. */
  deadlineSeconds?: number
}

/** Fetches what came with messages and stores it: one file at a time a session, while it works; nothing waits for it. */
export class Downloads {
  readonly #options: Required<DownloadOptions>
  readonly #desks: Desks<MediaFetch>

  constructor(options: DownloadOptions) {
    this.#options = { pollMs: 1_000, maxAttempts: 6, deadlineSeconds: 86_400, ...options }
    const { sql, worker, log, pollMs } = this.#options
    this.#desks = new Desks({
      pollMs,
      due: (sessions) => dueFetches(sql, worker, sessions),
      work: async (desk, fetches) => {
        for (const fetch of fetches) await this.#fetch(desk, fetch)
      },
      onUnread: (error) => log.error('downloads not read', { error }),
      onFailure: ([fetch], error) => {
        const fields = { sessionId: fetch?.sessionId, messageId: fetch?.messageId, error }
        if (error instanceof LeaseLost) log.warn('media of a lost session dropped', fields)
        else log.error('media not recorded', fields)
      },
    })
  }

  open(session: OwnedSession, engine: Engine): void {
    this.#desks.open(session, engine)
  }

  /** Takes a session out. What is under way there fails with its engine and is fetched by the next one. */
  close(sessionId: string): void {
    this.#desks.close(sessionId)
  }

  /** Resolves once it is stopped and nothing is under way any more. */
  run(): Promise<void> {
    return this.#desks.run()
  }

  stop(): void {
    this.#desks.stop()
  }

  async #fetch({ session, engine }: Desk, fetch: MediaFetch): Promise<void> {
    const { sql, log } = this.#options
    const { mediaId, messageId } = fetch
    const fields = { sessionId: session.id, messageId, mediaId }
    try {
      const outcome = await this.#store(engine, fetch)
      await endFetch(sql, session, fetch, outcome)
      log.info('media fetched', { ...fields, outcome })
    } catch (error) {
      const verdict = this.#judge(fetch, error)
      if (verdict === undefined) throw error
      if (verdict === 'failed') {
        await endFetch(sql, session, fetch, 'failed')
        log.warn('media given up', { ...fields, error })
      } else {
        await delayFetch(sql, session, fetch, verdict)
        log.warn('media will be tried again', { ...fields, attempts: fetch.attempts + 1, error })
      }
    }
  }

  async #store(
    engine: Engine,
    { mediaId, workspaceId, size, key }: MediaFetch,
  ): Promise<'ready' | 'expired'> {
    const { sql, dir, maxBytes } = this.#options
    // Stored by somebody who did not live to say so.
    if ((await findMedia(sql, workspaceId, mediaId))?.status === 'ready') return 'ready'
    if (size !== null && size > maxBytes) throw tooLarge(maxBytes)
    await mkdir(dir, { recursive: true, mode: 0o700 })
    const path = join(dir, randomUUID())
    try {
      const fetched = await engine.download(key, path)
      if (fetched === 'expired') return 'expired'
      if (fetched.size > maxBytes) throw tooLarge(maxBytes)
      const source = createReadStream(path)
      try {
        await storeInboundMedia(this.#options, { workspaceId, id: mediaId, source, maxBytes })
      } finally {
        source.destroy()
      }
      return 'ready'
    } finally {
      await rm(path, { force: true })
    }
  }

  /** What is to be done after a failure; undefined when it is none of the file's. */
  #judge(
    { attempts, age }: MediaFetch,
    error: unknown,
  ): 'failed' | { delayMs: number; forgiven: boolean } | undefined {
    const { maxAttempts, deadlineSeconds } = this.#options
    if (error instanceof EngineError) {
      if (error.certainty === 'permanent') return 'failed'
      const forgiven = ['SESSION_NOT_READY', 'BROWSER_GONE', 'MODULE_MISSING'].includes(error.code)
      if (age > deadlineSeconds || (attempts + 1 >= maxAttempts && !forgiven)) return 'failed'
      return { delayMs: retryBackoff(attempts + 1), forgiven }
    }
    // Too large, or more than the workspace may have.
    if (error instanceof AppError) return 'failed'
    if (error instanceof LeaseLost || isDatabaseAway(error)) return undefined
    // The store is away or refuses, or the disk is full.
    return age > deadlineSeconds ? 'failed' : { delayMs: storeDelayMs, forgiven: true }
  }
}

const storeDelayMs = 10_000

const tooLarge = (maxBytes: number) =>
  new AppError(413, 'FILE_TOO_LARGE', `The file has more than ${maxBytes} bytes.`)
