import pg from 'pg'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from './logger.ts'
import type { Channel } from './notify.ts'

export interface Listener {
  close(): Promise<void>
}

/** No echo of our own NOTIFY within this time: the connection does not carry notifications (a transaction pooler accepts LISTEN and is silent). */
const proofMs = 2_000

/**
 * Calls `onNudge` for each nudge on these channels, with the sessions it names (undefined: all), on a connection of its own, and once after every (re)connection since nudges may have
 * been missed. It proves itself by notifying itself; where that fails, or while the connection is away, the caller's polling is all there is,
 * and one log line says so.
 */
export function listen(
  url: string,
  channels: Channel[],
  onNudge: (channel: Channel, sessionIds?: string[]) => void,
  log: Logger,
): Listener {
  const closing = new AbortController()
  let client: pg.Client | undefined
  let told = false

  const tellOnce = (error: unknown) => {
    if (!told) log.warn('no notifications from the database, polling instead', { error })
    told = true
  }

  async function session(): Promise<void> {
    client = new pg.Client({
      connectionString: url,
      application_name: 'awfar-listener',
      keepAlive: true,
      connectionTimeoutMillis: 5_000,
    })
    const ended = new Promise<void>((resolve) => {
      client!.once('end', resolve)
      client!.on('error', () => resolve()) // a broken connection: the loop opens another
    })
    try {
      await client.connect()
      await prove(client)
      for (const channel of channels) await client.query(`listen ${channel}`)
      client.on('notification', ({ channel, payload }) =>
        onNudge(channel as Channel, payload ? payload.split(',') : undefined),
      )
      if (told) log.info('notifications from the database are back')
      told = false
      for (const channel of channels) onNudge(channel)
      await ended
    } finally {
      await client.end().catch(() => {}) // already broken
    }
  }

  async function run(): Promise<void> {
    while (!closing.signal.aborted) {
      await session().catch(tellOnce)
      await sleep(told ? 5_000 : 500, null, { signal: closing.signal }).catch(() => {}) // closing
    }
  }

  const running = run()
  return {
    async close() {
      closing.abort()
      await client?.end().catch(() => {}) // already broken
      await running
    },
  }
}

async function prove(client: pg.Client): Promise<void> {
  const channel = `awfar_proof_${process.pid}`
  let heard!: () => void
  const echo = new Promise<void>((resolve) => (heard = resolve))
  const listener = (message: pg.Notification) => {
    if (message.channel === channel) heard()
  }
  client.on('notification', listener)
  let timer: NodeJS.Timeout | undefined
  try {
    await client.query(`listen ${channel}`)
    await client.query(`notify ${channel}`)
    await Promise.race([
      echo,
      new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error('no echo of our own notification')), proofMs)
      }),
    ])
  } finally {
    clearTimeout(timer)
    client.off('notification', listener)
    await client.query(`unlisten ${channel}`)
  }
}
