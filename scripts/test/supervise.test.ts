import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { until } from '../../shared/test/until.ts'
import { supervise } from '../supervise.ts'
import type { SuperviseOptions } from '../supervise.ts'

const fixtures = join(import.meta.dirname, 'fixtures')
const env = { PATH: process.env['PATH'] }

await t.test('a process that dies is started again, after a pause that doubles', async (t) => {
  const { lines, log, supervised } = begin(t, 'dies', { minPauseMs: 10, maxPauseMs: 40 })
  await until('starts(lines()) >= 5', () => starts(lines()) >= 5)
  await supervised.stop(1_000)
  const deaths = log.filter(({ message }) => message === 'process died').slice(0, 4)
  t.match(deaths, [
    { name: 'child', code: 3, signal: null, restartInMs: 10 },
    { restartInMs: 20 },
    { restartInMs: 40 },
    { restartInMs: 40 },
  ])
})

await t.test('a process that lived long enough begins with the short pause again', async (t) => {
  const { lines, log, supervised } = begin(t, 'stays', { minPauseMs: 10, stableMs: 0 })
  for (const round of [1, 2, 3]) {
    await until('starts(lines()) === round', () => starts(lines()) === round)
    process.kill(supervised.pid()!, 'SIGKILL')
  }
  await until('starts(lines()) === 4', () => starts(lines()) === 4)
  await supervised.stop(5_000)
  const deaths = log.filter(({ message }) => message === 'process died')
  t.match(deaths, [
    { code: null, signal: 'SIGKILL', restartInMs: 10 },
    { restartInMs: 10 },
    { restartInMs: 10 },
  ])
})

await t.test('stop asks once, waits, and starts nothing again', async (t) => {
  const { lines, supervised } = begin(t, 'stays', {})
  await until('starts(lines()) === 1', () => starts(lines()) === 1)
  const pid = supervised.pid()!
  await supervised.stop(5_000)
  t.equal(supervised.pid(), undefined)
  t.same(lines(), [`${pid} started`, `${pid} SIGTERM`])
  await supervised.stop(5_000)
})

await t.test('stop between two lives cancels the next one', async (t) => {
  const { lines, supervised } = begin(t, 'dies', { minPauseMs: 60_000 })
  await until(
    'starts(lines()) === 1 && supervised.pid() === undefined',
    () => starts(lines()) === 1 && supervised.pid() === undefined,
  )
  await supervised.stop(5_000)
  t.equal(starts(lines()), 1)
})

await t.test('a process that does not listen is killed', async (t) => {
  const { lines, log, supervised } = begin(t, 'stubborn', {})
  await until('starts(lines()) === 1', () => starts(lines()) === 1)
  await supervised.stop(200)
  t.match(log.at(-1), { message: 'process ended', signal: 'SIGKILL' })
})

await t.test('wrong settings are reported instead of retried', async (t) => {
  const { lines, errors, supervised } = begin(t, 'misconfigured', { minPauseMs: 1 })
  await until('errors.length > 0', () => errors.length > 0)
  t.same(errors, ['child'])
  t.equal(starts(lines()), 1)
  await supervised.stop(1_000)
})

await t.test(
  'a child is out of reach of Ctrl-C and hears of the death of its supervisor',
  async (t) => {
    const output = join(t.testdir(), 'lines')
    const supervisor = spawn(
      process.execPath,
      ['--import=tsx', join(fixtures, 'supervisor.ts'), join(fixtures, 'child.mjs'), output],
      { env, stdio: 'inherit', detached: true },
    )
    await until('starts(linesOf(output)) === 1', () => starts(linesOf(output)) === 1)
    const child = linesOf(output)[0]!.split(' ')[0]!

    process.kill(-supervisor.pid!, 'SIGINT') // what a terminal does
    await once(supervisor, 'exit')
    await until('linesOf(output).length === 2', () => linesOf(output).length === 2)
    t.same(linesOf(output), [`${child} started`, `${child} disconnect`])
  },
)

type Line = Record<string, unknown>

function begin(t: Test, behaviour: string, options: Partial<SuperviseOptions>) {
  const output = join(t.testdir(), 'lines')
  const errors: string[] = []
  const log: Line[] = []
  const write = (message: string, fields: Line) => log.push({ message, ...fields })
  const supervised = supervise(
    { name: 'child', file: join(fixtures, 'child.mjs'), args: [output, behaviour], env },
    {
      log: { info: write, warn: write, error: write } as unknown as SuperviseOptions['log'],
      onConfigError: (name) => errors.push(name),
      ...options,
    },
  )
  t.teardown(() => {
    supervised.kill()
    return supervised.stop(1)
  })
  return { lines: () => linesOf(output), errors, log, supervised }
}

function linesOf(file: string): string[] {
  return existsSync(file) ? readFileSync(file, 'utf8').trimEnd().split('\n') : []
}

function starts(lines: string[]): number {
  return lines.filter((line) => line.endsWith(' started')).length
}
