import { Logger, makeWorkerUtils, run } from 'graphile-worker'
import type { Runner } from 'graphile-worker'
import type { Contestant } from './contestant.ts'

/** Jobs at a time in one process: with more, the workers spend themselves on looking for queues that are free. */
const concurrency = 10
const logger = new Logger(() => (level, message) => {
  if (String(level) === 'error') console.error(message)
})

/** A named queue for each session: its jobs run one after the other. */
export const graphile: Contestant = {
  async openProducer(url, sessions, sql) {
    const utils = await makeWorkerUtils({ connectionString: url, logger })
    await utils.migrate()
    return {
      async fill(perSession) {
        // What is left of other windows would be searched through, too.
        await sql`truncate graphile_worker._private_jobs, graphile_worker._private_job_queues cascade`
        const queues = Array.from({ length: perSession }, () => sessions.map(({ id }) => id)).flat()
        await sql`
          select count(*) from graphile_worker.add_jobs(array(
            select row('send', json_build_object('body', ord::text), queue, null, null, null, null, null)::graphile_worker.job_spec
            from unnest(${queues}::text[]) with ordinality q(queue, ord) order by ord))`
      },
      async submit({ id }, body) {
        await utils.addJob('send', { body }, { queueName: id })
      },
      close: async () => {
        await utils.release()
      },
    }
  },

  openConsumer({ url, onMessage }) {
    let runner: Promise<Runner> | undefined
    return Promise.resolve({
      start() {
        runner = run({
          connectionString: url,
          concurrency,
          maxPoolSize: concurrency + 1,
          noHandleSignals: true,
          logger,
          taskList: {
            send(payload) {
              onMessage((payload as { body: string }).body)
            },
          },
        })
      },
      async stop() {
        await (await runner)?.stop()
        return { violations: 0 }
      },
    })
  },
}
