/**
 * npm run bench:logins [-- --rate 50 --seconds 20]: how long other calls take while people sign in all at once. bcrypt is slow by design, and must not
 * take the processors from everybody else. Both figures come from one process on this machine, a moment apart. Ends with 1 when the slowest
 * hundredth of the other calls takes three times as long as without sign-ins.
 */
import { fork } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import bcrypt from 'bcrypt'
import { connect } from '../../shared/db.ts'
import { openDatabase } from '../../shared/embedded-postgres.ts'
import { createLogger } from '../../shared/logger.ts'
import { migrate } from '../../shared/migrations.ts'
import { createProfile } from '../../shared/profiles.ts'
import { root } from '../../shared/root.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import { endWhenBrokenOff } from './broken-off.ts'

const { values } = parseArgs({
  options: { rate: { type: 'string' }, seconds: { type: 'string' } },
})
const rate = Number(values.rate ?? 50)
const seconds = Number(values.seconds ?? 20)
const people = 200
const password = 'correct horse battery'

const folder = await mkdtemp(join(tmpdir(), 'awfar-bench-'))
const database = await openDatabase(
  { dataDir: folder },
  createLogger('bench', { level: 'error', stdout: false }),
)
endWhenBrokenOff({ database, folder })
await migrate(database.url)
const sql = connect(database.url, { applicationName: 'bench' })
const workspaceId = await createWorkspace(sql, 'Bench')
const passwordHash = await bcrypt.hash(password, 12)
for (let i = 0; i < people; i++) {
  await createProfile(sql, {
    workspaceId,
    email: `p${i}@example.com`,
    fullName: 'P',
    role: 'agent',
    passwordHash,
  })
}
const port = await freePort()
const api: ChildProcess = fork(join(root, 'dist', 'api', 'server.js'), {
  env: {
    ...process.env,
    PORT: String(port),
    DATABASE_URL: database.url,
    DATA_DIR: folder,
    LOG_DIR: join(folder, 'logs'),
    JWT_SECRET: 'only-for-the-benchmark-0123456789abcdef',
    ...Object.fromEntries(
      ['GENERAL', 'AUTH', 'MESSAGES', 'UPLOADS'].map((name) => [`RATE_LIMIT_${name}`, 'off']),
    ),
  },
  stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
})
try {
  await once(api, 'message')
  const base = `http://127.0.0.1:${port}`
  const login = async (i: number) =>
    fetch(`${base}/api/auth/login`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ email: `p${i % people}@example.com`, password }),
    })
  const { accessToken } = (await (await login(0)).json()) as { accessToken: string }

  /** Asks for a list 20 times a second; the milliseconds each answer took. */
  const probe = async (signal: AbortSignal): Promise<number[]> => {
    const times: Promise<number>[] = []
    while (!signal.aborted) {
      const begun = performance.now()
      times.push(
        fetch(`${base}/api/chats`, { headers: { authorization: `Bearer ${accessToken}` } })
          .then((answer) => answer.arrayBuffer())
          .then(() => performance.now() - begun),
      )
      await sleep(50)
    }
    return Promise.all(times)
  }
  await probe(AbortSignal.timeout(2_000)) // warm
  const idle = await probe(AbortSignal.timeout(seconds * 1_000))
  const statuses = new Map<number, number>()
  const flood = async () => {
    const logins: Promise<void>[] = []
    for (let i = 0; i < rate * seconds; i++) {
      logins.push(
        login(i).then(async (answer) => {
          await answer.arrayBuffer()
          statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1)
        }),
      )
      await sleep(1_000 / rate)
    }
    await Promise.all(logins)
  }
  const [busy] = await Promise.all([probe(AbortSignal.timeout(seconds * 1_000)), flood()])
  const p = (list: number[], share: number) =>
    [...list].sort((a, b) => a - b)[Math.floor(list.length * share)]!
  const show = (list: number[]) =>
    [0.5, 0.99].map((share) => `p${share * 100} ${p(list, share).toFixed(1)} ms`).join(', ')
  console.log(`idle   ${idle.length} calls: ${show(idle)}`)
  console.log(
    `flood  ${busy.length} calls: ${show(busy)}; ${rate} logins/s for ${seconds} s answered ${JSON.stringify(Object.fromEntries(statuses))}`,
  )
  const ratio = p(busy, 0.99) / p(idle, 0.99)
  console.log(`p99 under the flood is ${ratio.toFixed(2)} times that of idle`)
  process.exitCode = ratio < 3 ? 0 : 1
} finally {
  api.kill('SIGTERM')
  if (api.exitCode === null) await once(api, 'exit')
  await sql.close()
  await database.release()
  await rm(folder, { recursive: true, force: true, maxRetries: 5 })
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}
