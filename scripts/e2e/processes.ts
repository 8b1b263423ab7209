import { fork } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { root } from '../../shared/root.ts'

export interface RunningProcess {
  pid: number
  /** Sends the signal and resolves with how the process ended. */
  end(signal: NodeJS.Signals): Promise<{ code: number | null; signal: NodeJS.Signals | null }>
}

/** The settings one product under test shares between its processes: own folders, own database, no limits in the way. */
export async function givenSettings(
  t: Test,
  settings: Record<string, string>,
): Promise<Record<string, string>> {
  const folder = await mkdtemp(join(tmpdir(), 'awfar-e2e-'))
  t.teardown(() => rm(folder, { recursive: true, force: true, maxRetries: 10 }))
  return {
    PATH: process.env['PATH'] ?? '',
    HOME: process.env['HOME'] ?? '',
    DATA_DIR: join(folder, 'data'),
    LOG_DIR: join(folder, 'logs'),
    JWT_SECRET: 'a secret for end-to-end tests only, long enough',
    RATE_LIMIT_GENERAL: 'off',
    RATE_LIMIT_AUTH: 'off',
    RATE_LIMIT_MESSAGES: 'off',
    PORT: String(await freePort()),
    ...settings,
  }
}

/** Starts a process of the built product (npm test builds first) and waits until it says that it is ready. */
export async function startProcess(
  t: Test,
  script: 'api/server.js' | 'wa-worker/main.js',
  env: Record<string, string>,
): Promise<RunningProcess> {
  // `env` is all it gets: a developer's own .env must not reach into a test, so every setting it may hold is set or emptied.
  const child = fork(join(root, 'dist', script), [], {
    env: { ...emptySettings, ...env },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    execArgv: [],
  })
  let output = ''
  child.stdout?.on('data', (chunk: Buffer) => (output += chunk.toString()))
  child.stderr?.on('data', (chunk: Buffer) => (output += chunk.toString()))
  const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }))
  })
  t.teardown(async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM')
    await exited
  })
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`${script} not ready in time:\n${output}`)),
      30_000,
    )
    child.once('message', () => {
      clearTimeout(timer)
      resolve()
    })
    void exited.then(({ code, signal }) => {
      clearTimeout(timer)
      reject(new Error(`${script} ended with ${code ?? signal}:\n${output}`))
    })
  })
  return {
    pid: child.pid!,
    end: async (signal) => {
      child.kill(signal)
      return exited
    },
  }
}

const emptySettings = {
  DATABASE_URL: '',
  DATABASE_URL_DIRECT: '',
  SUPABASE_URL: '',
  NODE_ENV: '',
  HOST: '127.0.0.1',
}

/** Processes whose command line names this text (a profile's folder, say), by pid. */
export async function processesNaming(text: string): Promise<number[]> {
  const { readdir } = await import('node:fs/promises')
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number)
  const naming = await Promise.all(
    pids.map(async (pid) => {
      const commandLine = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '') // ended meanwhile
      return commandLine.includes(text) ? pid : undefined
    }),
  )
  return naming.filter((pid) => pid !== undefined && pid !== process.pid) as number[]
}

export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}
