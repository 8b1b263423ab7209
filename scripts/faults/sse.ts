/** SSE: many clients on three API processes that come and go, and processes that are killed and told to end under them. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect } from '../../shared/db.ts'
import type { Session } from '../../shared/wa-sessions.ts'
import { AgentClient } from '../e2e/client.ts'
import { fault, Listener, startOf, writeEvents, written } from '../e2e/listeners.ts'
import type { Channel } from '../e2e/listeners.ts'
import { freePort } from '../e2e/processes.ts'
import type { Family, Lab } from './lab.ts'
import { childEnv, Program } from './program.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'

export const eventStreams: Family = { id: 'SSE', run }

const processes = 3
const clients = 200
const workspaces = 20
const transactions = 2_000

async function run(lab: Lab): Promise<Row[]> {
  const folder = join(lab.folder, 'sse')
  await mkdir(folder)
  const url = await lab.createDatabase()
  const sql = connect(url, { applicationName: 'faults', max: 12 })
  const env = (port: number) => ({
    ...childEnv(url, folder),
    LOG_LEVEL: 'warn',
    PORT: String(port),
  })
  const ports: number[] = []
  for (let index = 0; index < processes; index++) ports.push(await freePort())
  const programs: Program[] = []
  const open = async (index: number) => {
    programs[index] = await Program.start(lab.root, 'api/server.js', env(ports[index]!))
  }
  const killAll = () => programs.forEach((program) => program.kill('SIGKILL'))
  process.once('exit', killAll)
  try {
    for (let index = 0; index < processes; index++) await open(index)
    return await listenToAll(lab, {
      sql,
      bases: ports.map((port) => `http://127.0.0.1:${port}`),
      replace: async (index, signal) => {
        await programs[index]!.end(signal)
        await open(index)
      },
    })
  } finally {
    await Promise.all(programs.map(async (program) => program.ended ?? program.end('SIGTERM')))
    process.off('exit', killAll)
    await sql.close()
  }
}

interface Apis {
  sql: ReturnType<typeof connect>
  bases: string[]
  replace: (index: number, signal: NodeJS.Signals) => Promise<void>
}

async function listenToAll(lab: Lab, { sql, bases, replace }: Apis): Promise<Row[]> {
  const random = lab.random('SSE')
  const complete = new Trials(
    'SSE',
    `${clients} clients come and go on ${processes} processes: every event of their workspace, once, in order, none of others`,
  )
  const channels: Channel[] = []
  for (let index = 0; index < workspaces; index++) {
    const agent = new AgentClient(bases[index % bases.length]!)
    const { accessToken, user } = await agent.register()
    const body = { name: 'main', start: false }
    const session = await agent.call<Session>('POST', '/api/whatsapp/sessions', body)
    const { workspaceId } = user
    channels.push({ workspaceId, sessionId: session.body.id, token: accessToken })
  }
  const starts = await Promise.all(channels.map((channel) => startOf(sql, channel)))
  const listeners = Array.from({ length: clients }, (_, index) => {
    const which = index % workspaces
    return new Listener(channels[which]!, starts[which]!, bases, lab.random(`SSE ${index}`))
  })
  const over = new AbortController()
  const signal = AbortSignal.any([over.signal, lab.signal])
  const listening = Promise.all(listeners.map((listener) => listener.listen(signal, 3_000)))
  const writing = writeEvents(sql, channels, {
    total: lab.scaled(transactions),
    writers: 8,
    chance: random,
  })
  let replaced = 0
  const faults = new AbortController()
  const breaking = (async () => {
    while (!faults.signal.aborted) {
      await sleep(random.between(1_000, 4_000)) // the instant is part of the fault
      await replace(replaced % processes, replaced % 2 === 0 ? 'SIGKILL' : 'SIGTERM')
      replaced += 1
    }
  })()
  await writing
  faults.abort()
  await breaking
  const expected = await Promise.all(
    channels.map((channel, index) => written(sql, channel, starts[index]!)),
  )
  const has = (index: number) =>
    listeners[index]!.told.length >= expected[index % workspaces]!.length
  // Who does not have everything by then is found below.
  await eventually('everybody has everything', () => listeners.every((_, i) => has(i))).catch(
    () => {},
  )
  over.abort()
  await listening
  listeners.forEach((listener, index) => {
    const wrong = fault(listener, expected[index % workspaces]!)
    complete.check(wrong === undefined, wrong ?? '')
  })
  const told = listeners.reduce((sum, listener) => sum + listener.told.length, 0)
  const connections = listeners.reduce((sum, listener) => sum + listener.connections, 0)
  complete.note = `${told} events told over ${connections} connections; ${replaced} processes killed or ended meanwhile`
  return [complete.row()]
}
