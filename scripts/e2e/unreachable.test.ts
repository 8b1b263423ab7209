import { join } from 'node:path'
import t from 'tap'
import { createLogger } from '../../shared/logger.ts'
import { findBrowser } from '../../wa-worker/browser.ts'
import { WebjsEngine } from '../../wa-worker/engine/webjs.ts'

const executablePath = process.env['PUPPETEER_EXECUTABLE_PATH']
const browser = findBrowser(executablePath)

await t.test(
  'a WhatsApp Web that cannot be reached is not taken for one that has lost its parts',
  { skip: 'missing' in browser && browser.missing },
  async (t) => {
    const folder = t.testdir()
    const engine = new WebjsEngine({
      sessionId: 'offline',
      log: createLogger('test', { level: 'error', stdout: false }),
      profileDir: () => Promise.resolve(join(folder, 'profile')),
      executablePath,
      browserArgs: ['--host-resolver-rules=MAP * ~NOTFOUND'],
    })
    t.teardown(() => engine.stop())
    await t.rejects(engine.start(), {
      code: 'START_FAILED',
      certainty: 'transient',
      message: /ERR_NAME_NOT_RESOLVED/,
    })
  },
)
