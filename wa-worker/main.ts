import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { ConfigError, exitOnConfigError, loadEnv, readEnv } from '../shared/config.ts'
import { connect } from '../shared/db.ts'
import { openDatabase } from '../shared/embedded-postgres.ts'
import type { Database } from '../shared/embedded-postgres.ts'
import { errorText } from '../shared/errors.ts'
import { listen } from '../shared/listener.ts'
import { createLogger } from '../shared/logger.ts'
import type { Logger } from '../shared/logger.ts'
import { migrate } from '../shared/migrations.ts'
import { tempDir } from '../shared/media-files.ts'
import { openKeyRing } from '../shared/key-ring.ts'
import { openObjectStore, quotaOf } from '../shared/storage.ts'
import { onShutdown } from '../shared/shutdown.ts'
import type { LeasedSession } from '../shared/wa-session-leases.ts'
import { signOff } from '../shared/workers.ts'
import { reconnectBackoff } from './backoff.ts'
import { workerSchema } from './config.ts'
import type { WorkerConfig } from './config.ts'
import type { Engine } from './engine/engine.ts'
import { SimulatorEngine } from './engine/simulator.ts'
import { WebjsEngine } from './engine/webjs.ts'
import { findFfmpeg } from '../shared/media-voice.ts'
import { AckBook } from './ack-book.ts'
import { Actions } from './actions.ts'
import { Attachments } from './attachments.ts'
import { Backfill } from './backfill.ts'
import { Downloads } from './downloads.ts'
import { History } from './history.ts'
import { startJobs } from './jobs.ts'
import { Logins } from './logins.ts'
import { withDeadline } from './patience.ts'
import { People } from './people.ts'
import { Profiles } from './profiles.ts'
import { Receiver } from './receiver.ts'
import { Sender } from './sender.ts'
import { Session } from './session.ts'
import { Spool } from './spool.ts'
import { Supervisor } from './supervisor.ts'
import type { SupervisorOptions } from './supervisor.ts'
import { Vault } from './vault.ts'
import { Webhooks } from './webhooks.ts'

/** How long a worker that has no sessions any more waits for the database. */
const leaveMs = 3_000
/** And for one of its own to end, which by itself waits ten seconds for whoever else has it open. */
const releaseMs = 12_000
const silent = () => new Error('The database does not answer.')

await main().catch(exitOnConfigError)

async function main(): Promise<void> {
  loadEnv()
  const config = readEnv<WorkerConfig>(workerSchema)
  const log = createLogger('wa-worker', { level: config.LOG_LEVEL, dir: config.LOG_DIR })
  const opening = openDatabase({ databaseUrl: config.DATABASE_URL, dataDir: config.DATA_DIR }, log)
  const stops: (() => Promise<void>)[] = [
    () =>
      opening.then(
        (database) =>
          // It waits for others itself, and asks the database who they are.
          withDeadline(database.release(), releaseMs, silent).catch(
            (error: unknown) => void log.warn('database left running', { error }),
          ),
        () => {}, // never opened: the start says why
      ),
  ]
  // From here on: a signal may come in the middle of the start, and nothing may be left running.
  const stop = async () => {
    for (const close of stops.splice(0).reverse()) await close()
  }
  onShutdown(log, stop, { timeoutMs: 25_000 })
  // The library rejects promises nobody can await (a page that navigates away, a takeover that fails): a session may suffer, which its own
  // watching finds out, but not this process and with it all other sessions.
  process.on('unhandledRejection', (error) => log.error('rejection nobody handled', { error }))

  try {
    await start(await opening, config, log, stops)
  } catch (error) {
    if (error instanceof ConfigError) {
      await stop()
      exitOnConfigError(error)
    }
    log.error('worker not started', { error })
    process.stderr.write(`The worker did not start: ${errorText(error)}\n`)
    await stop()
    process.exit(1)
  }
}

async function start(
  database: Database,
  config: WorkerConfig,
  log: Logger,
  stops: (() => Promise<void>)[],
): Promise<void> {
  const worker = {
    id: `${hostname()}:${process.pid}:${randomBytes(4).toString('hex')}`,
    host: hostname(),
    pid: process.pid,
    capacity: config.WA_MAX_SESSIONS,
  }
  const directUrl = config.DATABASE_URL_DIRECT ?? database.url
  for (const { version, name } of await migrate(directUrl)) {
    log.info('migration applied', { version, name })
  }
  const sql = connect(database.url, {
    applicationName: 'awfar-worker',
    prepare: config.PG_PREPARE,
    onError: (error) => log.warn('database connection lost', { error }),
  })
  stops.push(async () => {
    await withDeadline(sql.close(), leaveMs, silent).catch((error: unknown) =>
      log.warn('connections left to break', { error }),
    )
  })

  const keys = await openKeyRing({
    value: config.SESSION_ENCRYPTION_KEY,
    dataDir: config.DATA_DIR,
    production: config.NODE_ENV === 'production',
  })
  const store = openObjectStore(config)
  const vault = new Vault({ sql, store, keys, log })
  const profiles = new Profiles(config.DATA_DIR)
  const logins = new Logins({ sql, profiles, vault, log })
  const acks = new AckBook(sql)
  const sender: Sender = new Sender({
    sql,
    acks,
    worker: worker.id,
    log,
    pacing: config,
    attachments: new Attachments({
      sql,
      store,
      dir: tempDir(config.DATA_DIR),
      ffmpeg: await findFfmpeg(config),
    }),
    ownsLease: (sessionId) => supervisor.ownsLease(sessionId),
  })
  const actions = new Actions({ sql, worker: worker.id, log })
  const receiver = new Receiver(
    sql,
    log,
    (keyId) => sender.acked(keyId),
    new Spool(config.DATA_DIR),
    acks,
  )
  const backfill = new Backfill({ sql, log, receiver })
  const people = new People({ sql, worker: worker.id, log })
  const history = new History({ sql, log, receiver, days: config.WA_HISTORY_DAYS })
  const downloads = new Downloads({
    sql,
    store,
    dir: tempDir(config.DATA_DIR),
    quota: quotaOf(config),
    worker: worker.id,
    log,
    maxBytes: config.WA_MEDIA_MAX_MB * 1_048_576,
  })
  const webhooks = new Webhooks({ sql, keys, log, allowPrivate: config.WEBHOOK_ALLOW_PRIVATE })
  const createSession: SupervisorOptions['createSession'] = (leased, how) =>
    new Session(leased, {
      ...how,
      sql,
      log,
      worker: worker.id,
      sender,
      actions,
      receiver,
      backfill,
      downloads,
      people,
      history,
      logins,
      createEngine: (session) => createEngine(session, config, profiles, log),
      backoff: reconnectBackoff({ quickMs: config.WA_RECONNECT_DELAY_MS }),
      startTimeoutMs: config.WA_START_TIMEOUT_MS,
      settleMs: 10_000,
      snapshotMs: config.WA_SNAPSHOT_INTERVAL_MS,
      probeMs: 5_000,
      stableMs: 5 * 60_000,
      memoryMs: 30_000,
      memoryLimit: config.WA_MEMORY_SOFT_LIMIT_MB * 1_048_576,
      maxQrCodes: config.WA_QR_MAX_CODES,
      maxStarts: 3,
    })
  const supervisor: Supervisor = new Supervisor({
    sql,
    log,
    worker,
    leaseTtlMs: config.WA_LEASE_TTL_MS,
    expiryDays: config.SESSION_EXPIRY_DAYS,
    createSession,
  })
  const listener = listen(
    directUrl,
    ['awfar_outbox', 'awfar_sessions', 'awfar_events'],
    (channel, sessionIds) => {
      if (channel === 'awfar_events') return webhooks.nudge()
      if (channel === 'awfar_sessions') return supervisor.nudge()
      sender.nudge(sessionIds)
      actions.nudge(sessionIds)
    },
    log,
  )
  const jobs = startJobs({
    sql,
    vault,
    logins,
    media: { sql, store, dir: tempDir(config.DATA_DIR) },
    retentionDays: config.MEDIA_RETENTION_DAYS,
    worker: worker.id,
    auditDays: config.AUDIT_RETENTION_DAYS,
    log,
  })

  const running = Promise.all([
    supervisor.run(),
    sender.run(),
    actions.run(),
    downloads.run(),
    people.run(),
    webhooks.run(),
  ])
  stops.push(async () => {
    await jobs.stop()
    webhooks.stop()
    await supervisor.stop()
    sender.stop()
    actions.stop()
    downloads.stop()
    people.stop()
    // The sessions are given back, or lost: a database that says nothing is not waited for.
    await withDeadline(leave(), leaveMs, silent).catch((error: unknown) =>
      log.warn('not signed off', { error }),
    )
  })
  const leave = async () => {
    await running
    await listener.close()
    await signOff(sql, worker.id)
  }
  log.info('worker started', { worker: worker.id, capacity: worker.capacity })
  process.send?.('ready')
}

function createEngine(
  session: LeasedSession,
  config: WorkerConfig,
  profiles: Profiles,
  log: Logger,
): Engine {
  const profileDir = () => profiles.open(session.id)
  switch (session.engine) {
    case 'simulator':
      return new SimulatorEngine({
        sessionId: session.id,
        profileDir,
        scanMs: config.WA_SIMULATOR_SCAN_MS,
      })
    case 'webjs':
      return new WebjsEngine({
        sessionId: session.id,
        log,
        profileDir,
        executablePath: config.PUPPETEER_EXECUTABLE_PATH,
        browserArgs: config.WA_BROWSER_ARGS,
        webVersion: config.WA_WEB_VERSION
          ? {
              version: config.WA_WEB_VERSION,
              cacheDir: config.WA_WEB_CACHE_DIR ?? join(config.DATA_DIR, 'web-versions'),
            }
          : undefined,
      })
  }
}
