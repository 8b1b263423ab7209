/**
 * A model check: two workers, a client and a WhatsApp in memory act on two messages in every order there is, with the product's own SQL on a
 * real Postgres and its own Delivery. Each transaction, and each thing the page does, is one step; what happens inside of a transaction
 * is Postgres's.
 */
import { randomUUID } from 'node:crypto'
import type { Db, Sql } from '../../shared/db.ts'
import type { Logger } from '../../shared/logger.ts'
import type { Claimed } from '../../shared/claims.ts'
import type { PacingConfig } from '../../shared/pacing.ts'
import type { OwnedSession } from '../../shared/wa-session-transitions.ts'
import type { UnknownPolicy } from '../../shared/workspaces.ts'
import type { Delivery, Line } from '../../wa-worker/delivery.ts'
import type { Engine, OutgoingMessage, Receipt } from '../../wa-worker/engine/engine.ts'
import type { Parts } from './model-parts.ts'

export interface Scenario {
  chats: 1 | 2
  /** How a worker loses its session: it dies, or it is stopped and wakes up when another one has the session. */
  loses: 'dies' | 'stalls'
  /** How often that happens. */
  times: 1 | 2
  /** Whether the page's store is what it was, or that of an older snapshot. */
  store: 'kept' | 'older'
  policy: UnknownPolicy
  /** What a client wants of the second message meanwhile. */
  client?: 'cancel' | 'edit'
  /** The first send finds the session offline. */
  offlineOnce?: boolean
}

export type Promised = 'lost 0' | 'transmitted once' | 'order' | 'lanes' | 'stale writes 0'

export interface Violation {
  promise: Promised
  what: string
  /** The steps that led there. */
  path: string[]
}

export interface Explored {
  states: number
  ends: number
  /** Orders of steps from the beginning to an end. */
  interleavings: bigint
  violations: Violation[]
}

const pacing: PacingConfig = {
  WA_SEND_MIN_GAP_MS: 0,
  WA_SEND_JITTER_MS: 0,
  WA_SENDS_PER_MINUTE: 0,
  WA_NEW_CONTACTS_PER_DAY: 0,
  WA_TYPING: false,
}
const nowhere = () => {}
const silent: Logger = { debug: nowhere, info: nowhere, warn: nowhere, error: nowhere } as never

export const describe = ({ chats, loses, times, store, policy, client, offlineOnce }: Scenario) =>
  [
    `${chats} chat${chats === 1 ? '' : 's'}`,
    `worker ${loses} ${times}×`,
    store === 'kept' ? 'store kept' : `older store, ${policy}`,
    ...(client ? [`client: ${client}`] : []),
    ...(offlineOnce ? ['offline at first'] : []),
  ].join(', ')

/**
 * Visits every state that can be reached; a state is reached by doing all steps again from a new beginning. Ends early when `enough`
 * promise is broken.
 */
export async function explore(
  parts: Parts,
  sql: Db,
  scenario: Scenario,
  enough?: Promised,
): Promise<Explored> {
  /** What follows each state that has been visited. */
  const next = new Map<string, string[]>()
  const violations = new Map<string, Violation>()
  const waiting: number[][] = [[]]
  let first: string | undefined
  let ends = 0
  const isEnough = () => [...violations.values()].some(({ promise }) => promise === enough)
  for (let prefix = waiting.pop(); prefix && !isEnough(); prefix = waiting.pop()) {
    const play = await Play.begin(parts, sql, scenario)
    const taken: number[] = []
    const path: string[] = []
    let before: string | undefined
    const note = (found: Omit<Violation, 'path'>[]) => {
      for (const { promise, what } of found) {
        const id = `${promise}: ${what}`
        if (!violations.has(id)) violations.set(id, { promise, what, path: [...path] })
      }
    }
    // Without a guard, things may go round for ever.
    while (!isEnough()) {
      // On the way to where the paths part everything has been seen.
      const known = taken.length < prefix.length - 1
      if (!known) {
        const key = await play.key()
        first ??= key
        if (before !== undefined) next.get(before)!.push(key)
        before = key
        // The parting itself was visited; what follows from this choice was not.
        if (next.has(key) && taken.length >= prefix.length) break
        if (!next.has(key)) next.set(key, [])
        note(play.found)
        note(await play.wrongNow())
      }
      const choices = play.choices()
      if (choices.length === 0) {
        ends += 1
        note(await play.wrongAtTheEnd())
        break
      }
      const index = prefix[taken.length] ?? 0
      if (taken.length >= prefix.length) {
        for (let other = choices.length - 1; other > 0; other--) waiting.push([...taken, other])
      }
      taken.push(index)
      path.push(choices[index]!.label)
      await choices[index]!.take()
    }
    await play.end()
  }
  return {
    states: next.size,
    ends,
    interleavings: isEnough() ? 0n : countPaths(next, first!),
    violations: [...violations.values()],
  }
}

function countPaths(next: Map<string, string[]>, first: string): bigint {
  const counts = new Map<string, bigint>()
  const count = (state: string): bigint => {
    const known = counts.get(state)
    if (known !== undefined) return known
    const after = next.get(state)!
    const sum = after.length === 0 ? 1n : after.reduce((total, one) => total + count(one), 0n)
    counts.set(state, sum)
    return sum
  }
  return count(first)
}

/** Something that acts step by step, and waits before each of them. */
interface Actor {
  name: string
  of: Worker | undefined
  pending: { label: string; go: () => void } | undefined
  /** Waits for something to change. */
  idleSince: number | undefined
  /** What it has done since it was last at its beginning: what it knows follows from that. */
  trace: string
  arrived: () => void
}

interface Worker {
  name: string
  session: OwnedSession
  pageLives: boolean
  /** Its page's memory: ack by id. */
  page: Map<string, number>
}

interface Choice {
  label: string
  take: () => Promise<void>
}

/** One run of a scenario. */
class Play {
  readonly found: Omit<Violation, 'path'>[] = []
  readonly #parts: Parts
  readonly #sql: Db
  readonly #scenario: Scenario
  readonly #workspaceId: string
  readonly #sessionId: string
  #actors: Actor[] = []
  /** What the profile has. */
  readonly #store = new Set<string>()
  readonly #bodies = new Map<string, string>()
  /** Ids are random; these are what they are called in every run. */
  readonly #names = new Map<string, string>()
  /** What reached WhatsApp, in that order. */
  readonly #wire: { keyId: string; body: string }[] = []
  readonly #asked: { second: string; told: string | undefined }
  #owner: Worker | undefined
  #workers = 0
  #losses: number
  #offline: boolean
  #steps = 0

  private constructor(
    parts: Parts,
    sql: Db,
    scenario: Scenario,
    given: { workspaceId: string; sessionId: string; ids: string[] },
  ) {
    this.#parts = parts
    this.#sql = sql
    this.#scenario = scenario
    this.#workspaceId = given.workspaceId
    this.#sessionId = given.sessionId
    this.#asked = { second: given.ids[1]!, told: undefined }
    given.ids.forEach((id, index) => this.#names.set(parts.keyIdOf(id), `m${index + 1}`))
    this.#losses = scenario.times
    this.#offline = scenario.offlineOnce ?? false
  }

  static async begin(parts: Parts, sql: Db, scenario: Scenario): Promise<Play> {
    const [workspace] = await sql<{ id: string }>`
      insert into workspaces (name, unknown_policy) values ('model', ${scenario.policy}) returning id`
    const workspaceId = workspace!.id
    const { id: sessionId } = await parts.createSession(sql, {
      workspaceId,
      name: 'model',
      engine: 'simulator',
      start: true,
      expiryDays: 30,
    })
    const ids: string[] = []
    for (const body of ['m1', 'm2']) {
      // Groups: nobody's number has to be looked up.
      const waChatId = scenario.chats === 2 && body === 'm2' ? '2@g.us' : '1@g.us'
      const [outcome] = await parts.accept(sql, {
        workspaceId,
        sessionId,
        sentBy: null,
        requestId: randomUUID(),
        messages: [{ waChatId, content: { type: 'text', body } }],
      })
      if (!outcome || 'refusal' in outcome) throw new Error('not accepted')
      ids.push(outcome.message.id)
    }
    const play = new Play(parts, sql, scenario, { workspaceId, sessionId, ids })
    await play.#takeOver()
    if (scenario.client) play.#act('client', undefined, (actor) => play.#client(actor))
    return play
  }

  choices(): Choice[] {
    const choices: Choice[] = []
    for (const actor of this.#actors) {
      if (!actor.pending || actor.idleSince === this.#steps) continue
      choices.push({
        label: `${actor.name}: ${actor.pending.label}`,
        take: () => this.#step(actor),
      })
    }
    const { loses } = this.#scenario
    if (this.#owner && this.#losses > 0) {
      const { name } = this.#owner
      if (loses === 'dies') choices.push({ label: `${name} dies`, take: async () => this.#die() })
      else choices.push({ label: `${name} stalls, another takes over`, take: () => this.#stall() })
    }
    if (!this.#owner) {
      choices.push({ label: 'another takes over', take: () => this.#takeOver() })
    }
    return choices
  }

  /** Equal for states after which everything is equal. */
  async key(): Promise<string> {
    return JSON.stringify([
      await this.#dump(),
      this.#wire.map(({ keyId, body }) => [this.#names.get(keyId), body]),
      [...this.#store].map((keyId) => this.#names.get(keyId)),
      this.#losses,
      this.#offline,
      this.#asked.told,
      this.#owner?.name,
      this.#actors
        .map(({ name, of, pending, trace, idleSince }) => [
          name,
          pending?.label,
          trace,
          idleSince === this.#steps,
          of && [of.session.fence, of.pageLives, this.#pageOf(of)],
        ])
        .sort(),
    ])
  }

  #pageOf({ page }: Worker): string[] {
    return [...page].map(([keyId, ack]) => `${this.#names.get(keyId)} ${ack}`)
  }

  async wrongNow(): Promise<Omit<Violation, 'path'>[]> {
    const wrong = await this.#sql<{ n: number }>`
      select count(*)::int as n from (
        select from outbox_lanes l left join outbox o on o.chat_id = l.chat_id join wa_session_pacing p on p.session_id = l.session_id
        where l.session_id = ${this.#sessionId}
        group by l.chat_id
        having l.waiting <> count(o.id) filter (where o.state <> 'z')
          or (l.due_at = 'infinity' or coalesce(bool_or(o.state = 's' and o.id = p.in_flight), false)) <> coalesce(bool_or(o.state = 's'), false)
          or bool_or((o.state = 's') <> (o.claimed_by is not null))
          or count(*) filter (where o.state = 's') > 1) l`
    return wrong[0]!.n === 0
      ? []
      : [
          {
            promise: 'lanes',
            what: 'a lane does not count what is there, or what is claimed is not marked as such, or neither in hand nor put aside',
          },
        ]
  }

  async wrongAtTheEnd(): Promise<Omit<Violation, 'path'>[]> {
    const found: Omit<Violation, 'path'>[] = []
    const { policy, store, chats } = this.#scenario
    const second = this.#parts.keyIdOf(this.#asked.second)
    const messages = await this.#sql<{ body: string; keyId: string; status: string }>`
      select body, wa_key_id as key_id, status from messages where session_id = ${this.#sessionId} order by seq`
    for (const { body, keyId, status } of messages) {
      const sent = this.#wire.filter((one) => one.keyId === keyId)
      const times = sent.length
      const is = `${body} is ${status} and was transmitted ${times} times`
      const mayBeUnknown = store === 'older' && policy === 'at_most_once'
      const right =
        status === 'cancelled'
          ? times === 0 && this.#asked.told === 'cancelled'
          : status === 'unknown'
            ? mayBeUnknown || store === 'older'
            : status === 'sent' && times > 0
      if (!right) found.push({ promise: 'lost 0', what: is })
      // Only the store that has it can keep it from going out again; asked for once more it is only by policy, and once.
      const most = store === 'older' && policy === 'reconcile_then_resend_same_id' ? 2 : 1
      if (times > most) found.push({ promise: 'transmitted once', what: is })
      if (sent.some((one) => one.body !== body))
        found.push({ promise: 'lost 0', what: `${body} went out as ${sent[0]!.body}` })
    }
    found.push(...this.#untrueToClient(messages.find(({ keyId }) => keyId === second)))
    const firsts = messages.map(({ keyId }) => this.#wire.findIndex((one) => one.keyId === keyId))
    if (chats === 1 && firsts.every((at) => at >= 0) && firsts[0]! > firsts[1]!)
      found.push({ promise: 'order', what: 'm2 went out before m1' })
    return found
  }

  /** What the client was told must be what became of the second message. */
  #untrueToClient(
    message: { body: string; status: string } | undefined,
  ): Omit<Violation, 'path'>[] {
    const { told } = this.#asked
    if (this.#scenario.client === undefined) return []
    const isTrue =
      (told === 'cancelled' && message?.status === 'cancelled') ||
      (told === 'edited' && message?.body === 'm2, edited') ||
      (told === 'too late' && message?.status !== 'cancelled' && message?.body === 'm2')
    const what = `m2 is ${message?.status} as "${message?.body}", the client was told ${told}`
    return isTrue ? [] : [{ promise: 'lost 0', what }]
  }

  /** Takes the session out of the way of the next run. */
  async end(): Promise<void> {
    this.#actors = []
    await this.#sql`
      update wa_sessions set desired_state = 'stopped', status = 'STOPPED', owner = null, lease_until = null
      where id = ${this.#sessionId}`
  }

  async #dump(): Promise<string> {
    const [row] = await this.#sql<{ dump: object }>`
      select jsonb_build_array(
        (select jsonb_agg(jsonb_build_array(m.body, m.status, m.ack, m.error_code, m.attempts, o.state, o.attempts, o.doubts, o.crashes, o.login_epoch, o.revision, o.id = p.in_flight) order by m.seq)
         from messages m left join outbox o on o.message_id = m.id left join wa_session_pacing p on p.session_id = m.session_id where m.session_id = s.id),
        (select jsonb_agg(jsonb_build_array(c.wa_chat_id, l.waiting, l.due_at = 'infinity') order by l.due_at)
         from outbox_lanes l join chats c on c.id = l.chat_id where l.session_id = s.id),
        s.fence, s.owner, s.login_epoch) as dump
      from wa_sessions s where s.id = ${this.#sessionId}`
    return JSON.stringify(row!.dump)
  }

  async #step(actor: Actor): Promise<void> {
    const { label, go } = actor.pending!
    const wasIdle = actor.idleSince !== undefined
    actor.pending = undefined
    actor.idleSince = undefined
    actor.trace += `${label};`
    const arrived = new Promise<void>((resolve) => (actor.arrived = resolve))
    go()
    await arrived
    // Asking in vain changes nothing.
    if (wasIdle && actor.idleSince !== undefined) actor.idleSince = this.#steps
    else {
      this.#steps += 1
      if (actor.idleSince !== undefined) actor.idleSince = this.#steps
    }
  }

  #act(name: string, of: Worker | undefined, work: (actor: Actor) => Promise<void>): void {
    const actor: Actor = {
      name,
      of,
      pending: undefined,
      idleSince: undefined,
      trace: '',
      arrived: nowhere,
    }
    this.#actors.push(actor)
    void work(actor)
      .catch((error: unknown) => {
        if (error instanceof this.#parts.LeaseLost) return
        this.found.push({ promise: 'lost 0', what: `${name} fails: ${String(error)}` })
      })
      .finally(() => {
        this.#actors = this.#actors.filter((one) => one !== actor)
        actor.arrived()
      })
  }

  #gate(actor: Actor, label: string): Promise<void> {
    return new Promise((resolve) => {
      actor.pending = { label, go: resolve }
      actor.arrived()
    })
  }

  /** The database as an actor has it: each statement, and each transaction, is a step. Who has lost the session must change nothing. */
  #sqlOf(actor: Actor, step: 'each a step' | 'same step' = 'each a step'): Sql {
    const guarded = async <T>(work: () => Promise<T>): Promise<T> => {
      if (step === 'each a step') await this.#gate(actor, 'sql')
      const stale = actor.of !== undefined && actor.of !== this.#owner
      const before = stale ? await this.#dump() : undefined
      try {
        return await work()
      } finally {
        if (before !== undefined && before !== (await this.#dump()))
          this.found.push({ promise: 'stale writes 0', what: `${actor.name} wrote` })
      }
    }
    const tag = (strings: TemplateStringsArray, ...values: never[]) =>
      guarded(() => this.#sql(strings, ...values))
    return Object.assign(tag, {
      begin: <T>(work: (tx: Sql) => Promise<T>) => guarded(() => this.#sql.begin(work)),
    }) as Sql
  }

  async #client(actor: Actor): Promise<void> {
    const { second } = this.#asked
    const sql = this.#sqlOf(actor)
    if (this.#scenario.client === 'edit') {
      const edited = await this.#parts.editQueued(sql, this.#workspaceId, second, 'm2, edited')
      this.#asked.told = edited ? 'edited' : 'too late'
      return
    }
    const row = await this.#parts.cancel(sql, this.#workspaceId, second)
    this.#asked.told = row?.status === 'cancelled' ? 'cancelled' : 'too late'
  }

  #die(): void {
    this.#losses -= 1
    this.#actors = this.#actors.filter(({ of }) => of !== this.#owner)
    this.#owner = undefined
  }

  /** Its browser ends, since no two can have one profile; what it was doing in the database it goes on with. */
  async #stall(): Promise<void> {
    this.#losses -= 1
    const stalled = this.#owner!
    stalled.pageLives = false
    this.#actors = this.#actors.filter(
      ({ of, pending }) => of !== stalled || pending?.label !== 'ack comes',
    )
    this.#actors = this.#actors.filter(
      ({ of, pending }) => of !== stalled || pending?.label !== 'page sends what it has',
    )
    await this.#takeOver()
  }

  async #takeOver(): Promise<void> {
    const name = `w${++this.#workers}`
    const again = this.#workers > 1
    await this.#sql`
      update wa_sessions set lease_until = now() - interval '1 second' where id = ${this.#sessionId}`
    const taken = await this.#parts.takeLeases(this.#sql, {
      worker: name,
      ttlMs: 3_600_000,
      limit: 1,
    })
    if (taken[0]?.id !== this.#sessionId) throw new Error('the session could not be taken')
    const older = again && this.#scenario.store === 'older'
    await this.#sql`
      update wa_sessions set status = 'WORKING', login_epoch = login_epoch + ${older}::boolean::int
      where id = ${this.#sessionId}`
    if (older) this.#store.clear()
    const worker: Worker = {
      name,
      session: { ...taken[0], worker: name },
      pageLives: true,
      page: new Map([...this.#store].map((keyId) => [keyId, this.#isOnWire(keyId) ? 1 : 0])),
    }
    this.#owner = worker
    this.#steps += 1
    for (const [keyId, ack] of worker.page) {
      if (ack === 0) this.#act(`${name}'s page`, worker, (actor) => this.#resend(actor, keyId))
    }
    this.#act(name, worker, (actor) => this.#work(actor, worker))
  }

  /** As Sender does it, with one session and no clock. */
  async #work(actor: Actor, worker: Worker): Promise<void> {
    const { claim, unconfirmed, Delivery } = this.#parts
    const sql = this.#sqlOf(actor)
    const { session } = worker
    const line: Line = { session, engine: this.#engine(actor, worker) }
    const delivery: Delivery = new Delivery({
      sql,
      log: silent,
      acks: { record: (owned, ack) => this.#parts.recordAck(sql, owned, ack) },
      attachments: { fetch: () => Promise.reject(new Error('the model sends no files')) },
      ownsLease: () => worker === this.#owner,
      maxAttempts: 5,
      maxCrashes: 3,
    })
    for (const message of await unconfirmed(sql, session, 0, pacing)) {
      know(actor, 'settles', message)
      if ((await delivery.settle(line, message)) === 'unsettled') return
    }
    for (;;) {
      actor.trace = 'claims;'
      await this.#gate(actor, 'claims')
      const [message] = await claim(this.#sqlOf(actor, 'same step'), worker.name, [session], pacing)
      if (!message) {
        actor.idleSince = -1
        continue
      }
      know(actor, 'sends', message)
      // The page is gone, and with it the lane.
      if ((await delivery.send(line, message)) === 'unsettled') return
    }
  }

  #engine(actor: Actor, worker: Worker): Engine {
    const { EngineError } = this.#parts
    const mustLive = () => {
      if (!worker.pageLives) throw new EngineError('unknown', 'PAGE_CRASHED', 'The page is gone.')
    }
    const receipt = (keyId: string): Receipt => ({
      waMessageId: `true_${keyId}`,
      ack: worker.page.get(keyId)!,
    })
    const engine = {
      send: async ({ keyId, content }: OutgoingMessage) => {
        await this.#gate(actor, 'into the store')
        mustLive()
        if (this.#offline) {
          this.#offline = false
          throw new EngineError('transient', 'SESSION_NOT_READY', 'Offline.')
        }
        if (worker.page.has(keyId)) return receipt(keyId)
        worker.page.set(keyId, 0)
        this.#store.add(keyId)
        this.#bodies.set(keyId, content.type === 'text' ? content.body : '')
        await this.#gate(actor, 'onto the wire')
        mustLive()
        this.#transmit(worker, keyId)
        return receipt(keyId)
      },
      find: async ({ keyId }: { keyId: string }) => {
        await this.#gate(actor, 'looks up')
        mustLive()
        return worker.page.has(keyId) ? receipt(keyId) : null
      },
    }
    return engine as unknown as Engine
  }

  #transmit(worker: Worker, keyId: string): void {
    this.#wire.push({ keyId, body: this.#bodies.get(keyId)! })
    this.#act(`ack to ${worker.name}`, worker, async (actor) => {
      actor.trace = `${this.#bodies.get(keyId)};`
      await this.#gate(actor, 'ack comes')
      worker.page.set(keyId, 1)
      await this.#parts.recordAck(this.#sqlOf(actor), worker.session, { keyId, ack: 1 })
    })
  }

  /** What a page has and WhatsApp has not, it sends when it connects. */
  async #resend(actor: Actor, keyId: string): Promise<void> {
    await this.#gate(actor, 'page sends what it has')
    this.#transmit(actor.of!, keyId)
  }

  #isOnWire(keyId: string): boolean {
    return this.#wire.some((one) => one.keyId === keyId)
  }
}

function know(actor: Actor, what: string, message: Claimed): void {
  const { content, attempts, doubts, sameLogin } = message
  const body = content.type === 'text' ? content.body : ''
  actor.trace = `${what} ${body} ${attempts} ${doubts} ${sameLogin};`
}
