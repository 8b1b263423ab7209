import { appendFileSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'

/**
 * Files of what engines reported while the database was away, one a session: whoever owns the session on this machine next writes it. Each line is
 * one report. Synchronous, because a report is safe only when this has returned, and small.
 */
export class Spool {
  readonly #dir: string
  readonly #maxBytes: number
  readonly #sizes = new Map<string, number>()

  /** A session's file takes no more than `maxBytes`. */
  constructor(dataDir: string, maxBytes = 64 * 1_048_576) {
    this.#dir = join(dataDir, 'spool')
    this.#maxBytes = maxBytes
  }

  /** Keeps a report. False when the file is full: it is not kept. */
  append(sessionId: string, report: object): boolean {
    let before = this.#sizes.get(sessionId)
    let line = `${JSON.stringify(report)}\n`
    if (before === undefined) {
      const kept = this.#read(sessionId)
      before = Buffer.byteLength(kept)
      // A line the process died over must not become one with this.
      if (kept !== '' && !kept.endsWith('\n')) line = `\n${line}`
    }
    const size = before + Buffer.byteLength(line)
    if (size > this.#maxBytes) return false
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 })
    // Until it is written: what stands there after a disk that was full is looked at again.
    this.#sizes.delete(sessionId)
    appendFileSync(this.#file(sessionId), line, { mode: 0o600 })
    this.#sizes.set(sessionId, size)
    return true
  }

  /** What is kept of a session, in the order it was reported. A line the process died over is left out. */
  read(sessionId: string): unknown[] {
    return this.#read(sessionId)
      .split('\n')
      .flatMap((line) => {
        try {
          return [JSON.parse(line, revive) as unknown]
        } catch {
          return [] // the end, or cut off
        }
      })
  }

  /** Everything that is kept of a session is written. */
  clear(sessionId: string): void {
    this.#sizes.delete(sessionId)
    rmSync(this.#file(sessionId), { force: true })
  }

  #file(sessionId: string): string {
    return join(this.#dir, `${sessionId}.ndjson`)
  }

  #read(sessionId: string): string {
    try {
      return readFileSync(this.#file(sessionId), 'utf8')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return ''
      throw error
    }
  }
}

/** The moments in the events of the port. */
const revive = (key: string, value: unknown) =>
  (key === 'at' || key === 'until') && typeof value === 'string' ? new Date(value) : value
