import { fork } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import winston from 'winston'
import { createLogger } from '../logger.ts'
import { RotatingFile } from '../rotating-file.ts'

interface Line {
  level: string
  message: string
  timestamp: string
  service: string
  n: number
  error: {
    type: string
    message: string
    code?: string
    stack: string
    cause?: { message: string }
  }
  user: { password: string; id: number }
  headers: { authorization: string }
}

const linesOf = (file: string) =>
  readFileSync(file, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Line)

/** All lines of a log, those set aside included. */
const allLines = (folder: string, name: string) =>
  readdirSync(folder)
    .filter((file) => file.startsWith(name))
    .flatMap((file) => linesOf(join(folder, file)))

void t.test('writes JSON lines to all.log, and errors to error.log too', async (t) => {
  const dir = t.testdir()
  const log = createLogger('test', { level: 'info', dir, stdout: false })
  log.info('session started', { sessionId: 's1' })
  log.debug('not at this level')
  log.error('session failed', {
    error: Object.assign(new Error('boom', { cause: new Error('root') }), { code: 'E1' }),
  })

  const lines = linesOf(join(dir, 'all.log'))
  t.match(lines, [
    {
      level: 'info',
      message: 'session started',
      service: 'test',
      sessionId: 's1',
      timestamp: /Z$/,
    },
    {
      level: 'error',
      error: { type: 'Error', message: 'boom', code: 'E1', cause: { message: 'root' } },
    },
  ])
  t.equal(lines.length, 2)
  t.match(linesOf(join(dir, 'error.log')), [{ message: 'session failed' }])
})

void t.test('secrets never reach a line, at any depth', async (t) => {
  const dir = t.testdir()
  const log = createLogger('test', { level: 'info', dir, stdout: false })
  log.info('request', {
    user: { id: 1, password: 'hunter2', list: [{ refreshToken: 'hunter2' }] },
    headers: { Authorization: 'hunter2', cookie: 'hunter2', 'x-api-key': 'hunter2' },
    qr: 'hunter2',
  })
  const text = readFileSync(join(dir, 'all.log'), 'utf8')
  t.notMatch(text, /hunter2/)
  t.match(JSON.parse(text), { user: { id: 1, password: '[redacted]' } })
})

void t.test('hostile fields break neither a line nor the logger', async (t) => {
  const dir = t.testdir()
  const log = createLogger('test', { level: 'info', dir, stdout: false })
  const circle: Record<string, unknown> = {}
  circle['self'] = circle
  log.info('odd', { circle, big: 10n, text: 'a\nb\u2028c\u001b[31m', nothing: undefined })
  t.equal(linesOf(join(dir, 'all.log')).length, 1)
})

void t.test('a burst over many rotations loses nothing', async (t) => {
  const dir = t.testdir()
  const log = winston.createLogger({
    format: winston.format.json(),
    transports: [new RotatingFile({ filename: join(dir, 'all.log'), maxBytes: 500, keep: 10_000 })],
  })
  for (let n = 0; n < 10_000; n += 1) log.info('line', { n })
  const numbers = allLines(dir, 'all.log')
    .map(({ n }) => n)
    .sort((a, b) => a - b)
  t.same(
    numbers,
    Array.from({ length: 10_000 }, (_, n) => n),
  )
  t.ok(readdirSync(dir).length > 10, 'it was set aside many times')
})

void t.test('processes that share a file lose nothing either', async (t) => {
  const script = `
    const { RotatingFile } = await import(process.argv[2])
    const file = new RotatingFile({ filename: process.argv[3], maxBytes: 500, keep: 10_000 })
    const message = Symbol.for('message')
    for (let n = 0; n < 2_000; n += 1) {
      file.log({ [message]: JSON.stringify({ n, pid: process.pid }) }, () => {})
      if (n % 50 === 0) await new Promise(setImmediate)
    }`
  const dir = t.testdir({ 'writer.mjs': script })
  const transport = join(import.meta.dirname, '../rotating-file.ts')
  const writers = [1, 2, 3].map(() =>
    fork(join(dir, 'writer.mjs'), [transport, join(dir, 'all.log')]),
  )
  const codes = await Promise.all(
    writers.map(async (writer) => ((await once(writer, 'exit')) as [number])[0]),
  )
  t.same(codes, [0, 0, 0])
  t.equal(allLines(dir, 'all.log').length, 6_000)
})

void t.test('only so many files are kept', async (t) => {
  const dir = t.testdir()
  const log = winston.createLogger({
    format: winston.format.json(),
    transports: [new RotatingFile({ filename: join(dir, 'all.log'), maxBytes: 1_000, keep: 3 })],
  })
  for (let n = 0; n < 500; n += 1) log.info('line', { n })
  t.equal(readdirSync(dir).length, 4)
})

void t.test('a log that cannot be written does not stop the process', async (t) => {
  const dir = t.testdir({ taken: 'a file where the folder should be' })
  const log = createLogger('test', { level: 'info', dir: join(dir, 'taken'), stdout: false })
  log.info('nowhere to go')
  writeFileSync(join(dir, 'alive'), '')
  t.pass('still here')
})
