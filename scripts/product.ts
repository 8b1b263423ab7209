import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import Joi from 'joi'
import { baseSchema, exitConfig, exitOnConfigError, loadEnv, readEnv } from '../shared/config.ts'
import type { BaseConfig } from '../shared/config.ts'
import { openDatabase } from '../shared/embedded-postgres.ts'
import type { Database } from '../shared/embedded-postgres.ts'
import { createLogger } from '../shared/logger.ts'
import type { Logger } from '../shared/logger.ts'
import { root } from '../shared/root.ts'
import { onOrphaned } from '../shared/shutdown.ts'
import { supervise } from './supervise.ts'
import type { Supervised } from './supervise.ts'

interface Config extends BaseConfig {
  HOST: string
  PORT: number
}

/** From the first signal to the end of everything: children get this much, the database what is left of 29 s. */
const childrenMs = 25_000
const totalMs = 29_000
/** Ctrl-C under npm arrives twice within moments: once from the terminal, once passed on by npm. */
const sameSignalMs = 1_000
const healthTimeoutMs = 60_000

/**
 * Runs the whole product: the database if it is ours, the API and the worker. Starts again what dies, ends everything on one signal.
 * `onUp` is called with the API's address once it answers; the signal is aborted when the end begins.
 */
export async function runProduct(
  onUp: (url: string, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const config = readConfig()
  const log = createLogger('start', { level: config.LOG_LEVEL, dir: config.LOG_DIR })
  const closing = new AbortController()
  const children: { worker?: Supervised; api?: Supervised } = {}
  let begun: number | undefined
  let database: Promise<Database> | undefined

  const stop = async (reason: string, exitCode: number) => {
    if (begun !== undefined) {
      if (performance.now() - begun < sameSignalMs) return
      log.error('stopped at once', { reason })
      children.worker?.kill()
      children.api?.kill()
      process.exit(1)
    }
    begun = performance.now()
    closing.abort()
    log.info('stopping', { reason })
    const left = (ofMs: number) => Math.max(ofMs - (performance.now() - begun!), 500)
    // The worker first: it finishes what it is sending, and the API can be asked meanwhile how far it is.
    await children.worker?.stop(left(childrenMs - 5_000))
    await children.api?.stop(left(childrenMs))
    // Still being opened, it is released as soon as it is open; when that failed it said so itself.
    await database?.then((opened) => opened.release(left(totalMs))).catch(() => {})
    log.info('stopped', { ms: Math.round(performance.now() - begun) })
    process.exit(exitCode)
  }
  const end = (reason: string, exitCode = 0) => {
    stop(reason, exitCode).catch((error: unknown) => {
      log.error('stopped with an error', { error })
      process.exit(1)
    })
  }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => end(signal))
  }

  onOrphaned(() => begun ?? end('parent died'))

  try {
    database = openDatabase({ databaseUrl: config.DATABASE_URL, dataDir: config.DATA_DIR }, log)
    const { url } = await database
    if (closing.signal.aborted) return
    const env = { ...process.env, DATABASE_URL: url }
    const run = (name: string, file: string) =>
      supervise(
        { name, file: join(root, 'dist', file), env },
        { log, onConfigError: () => end(`${name}: wrong settings`, exitConfig) },
      )
    children.api = run('api', 'api/server.js')
    children.worker = run('wa-worker', 'wa-worker/main.js')
  } catch (error) {
    if (closing.signal.aborted) return
    process.stderr.write(`${(error as Error).message}\n`)
    log.error('not started', { error })
    return end('not started', 1)
  }
  const url = await untilUp(config, log, closing.signal)
  if (url !== undefined) await onUp(url, closing.signal)
}

function readConfig(): Config {
  try {
    loadEnv()
    return readEnv<Config>({
      ...baseSchema,
      HOST: Joi.string().default('127.0.0.1'),
      PORT: Joi.number().port().default(3001),
    })
  } catch (error) {
    exitOnConfigError(error)
  }
}

/** The API's address, once it answers; undefined when it does not, or the end began. */
async function untilUp(
  { HOST, PORT }: Config,
  log: Logger,
  signal: AbortSignal,
): Promise<string | undefined> {
  // An address to listen on is not always one to call.
  const host = HOST === '0.0.0.0' || HOST === '::' ? '127.0.0.1' : HOST
  const url = `http://${host.includes(':') ? `[${host}]` : host}:${PORT}`
  const deadline = performance.now() + healthTimeoutMs
  while (!(await answers(`${url}/health/live`))) {
    if (signal.aborted) return undefined
    if (performance.now() > deadline) {
      log.warn('the API does not answer', { url })
      return undefined
    }
    await sleep(100)
  }
  return signal.aborted ? undefined : url
}

async function answers(url: string): Promise<boolean> {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(2_000) })
    await response.body?.cancel()
    return response.ok
  } catch {
    return false
  }
}
