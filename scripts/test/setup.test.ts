import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { root } from '../../shared/root.ts'

const setup = () => promisify(execFile)(process.execPath, [join(root, 'scripts', 'setup.mjs')])

// npm test has just run it; by itself this test may have to build.
void t.test('who is set up is not kept waiting again', { timeout: 170_000 }, async (t) => {
  await setup()
  t.match(await setup(), { stdout: '', stderr: '' })
})
