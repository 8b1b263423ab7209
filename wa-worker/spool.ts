import { appendFileSync, closeSync, mkdirSync, openSync, readSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'

/** So many bytes are read at a time. */
const pageBytes = 1_048_576

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
    const before = this.size(sessionId)
    // A line the process died over must not become one with this.
    const mayBeTorn = before > 0 && !this.#sizes.has(sessionId)
    const line = `${mayBeTorn ? '\n' : ''}${JSON.stringify(report)}\n`
    const size = before + Buffer.byteLength(line)
    if (size > this.#maxBytes) return false
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 })
    // Until it is written: what stands there after a disk that was full is looked at again.
    this.#sizes.delete(sessionId)
    appendFileSync(this.#file(sessionId), line, { mode: 0o600 })
    this.#sizes.set(sessionId, size)
    return true
  }

  /**
   * What is kept of a session, in the order it was reported: some of it, from a place in the file on up to another one, or undefined at its end. A line the process
   * died over is left out.
   */
  page(sessionId: string, from: number): { reports: unknown[]; end: number } | undefined {
    const bytes = this.#lines(sessionId, from)
    if (bytes.length === 0) return undefined
    const reports = bytes
      .toString('utf8')
      .split('\n')
      .flatMap((line) => {
        try {
          return [JSON.parse(line, revive) as unknown]
        } catch {
          return [] // the end, or cut off
        }
      })
    return { reports, end: from + bytes.length }
  }

  /** How much is kept of a session, in bytes. */
  size(sessionId: string): number {
    const known = this.#sizes.get(sessionId)
    return known ?? statSync(this.#file(sessionId), { throwIfNoEntry: false })?.size ?? 0
  }

  /** Everything that is kept of a session is written. */
  clear(sessionId: string): void {
    this.#sizes.delete(sessionId)
    rmSync(this.#file(sessionId), { force: true })
  }

  #file(sessionId: string): string {
    return join(this.#dir, `${sessionId}.ndjson`)
  }

  /** About a page of whole lines; at the end of the file what there is. */
  #lines(sessionId: string, from: number): Buffer {
    const left = this.size(sessionId) - from
    if (left <= 0) return Buffer.alloc(0)
    const file = openSync(this.#file(sessionId), 'r')
    try {
      for (let bytes = pageBytes; ; bytes *= 2) {
        const page = Buffer.alloc(Math.min(bytes, left))
        readSync(file, page, 0, page.length, from)
        const end = page.length === left ? left : page.lastIndexOf('\n') + 1
        if (end > 0) return page.subarray(0, end)
      }
    } finally {
      closeSync(file)
    }
  }
}

/** The moments in the events of the port. */
const revive = (key: string, value: unknown) =>
  (key === 'at' || key === 'until') && typeof value === 'string' ? new Date(value) : value
