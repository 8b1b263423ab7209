import { connect } from '../shared/db.ts'
import { isDatabaseAway } from '../shared/db-errors.ts'
import { exitConfig, exitOnConfigError, loadEnv, readEnv } from '../shared/config.ts'
import { errorText } from '../shared/errors.ts'
import { openKeyRing } from '../shared/key-ring.ts'
import { openDatabase } from '../shared/embedded-postgres.ts'
import { listen } from '../shared/listener.ts'
import { createLogger } from '../shared/logger.ts'
import type { Logger } from '../shared/logger.ts'
import { migrate } from '../shared/migrations.ts'
import { onShutdown } from '../shared/shutdown.ts'
import { buildApp } from './app.ts'
import { apiSchema } from './config.ts'
import type { ApiConfig } from './config.ts'
import { createMailer } from './mail.ts'
import { loadStrengthCheck } from './passwords.ts'

/** Requests under way get so long to finish; then their connections are cut. */
const patienceMs = 10_000

const config = readConfig()
const log = createLogger('api', { level: config.LOG_LEVEL, dir: config.LOG_DIR })
try {
  await start(config, log)
} catch (error) {
  const sentence = explain(error, config)
  log.error(sentence, { error })
  process.stderr.write(sentence + '\n')
  // Starting it again does not free the port: npm start gives up on this code.
  process.exit(isPortTaken(error) ? exitConfig : 1)
}

function readConfig(): ApiConfig {
  loadEnv()
  try {
    return readEnv<ApiConfig>(apiSchema)
  } catch (error) {
    return exitOnConfigError(error)
  }
}

async function start(config: ApiConfig, log: Logger): Promise<void> {
  const opening = openDatabase({ databaseUrl: config.DATABASE_URL, dataDir: config.DATA_DIR }, log)
  const stops: (() => Promise<void>)[] = [
    () =>
      opening.then(
        (database) => database.release(),
        () => {}, // never opened: the start says why
      ),
  ]
  // Also when the start fails half-way, or a signal comes in the middle of it: nothing may be left running.
  const stop = async () => {
    for (const close of stops.splice(0).reverse()) await close()
  }
  onShutdown(log, stop, { timeoutMs: 25_000 })

  try {
    const database = await opening
    const directUrl = config.DATABASE_URL_DIRECT ?? database.url
    await migrate(directUrl)
    const sql = connect(database.url, {
      applicationName: 'awfar-api',
      prepare: config.PG_PREPARE,
      onError: (error) => log.warn('database connection lost', { error }),
    })
    stops.push(() => sql.close())

    const keys = await openKeyRing({
      value: config.SESSION_ENCRYPTION_KEY,
      dataDir: config.DATA_DIR,
      production: config.NODE_ENV === 'production',
    })
    const mailer = createMailer(config, log)
    stops.push(() => mailer.close())
    await loadStrengthCheck()
    const app = await buildApp({ config, sql, log, keys, mailer })
    stops.push(async () => {
      const cut = setTimeout(() => app.server.closeAllConnections(), patienceMs)
      await app.close()
      clearTimeout(cut)
    })
    const listener = listen(directUrl, ['awfar_events'], () => app.eventFeed.nudge(), log)
    stops.push(() => listener.close())
    await app.listen({ port: config.PORT, host: config.HOST })
  } catch (error) {
    await stop()
    throw error
  }
  process.send?.('ready')
}

function isPortTaken(error: unknown): boolean {
  return (causeOf(error) as { code?: string }).code === 'EADDRINUSE'
}

/** A host name with several addresses fails with one error each. */
function causeOf(error: unknown): unknown {
  return error instanceof AggregateError ? error.errors[0] : error
}

function explain(error: unknown, { PORT, HOST }: ApiConfig): string {
  if (isPortTaken(error)) {
    return `PORT ${PORT} on ${HOST} is in use by another program: stop it, or set PORT to a free port.`
  }
  if (isDatabaseAway(error)) {
    return `The database of DATABASE_URL does not answer: ${errorText(causeOf(error))}`
  }
  return `The API did not start: ${errorText(causeOf(error))}`
}
