import { randomBytes, randomUUID } from 'node:crypto'
import { join } from 'node:path'
import type { Test } from 'tap'
import type { Sql } from '../../shared/db.ts'
import { createLogger } from '../../shared/logger.ts'
import type { Logger } from '../../shared/logger.ts'
import { KeyRing } from '../../shared/key-ring.ts'
import { LocalObjectStore } from '../../shared/object-store-local.ts'
import type { PacingConfig } from '../../shared/pacing.ts'
import type { ObjectStore } from '../../shared/object-store.ts'
import { findMessage, messageResource } from '../../shared/messages.ts'
import type { Message } from '../../shared/messages.ts'
import { accept as acceptMessages } from '../../shared/outbound.ts'
import { createSession, findSession } from '../../shared/wa-sessions.ts'
import type { SessionStatus } from '../../shared/wa-sessions.ts'
import { until } from '../../shared/test/until.ts'
import { reconnectBackoff } from '../backoff.ts'
import { SimulatorEngine } from '../engine/simulator.ts'
import type { Engine } from '../engine/engine.ts'
import { Downloads } from '../downloads.ts'
import { History } from '../history.ts'
import { Logins } from '../logins.ts'
import { People } from '../people.ts'
import { Profiles } from '../profiles.ts'
import { AckBook } from '../ack-book.ts'
import { Actions } from '../actions.ts'
import { Attachments } from '../attachments.ts'
import { Backfill } from '../backfill.ts'
import type { BackfillOptions } from '../backfill.ts'
import { Receiver } from '../receiver.ts'
import { Sender } from '../sender.ts'
import { Session } from '../session.ts'
import type { SessionDeps } from '../session.ts'
import { Spool } from '../spool.ts'
import { Supervisor } from '../supervisor.ts'
import { Vault } from '../vault.ts'

/** The same for all workers of a test process: they share logins. */
const testKeys = KeyRing.parse(randomBytes(32).toString('base64'))

export interface TestWorker {
  id: string
  supervisor: Supervisor
  sender: Sender
  vault: Vault
  logins: Logins
  /** The engines it made, oldest first. */
  engines: SimulatorEngine[]
  /** The engine that runs now. */
  engine(): SimulatorEngine
  /** What the worker does when it cannot be sure of its leases. */
  abandonAll(): Promise<void>
  stop(): Promise<void>
}

/** Sends as fast as it can. */
export const noPacing: PacingConfig = {
  WA_SEND_MIN_GAP_MS: 0,
  WA_SEND_JITTER_MS: 0,
  WA_SENDS_PER_MINUTE: 0,
  WA_NEW_CONTACTS_PER_DAY: 0,
  WA_TYPING: false,
}

/** A worker inside the test's process, over the simulator, with short times. */
export function startWorker(
  t: Test,
  sql: Sql,
  {
    dataDir,
    changeEngine,
    ownsLease = () => true,
    objectsDir = join(dataDir, 'objects'),
    objects: store = new LocalObjectStore(objectsDir),
    leaseTtlMs = 2_000,
    scanMs = 20,
    pacing = {},
    unknownMs = 60_000,
    mediaStore,
    reading = {},
    historyDays = 0,
    capacity = 10,
    ...deps
  }: Partial<Pick<SessionDeps, 'startTimeoutMs' | 'maxQrCodes' | 'stableMs' | 'backoff'>> & {
    dataDir: string
    /** Where snapshots lie; in dataDir unless workers of several machines are to share them. */
    objectsDir?: string
    /** The store itself, instead of that folder. */
    objects?: ObjectStore
    changeEngine?: (engine: SimulatorEngine) => Engine
    ownsLease?: () => boolean
    leaseTtlMs?: number
    scanMs?: number
    pacing?: Partial<PacingConfig>
    unknownMs?: number
    mediaStore?: ObjectStore
    /** How missed messages are read. */
    reading?: Pick<
      BackfillOptions,
      'afterMs' | 'maxChats' | 'limitPerChat' | 'deadlineMs' | 'maxAcks' | 'acksEveryMs'
    >
    historyDays?: number
    capacity?: number
  },
): TestWorker {
  const id = `test-${randomUUID()}`
  const log: Logger = createLogger('test', { level: 'error', stdout: false })
  const profiles = new Profiles(dataDir)
  const vault = new Vault({
    sql,
    store,
    keys: testKeys,
    log,
  })
  const logins = new Logins({ sql, profiles, vault, log })
  const acks = new AckBook(sql)
  const sender = new Sender({
    sql,
    worker: id,
    log,
    acks,
    ownsLease,
    pacing: { ...noPacing, ...pacing },
    attachments: new Attachments({
      sql,
      store: mediaStore ?? store,
      dir: join(dataDir, 'tmp'),
      ffmpeg: undefined,
    }),
    pollMs: 50,
    ackWaitMs: 200,
    unconfirmedMs: 400,
    stalledMs: 600,
    unknownMs,
  })
  const actions = new Actions({ sql, worker: id, log, pollMs: 50, expireMs: 50 })
  const receiver = new Receiver(sql, log, (keyId) => sender.acked(keyId), new Spool(dataDir), acks)
  const backfill = new Backfill({ sql, log, receiver, ...reading })
  const people = new People({ sql, worker: id, log, pollMs: 50 })
  const history = new History({ sql, log, receiver, days: historyDays, limitPerChat: 100 })
  const downloads = new Downloads({
    sql,
    store: mediaStore ?? store,
    dir: join(dataDir, 'tmp'),
    quota: undefined,
    worker: id,
    log,
    maxBytes: 1_000,
    pollMs: 50,
    maxAttempts: 2,
  })
  const engines: SimulatorEngine[] = []
  const sessions = new Set<Session>()
  const supervisor = new Supervisor({
    sql,
    log,
    worker: { id, host: 'test', pid: process.pid, capacity },
    leaseTtlMs,
    expiryDays: 30,
    pollMs: 50,
    createSession: (leased, how) => {
      const session = new Session(leased, {
        ...how,
        sql,
        log,
        worker: id,
        sender,
        actions,
        receiver,
        backfill,
        downloads,
        people,
        history,
        logins,
        createEngine: (session) => {
          const engine = new SimulatorEngine({
            sessionId: session.id,
            profileDir: () => profiles.open(session.id),
            scanMs,
            pace: 0.01,
          })
          engines.push(engine)
          return changeEngine?.(engine) ?? engine
        },
        backoff: reconnectBackoff({ quickMs: 20, maxMs: 100 }),
        startTimeoutMs: 5_000,
        settleMs: 50,
        snapshotMs: 60_000,
        probeMs: 50,
        stableMs: 60_000,
        memoryMs: 50,
        memoryLimit: 1_000,
        maxQrCodes: 5,
        maxStarts: 3,
        ...deps,
      })
      sessions.add(session)
      void session.ended.then(() => sessions.delete(session))
      return session
    },
  })
  const running = Promise.all([
    supervisor.run(),
    sender.run(),
    actions.run(),
    downloads.run(),
    people.run(),
  ])
  let stopped: Promise<void> | undefined
  const worker: TestWorker = {
    id,
    supervisor,
    sender,
    vault,
    logins,
    engines,
    engine: () => engines.at(-1)!,
    abandonAll: async () => {
      await Promise.all([...sessions].map((session) => session.abandon()))
    },
    stop: () =>
      (stopped ??= (async () => {
        await supervisor.stop()
        sender.stop()
        actions.stop()
        downloads.stop()
        people.stop()
        await running
      })()),
  }
  t.teardown(() => worker.stop())
  return worker
}

/** A workspace with one session that wants to run. */
export async function givenSession(
  sql: Sql,
  start = true,
): Promise<{ workspaceId: string; sessionId: string }> {
  const [workspace] = await sql<{ id: string }>`
    insert into workspaces (name) values ('Bakery') returning id`
  const workspaceId = workspace!.id
  const session = await createSession(sql, {
    workspaceId,
    name: 'sales',
    engine: 'simulator',
    start,
    expiryDays: 30,
  })
  return { workspaceId, sessionId: session.id }
}

export const customer = '12025550100@c.us'

/** A text for a customer, accepted as the API does it. */
export async function accept(
  sql: Sql,
  workspaceId: string,
  sessionId: string,
  body: string,
  waChatId = customer,
): Promise<Message> {
  const message = { waChatId, content: { type: 'text' as const, body } }
  const [outcome] = await acceptMessages(sql, {
    workspaceId,
    sessionId,
    sentBy: null,
    requestId: randomUUID(),
    messages: [message],
  })
  if (!outcome || 'refusal' in outcome) throw new Error('not accepted')
  return outcome.message
}

export function untilStatus(sql: Sql, workspaceId: string, id: string, status: SessionStatus) {
  return until(`session ${status}`, async () => {
    const session = await findSession(sql, workspaceId, id)
    return session?.status === status && session
  })
}

export function untilMessage(
  sql: Sql,
  workspaceId: string,
  id: string,
  fits: (message: Message) => boolean,
) {
  return until('message as wanted', async () => {
    const row = await findMessage(sql, workspaceId, id)
    const message = row && messageResource(row)
    return message && fits(message) && message
  })
}
