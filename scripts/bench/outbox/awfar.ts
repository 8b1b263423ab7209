import { randomUUID } from 'node:crypto'
import { connect } from '../../../shared/db.ts'
import type { Db } from '../../../shared/db.ts'
import { listen } from '../../../shared/listener.ts'
import { createLogger } from '../../../shared/logger.ts'
import { accept } from '../../../shared/outbound.ts'
import { AckBook } from '../../../wa-worker/ack-book.ts'
import { Sender } from '../../../wa-worker/sender.ts'
import type { Consumer, ConsumerOptions, Contestant, Producer } from './contestant.ts'
import { atOnce, chatIdOf, fill } from './world.ts'
import type { BenchSession } from './world.ts'

/** How often the sender looks for work nobody told it of; its own default. */
export const pollMs = 1_000

/** All of it: the worker's own sender, as main.ts puts it together, on an engine that does nothing. */
export const awfar: Contestant = { openProducer, openConsumer: openSender }

function openProducer(_url: string, sessions: BenchSession[], sql: Db): Promise<Producer> {
  let count = 0
  return Promise.resolve({
    fill: (perSession: number) => fill(sql, sessions[0]!, perSession),
    async submit({ workspaceId, id }: BenchSession, body: string) {
      await accept(sql, {
        workspaceId,
        sessionId: id,
        sentBy: null,
        requestId: randomUUID(),
        messages: [{ waChatId: chatIdOf(count++, sessions), content: { type: 'text', body } }],
      })
    },
    close: () => Promise.resolve(),
  })
}

async function openSender(options: ConsumerOptions): Promise<Consumer> {
  const { url, worker, onMessage } = options
  const sessions = options.sessions.filter((session) => session.worker === worker)
  const sql = connect(url, { applicationName: 'bench-awfar' })
  const log = createLogger('bench', { level: 'warn' })
  const book = new AckBook(sql)
  const inFlight = new Set<string>()
  const latest = new Map<string, number>()
  let violations = 0
  const sender = new Sender({
    sql,
    worker,
    log,
    pacing: atOnce,
    pollMs,
    attachments: { fetch: () => Promise.reject(new Error('there are no attachments')) },
    acks: {
      async record(session, ack) {
        const recorded = await book.record(session, ack)
        inFlight.delete(session.id)
        return recorded
      },
    },
  })
  for (const session of sessions) {
    sender.open(
      session,
      {
        send({ chatId, keyId, content }) {
          const body = content.type === 'text' ? content.body : ''
          const chat = `${session.id} ${chatId}`
          if (inFlight.has(session.id) || Number(body) <= (latest.get(chat) ?? -1)) violations += 1
          inFlight.add(session.id)
          latest.set(chat, Number(body))
          onMessage(body)
          return Promise.resolve({ waMessageId: `true_${chatId}_${keyId}`, ack: 1 })
        },
        find: () => Promise.resolve(null),
        typing: () => Promise.resolve(),
        checkNumber: () => Promise.reject(new Error('there are no strangers')),
      },
      () => {},
    )
  }
  // What an earlier owner left is looked for first.
  while (sessions.some(({ id }) => sender.isBusy(id))) await new Promise(setImmediate)
  const listener =
    options.mode === 'wait'
      ? listen(url, ['awfar_outbox'], (_, sessionIds) => sender.nudge(sessionIds), log)
      : undefined
  let running: Promise<void> | undefined
  return {
    start() {
      running = sender.run()
    },
    async stop() {
      sender.stop()
      await running
      await Promise.all(sessions.map(({ id }) => sender.close(id)))
      await listener?.close()
      await sql.close()
      return { violations }
    },
  }
}
