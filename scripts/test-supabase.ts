/** npm run test:supabase: the contract of the object store against a real project, named by SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { loadEnv } from '../shared/config.ts'
import { root } from '../shared/root.ts'

loadEnv()
if (!process.env['SUPABASE_URL'] || !process.env['SUPABASE_SERVICE_ROLE_KEY']) {
  console.error('Set SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY to the project to test against.')
  process.exit(78)
}
const args = ['--disable-coverage', 'shared/test/object-store.test.ts']
const { status } = spawnSync(join(root, 'node_modules/.bin/tap'), args, {
  cwd: root,
  stdio: 'inherit',
})
process.exitCode = status ?? 1
