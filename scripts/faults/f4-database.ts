/** F4: the database goes away under load: connections are cut, the server ends at once, connections hang half open. */
import { mkdir, readFile } from 'node:fs/promises'
import { connect as open, createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect } from '../../shared/db.ts'
import type { Db } from '../../shared/db.ts'
import { openDatabase } from '../../shared/embedded-postgres.ts'
import { errorText } from '../../shared/errors.ts'
import { createLogger } from '../../shared/logger.ts'
import { migrate } from '../../shared/migrations.ts'
import { dropCluster } from '../test-setup/drop-cluster.ts'
import type { Family, Lab } from './lab.ts'
import { signal } from './proc.ts'
import { unpaced } from './program.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'
import { World } from './world.ts'
import type { Subject } from './world.ts'

export const database: Family = { id: 'F4', run }

const sessions = 4
const cutEveryMs = 200
const cutForMs = 20_000
/** Statements wait that long for a connection that says nothing any more (shared/db.ts). */
const statementMs = 30_000

async function run(lab: Lab): Promise<Row[]> {
  const folder = join(lab.folder, 'f4-postgres')
  await mkdir(folder)
  const log = createLogger('faults', { level: 'error' })
  // Of its own: the other families' must not go away.
  const server = await openDatabase({ dataDir: folder }, log)
  const direct = connect(server.url, { applicationName: 'faults', max: 2, onError: () => {} })
  const proxy = await Proxy.start(Number(new URL(server.url).port))
  try {
    await direct`create role anon nologin`
    await direct`create role authenticated nologin`
    await migrate(server.url)
    const url = new URL(server.url)
    url.host = `127.0.0.1:${proxy.port}`
    return await breakAll({ ...lab, createDatabase: async () => url.href }, direct, proxy)
  } finally {
    proxy.stop()
    await direct.close()
    await server.release()
    await dropCluster(folder)
  }
}

async function breakAll(lab: Lab, direct: Db, proxy: Proxy): Promise<Row[]> {
  const world = await World.open(lab, 'f4', {
    engine: 'simulator',
    settings: {
      ...unpaced,
    },
  })
  await world.startWorker('worker-0')
  const subjects = await world.link(sessions)
  const answers = new Trials('F4', 'answers meanwhile: 202, or 503 with Retry-After')
  const statuses = new Map<number, number>()
  const accepted: string[] = []
  /** Answers whether it was accepted. */
  const post = async (subject: Subject) => {
    const { customer, body } = world.unique()
    const answer = await world.agent
      .call<{ id: string }>(
        'POST',
        '/api/whatsapp/send',
        // These do not answer.
        { sessionId: subject.id, to: `${customer.slice(0, -4)}0006`, message: body },
      )
      .catch((error: Error) => error)
    if (answer instanceof Error) {
      answers.check(false, `no answer: ${errorText(answer.cause ?? answer)}`)
      return false
    }
    const { status, headers, body: told } = answer
    statuses.set(status, (statuses.get(status) ?? 0) + 1)
    answers.check(
      status === 202 || (status === 503 && headers.get('retry-after') !== null),
      () => `answered ${status}: ${JSON.stringify(told)}`,
    )
    if (status === 202) accepted.push(told.id)
    return status === 202
  }

  /** Sends while `fault` goes on; answers how long it then took until a message was accepted again. */
  const during = async (fault: () => Promise<void>): Promise<number> => {
    const ending = new AbortController()
    const load = subjects.map(async (subject) => {
      while (!ending.signal.aborted) {
        await post(subject)
        await sleep(150)
      }
    })
    await sleep(500)
    await fault()
    const over = performance.now()
    await eventually('a message is accepted again', () => post(subjects[0]!), 90_000)
    const ms = performance.now() - over
    ending.abort()
    await Promise.all(load)
    return ms
  }

  const cut = new Trials(
    'F4',
    `connections cut every ${cutEveryMs} ms for 20 s: accepts again`,
    fiveSeconds,
  )
  let cuts = 0
  await cut.attempt(() =>
    during(async () => {
      const until = performance.now() + lab.scaled(cutForMs)
      while (performance.now() < until) {
        const rows = await direct`
          select pg_terminate_backend(pid) from pg_stat_activity
          where backend_type = 'client backend' and application_name not like 'faults%'
            and application_name not like 'awfar-embedded-%' and pid <> pg_backend_pid()`
        cuts += rows.length
        await sleep(cutEveryMs)
      }
    }),
  )
  cut.note = `${cuts} connections cut`

  const restarts = new Trials(
    'F4',
    'server ended at once (immediate), back: accepts again',
    fiveSeconds,
  )
  for (let round = 0; round < Math.min(3, lab.scaled(3)); round++) {
    await restarts.attempt(() =>
      during(async () => {
        const [row] = await direct<{ dataDirectory: string }>`show data_directory`
        const file = join(row!.dataDirectory, 'postmaster.pid')
        const pid = Number((await readFile(file, 'utf8')).split('\n')[0])
        signal(pid, 'SIGQUIT')
        await eventually('the server is gone', () =>
          direct`select 1`.then(
            () => false,
            () => true,
          ),
        )
        await eventually('the server is back', () =>
          direct`select 1`.then(
            () => true,
            () => false,
          ),
        )
      }),
    )
  }

  const halfOpen = new Trials(
    'F4',
    'connections half open: accepts again within a statement’s time',
    {
      ms: statementMs + 5_000,
      of: 'max',
    },
  )
  await halfOpen.attempt(() => during(async () => proxy.freeze()))

  const lost = new Trials('F4', 'accepted, then lost: 0')
  const over = performance.now()
  const delivered = async () =>
    (
      await direct`
        select from messages where id = any(${accepted}::uuid[]) and status in ('sent', 'delivered')`
    ).length
  await eventually(
    'everything accepted is sent',
    async () => (await delivered()) === accepted.length,
    120_000,
  ).catch(() => {})
  const arrived = await delivered()
  lost.note = `the last was sent ${Math.round((performance.now() - over) / 1_000)} s after the last fault`
  for (let index = 0; index < accepted.length; index++)
    lost.check(index < arrived, 'accepted and not sent')
  answers.note = [...statuses].map(([status, count]) => `${count} × ${status}`).join(', ')
  await world.close()
  return [answers, cut, restarts, halfOpen, lost].map((trials) => trials.row())
}

const fiveSeconds = { ms: 5_000, of: 'max' } as const

/** Stands between the product and its database. */
class Proxy {
  readonly #server: Server
  readonly #pairs = new Set<[Socket, Socket]>()

  private constructor(server: Server) {
    this.#server = server
  }

  static async start(port: number): Promise<Proxy> {
    const server = createServer((near) => {
      const far = open(port, '127.0.0.1')
      const pair: [Socket, Socket] = [near, far]
      proxy.#pairs.add(pair)
      near.pipe(far)
      far.pipe(near)
      const end = () => {
        near.destroy()
        far.destroy()
        proxy.#pairs.delete(pair)
      }
      for (const socket of pair) socket.on('error', end).on('close', end)
    })
    const proxy = new Proxy(server)
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    return proxy
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }

  /** Nothing passes any more through connections that are there, in either way; new ones work. */
  freeze(): void {
    for (const [near, far] of this.#pairs) {
      near.unpipe(far).pause()
      far.unpipe(near).pause()
    }
  }

  stop(): void {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy()
    this.#server.close()
  }
}
