import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { recordAcks } from '../../../shared/acks.ts'
import type { Db } from '../../../shared/db.ts'
import { claim } from '../../../shared/claims.ts'
import { recording } from './recording.ts'
import type { Statement } from './recording.ts'
import { undone } from './undone.ts'
import { atOnce, workers } from './world.ts'
import type { BenchSession } from './world.ts'

const run = promisify(execFile)

/** What a step that claims a message of each lane is made of, and the variables it needs. */
interface Script {
  text: string
  variables: Record<string, string>
  lanes: number
}

export async function hasPgbench(): Promise<boolean> {
  return run('pgbench', ['--version']).then(
    () => true,
    () => false,
  )
}

/**
 * Messages a second when pgbench sends the very statements that the worker sends, one client for each worker. It need not read the answers, so it
 * shows what the database alone can do. Beside them it asks, once a step, what was claimed.
 */
export async function pgbenchRate(
  sql: Db,
  url: string,
  folder: string,
  sessions: BenchSession[],
  steps: number,
): Promise<number> {
  const rates = await Promise.all(
    Array.from({ length: workers }, async (_, index) => {
      const worker = `bench-${index}`
      const mine = sessions.filter((session) => session.worker === worker)
      const { text, variables, lanes } = await scriptOf(sql, worker, mine)
      const file = join(folder, `${worker}.sql`)
      await writeFile(file, text)
      const defined = Object.entries(variables).flatMap(([name, value]) => [
        '-D',
        `${name}=${value}`,
      ])
      const { stdout } = await run('pgbench', [
        ...['--no-vacuum', '--protocol=prepared', '--transactions', String(steps), '--file', file],
        ...defined,
        url,
      ])
      const ms = Number(/latency average = ([\d.]+) ms/.exec(stdout)?.[1])
      return (lanes / ms) * 1_000
    }),
  )
  return rates.reduce((sum, rate) => sum + rate, 0)
}

async function scriptOf(sql: Db, worker: string, sessions: BenchSession[]): Promise<Script> {
  const captured = await undone(sql, async (tx) => {
    const recorder = recording(tx)
    const claimed = await claim(recorder.sql, worker, sessions, atOnce)
    const reports = claimed.map(({ sessionId, workspaceId, keyId }) => ({
      session: { id: sessionId, workspaceId, fence: 1 },
      ack: { keyId, ack: 1, waMessageId: `true_${keyId}` },
    }))
    await recordAcks(recorder.sql, reports)
    return { statements: recorder.statements, reports }
  })
  const [claiming, ...recordings] = captured.statements
  const { reports } = captured
  // What changes with every step is asked for; the rest stays.
  const asked = new Map<string, string>([
    [JSON.stringify(reports.map(({ session }) => session.id)), 'sessions'],
    [JSON.stringify(reports.map(({ session }) => session.workspaceId)), 'workspaces'],
    [JSON.stringify(reports.map(() => 1)), 'ones'],
    [JSON.stringify(reports.map(({ ack }) => ack.keyId)), 'keys'],
    [JSON.stringify(reports.map(({ ack }) => ack.waMessageId)), 'wa_ids'],
    [JSON.stringify(reports.map(() => 'REFUSED_BY_WHATSAPP')), 'codes'],
    [JSON.stringify(reports.map(() => 'message.ack')), 'types'],
  ])
  const payloads = recordings.at(-1)!.parameters.at(-1) as string[]
  asked.set(JSON.stringify(payloads), 'payloads')

  const variables: Record<string, string> = {
    lanes: literal(sessions.map(({ id }) => id)),
    payload: payloads[0]!,
  }
  const texts = [claiming!, ...recordings].map((statement, nth) => {
    const named = (name: string, value: unknown) => {
      variables[name] = literal(value)
      return name
    }
    const nameOf = (value: unknown, index: number) =>
      (nth > 0 && asked.get(JSON.stringify(value))) || named(`s${nth}p${index}`, value)
    return withNames(statement, nameOf)
  })
  const ask = `
    select array_agg(o.session_id order by o.id) as sessions, array_agg(o.workspace_id order by o.id) as workspaces,
      array_agg(1) as ones, array_agg(m.wa_key_id order by o.id) as keys, array_agg('true_' || m.wa_key_id order by o.id) as wa_ids,
      array_agg('REFUSED_BY_WHATSAPP'::text) as codes, array_agg('message.ack'::text) as types, array_agg(:payload::text) as payloads
    from wa_session_pacing p join outbox o on o.id = p.in_flight and o.state = 's' join messages m on m.id = o.message_id
    where p.session_id = any(:lanes::uuid[]) \\gset`
  const [first, ...rest] = texts
  return {
    text: `${first};\n${ask}\nbegin;\n${rest.join(';\n')};\ncommit;\n`,
    variables,
    lanes: sessions.length,
  }
}

const withNames = (
  { text, parameters }: Statement,
  nameOf: (value: unknown, index: number) => string,
) =>
  text.replaceAll(
    /\$(\d+)/g,
    (_, number: string) => `:${nameOf(parameters[Number(number) - 1], Number(number))}`,
  )

function literal(value: unknown): string {
  return Array.isArray(value)
    ? `{${value.map((item) => JSON.stringify(item)).join()}}`
    : String(value)
}
