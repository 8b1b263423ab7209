/** F11: two API processes, clients that repeat themselves, lose their connections and change their minds, and a process that is killed under them. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect } from '../../shared/db.ts'
import type { Db } from '../../shared/db.ts'
import { takeKey } from '../../shared/idempotency.ts'
import { freePort } from '../e2e/processes.ts'
import type { Family, Lab } from './lab.ts'
import { childEnv, Program } from './program.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually, inParallel } from './waiting.ts'

export const idempotency: Family = { id: 'F11', run }

const parallel = 100
/** Keys at work at the same time. */
const width = 4
const processes = 2

interface Told {
  status: number
  body: string
  replayed: boolean
}

async function run(lab: Lab): Promise<Row[]> {
  const random = lab.random('F11')
  const apis = await Apis.start(lab)
  const { sql } = apis
  const rows = async (text: string) =>
    (await sql`select id from messages where body = ${text}`).map(({ id }) => id as string)
  const post = (key: string, text: string, index: number, signal?: AbortSignal) =>
    apis.post(index % processes, key, { to: '12125550100', message: text }, signal)

  /** Asks as a patient client does: whatever goes wrong on the way, it asks again, here or at the other process. */
  async function insist(key: string, text: string, first: number): Promise<Told> {
    let index = first
    return eventually(`an answer for ${key}`, async () => {
      const told = await post(key, text, index++).catch(() => undefined)
      return told && told.status !== 409 && told.status < 500 && told
    })
  }

  const identical = new Trials(
    'F11',
    `${parallel} identical POSTs at once over ${processes} processes: rows = keys, answers identical`,
  )
  const changed = new Trials('F11', 'the same key with another body: 422')
  let inProgress = 0
  const keys = Array.from({ length: lab.scaled(200) }, (_, index) => `key-${index}`)
  try {
    await inParallel(keys, width, async (key) => {
      const answers = await Promise.all(
        Array.from({ length: parallel }, async (_, index) => {
          const told = await post(key, key, index)
          if (told.status === 409) inProgress += 1
          return told.status === 409 ? insist(key, key, index) : told
        }),
      )
      const stored = await rows(key)
      const bodies = new Set(answers.map(({ status, body }) => `${status} ${body}`))
      const firsts = answers.filter(({ replayed }) => !replayed).length
      identical.check(
        stored.length === 1 && bodies.size === 1 && [...bodies][0]!.includes(stored[0]!),
        () =>
          `${stored.length} rows, ${bodies.size} different answers, ${firsts} of them the first`,
      )
      for (let index = 0; index < processes; index++) {
        const { status } = await post(key, `${key}, changed`, index)
        changed.check(status === 422, `answered ${status}`)
      }
    })
    identical.note = `${keys.length * parallel} requests, ${inProgress} were first told to wait (409)`

    const held = new Trials('F11', 'while another process works under the key: 409')
    await sql.begin(async (tx) => {
      const names = Array.from({ length: lab.scaled(10) }, (_, index) => `held-${index}`)
      for (const key of names) {
        await takeKey(tx, {
          workspaceId: apis.workspaceId,
          key,
          fingerprint: Buffer.from('another process'),
        })
      }
      await Promise.all(
        names.map(async (key, index) => {
          const { status } = await post(key, key, index)
          held.check(status === 409, `answered ${status}`)
        }),
      )
    })

    const cut = new Trials('F11', 'connection cut by the client at any instant: rows = keys')
    let lost = 0
    const cuts = Array.from({ length: lab.scaled(200) }, (_, index) => `cut-${index}`)
    await inParallel(cuts, width, async (key, index) => {
      const gone = new AbortController()
      const asking = post(key, key, index, gone.signal).then(
        () => {},
        () => (lost += 1),
      )
      await sleep(random.between(0, 25)) // the instant is part of the fault
      gone.abort()
      await asking
      const told = await insist(key, key, index + 1)
      const stored = await rows(key)
      cut.check(
        told.status === 202 && stored.length === 1 && told.body.includes(stored[0]!),
        `${stored.length} rows, answered ${told.status}`,
      )
    })
    cut.note = `${lost} of ${cuts.length} answers were lost`

    const killed = new Trials(
      'F11',
      'SIGKILL of a process under load: rows = keys, answers identical',
    )
    let silent = 0
    for (let round = 0; round < lab.scaled(20); round++) {
      const names = Array.from({ length: 20 }, (_, index) => `killed-${round}-${index}`)
      const asked = names.map(async (key) => {
        const answers = await Promise.all([0, 1, 0, 1].map((index) => insist(key, key, index)))
        const stored = await rows(key)
        const bodies = new Set(answers.map(({ status, body }) => `${status} ${body}`))
        if (answers.every(({ replayed }) => replayed)) silent += 1
        killed.check(
          stored.length === 1 && bodies.size === 1 && [...bodies][0]!.includes(stored[0]!),
          `${stored.length} rows, ${bodies.size} different answers`,
        )
      })
      await sleep(random.between(0, 120)) // the instant is part of the fault
      await apis.kill(round % processes)
      await Promise.all(asked)
    }
    killed.note = `the answer of ${silent} first requests was never told; a repetition got it`

    const before = new Trials(
      'F11',
      'SIGKILL before the commit: nothing is left, a repetition does it',
    )
    const after = new Trials(
      'F11',
      'SIGKILL after the commit, before the answer: a repetition is told it',
    )
    for (let round = 0; round < lab.scaled(10); round++) {
      for (const [when, trials] of [
        ['before', before],
        ['after', after],
      ] as const) {
        const key = `${when}-${round}`
        const index = round % processes
        const lostAnswer = post(key, key, index).catch(() => undefined)
        await eventually('the write is under way', async () => apis.isWriting(when))
        await apis.kill(index)
        if (await lostAnswer) {
          trials.failed('the answer came: the kill was too late')
          continue
        }
        await eventually('the write is over', async () => !(await apis.isWriting(when)))
        const kept = await rows(key)
        const told = await insist(key, key, index)
        const stored = await rows(key)
        trials.check(
          kept.length === (when === 'after' ? 1 : 0) &&
            told.replayed === (when === 'after') &&
            told.status === 202 &&
            stored.length === 1 &&
            told.body.includes(stored[0]!),
          `${kept.length} rows after the kill, ${stored.length} at the end, answered ${told.status}`,
        )
      }
    }
    return [identical, changed, held, cut, killed, before, after].map((trials) => trials.row())
  } finally {
    await apis.stop()
  }
}

/** API processes over one database. */
class Apis {
  readonly sql: Db
  workspaceId = ''
  readonly #root: string
  readonly #env: Record<string, string>
  readonly #ports: string[]
  readonly #programs: Program[] = []
  #token = ''
  /** Also when the run is broken off. */
  readonly #killAll = () => this.#programs.forEach((program) => program.kill('SIGKILL'))

  private constructor(lab: Lab, sql: Db, env: Record<string, string>, ports: string[]) {
    this.#root = lab.root
    this.sql = sql
    this.#env = env
    this.#ports = ports
    process.once('exit', this.#killAll)
  }

  static async start(lab: Lab): Promise<Apis> {
    const folder = join(lab.folder, 'f11')
    await mkdir(folder)
    const url = await lab.createDatabase()
    const sql = connect(url, { applicationName: 'faults', max: 4 })
    // Else the server undoes, now and then, what a killed process was about to commit, and there is nothing to be told again.
    await sql`
      do $$ begin execute format('alter database %I set client_connection_check_interval = 0', current_database()); end $$`
    const ports: string[] = []
    for (let index = 0; index < processes; index++) ports.push(String(await freePort()))
    const apis = new Apis(
      lab,
      sql,
      {
        ...childEnv(url, folder),
        LOG_LEVEL: 'warn',
        WA_ENGINE: 'simulator',
      },
      ports,
    )
    try {
      await Promise.all(ports.map((_, index) => apis.#open(index)))
      await apis.#prepare()
    } catch (error) {
      await apis.stop()
      throw error
    }
    return apis
  }

  async #open(index: number): Promise<void> {
    const env = { ...this.#env, PORT: this.#ports[index]! }
    this.#programs[index] = await Program.start(this.#root, 'api/server.js', env)
  }

  async #prepare(): Promise<void> {
    const registered = await this.#call(0, '/api/auth/register', {
      email: 'f11@example.com',
      password: 'correct horse battery staple',
      fullName: 'Ann Agent',
    })
    const { accessToken, user } = JSON.parse(registered.body) as {
      accessToken: string
      user: { workspaceId: string }
    }
    this.#token = accessToken
    this.workspaceId = user.workspaceId
    await this.#call(0, '/api/whatsapp/sessions', { name: 'F11', start: false })
    // The acceptance itself takes long for some keys, and for others the commit does. What stores the answer travels with the commit.
    await this.sql`
      create function dawdle() returns trigger language plpgsql as
      $$ begin perform pg_sleep(0.4); return null; end $$`
    await this.sql`
      create trigger before_commit after insert on messages for each row
      when (new.body like 'before-%') execute function dawdle()`
    await this.sql`
      create constraint trigger at_commit after insert on idempotency_keys deferrable initially deferred for each row
      when (new.key like 'after-%') execute function dawdle()`
  }

  /** Whether a process is writing an answer: in the statement before the commit, or in the commit. */
  async isWriting(when: 'before' | 'after'): Promise<boolean> {
    const rows = await this.sql`
      select 1 from pg_stat_activity
      where datname = current_database() and application_name = 'awfar-api' and wait_event = 'PgSleep'
        and (query = 'commit') = (${when} = 'after')`
    return rows.length > 0
  }

  async post(index: number, key: string, body: object, signal?: AbortSignal): Promise<Told> {
    return this.#call(index, '/api/whatsapp/send', body, { 'idempotency-key': key }, signal)
  }

  async #call(
    index: number,
    path: string,
    body: object,
    headers: Record<string, string> = {},
    signal?: AbortSignal,
  ): Promise<Told> {
    const response = await fetch(`http://127.0.0.1:${this.#ports[index]}${path}`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        ...(this.#token !== '' && { authorization: `Bearer ${this.#token}` }),
        ...headers,
      },
      body: JSON.stringify(body),
      ...(signal && { signal }),
    })
    return {
      status: response.status,
      body: await response.text(),
      replayed: response.headers.get('idempotency-replayed') === 'true',
    }
  }

  /** Kills a process and starts another in its place. */
  async kill(index: number): Promise<void> {
    await this.#programs[index]!.end('SIGKILL')
    await this.#open(index)
  }

  async stop(): Promise<void> {
    await Promise.all(
      this.#programs.map(async (program) => program.ended ?? program.end('SIGTERM')),
    )
    process.off('exit', this.#killAll)
    await this.sql.close()
  }
}
