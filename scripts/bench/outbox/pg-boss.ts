import { setTimeout as sleep } from 'node:timers/promises'
import { PgBoss } from 'pg-boss'
import type { Contestant } from './contestant.ts'
import type { BenchSession } from './world.ts'

interface Payload {
  body: string
}

const batchSize = 500

/** A key for each session: FIFO per key, one active at a time. */
const queueOf = (sessions: BenchSession[]) => sessions[0]!.workspaceId

async function open(url: string, useListenNotify: boolean): Promise<PgBoss> {
  const boss = new PgBoss({
    connectionString: url,
    supervise: false,
    schedule: false,
    useListenNotify,
  })
  boss.on('error', (error) => console.error(error))
  await boss.start()
  return boss
}

export const pgBoss: Contestant = {
  async openProducer(url, sessions, sql) {
    const boss = await open(url, false)
    const name = queueOf(sessions)
    await boss.createQueue(name, { policy: 'key_strict_fifo', notify: true })
    let count = 0
    return {
      async fill(perSession) {
        const rows = await sql<{ key: string; n: number }>`
          select singleton_key as key, count(*) as n from pgboss.job where name = ${name} and state < 'active' group by 1`
        const waiting = new Map(rows.map(({ key, n }) => [key, n]))
        for (let i = 0; i < perSession; i += Math.ceil(batchSize / sessions.length)) {
          const until = Math.min(perSession, i + Math.ceil(batchSize / sessions.length))
          const jobs = sessions.flatMap(({ id }) =>
            Array.from({ length: Math.max(0, until - Math.max(i, waiting.get(id) ?? 0)) }, () => ({
              singletonKey: id,
              data: { body: String(++count) },
            })),
          )
          if (jobs.length > 0) await boss.insert(name, jobs)
        }
      },
      async submit({ id }, body) {
        await boss.send(name, { body }, { singletonKey: id })
      },
      close: () => boss.stop({ graceful: false }),
    }
  },

  async openConsumer({ url, sessions, onMessage, mode }) {
    const boss = await open(url, mode === 'wait')
    const name = queueOf(sessions)
    await boss.getQueue(name)
    let stopped = false
    let running: Promise<unknown> | undefined
    // Its own work() waits for a poll whenever a batch is short.
    const drain = async () => {
      while (!stopped) {
        const jobs = await boss.fetch<Payload>(name, { batchSize })
        for (const { data } of jobs) onMessage(data.body)
        if (jobs.length > 0)
          await boss.complete(
            name,
            jobs.map(({ id }) => id),
          )
        else await sleep(5)
      }
    }
    return {
      start() {
        running =
          mode === 'drain'
            ? drain()
            : boss.work<Payload>(name, { batchSize: 100, pollingIntervalSeconds: 0.5 }, (jobs) => {
                for (const { data } of jobs) onMessage(data.body)
                return Promise.resolve()
              })
      },
      async stop() {
        stopped = true
        await running
        await boss.stop({ graceful: mode !== 'drain' })
        return { violations: 0 }
      },
    }
  },
}
