/** A worker inside of this process, over the simulator, with short times: for faults of what WhatsApp says, not of processes. */
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { connect } from '../../shared/db.ts'
import type { Db } from '../../shared/db.ts'
import { accept } from '../../shared/outbound.ts'
import { createSession } from '../../shared/wa-sessions.ts'
import { startWorker } from '../../wa-worker/test/worker.ts'
import type { TestWorker } from '../../wa-worker/test/worker.ts'
import type { Lab } from './lab.ts'
import { eventually } from './waiting.ts'

type WorkerOptions = Parameters<typeof startWorker>[2]

export interface Inside {
  sql: Db
  workspaceId: string
  /** The one that runs now. */
  worker: TestWorker
  sessions: string[]
  /** After the worker has stopped: another one, on the same disk. */
  restart(): Promise<void>
  /** Accepts these texts, in this order; answers their ids. */
  accept(session: string, messages: { to: string; body: string }[]): Promise<string[]>
  close(): Promise<void>
}

export async function openInside(
  lab: Lab,
  name: string,
  count: number,
  options: Omit<WorkerOptions, 'dataDir'>,
): Promise<Inside> {
  const sql = connect(await lab.createDatabase(), { applicationName: 'faults', max: 12 })
  const [workspace] = await sql<{ id: string }>`
    insert into workspaces (name) values (${name}) returning id`
  const workspaceId = workspace!.id
  const sessions: string[] = []
  for (let index = 0; index < count; index++) {
    const { id } = await createSession(sql, {
      workspaceId,
      name: `${name} ${index}`,
      engine: 'simulator',
      start: true,
      expiryDays: 30,
    })
    sessions.push(id)
  }
  // The rig is made for tests, of which it wants only to be told when they end.
  const test = { teardown: () => {} } as unknown as Parameters<typeof startWorker>[0]
  const start = () => startWorker(test, sql, { dataDir: join(lab.folder, name), ...options })
  const working = () =>
    eventually('all sessions work', async () => {
      const rows = await sql`select from wa_sessions where status = 'WORKING'`
      return rows.length === count
    })
  const inside: Inside = {
    sql,
    workspaceId,
    worker: start(),
    sessions,
    restart: async () => {
      inside.worker = start()
      await working()
    },
    accept: async (sessionId, messages) => {
      const outcomes = await accept(sql, {
        workspaceId,
        sessionId,
        sentBy: null,
        requestId: randomUUID(),
        messages: messages.map(({ to, body }) => ({
          waChatId: `${to}@c.us`,
          content: { type: 'text', body },
        })),
      })
      return outcomes.map((outcome) => {
        if ('refusal' in outcome) throw new Error(outcome.refusal)
        return outcome.message.id
      })
    },
    close: async () => {
      await inside.worker.stop()
      await sql.close()
    },
  }
  await working()
  return inside
}
