import { randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { isDatabaseAway } from '../shared/db.ts'
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
import { EngineError } from './engine/engine.ts'
import type { Engine } from './engine/engine.ts'
import { Wake } from '../shared/wake.ts'

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

interface Desk {
  session: OwnedSession
  engine: Engine
  work: Promise<void> | undefined
}

/** Fetches what came with messages and stores it: one file at a time a session, while it works; nothing waits for it. */
export class Downloads {
  readonly #options: Required<DownloadOptions>
  readonly #desks = new Map<string, Desk>()
  readonly #wake = new Wake()
  #stopped = false

  constructor(options: DownloadOptions) {
    this.#options = { pollMs: 1_000, maxAttempts: 6, deadlineSeconds: 86_400, ...options }
  }

  open(session: OwnedSession, engine: Engine): void {
    this.#desks.set(session.id, { session, engine, work: undefined })
    this.#wake.ring()
  }

  /** Takes a session out. What is under way there fails with its engine and is fetched by the next one. */
  close(sessionId: string): void {
    this.#desks.delete(sessionId)
  }

  async run(): Promise<void> {
    while (!this.#stopped) {
      await this.#take().catch((error: unknown) => {
        this.#options.log.error('downloads not read', { error })
      })
      await this.#wake.wait(this.#options.pollMs)
    }
  }

  stop(): void {
    this.#stopped = true
    this.#wake.ring()
  }

  async #take(): Promise<void> {
    const { sql, worker, log } = this.#options
    const idle = [...this.#desks.values()].filter(({ work }) => work === undefined)
    if (idle.length === 0) return
    const due = await dueFetches(
      sql,
      worker,
      idle.map(({ session }) => session),
    )
    for (const fetch of due) {
      const desk = idle.find(({ session }) => session.id === fetch.sessionId)!
      if (this.#desks.get(fetch.sessionId) !== desk) continue
      desk.work = this.#fetch(desk, fetch)
        .catch((error: unknown) => {
          const fields = { sessionId: fetch.sessionId, messageId: fetch.messageId, error }
          if (error instanceof LeaseLost) log.warn('media of a lost session dropped', fields)
          else log.error('media not recorded', fields)
        })
        .then(() => {
          desk.work = undefined
          this.#wake.ring()
        })
    }
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
