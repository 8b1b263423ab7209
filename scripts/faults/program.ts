import { fork } from 'node:child_process'
import { join } from 'node:path'
import { eventually } from './waiting.ts'

export interface Ended {
  code: number | null
  signal: NodeJS.Signals | null
}

/** What probe.mjs tells of the process it is loaded into. */
export interface Measured {
  rss: number
  heap: number
  descriptors: number
  listeners: Record<string, number>
  resources: Record<string, number>
}

/**
 * The settings of a program of a fault, to which its own come. There are no others: it runs from a copy of the product, which has no .env.
 * Logs and files are in `folder`.
 */
export const childEnv = (url: string, folder: string): Record<string, string> => ({
  PATH: process.env['PATH'] ?? '',
  HOME: process.env['HOME'] ?? '',
  HOST: '127.0.0.1',
  DATABASE_URL: url,
  DATA_DIR: join(folder, 'data'),
  LOG_DIR: join(folder, 'logs'),
  JWT_SECRET: 'a secret for the fault suite only, long enough',
  RATE_LIMIT_GENERAL: 'off',
  RATE_LIMIT_AUTH: 'off',
  RATE_LIMIT_MESSAGES: 'off',
})

/** Settings of a worker that sends as fast as it can. */
export const unpaced = {
  WA_SEND_MIN_GAP_MS: '0',
  WA_SEND_JITTER_MS: '0',
  WA_SENDS_PER_MINUTE: '0',
  WA_NEW_CONTACTS_PER_DAY: '0',
}

/** A process of the built product. */
export class Program {
  readonly pid: number
  readonly exited: Promise<Ended>
  /** How it ended; undefined while it runs. */
  ended: Ended | undefined
  #output = ''
  readonly #child: ReturnType<typeof fork>

  private constructor(child: ReturnType<typeof fork>) {
    this.#child = child
    this.pid = child.pid!
    child.stdout?.on('data', (chunk: Buffer) => (this.#output += chunk.toString()))
    child.stderr?.on('data', (chunk: Buffer) => (this.#output += chunk.toString()))
    this.exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => resolve((this.ended = { code, signal })))
    })
  }

  /** Starts it and waits until it says that it is ready. It gets these settings and nothing of ours. */
  static async start(
    root: string,
    script: string,
    env: Record<string, string>,
    execArgv: string[] = [],
  ): Promise<Program> {
    const child = fork(join(root, 'dist', script), [], {
      env,
      execArgv,
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    })
    const program = new Program(child)
    let ready = false
    child.once('message', () => (ready = true))
    await eventually(`${script} ready`, () => ready || program.ended !== undefined, 180_000)
    if (!ready) throw new Error(`${script} did not start:\n${program.output}`)
    return program
  }

  get output(): string {
    return this.#output
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  async end(signal: NodeJS.Signals): Promise<Ended> {
    this.#child.kill(signal)
    return this.exited
  }

  /** Only of a process that was started with the probe. */
  async measure(): Promise<Measured> {
    const answer = new Promise<Measured>((resolve) => {
      this.#child.once('message', (message) => resolve(message as Measured))
    })
    this.#child.kill('SIGUSR2')
    return answer
  }
}
