import { connect } from '../../../shared/db.ts'
import type { Db } from '../../../shared/db.ts'
import { listen } from '../../../shared/listener.ts'
import { createLogger } from '../../../shared/logger.ts'
import { Wake } from '../../../shared/wake.ts'
import { pollMs } from './awfar.ts'
import type { Consumer, ConsumerOptions, Contestant, Producer } from './contestant.ts'
import type { BenchSession } from './world.ts'

/**
 * The least that an ordered queue in Postgres can be: one table with one index, one insert, a nudge behind its commit, one claim that takes out what is done. No paces, fences or chats,
 * and nothing else that sending needs: what it takes is what no outbox of this kind can take less than, on this machine.
 */
export const bareQueue: Contestant = { openProducer, openConsumer }

async function openProducer(_url: string, _sessions: BenchSession[], sql: Db): Promise<Producer> {
  await sql`
    create table if not exists bare_queue (
      id bigint generated always as identity primary key, session_id uuid not null, body text not null, state "char" not null default 'q',
      attempts int not null default 0, claimed_at timestamptz) with (fillfactor = 70)`
  await sql`create index if not exists bare_queue_head on bare_queue (session_id, id) where state = 'q'`
  return {
    async fill(perSession) {
      if (perSession > 0) throw new Error('It is there for single messages only.')
      await sql`truncate bare_queue`
    },
    async submit({ id }, body) {
      await sql`insert into bare_queue (session_id, body) values (${id}, ${body})`
      sql.nudge('awfar_outbox', id)
    },
    close: () => Promise.resolve(),
  }
}

async function openConsumer(options: ConsumerOptions): Promise<Consumer> {
  const { url, sessions, worker, onMessage } = options
  const own = new Set(sessions.filter((one) => one.worker === worker).map(({ id }) => id))
  const sql = connect(url, { applicationName: 'bench-bare' })
  await sql`select`
  const asked = new Set<string>()
  const wake = new Wake()
  let stopped = false
  let running: Promise<void> | undefined

  const run = async () => {
    let done: number[] = []
    while (!stopped) {
      const sessionIds = [...asked]
      asked.clear()
      const claimed = await sql<{ id: number; sessionId: string; body: string }>`
        with gone as (
          delete from bare_queue where id = any(${done}::bigint[])
        )
        update bare_queue q set state = 's', attempts = attempts + 1, claimed_at = now()
        from (
          select head.id from unnest(${sessionIds}::uuid[]) u(session_id)
          cross join lateral (select id from bare_queue where session_id = u.session_id and state = 'q' order by id limit 1) head
          offset 0) head
        where q.id = head.id
        returning q.id, q.session_id, q.body`
      for (const { sessionId, body } of claimed) {
        asked.add(sessionId)
        onMessage(body)
      }
      done = claimed.map(({ id }) => id)
      if (done.length === 0 && asked.size === 0) await wake.wait(pollMs)
    }
  }
  const listener = listen(
    url,
    ['awfar_outbox'],
    (_, sessionIds) => {
      for (const id of sessionIds ?? own) if (own.has(id)) asked.add(id)
      wake.ring()
    },
    createLogger('bench', { level: 'warn' }),
  )
  return {
    start() {
      running = run()
    },
    async stop() {
      stopped = true
      wake.ring()
      await running
      await listener.close()
      await sql.close()
      return { violations: 0 }
    },
  }
}
