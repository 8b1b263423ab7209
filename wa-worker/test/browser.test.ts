import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { clearProfile, recordBrowser } from '../browser.ts'
import { until } from './waiting.ts'

/** A process that leads a group, as a browser does, and says that it runs on this profile. */
async function givenBrowser(t: Test, profile: string) {
  const script = 'process.stdin.pipe(process.stdout)'
  const child = spawn(process.execPath, ['-e', script, '--', `--user-data-dir=${profile}`], {
    detached: true,
    stdio: ['pipe', 'pipe', 'ignore'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  child.stdin.on('error', () => {})
  /** Rejects when it is gone: it says nothing any more. */
  const answers = async () => {
    child.stdin.write('?')
    const said = await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])
    if (!Buffer.isBuffer(said[0])) throw new Error('it is gone')
  }
  await answers()
  const isRunning = () => child.exitCode === null && child.signalCode === null
  return { pid: child.pid!, isRunning, answers }
}

void t.test('a browser that outlived its worker is ended by its record', async (t) => {
  const profile = t.testdir()
  const { pid, isRunning } = await givenBrowser(t, profile)
  recordBrowser(profile, pid)
  clearProfile(profile)
  await until('it is gone', () => !isRunning())
  t.same(readdirSync(profile), [])
})

void t.test('a browser that outlived its worker is ended by its lock', async (t) => {
  const profile = t.testdir()
  const { pid, isRunning } = await givenBrowser(t, profile)
  symlinkSync(`${hostname()}-${pid}`, join(profile, 'SingletonLock'))
  clearProfile(profile)
  await until('it is gone', () => !isRunning())
  t.same(readdirSync(profile), [])
})

void t.test('nothing else is ended', async (t) => {
  const folder = t.testdir({})
  const profile = join(folder, 'profile')
  mkdirSync(profile)
  const file = join(profile, 'awfar-browser')
  const changed = (change: object) => {
    const holder = JSON.parse(readFileSync(file, 'utf8')) as object
    writeFileSync(file, JSON.stringify({ ...holder, ...change }))
  }
  const ours = await givenBrowser(t, profile)
  const other = await givenBrowser(t, `${profile}-of-another`)

  recordBrowser(profile, ours.pid)
  changed({ startedAt: 1 })
  clearProfile(profile)
  recordBrowser(profile, ours.pid)
  changed({ host: 'another-host' })
  clearProfile(profile)
  recordBrowser(profile, other.pid)
  clearProfile(profile)
  writeFileSync(file, '{"host":')
  clearProfile(profile)
  t.same(readdirSync(profile), [])

  await Promise.all([ours.answers(), other.answers()])
})
