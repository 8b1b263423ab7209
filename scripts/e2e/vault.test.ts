import { copyFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { findBrowser } from '../../wa-worker/browser.ts'
import { WebjsEngine } from '../../wa-worker/engine/webjs.ts'
import { nextEvent, until } from '../../wa-worker/test/waiting.ts'
import { broughtBack, flipBit, log, vaultRig } from '../../wa-worker/test/vault-rig.ts'
import { startEmulatedWhatsApp } from './emulated-page/server.ts'
import type { EmulatedWhatsApp } from './emulated-page/server.ts'

const browser = findBrowser(process.env['PUPPETEER_EXECUTABLE_PATH'])
const account = '12025550199'
/** Of Chromium's localStorage, which it writes to the disk five seconds late. */
const journal = 'Default/Local Storage/leveldb/000003.log'

await t.test(
  'a login survives the loss of the disk, in a real browser',
  { skip: 'missing' in browser && browser.missing },
  async (t) => {
    const whatsapp = await startEmulatedWhatsApp()
    t.teardown(() => whatsapp.close())
    const rig = await vaultRig(t)
    const { vault, session, profile } = rig
    const engine = engineOn(t, whatsapp, profile)
    const qr = nextEvent(engine, 'qr')
    await engine.start()
    const [{ value }] = await qr
    const ready = nextEvent(engine, 'ready')
    await whatsapp.scan(value, { number: account, pushName: 'Bakery' })
    await ready

    await t.test('a snapshot of the profile in use, then one of it at rest', async (t) => {
      const { size } = await stat(join(profile, journal))
      await until('the login is on the disk', async () => {
        return (await stat(join(profile, journal))).size > size
      })
      const live = await vault.take(session, profile, { reason: 'LOGIN_SETTLED' })
      await engine.stop()
      const stopped = await vault.take(session, profile, { reason: 'DRAIN' })
      t.same([live.generation, stopped.generation], [1, 2])
      const whole = await sizeOf(profile)
      t.comment(`profile ${whole} bytes, login ${live.bytes}, snapshot ${live.size}`)
      t.ok(live.bytes < whole / 10)
    })

    await t.test('the newest brings it back', async (t) => {
      await rm(profile, { recursive: true })
      t.strictSame(await broughtBack(vault.restore(session, profile)), {
        generation: 2,
        refused: [],
      })
      await isReady(t, whatsapp, profile)
    })

    await t.test('so does the one before, taken of the profile in use', async (t) => {
      await rm(profile, { recursive: true })
      const object = rig.objectFile(2)
      await copyFile(object, `${profile}-object`)
      flipBit(object, 500)
      const restored = await vault.restore(session, profile)
      t.match(restored, { generation: 1, refused: [{ generation: 2 }] })
      await isReady(t, whatsapp, profile)
      await copyFile(`${profile}-object`, object)
    })

    await t.test(
      'over a profile of another time as well, whose lock names another host',
      async (t) => {
        await writeFile(join(profile, 'SingletonLock'), '')
        t.strictSame(await broughtBack(vault.restore(session, profile)), {
          generation: 2,
          refused: [],
        })
        await isReady(t, whatsapp, profile)
      },
    )
  },
)

function engineOn(t: Test, whatsapp: EmulatedWhatsApp, profile: string): WebjsEngine {
  const engine = new WebjsEngine({
    sessionId: 'vault',
    log,
    profileDir: async () => profile,
    executablePath: process.env['PUPPETEER_EXECUTABLE_PATH'],
    browserArgs: whatsapp.browserArgs,
  })
  t.teardown(() => engine.stop())
  return engine
}

/** Starts an engine over the profile: it must be linked without ever showing a code. */
async function isReady(t: Test, whatsapp: EmulatedWhatsApp, profile: string): Promise<void> {
  const engine = engineOn(t, whatsapp, profile)
  let codes = 0
  engine.on('qr', () => (codes += 1))
  const ready = nextEvent(engine, 'ready')
  await engine.start()
  const [{ phone }] = await ready
  t.same({ phone, codes }, { phone: `+${account}`, codes: 0 })
  await engine.stop()
}

async function sizeOf(folder: string): Promise<number> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  const files = entries.filter((entry) => entry.isFile())
  const sizes = await Promise.all(files.map((file) => stat(join(file.parentPath, file.name))))
  return sizes.reduce((sum, { size }) => sum + size, 0)
}
