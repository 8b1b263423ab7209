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
