import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import t from 'tap'
import { putCredential, readCredential } from '../../shared/credentials.ts'
import { KeyRing } from '../../shared/key-ring.ts'
import { root } from '../../shared/root.ts'
import { testDb } from '../../shared/test/db.ts'
import { createWorkspace } from '../../shared/workspaces.ts'

const entry = (id: string, byte: number) => `${id}:${Buffer.alloc(32, byte).toString('base64')}`

void t.test(
  'npm run keys seals everything with the first key, and says what does not open',
  async (t) => {
    const { sql, url } = await testDb(t)
    const dataDir = t.testdir()
    const run = async (args: string[], keys: string) => {
      const child = spawn(
        process.execPath,
        ['--import', 'tsx', join(root, 'scripts', 'keys.ts'), ...args],
        {
          env: {
            ...process.env,
            DATABASE_URL: url,
            DATA_DIR: dataDir,
            SESSION_ENCRYPTION_KEY: keys,
            NODE_OPTIONS: '',
          },
          cwd: root,
        },
      )
      let out = ''
      child.stdout.on('data', (chunk) => (out += String(chunk)))
      child.stderr.on('data', (chunk) => (out += String(chunk)))
      const [code] = (await once(child, 'close')) as [number]
      return { code, out }
    }
    const workspaceId = await createWorkspace(sql, 'Mine')
    await putCredential(sql, KeyRing.parse(entry('old', 1)), workspaceId, 'x', 'secret')

    t.match(await run(['list'], entry('old', 1)), { code: 0, out: /old.*credentials/ })
    const both = `${entry('new', 2)},${entry('old', 1)}`
    t.match(await run(['rotate'], both), {
      code: 0,
      out: /Sealed with key new: 0 snapshots, 0 second factors, 1 credentials/,
    })
    t.equal(await readCredential(sql, KeyRing.parse(entry('new', 2)), workspaceId, 'x'), 'secret')
    t.match(await run(['rotate'], entry('third', 3)), {
      code: 1,
      out: /Credential .* does not open/,
    })
    t.match(await run(['nonsense'], both), { code: 2, out: /npm run keys/ })
    t.match(await run(['list'], 'x'), { code: 78, out: /SESSION_ENCRYPTION_KEY/ })
  },
)
