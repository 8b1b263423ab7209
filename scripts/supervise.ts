import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { exitConfig } from '../shared/config.ts'
import type { Logger } from '../shared/logger.ts'

export interface Program {
  name: string
  /** The JavaScript file to run. */
  file: string
  args?: string[]
  env: NodeJS.ProcessEnv
}

export interface SuperviseOptions {
  log: Pick<Logger, 'info' | 'warn' | 'error'>
  /** Called when the program said that its settings are wrong: starting it again cannot help. */
  onConfigError: (name: string) => void
  /** The pause before a restart doubles from `minPauseMs` to `maxPauseMs`, and starts anew after `stableMs` alive. */
  minPauseMs?: number
  maxPauseMs?: number
  stableMs?: number
}

export interface Supervised {
  /** Of the running process; undefined between two. */
  pid(): number | undefined
  /** Sends SIGTERM, and SIGKILL after `graceMs`. Resolves once the process is gone; it is not started again. */
  stop(graceMs: number): Promise<void>
  /** SIGKILL, now. */
  kill(): void
}

/** Keeps a program running: whenever it ends it is started again, until stop(). */
export function supervise(program: Program, options: SuperviseOptions): Supervised {
  const { log, minPauseMs = 1_000, maxPauseMs = 30_000, stableMs = 60_000 } = options
  const { name } = program
  let child: ChildProcess | undefined
  let restart: NodeJS.Timeout | undefined
  let pauseMs = minPauseMs
  let stopping = false
  let onGone = () => {}

  const start = () => {
    const startedAt = performance.now()
    // A process group of its own: Ctrl-C in a terminal signals the whole group of the runner, and a child that gets that
    // signal and then ours would take the second one for impatience. The end of the IPC channel tells it that we died.
    const process = spawn(globalThis.process.execPath, [program.file, ...(program.args ?? [])], {
      env: program.env,
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      detached: true,
    })
    child = process
    let ended = false
    const end = (fields: object, code?: number | null) => {
      if (ended) return
      ended = true
      child = undefined
      if (stopping) {
        log.info('process ended', { name, ...fields })
        onGone()
      } else if (code === exitConfig) {
        stopping = true
        options.onConfigError(name)
      } else {
        if (performance.now() - startedAt >= stableMs) pauseMs = minPauseMs
        log.error('process died', { name, ...fields, restartInMs: pauseMs })
        restart = setTimeout(start, pauseMs)
        pauseMs = Math.min(pauseMs * 2, maxPauseMs)
      }
    }
    process.once('error', (error) => {
      if (process.pid === undefined) end({ error }) // it could not even be started; no 'exit' follows
    })
    process.once('exit', (code, signal) => end({ code, signal }, code))
  }

  start()
  return {
    pid: () => child?.pid,
    kill: () => void child?.kill('SIGKILL'),
    stop: async (graceMs) => {
      stopping = true
      clearTimeout(restart)
      const running = child
      if (!running) return
      const gone = new Promise<void>((resolve) => (onGone = resolve))
      running.kill('SIGTERM')
      const grace = setTimeout(() => {
        log.error('process killed, it did not stop in time', { name, graceMs })
        running.kill('SIGKILL')
      }, graceMs)
      await gone
      clearTimeout(grace)
    },
  }
}
