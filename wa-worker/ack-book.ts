import { setImmediate as nextTurn } from 'node:timers/promises'
import { recordAcks } from '../shared/acks.ts'
import type { Ack, AckReport } from '../shared/acks.ts'
import { isDatabaseAway } from '../shared/db-errors.ts'
import type { Sql } from '../shared/db.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'

interface Entry extends AckReport {
  resolve: (messageId: string | undefined) => void
  reject: (error: unknown) => void
}

/**
 * Records the acknowledgements of all sessions of a worker. What comes while a transaction is under way is the next one: a single ack is written at
 * once, and many at a time cost little more than one. One book a worker: two could lock the same messages in two orders.
 */
export class AckBook {
  readonly #sql: Sql
  #waiting: Entry[] = []
  #writing = false

  constructor(sql: Sql) {
    this.#sql = sql
  }

  /** As recordAck(). The acks of one session are written in the order they come. Throws LeaseLost. */
  record(session: OwnedSession, ack: Ack): Promise<string | undefined> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ session, ack, resolve, reject })
      if (!this.#writing) void this.#writeAll()
    })
  }

  async #writeAll(): Promise<void> {
    this.#writing = true
    while (this.#waiting.length > 0) {
      // What this turn of the event loop brings comes along.
      await nextTurn()
      await this.#write(this.#nextBatch())
    }
    this.#writing = false
  }

  /** The oldest of each session. */
  #nextBatch(): Entry[] {
    const batch = new Map<string, Entry>()
    this.#waiting = this.#waiting.filter((entry) => {
      const { id } = entry.session
      if (batch.has(id)) return true
      batch.set(id, entry)
      return false
    })
    return [...batch.values()]
  }

  async #write(batch: Entry[]): Promise<void> {
    try {
      const outcomes = await recordAcks(this.#sql, batch)
      for (const [index, outcome] of outcomes.entries()) {
        const { resolve, reject } = batch[index]!
        if (outcome instanceof LeaseLost) reject(outcome)
        else resolve(outcome)
      }
    } catch (error) {
      if (batch.length === 1 || isDatabaseAway(error)) {
        for (const { reject } of batch) reject(error)
        return
      }
      // One of them cannot be written; the others must not go down with it.
      for (const entry of batch) await this.#write([entry])
    }
  }
}
