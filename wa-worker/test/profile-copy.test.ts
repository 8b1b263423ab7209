import { appendFileSync, mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { copyProfile, NothingToSnapshot } from '../profile-copy.ts'
import { filesOf, givenProfile } from './vault-rig.ts'

const database = 'Default/IndexedDB/https_web.whatsapp.com_0.indexeddb.leveldb'

await t.test('a journal may grow while it is copied; anything else is copied again', async (t) => {
  const folder = t.testdir()
  const profile = join(folder, 'profile')
  const changes: Record<string, () => void> = {
    'a table is replaced': () => {
      writeFileSync(join(profile, database, '000009.ldb'), 'x')
      rmSync(join(profile, database, '000004.ldb'), { force: true })
    },
    'the list of tables grows': () =>
      appendFileSync(join(profile, database, 'MANIFEST-000001'), 'x'),
    'a file shrinks': () => writeFileSync(join(profile, database, '000003.log'), ''),
    'a file is replaced by one alike': () => {
      writeFileSync(join(profile, 'new'), 'MANIFEST-000001\n')
      renameSync(join(profile, 'new'), join(profile, database, 'CURRENT'))
    },
  }
  for (const [what, change] of Object.entries(changes)) {
    givenProfile(profile, 'before', 2_000_000)
    const copying = copyProfile(profile, join(folder, 'copy'), { pauseMs: 1 })
    setImmediate(change)
    await copying
    t.same(filesOf(join(folder, 'copy')), wanted(profile), what)
    rmSync(join(folder, 'copy'), { recursive: true })
  }

  givenProfile(profile, 'before', 2_000_000)
  const copying = copyProfile(profile, join(folder, 'copy'), { attempts: 1 })
  setImmediate(() => appendFileSync(join(profile, database, '000003.log'), ' and after'))
  await copying
  t.match(filesOf(join(folder, 'copy')).get(`${database}/000003.log`), /^before/)
})

await t.test(
  'a profile that never rests is given up, and nothing is left of the copies',
  async (t) => {
    const folder = t.testdir()
    const profile = join(folder, 'profile')
    givenProfile(profile, 'x', 5_000_000)
    const table = join(profile, database, '000004.ldb')
    // Writes at every turn of the event loop, of which a copy takes many.
    let writing = true
    const write = () => {
      appendFileSync(table, 'x')
      if (writing) setImmediate(write)
    }
    write()
    const copy = join(folder, 'copy')
    const copying = copyProfile(profile, copy, { attempts: 5, pauseMs: 1 })
    await t.rejects(
      copying.finally(() => (writing = false)),
      { name: 'ProfileRestless' },
    )
    t.throws(() => filesOf(copy))
  },
)

await t.test('what is no file is left out, and what is missing is said', async (t) => {
  const folder = t.testdir()
  const profile = join(folder, 'profile')
  givenProfile(profile, 'x')
  symlinkSync('/etc/hostname', join(profile, database, '000005.ldb'))
  symlinkSync('host-1', join(profile, 'SingletonLock'))
  await copyProfile(profile, join(folder, 'copy'))
  t.same(filesOf(join(folder, 'copy')), wanted(profile))

  const only = { parts: ['Default/Cache'] }
  await copyProfile(profile, join(folder, 'cache'), only)
  t.same([...filesOf(join(folder, 'cache')).keys()], ['Default/Cache/data_0'])
  rmSync(join(profile, 'Default/Cache'), { recursive: true })
  await t.rejects(copyProfile(profile, join(folder, 'cache'), only), NothingToSnapshot)
  mkdirSync(join(folder, 'empty'))
  await t.rejects(copyProfile(join(folder, 'empty'), join(folder, 'x')), NothingToSnapshot)
})

/** What a copy of the profile must hold. */
function wanted(profile: string): Map<string, string> {
  const login = [...filesOf(profile)].filter(
    ([path]) => /IndexedDB|Local Storage/.test(path) && !/LOCK|LOG|000005/.test(path),
  )
  return new Map(login)
}
