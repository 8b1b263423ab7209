import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { promisify } from 'node:util'
import puppeteer from 'puppeteer'
import { findBrowser } from '../../wa-worker/browser.ts'

/**
 * What sessions run on. The browser of customers where its own machinery is what breaks: its processes, its lock, its pipe. Its headless shell, the same engine with the same
 * profile for half the CPU, where it only shows the page: five hundred starts are what a run is made of.
 */
export type BrowserKind = 'chromium' | 'shell'

export interface Found {
  path: string
  /** As it names itself. */
  version: string
}

export type Browsers = Record<BrowserKind, Found>

/** scripts/setup.mjs looks in the same places. In /usr/bin Debian has a script that stays beside it: a process too many for whoever counts browsers. */
const shells = [
  '/usr/lib/chromium/chromium-headless-shell',
  puppeteer.executablePath({ headless: 'shell' }),
]

/** Both; rejects when one is missing, since none takes the place of the other. */
export async function findBrowsers(named: string | undefined): Promise<Browsers> {
  const chromium = findBrowser(named)
  if ('missing' in chromium) throw new Error(chromium.missing)
  const shell = shells.find((path) => existsSync(path))
  if (shell === undefined) {
    throw new Error('No headless shell of Chromium found: node scripts/setup.mjs --headless-shell')
  }
  return { chromium: await describe(chromium.path), shell: await describe(shell) }
}

async function describe(path: string): Promise<Found> {
  const { stdout } = await promisify(execFile)(path, ['--version'])
  return { path, version: /[\d.]+\d/.exec(stdout)?.[0] ?? stdout.trim() }
}
