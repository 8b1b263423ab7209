import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { text } from 'node:stream/consumers'
import t from 'tap'
import type { Test } from 'tap'
import type { Sql } from '../../shared/db.ts'
import { root } from '../../shared/root.ts'
import { until } from '../../shared/test/until.ts'
import {
  broughtBack,
  filesOf,
  flipBit,
  givenProfile,
  key,
  vaultRig,
} from '../../wa-worker/test/vault-rig.ts'

/** Runs `npm run sessions -- …` over the rig's database and folder. */
async function given(t: Test) {
  const rig = await vaultRig(t)
  const run = async (
    args: string[],
    env: Record<string, string> = {},
    onSpawn: (child: ChildProcess) => void = () => {},
  ) => {
    const child = spawn(process.execPath, ['--import', 'tsx', 'scripts/sessions.ts', ...args], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PATH: process.env['PATH'],
        DATABASE_URL: rig.url,
        DATA_DIR: rig.folder,
        SESSION_ENCRYPTION_KEY: key('k1'),
        SUPABASE_URL: '',
        SUPABASE_SERVICE_ROLE_KEY: '',
        NODE_ENV: '',
        SESSIONS_PASSPHRASE: 'a long enough passphrase',
        ...env,
      },
    })
    onSpawn(child)
    const [out, err, [code]] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      once(child, 'exit') as Promise<[number]>,
    ])
    // supabase-js remarks on the version of Node.
    return { code, out, err: err.replace(/^⚠️.*\n/gm, '') }
  }
  const stop = () => rig.sql`update wa_sessions set lease_until = null, owner = null`
  const files = givenProfile(rig.profile, 'monday')
  await rig.vault.take(rig.session, rig.profile, { reason: 'LOGIN_SETTLED' })
  givenProfile(rig.profile, 'tuesday')
  await rig.vault.take(rig.session, rig.profile, { reason: 'PERIODIC' })
  return { ...rig, run, stop, files }
}

await t.test('says how it is used', async (t) => {
  const { run } = await given(t)
  const wrong: [string[], string[]][] = [
    [[], ['a command is missing']],
    [['reset', 'a'], ['"reset" is no command']],
    [['restore'], ['restore: <session> is missing']],
    [
      ['export', 'a', '--generation', 'x'],
      ['export: <file> is missing', '--generation must be a number from 1, not "x"'],
    ],
    [
      ['list', 'a', 'b', '--generation=2'],
      ['list: "a" and "b" are too many', 'list takes no --generation'],
    ],
    [['list', '--what'], ["Unknown option '--what'"]],
  ]
  await Promise.all(
    wrong.map(async ([args, faults]) => {
      const { code, err } = await run(args)
      t.equal(code, 2)
      t.match(err, /npm run sessions -- <command>/)
      for (const fault of faults) t.ok(err.includes(fault), `${args.join(' ')}: ${fault}`)
    }),
  )
  t.match(await run(['snapshots', 'nobody']), { code: 1, err: 'There is no session nobody.\n' })
  t.match(await run(['list'], { SESSION_ENCRYPTION_KEY: 'x' }), {
    code: 78,
    err: /^Wrong settings/,
  })
  t.match(await run(['list'], { SUPABASE_URL: 'http://x' }), { code: 78, err: /go together/ })
})

await t.test('shows sessions and snapshots', async (t) => {
  const { run, session } = await given(t)
  const list = await run(['list'])
  t.match(list, { code: 0, err: '' })
  for (const part of [session.id, 'this-worker', 'STOPPED']) t.match(list.out, part)
  const snapshots = await run(['snapshots', 'a'])
  t.equal(snapshots.code, 0)
  for (const part of ['LOGIN_SETTLED', 'PERIODIC', 'verified', 'k1']) t.match(snapshots.out, part)
})

await t.test(
  'restores a snapshot for the next start, unless a worker owns the session',
  async (t) => {
    const rig = await given(t)
    const restore = ['restore', rig.session.id, '--generation', '1']
    t.match(await rig.run(restore), {
      code: 3,
      err: 'Worker this-worker owns a: stop the session first.\n',
    })
    await rig.stop()
    t.match(await rig.run(['restore', 'a', '--generation', '9']), {
      code: 1,
      err: /no generation 9/,
    })
    t.match(await rig.run(restore), {
      code: 0,
      err: '',
      out: /Generation 1 of a is current again, as generation 3/,
    })
    t.notOk(existsSync(rig.profile), 'the login on the disk is put aside')
    t.match(readdirSync(join(rig.profile, '..')), [/\.archived-/])

    const owner = await rig.takeOver()
    t.strictSame(await broughtBack(rig.vault.restore(owner, rig.profile)), {
      generation: 3,
      refused: [],
    })
    t.same(filesOf(rig.profile), rig.files)
  },
)

await t.test('a login goes out encrypted, and comes back elsewhere', async (t) => {
  const rig = await given(t)
  await rig.stop()
  const file = join(rig.folder, 'login.awfar')
  t.match(await rig.run(['export', 'a', file, '--generation', '1']), { code: 0, err: '' })
  t.equal(statSync(file).mode & 0o777, 0o600)
  t.notMatch(readFileSync(file, 'latin1'), /monday/)
  for (const there of [file, dirname(file)]) {
    const refused = { code: 1, err: `${there} is there already, and is not replaced (EEXIST).\n` }
    t.match(await rig.run(['export', 'a', there], { SESSIONS_PASSPHRASE: '' }), refused)
  }
  const folder = dirname(file)
  t.match(await rig.run(['import', 'a', folder]), { code: 1, err: /is no exported login/ })
  t.match(await rig.run(['export', 'a', `${file}2`], { SESSIONS_PASSPHRASE: 'short' }), { code: 1 })
  t.match(await rig.run(['export', 'a', `${file}2`], { SESSIONS_PASSPHRASE: '' }), { code: 1 })
  t.same(
    readdirSync(rig.folder).filter((name) => name.includes('login')),
    ['login.awfar'],
  )

  const wrong = await rig.run(['import', 'a', file], { SESSIONS_PASSPHRASE: 'another passphrase' })
  t.match(wrong, { code: 1, err: /passphrase is wrong, or the file was altered/ })
  const flipBack = flipBit(file, 20)
  t.match(await rig.run(['import', 'a', file]), { code: 1 }, 'its head was altered')
  flipBack()
  writeFileSync(`${file}-not`, 'hello')
  t.match(await rig.run(['import', 'a', `${file}-not`]), { code: 1, err: /is no exported login/ })

  // Another installation: other keys, another session.
  const other = await given(t)
  await other.stop()
  t.match(await other.run(['import', 'a', file], { SESSION_ENCRYPTION_KEY: key('k9') }), {
    code: 0,
    out: /generation 3 of a/,
  })
  await other.sql`update wa_sessions set engine = 'simulator'`
  t.match(await other.run(['import', 'a', file]), { code: 1, err: /holds a login for webjs/ })
  rmSync(other.profile, { recursive: true, force: true })
  t.equal(other.objects().length, 3)
})

await t.test('keys are sealed anew', async (t) => {
  const rig = await given(t)
  const keys = { SESSION_ENCRYPTION_KEY: `${key('k2')},${key('k1')}` }
  t.match(await rig.run(['rotate'], keys), { code: 0, out: '2 snapshots sealed anew.\n' })
  const lost = await rig.run(['rotate'], { SESSION_ENCRYPTION_KEY: key('k3') })
  t.match(lost, { code: 1, err: /Key "k2" is needed/ })
})

await t.test('a file that is no login is said to be none', async (t) => {
  const { run, stop, folder } = await given(t)
  await stop()
  const heads = ['', 'x', '{"format":"awfar-login-1",', '{"format":"awfar-login-1","engine":1}']
  await Promise.all(
    heads.map(async (head, index) => {
      const file = join(folder, `login-${index}`)
      writeFileSync(file, `${head}\n`)
      const { code, err } = await run(['import', 'a', file])
      t.equal(code, 1)
      t.equal(err, `${file} is no exported login.\n`)
    }),
  )
})

await t.test('a command that is broken off gives the session back', async (t) => {
  const { run, stop, sql } = await given(t)
  await stop()
  let child: ChildProcess | undefined
  const owners = (tx: Sql) =>
    tx<{
      owner: string | null
      leaseUntil: Date | null
    }>`select owner, lease_until from wa_sessions`
  const ended = await sql.begin(async (tx) => {
    // It waits for the list of snapshots.
    await tx`lock table wa_snapshots in access exclusive mode`
    const running = run(['restore', 'a'], {}, (spawned) => (child = spawned))
    await until('the session is owned', async () =>
      (await owners(tx))[0]?.owner?.startsWith('sessions:'),
    )
    child?.kill('SIGINT')
    await until('the session is given back', async () => (await owners(tx))[0]?.owner === null)
    return running
  })
  t.equal(ended.code, 130)
  t.match(await owners(sql), [{ owner: null, leaseUntil: null }])
})
