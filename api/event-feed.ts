import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import type { Sql } from '../shared/db.ts'
import { isAfter, readEvents } from '../shared/events.ts'
import type { Position, StoredEvent } from '../shared/events.ts'
import { Wake } from '../shared/wake.ts'

/** Somebody who is told the events of a workspace, each once and in their order. */
export interface Reader {
  workspaceId: string
  /** Everything up to here has been told. */
  position: Position
  tell(events: StoredEvent[]): void
  /** What comes next is kept no more: nothing is told after this. */
  cut(): void
  /** Resolves once what was told has left us. */
  drained(): Promise<void>
}

/** Events read at a time. */
const pageSize = 200
/** After a nudge: a transaction that is still running may hold back what is committed already, so the pauses begin short. */
const firstPauseMs = 20

/**
 * The one reader of events in this process. It reads on in every workspace somebody follows, whenever it is nudged and once a second, and tells all followers. Who
 * is behind reads by himself until he has caught up.
 */
export class EventFeed {
  readonly #sql: Sql
  readonly #log: FastifyBaseLogger
  readonly #pollMs: number
  readonly #followed = new Map<string, { position: Position; readers: Set<Reader> }>()
  readonly #wake = new Wake()
  readonly #running: Promise<void>
  #pauseMs = firstPauseMs
  #closed = false

  constructor(sql: Sql, log: FastifyBaseLogger, pollMs = 1_000) {
    this.#sql = sql
    this.#log = log
    this.#pollMs = pollMs
    this.#running = this.#run()
  }

  /** Looks for new events now. */
  nudge(): void {
    this.#pauseMs = firstPauseMs
    this.#wake.ring()
  }

  /** Tells what lies behind the reader's position, then what happens, until the signal aborts. Resolves when it has caught up, or the signal aborted. */
  async follow(reader: Reader, signal: AbortSignal): Promise<void> {
    while (!signal.aborted && !this.#closed) {
      try {
        const [page] = await readEvents(this.#sql, [reader], pageSize)
        if (signal.aborted) return
        // Who is behind may be overtaken by the retention.
        if (page!.gone) return reader.cut()
        reader.position = page!.position
        reader.tell(page!.events)
        await reader.drained()
        if (!page!.full && this.#join(reader, signal)) return
      } catch (error) {
        this.#log.warn({ error }, 'events not read')
        await sleep(this.#pollMs, null, { signal }).catch(() => {}) // aborted: the loop ends
      }
    }
  }

  /** Resolves once nothing is being read any more. */
  async close(): Promise<void> {
    this.#closed = true
    this.#wake.ring()
    await this.#running
  }

  /** Lets a reader go along with the others of its workspace. False when these are ahead by now. */
  #join(reader: Reader, signal: AbortSignal): boolean {
    if (signal.aborted) return true
    const { workspaceId, position } = reader
    let followed = this.#followed.get(workspaceId)
    if (followed && isAfter(followed.position, position)) return false
    if (!followed) {
      followed = { position, readers: new Set() }
      this.#followed.set(workspaceId, followed)
    }
    const { readers } = followed
    readers.add(reader)
    signal.addEventListener('abort', () => {
      readers.delete(reader)
      if (readers.size === 0) this.#followed.delete(workspaceId)
    })
    return true
  }

  async #run(): Promise<void> {
    while (!this.#closed) {
      const more = await this.#readOn().catch((error: unknown) => {
        this.#log.warn({ error }, 'events not read')
        return false
      })
      if (more) continue
      await this.#wake.wait(this.#pauseMs)
      this.#pauseMs = Math.min(this.#pauseMs * 2, this.#pollMs)
    }
  }

  /** Answers whether there is more already. */
  async #readOn(): Promise<boolean> {
    if (this.#followed.size === 0) return false
    const asked = [...this.#followed].map(([workspaceId, followed]) => ({
      workspaceId,
      followed,
      position: followed.position,
    }))
    const pages = await readEvents(this.#sql, asked, pageSize)
    pages.forEach(({ events, position }, index) => {
      const { followed } = asked[index]!
      followed.position = position
      for (const reader of followed.readers) {
        // Who has just joined may have read some of it by himself.
        const news = events.filter((event) => isAfter(event, reader.position))
        if (isAfter(position, reader.position)) reader.position = position
        if (news.length > 0) reader.tell(news)
      }
    })
    return pages.some(({ full }) => full)
  }
}
