import type { Browser, Page } from 'puppeteer'
import whatsapp from 'whatsapp-web.js'
import type { Client } from 'whatsapp-web.js'
import { errorText } from '../../shared/errors.ts'
import type { Logger } from '../../shared/logger.ts'
import { killGroup } from '../browser.ts'
import { withDeadline } from '../patience.ts'
import { deadlines } from './webjs-call.ts'
import { longestSendMs } from './webjs-outgoing.ts'

/** What the library has and its type declarations leave out. */
export interface Internals {
  inject(): Promise<void>
  initWebVersionCache(): Promise<void>
  lastLoggedOut: boolean
  pupBrowser?: Browser | null
  pupPage?: Page | null
}
export type LibraryClient = Client & Internals

export interface ClientOptions {
  executablePath: string
  profileDir: string
  browserArgs: string[]
  /** Pins WhatsApp Web to a version whose page lies in this folder. */
  webVersion?: { version: string; cacheDir: string } | undefined
  /** The browser and its page are there; nothing is loaded yet. */
  onBrowser: () => Promise<void>
}

/**
 * The library's strategy for logins, made harmless: the profile's folder is ours, and nothing the library does on a logout or a
 * strange state deletes or moves it.
 */
class OwnProfile extends whatsapp.NoAuth {
  constructor(profileDir: string, onBrowser: () => Promise<void>) {
    super()
    this.beforeBrowserInitialized = async () => {
      const { options } = (this as unknown as { client: { options: { puppeteer: object } } }).client
      options.puppeteer = { ...options.puppeteer, userDataDir: profileDir }
    }
    this.afterBrowserInitialized = onBrowser
  }
}

/**
 * Chromium loads the popups of its address bar in advance, also where nobody can see them: a renderer of their own, which costs 1.2 s of the 2.1 s of
 * CPU a start takes, and 55 of 380 MB (measured with Chromium 156 on an empty page; `--disable-gpu`, `--in-process-gpu` and fewer spare renderers made
 * no difference that could be told from noise). puppeteer joins this list with its own and with those of WA_BROWSER_ARGS.
 */
const withoutAddressBar =
  '--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup,WebUIOmniboxFullPopup'

/** A client of whatsapp-web.js. The only file that imports the library. */
export function createClient(options: ClientOptions): LibraryClient {
  const { executablePath, profileDir, browserArgs, webVersion, onBrowser } = options
  const client = new whatsapp.Client({
    authStrategy: new OwnProfile(profileDir, onBrowser),
    puppeteer: {
      headless: true,
      executablePath,
      // Over a pipe Chromium ends with this process, however it ends; over a WebSocket it would live on and hold the profile.
      pipe: true,
      // puppeteer would kill the browser in the middle of our own shutdown.
      handleSIGINT: false,
      handleSIGTERM: false,
      handleSIGHUP: false,
      // Every call has a shorter deadline of its own.
      protocolTimeout: longestSendMs + 60_000,
      args: [
        ...(mustRunWithoutSandbox() ? ['--no-sandbox'] : []),
        withoutAddressBar,
        ...browserArgs,
      ],
    },
    ...(webVersion
      ? {
          webVersion: webVersion.version,
          webVersionCache: { type: 'local', path: webVersion.cacheDir, strict: true },
        }
      : { webVersionCache: { type: 'none' } }),
  }) as LibraryClient
  // It would keep the source of each page that is loaded, for a cache that is not there, and fail with nobody to tell where the page is gone before it is read.
  if (!webVersion) client.initWebVersionCache = () => Promise.resolve()
  return client
}

/** Closes a browser and sees to it that nothing of it is left. */
export async function closeBrowser(browser: Browser, log: Logger): Promise<void> {
  const child = browser.process()
  if (!child?.pid) return
  const exited = new Promise<void>((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) resolve()
    else child.once('exit', () => resolve())
  })
  // A graceful close writes the login to the disk; a frozen browser never answers.
  await withDeadline(browser.close(), deadlines.close, () => new Error('did not close')).catch(
    (error: unknown) => log.warn('browser killed', { error: errorText(error) }),
  )
  killGroup(child.pid)
  await withDeadline(exited, deadlines.exit, () => new Error('did not exit')).catch(
    (error: unknown) => log.error('browser left behind', { pid: child.pid, error }),
  )
}

/** Chromium refuses to run as root with its sandbox. */
const mustRunWithoutSandbox = () => process.getuid?.() === 0
