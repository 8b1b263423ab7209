import type { Logger } from './logger.ts'

export interface ShutdownOptions {
  /** How long `stop` may take before the process ends all the same, with exit code 1. */
  timeoutMs: number
  /** Called for an exception nobody caught, after it was logged. By default the process exits with code 1 at once. */
  onCrash?: (error: unknown) => void
}

/** Ctrl-C under npm arrives twice within moments: once from the terminal, once passed on by npm. */
const sameSignalMs = 1_000

/**
 * Ends this process in order, once: SIGTERM, SIGINT, SIGHUP and the death of the process that started it (seen as the end of
 * its IPC channel) all run `stop` and then exit with code 0. A second signal, a second later or more, exits at once with code 1.
 * Returns a function that begins the same from code.
 */
export function onShutdown(
  log: Pick<Logger, 'info' | 'error'>,
  stop: () => Promise<void>,
  { timeoutMs, onCrash = () => process.exit(1) }: ShutdownOptions,
): (reason: string) => void {
  let begun: number | undefined

  const end = (reason: string) => {
    if (begun !== undefined) {
      if (performance.now() - begun < sameSignalMs) return
      log.error('stopped at once', { reason })
      process.exit(1)
    }
    begun = performance.now()
    log.info('stopping', { reason })
    setTimeout(() => {
      log.error('not stopped in time', { timeoutMs })
      process.exit(1)
    }, timeoutMs).unref()
    stop().then(
      () => {
        log.info('stopped', { ms: Math.round(performance.now() - begun!) })
        process.exit(0)
      },
      (error: unknown) => {
        log.error('stopped with an error', { error })
        process.exit(1)
      },
    )
  }

  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, end)
  // The parent died without a word: nobody would restart this process or stop it. A second reason, not a second signal.
  process.on('disconnect', () => begun ?? end('disconnect'))
  onOrphaned(() => begun ?? end('parent died'))
  process.on('uncaughtException', (error, origin) => {
    log.error(origin === 'unhandledRejection' ? 'rejection not handled' : 'exception not caught', {
      error,
    })
    onCrash(error)
  })
  return end
}

/**
 * Calls `listener` when the shell that npm started this process in is gone. A SIGTERM to npm ends that shell, which passes
 * nothing on: without this the process would stay behind. Outside of npm a parent may well go first (nohup, disown).
 */
export function onOrphaned(listener: () => void): void {
  if (process.env['npm_lifecycle_event'] === undefined) return
  const parent = process.ppid
  const watch = setInterval(() => {
    if (process.ppid === parent) return
    clearInterval(watch)
    listener()
  }, 250)
  watch.unref()
}
