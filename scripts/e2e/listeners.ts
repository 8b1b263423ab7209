import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../../shared/db.ts'
import { appendEvents, eventId, startingPoint } from '../../shared/events.ts'
import { openStream } from '../../shared/test/event-stream.ts'
import type { Told } from '../../shared/test/event-stream.ts'

/** A workspace to write events of, and to listen to. */
export interface Channel {
  workspaceId: string
  sessionId: string
  token: string
}

export interface Chance {
  between(least: number, most: number): number
}

/** A client that listens here and there, leaves without a word, and goes on where it was: what it was told, in order. */
export class Listener {
  readonly channel: Channel
  readonly told: Told[] = []
  connections = 0
  readonly #bases: string[]
  readonly #chance: Chance
  #lastEventId: string

  constructor(channel: Channel, start: string, bases: string[], chance: Chance) {
    this.channel = channel
    this.#lastEventId = start
    this.#bases = bases
    this.#chance = chance
  }

  /** Comes and goes until the signal aborts, staying at most so many milliseconds each time. */
  async listen(signal: AbortSignal, stayMs: number): Promise<void> {
    while (!signal.aborted) {
      const left = await this.#visit(this.#chance.between(stayMs / 20, stayMs), signal)
      // A process that is away is asked again a moment later, as a browser does.
      if (!left) await sleep(50)
    }
  }

  /** One connection. False when there was none. */
  async #visit(ms: number, signal: AbortSignal): Promise<boolean> {
    const base = this.#bases[this.#chance.between(0, this.#bases.length - 1)]!
    const headers = {
      authorization: `Bearer ${this.channel.token}`,
      'last-event-id': this.#lastEventId,
    }
    const stream = await openStream(`${base}/api/events`, headers, ({ id, data }) => {
      this.told.push(data)
      this.#lastEventId = id
    }).catch(() => undefined)
    if (!stream) return false
    if (stream.status !== 200) {
      await stream.ended
      if (stream.status === 503) return false // it is ending
      throw new Error(`/api/events answered ${stream.status} ${stream.body()}`)
    }
    this.connections += 1
    const leave = new AbortController()
    await Promise.race([
      stream.ended,
      sleep(ms, null, { signal: AbortSignal.any([signal, leave.signal]) }).catch(() => {}), // at once
    ])
    leave.abort()
    // What comes while it leaves is not had: the client asks for it again.
    stream.close()
    await stream.ended
    return true
  }
}

/** Where everything that is written from now on begins. */
export async function startOf(sql: Sql, { workspaceId }: Channel): Promise<string> {
  return eventId((await startingPoint(sql, workspaceId))!)
}

/** Writes events into the channels until so many are written, in transactions that overtake each other. */
export async function writeEvents(
  sql: Sql,
  channels: Channel[],
  { total, writers, chance }: { total: number; writers: number; chance: Chance },
): Promise<void> {
  let n = 0
  const writer = async () => {
    while (n < total) {
      const own = ++n
      const { workspaceId, sessionId } = channels[own % channels.length]!
      const event = (part: string) => [
        { workspaceId, sessionId, type: 'message.any' as const, payload: { n: own, part } },
      ]
      await sql.begin(async (tx) => {
        await appendEvents(tx, event('first'))
        await tx`select pg_sleep(${chance.between(0, 30) / 1_000})`
        await appendEvents(tx, event('second'))
      })
    }
  }
  await Promise.all(Array.from({ length: writers }, writer))
}

/** The ids of what was written since then, in the order it must be told. */
export async function written(sql: Sql, channel: Channel, start: string): Promise<string[]> {
  const rows = await sql<{ tx: number; id: number }>`
    select tx::text::bigint as tx, id from events where workspace_id = ${channel.workspaceId} order by events.tx, id`
  return rows.map(eventId).filter((id) => id > start)
}

/** What is wrong with what a listener was told: undefined when nothing is. */
export function fault({ told, channel }: Listener, expected: string[]): string | undefined {
  const foreign = told.filter(({ workspaceId }) => workspaceId !== channel.workspaceId).length
  if (foreign > 0) return `told ${foreign} events of others`
  const ids = told.map(({ id }) => id)
  const twice = ids.length - new Set(ids).size
  if (twice > 0) return `told ${twice} events twice`
  const missing = expected.filter((id) => !ids.includes(id)).length
  if (missing > 0) return `not told ${missing} of ${expected.length} events`
  const wrong = ids.findIndex((id, index) => id !== expected[index])
  return wrong === -1 ? undefined : `the ${wrong}th event is another`
}
