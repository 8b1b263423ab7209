import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { Agent, get } from 'node:http'
import type { IncomingMessage } from 'node:http'
import t from 'tap'
import type { Test } from 'tap'
import { testDb } from '../../shared/test/db.ts'
import { jwtSecret } from './app.ts'

const { url } = await testDb(t)

/** The API as a process, over a database of the tests. */
function start(t: Test, settings: Record<string, string>) {
  const child = spawn(process.execPath, ['--import=tsx', 'api/server.ts'], {
    env: {
      PATH: process.env.PATH,
      DATABASE_URL: url,
      JWT_SECRET: jwtSecret,
      LOG_DIR: t.testdir(),
      ...settings,
    },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  const output = { out: '', err: '' }
  child.stdout!.setEncoding('utf8').on('data', (text: string) => (output.out += text))
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (output.err += text))
  return { child, output }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}

async function ask(port: number, agent: Agent): Promise<number> {
  const [answer] = (await once(
    get({ port, host: '127.0.0.1', path: '/health', agent }),
    'response',
  )) as [IncomingMessage]
  answer.resume()
  await once(answer, 'end')
  return answer.statusCode!
}

const exitCode = async (child: ChildProcess) => (await once(child, 'exit'))[0] as number

void t.test('it says when it is ready, and stops on SIGTERM with connections open', async (t) => {
  const port = await freePort()
  const { child, output } = start(t, { PORT: String(port) })
  t.equal((await once(child, 'message'))[0], 'ready')
  const agent = new Agent({ keepAlive: true })
  t.teardown(() => agent.destroy())
  t.equal(await ask(port, agent), 200)

  const started = performance.now()
  child.kill('SIGTERM')
  t.equal(await exitCode(child), 0)
  t.ok(performance.now() - started < 5_000)
  t.equal(output.err, '')
  t.match(output.out, /"message":"stopped"/)
})

void t.test('a port in use is told in one sentence', async (t) => {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const { port } = server.address() as AddressInfo
  const { child, output } = start(t, { PORT: String(port) })
  t.equal(await exitCode(child), 78)
  t.match(output.err, new RegExp(`^PORT ${port} .* is in use by another program: .*\n$`))
})

void t.test(
  'wrong settings are told in one sentence, with an exit code of their own',
  async (t) => {
    const { child, output } = start(t, { PORT: 'x', JWT_SECRET: 'short' })
    t.equal(await exitCode(child), 78)
    t.match(output.err, /^Wrong settings: PORT .*; JWT_SECRET .*\n$/)
  },
)

void t.test('a database that is away is told in one sentence', async (t) => {
  const { child, output } = start(t, { DATABASE_URL: 'postgres://nobody:canary@127.0.0.1:1/none' })
  t.equal(await exitCode(child), 1)
  t.match(output.err, /^The database of DATABASE_URL does not answer: .*ECONNREFUSED.*\n$/)
  t.notMatch(output.err + output.out, 'canary')
})
