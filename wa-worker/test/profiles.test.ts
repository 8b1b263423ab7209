import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import t from 'tap'
import { root } from '../../shared/root.ts'
import { Profiles } from '../profiles.ts'

void t.test(
  'a process that ends while it marks a profile takes nothing of what is known',
  async (t) => {
    const dataDir = t.testdir()
    const profiles = new Profiles(dataDir)
    await profiles.markUsed('s', 11)
    const code = `
    import { Profiles } from './wa-worker/profiles.ts'
    await new Profiles(${JSON.stringify(dataDir)}).markUsed('s', 12)`
    // It may write no file of any length: it ends as it writes the first byte, after it has opened the file.
    const ended = promisify(execFile)(
      'sh',
      ['-c', 'ulimit -f 0; exec "$@"', 'sh', process.execPath].concat([
        '--import',
        'tsx',
        '--input-type=module',
        '--eval',
        code,
      ]),
      { cwd: root, env: { PATH: process.env['PATH'], TSX_DISABLE_CACHE: '1' } },
    )
    const error = await ended.catch((error: unknown) => error)
    t.match(error, { signal: 'SIGXFSZ' })
    t.equal(await profiles.usedUnder('s'), 11)
  },
)
