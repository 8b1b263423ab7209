import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { createLogger } from '../../shared/logger.ts'
import { findBrowser } from '../../wa-worker/browser.ts'
import { WebjsEngine } from '../../wa-worker/engine/webjs.ts'
import { engineContract } from '../../wa-worker/test/engine-contract.ts'
import type { Rig } from '../../wa-worker/test/engine-contract.ts'
import { until } from '../../wa-worker/test/waiting.ts'
import { startEmulatedWhatsApp } from './emulated-page/server.ts'

const browser = findBrowser(process.env['PUPPETEER_EXECUTABLE_PATH'])
const account = '12025550199'
const customer = '12025550100'

await t.test(
  'whatsapp-web.js on Chromium keeps the engine contract',
  { skip: 'missing' in browser && browser.missing },
  async (t) => {
    await engineContract(t, async (t): Promise<Rig> => {
      const whatsapp = await startEmulatedWhatsApp()
      const folder = await mkdtemp(join(tmpdir(), 'awfar-webjs-'))
      t.teardown(async () => {
        await whatsapp.close()
        await rm(folder, { recursive: true, force: true, maxRetries: 5 })
      })
      whatsapp.register({ number: customer })
      return {
        createEngine: () =>
          new WebjsEngine({
            sessionId: 'contract',
            log: createLogger('test', { level: 'error', stdout: false }),
            profileDir: async () => join(folder, 'profile'),
            executablePath: process.env['PUPPETEER_EXECUTABLE_PATH'],
            browserArgs: whatsapp.browserArgs,
          }),
        scan: async (_, qr) => {
          await whatsapp.scan(qr, { number: account, pushName: 'Bakery' })
        },
        deliver: async (_, from, body) => {
          whatsapp.deliver({ to: account, from: from.slice(0, -5), body, pushName: 'Ann' })
        },
        dropLink: async () => whatsapp.dropLink(account),
        restoreLink: async () => whatsapp.restoreLink(account),
        logoutFromPhone: async () => {
          whatsapp.logoutFromPhone(account)
          await until('the device is off the list', () => whatsapp.onlineDevices(account) === 0)
        },
        transmissions: (keyId) => whatsapp.stanzas.filter(({ id }) => id === keyId).length,
        customer: `${customer}@c.us`,
        unregistered: '12025550001@c.us',
      }
    })
  },
)
