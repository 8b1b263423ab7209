import { connect, fragment, planOnce } from '../../../shared/db.ts'
import type { Db, Tag } from '../../../shared/db.ts'
import { listen } from '../../../shared/listener.ts'
import { createLogger } from '../../../shared/logger.ts'
import { claim } from '../../../shared/claims.ts'
import { enqueuing, takingOut } from '../../../shared/outbox.ts'
import type { FreshlyClaimed } from '../../../shared/claims.ts'
import { Wake } from '../../../shared/wake.ts'
import { pollMs } from './awfar.ts'
import type { Consumer, ConsumerOptions, Contestant, Producer } from './contestant.ts'
import { atOnce, fill, writeMessages } from './world.ts'
import type { BenchSession } from './world.ts'

/**
 * The outbox alone, which is what a queue library does: a message that is there already is put in, claimed, and taken out, by the statements of an acceptance, a claim and an ack.
 * What else those write is left out: the message itself, that it was sent, events for webhooks.
 */
export const awfarQueue: Contestant = { openProducer, openConsumer }

function openProducer(_url: string, sessions: BenchSession[], sql: Db): Promise<Producer> {
  const written = new Map<string, { id: string; chatId: string }>()
  return Promise.resolve({
    fill: (perSession: number) => fill(sql, sessions[0]!, perSession),
    async prepare(submissions) {
      for (const { body, ...message } of await writeMessages(sql, submissions, sessions))
        written.set(body, message)
    },
    async submit({ workspaceId, id: sessionId }: BenchSession, body: string) {
      const { id, chatId } = written.get(body)!
      await sql.begin(async (tx) => {
        tx.nudge('awfar_outbox', sessionId)
        await planOnce(tx)
        await tx.final`
          with message as (
            select id, chat_id, seq, send_at from messages where id = ${id}
          ), chat as (
            select id, is_group, last_inbound_at, contacted_at from chats where id = ${chatId} for no key update
          ), ${enqueuing({ workspaceId, sessionId })}
          select from queued, lane`
      })
    },
    close: () => Promise.resolve(),
  })
}

async function openConsumer(options: ConsumerOptions): Promise<Consumer> {
  const { url, worker, mode, onMessage } = options
  const own = new Map(
    options.sessions.filter((session) => session.worker === worker).map((one) => [one.id, one]),
  )
  const sql = connect(url, { applicationName: 'bench-awfar' })
  await sql`select`
  const latest = new Map<string, number>()
  /** Sessions that may have something. */
  const asked = new Set<string>()
  const wake = new Wake()
  let violations = 0
  let stopped = false
  let running: Promise<void> | undefined

  const ask = (sessionIds: Iterable<string>) => {
    for (const id of sessionIds) if (own.has(id)) asked.add(id)
    if (asked.size > 0) wake.ring()
  }
  const next = (run: Tag) => {
    const sessions = [...asked].map((id) => own.get(id)!)
    asked.clear()
    return sessions.length === 0 ? Promise.resolve([]) : claim(run, worker, sessions, atOnce)
  }
  const takeOutAndClaim = (done: FreshlyClaimed[]) =>
    sql.begin(async (tx) => {
      await planOnce(tx)
      await tx.ahead`
        with ${takingOut(fragment`o.id = any(${done.map(({ outboxId }) => outboxId)}::bigint[])`)} select from gone`
      return next(tx.final)
    })
  const run = async () => {
    let done: FreshlyClaimed[] = []
    let pollAt = 0
    while (!stopped || done.length > 0) {
      if (performance.now() >= pollAt) {
        pollAt = performance.now() + pollMs
        ask(own.keys())
      }
      if (stopped) asked.clear()
      done = done.length > 0 ? await takeOutAndClaim(done) : await next(sql)
      for (const { sessionId, chatId, content } of done) {
        const body = content.type === 'text' ? content.body : ''
        const chat = `${sessionId} ${chatId}`
        if (Number(body) <= (latest.get(chat) ?? -1)) violations += 1
        latest.set(chat, Number(body))
        onMessage(body)
      }
      ask(done.filter(({ more }) => more).map(({ sessionId }) => sessionId))
      if (done.length === 0) await wake.wait(Math.max(0, pollAt - performance.now()))
    }
  }
  const listener =
    mode === 'wait'
      ? listen(
          url,
          ['awfar_outbox'],
          (_, sessionIds) => ask(sessionIds ?? own.keys()),
          createLogger('bench', { level: 'warn' }),
        )
      : undefined
  return {
    start() {
      running = run()
    },
    async stop() {
      stopped = true
      wake.ring()
      await running
      await listener?.close()
      await sql.close()
      return { violations }
    },
  }
}
