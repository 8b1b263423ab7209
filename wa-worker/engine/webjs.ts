import { EventEmitter } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Page } from 'puppeteer'
import { errorText } from '../../shared/errors.ts'
import type { Logger } from '../../shared/logger.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import { clearProfile, findBrowser, groupMemory, killGroup, recordBrowser } from '../browser.ts'
import { withDeadline } from '../patience.ts'
import { EngineError } from './engine.ts'
import type {
  Acquaintance,
  ChatInfo,
  ContactInfo,
  Engine,
  EngineEvents,
  NumberCheck,
  OutgoingMessage,
  Pulse,
  Receipt,
  Recent,
  RecentChat,
} from './engine.ts'
import { deadlines, within } from './webjs-call.ts'
import { closeBrowser, createClient } from './webjs-client.ts'
import type { LibraryClient } from './webjs-client.ts'
import { listenToMessages } from './webjs-incoming.ts'
import type { On } from './webjs-incoming.ts'
import { addressOf, identify, incomingMessage } from './webjs-messages.ts'
import type { LibraryMessage } from './webjs-messages.ts'
import * as outgoing from './webjs-outgoing.ts'
import { logOut, sendModules, startModules } from './webjs-page.ts'
import type { PageWindow } from './webjs-page.ts'
import * as reading from './webjs-reading.ts'
import {
  installPageApi,
  readAccount,
  readProgress,
  watchForPasskey,
  whatIsMissing,
} from './webjs-start.ts'

export interface WebjsOptions {
  sessionId: string
  log: Logger
  /** Makes and names the folder of the browser's profile. */
  profileDir: () => Promise<string>
  executablePath: string | undefined
  browserArgs: string[]
  /** Pins WhatsApp Web to a version whose page lies in this folder. */
  webVersion?: { version: string; cacheDir: string } | undefined
}

/** WhatsApp shows its first code for a minute, each later one for 20 seconds. */
const qrLifeMs = (attempt: number) => (attempt === 1 ? 60_000 : 20_000)

const pairingCodeLifeMs = 180_000
/** A page that is just being loaded is soon there. */
const attachTries = 5
const attachPauseMs = 200
/** The page a call was meant for is gone, and another one comes. */
const isBetweenPages = (error: unknown) =>
  /Execution context was destroyed|Cannot find context|detached Frame/.test(errorText(error))

declare const window: PageWindow

/** whatsapp-web.js on a real Chromium: its life from the start to the stop. What is sent is the concern of webjs-outgoing.ts. */
export class WebjsEngine extends EventEmitter<EngineEvents> implements Engine {
  readonly #options: WebjsOptions
  readonly #log: Logger
  #client: LibraryClient | undefined
  /** Settles when the browser runs or will never do. */
  #launched: Promise<void> = Promise.resolve()
  #stopping: Promise<void> | undefined
  #dead = false
  #ready = false
  #linkUp = true
  /** How often the page was loaded anew, and at which of these the library had attached itself last. */
  #load = 0
  #attachedTo = -1
  /** How often we were told of another page. */
  #navigations = 0
  #qrAttempt = 0
  /** Until then a code to be typed is valid: the new connection that new QR codes come with would end it. */
  #codeEndsAt = 0
  /** Messages the library told of since the page API was installed. */
  #reported = 0
  /** Sends that did not settle in time and are still busy in the page. */
  readonly #stuck = new Set<string>()
  readonly #ending = new AbortController()
  /** Edits that WhatsApp Web shows and may not have got out, by their message: what it tells of them waits for that. */
  readonly #edits = new Map<string, { body: string; told: EngineEvents['edit'][0][] }>()
  /** The addresses of the linked account. */
  #me: string[] = []

  constructor(options: WebjsOptions) {
    super()
    this.#options = options
    this.#log = options.log.child({ sessionId: options.sessionId })
  }

  async start(): Promise<void> {
    const browser = findBrowser(this.#options.executablePath)
    if ('missing' in browser) {
      throw new EngineError('transient', 'BROWSER_MISSING', browser.missing)
    }
    const profileDir = await this.#options.profileDir()
    if (this.#stopping) return
    clearProfile(profileDir)

    let onBrowser!: () => void
    const running = new Promise<void>((resolve) => (onBrowser = resolve))
    const { browserArgs, webVersion } = this.#options
    const client = createClient({
      executablePath: browser.path,
      profileDir,
      browserArgs,
      webVersion,
      onBrowser: async () => {
        this.#watchBrowser()
        recordBrowser(profileDir, client.pupBrowser!.process()!.pid!)
        onBrowser()
        await watchForPasskey(client.pupPage!, () => {
          if (!this.#ready && !this.#dead) this.emit('passkey')
        })
      },
    })
    this.#client = client
    this.#listen(client)
    const initialized = client.initialize()
    this.#launched = Promise.race([running, initialized.catch(() => {})])
    try {
      await initialized
    } catch (error) {
      if (this.#stopping) return
      const missing = await this.#missingModules(startModules)
      if (missing) throw new EngineError('transient', 'MODULE_MISSING', missing, { cause: error })
      throw new EngineError('transient', 'START_FAILED', errorText(error), { cause: error })
    }
    this.#replaceNavigationHandler()
    void this.#seeToReady()
  }

  stop(how?: 'atOnce'): Promise<void> {
    const pid = this.#client?.pupBrowser?.process()?.pid
    if (how === 'atOnce' && pid !== undefined) killGroup(pid)
    this.#stopping ??= this.#close()
    return this.#stopping
  }

  async logout(): Promise<void> {
    try {
      const { page } = this.#mustBeReady()
      // Whoever asked for it is answered; the page's telling of it would look like the phone's doing.
      this.#dead = true
      await within(deadlines.call, 'LOGOUT_TIMEOUT', page.evaluate(logOut))
    } catch (error) {
      // It loads itself anew once it is through.
      if (!isBetweenPages(error)) throw error
    } finally {
      await this.stop()
    }
  }

  async send(message: OutgoingMessage): Promise<Receipt> {
    return outgoing.sendMessage(this.#mustBeReady().page, message)
  }

  async find(message: Pick<OutgoingMessage, 'chatId' | 'keyId'>): Promise<Receipt | null> {
    const { page } = this.#mustBeReady()
    try {
      return await outgoing.findMessage(page, message)
    } catch (error) {
      // Nobody can tell what becomes of it while the page hangs over it; a page that is loaded anew knows.
      if (error instanceof EngineError && error.code === 'SEND_UNDERWAY') this.#tellStuck(message)
      throw error
    }
  }

  async react({ target, emoji }: { target: MessageKey; emoji: string }): Promise<void> {
    await outgoing.react(this.#mustBeReady().page, target, emoji)
  }

  async edit({ target, body }: { target: MessageKey; body: string }): Promise<void> {
    const { page } = this.#mustBeReady()
    const text = body.trim()
    const before = this.#edits.get(target.id)
    // A later try changes nothing on the page, which has told of the text at the first one.
    const edit = before?.body === text ? before : { body: text, told: [] }
    this.#edits.set(target.id, edit)
    // Where it fails the page goes on showing the new text, and is not believed.
    await outgoing.edit(page, target, body)
    this.#edits.delete(target.id)
    for (const told of edit.told) this.emit('edit', told)
  }

  async revoke({ target }: { target: MessageKey }): Promise<void> {
    await outgoing.revoke(this.#mustBeReady().page, target)
  }

  async typing(chatId: string, on: boolean | number): Promise<void> {
    await outgoing.typing(this.#mustBeReady().page, chatId, on, this.#ending.signal)
  }

  async seen(chatId: string): Promise<void> {
    await outgoing.seen(this.#mustBeReady().page, chatId)
  }

  async checkNumber(phone: string): Promise<NumberCheck> {
    return outgoing.checkNumber(this.#mustBeReady().page, phone)
  }

  async download(key: MessageKey, path: string): Promise<{ size: number } | 'expired'> {
    return reading.download(this.#mustBeReady().page, key, path)
  }

  async chat(chatId: string): Promise<ChatInfo | null> {
    return reading.readChat(this.#mustBeReady().page, chatId)
  }

  async contact(waId: string): Promise<ContactInfo | null> {
    return reading.readContact(this.#mustBeReady().page, waId)
  }

  async people(waIds: string[]): Promise<Acquaintance[]> {
    return reading.readPeople(this.#mustBeReady().page, waIds)
  }

  async chatsSince(sinceSeconds: number) {
    return reading.readActive(this.#mustBeReady().page, sinceSeconds)
  }

  async history(
    chatId: string,
    since: { sinceSeconds: number; limit: number },
  ): Promise<RecentChat> {
    return reading.readHistory(this.#mustBeReady().page, chatId, since, this.#me)
  }

  async recent(since: Parameters<Engine['recent']>[0]): Promise<Recent> {
    return reading.readRecent(this.#mustBeReady().page, since, this.#me)
  }

  async reload(): Promise<void> {
    const { page } = this.#mustBeReady()
    this.#setLink(false)
    // Not evaluated in the page: that page may be the one that hangs.
    await within(deadlines.call, 'PAGE_UNRESPONSIVE', page.reload({ timeout: deadlines.call }))
  }

  async pairingCode(phone: string): Promise<{ code: string; expiresAt: Date }> {
    this.#running()
    if (this.#ready)
      throw new EngineError('permanent', 'SESSION_NOT_READY', 'It is linked already.')
    const code = await within(
      deadlines.send,
      'PAIRING_TIMEOUT',
      this.#client!.requestPairingCode(phone, true, pairingCodeLifeMs),
    )
    this.#codeEndsAt = Date.now() + pairingCodeLifeMs
    return { code, expiresAt: new Date(this.#codeEndsAt) }
  }

  async memory(): Promise<number | null> {
    const pid = this.#client?.pupBrowser?.process()?.pid
    return pid === undefined ? null : groupMemory(pid)
  }

  async probe(): Promise<Pulse> {
    const { page } = this.#mustBeReady()
    const reported = this.#reported
    const pulse = await within(
      deadlines.probe,
      'PAGE_UNRESPONSIVE',
      page.evaluate(
        () =>
          window.awfar && {
            state: window.require('WAWebSocketModel').Socket.state,
            shown: window.awfar.shown,
          },
      ),
    )
    // The page was replaced and nobody has injected anything into the new one yet; it may not even have modules.
    if (!pulse) return { online: false, unreported: 0 }
    return { online: pulse.state === 'CONNECTED', unreported: pulse.shown - reported }
  }

  /** A listener that throws would be answered into the page and heard by nobody. */
  #listen(client: LibraryClient): void {
    const on: On = (event, handle) => {
      client.on(event, (...args: unknown[]) => {
        try {
          if (!this.#dead) handle(...(args as Parameters<typeof handle>))
        } catch (error) {
          this.#log.error('engine event failed', { event, error })
        }
      })
    }
    on('qr', (value: string) => this.#showQr(value))
    on('ready', () => void this.#becomeReady())
    on('change_state', (state: string) => this.#stateChanged(state))
    on('disconnected', (state: string) => {
      // The page said so before, and may be UNPAIRED before it loads itself anew.
      if (client.lastLoggedOut) this.#loggedOut()
      else this.#closed(state === 'CONFLICT' ? state : `STATE_${state}`)
    })
    on('message_create', () => (this.#reported += 1))
    listenToMessages(
      on,
      (event, ...args) => {
        if (event !== 'edit') return this.emit(event, ...(args as never))
        const [told] = args as EngineEvents['edit']
        const ours = told.key.fromMe ? this.#edits.get(told.key.id) : undefined
        if (ours?.body === told.body.trim()) ours.told.push(told)
        else this.emit('edit', told)
      },
      () => this.#me,
    )
    on('message_ack', (message: LibraryMessage, ack: number) => {
      const identity = identify(message._data.id, message._data.author)
      if (!identity?.key.fromMe || !incomingMessage(message._data, this.#me)) return
      const { key, waMessageId } = identity
      if (ack < 0) void this.#refused(key, waMessageId)
      else this.emit('ack', { keyId: key.id, waMessageId, ack })
    })
  }

  /** The event of a refusal does not say why; the page may know. */
  async #refused(key: MessageKey, waMessageId: string): Promise<void> {
    const refused = { waMessageId, ack: -1, code: 'REFUSED_BY_WHATSAPP' as const }
    const receipt = await this.find({ chatId: key.chatId, keyId: key.id }).catch(() => null)
    if (this.#dead) return
    // Acknowledged meanwhile, it is no refusal any more.
    this.emit('ack', { keyId: key.id, ...(receipt ?? refused) })
  }

  /** A crash of the browser or its page makes no event in the library. */
  #watchBrowser(): void {
    const { pupBrowser, pupPage } = this.#client!
    // puppeteer stops listening to the pipe when it closes it; an error of the pipe after that would end this process.
    for (const stream of pupBrowser?.process()?.stdio ?? []) stream?.on('error', () => {})
    pupBrowser?.once('disconnected', () => this.#closed('BROWSER_CRASHED'))
    pupPage?.on('error', (error) => this.#trouble('PAGE_CRASHED', errorText(error)))
    pupPage?.once('close', () => this.#closed('PAGE_CLOSED'))
    pupPage?.on('pageerror', (error) =>
      this.#log.warn('error in the page', { error: errorText(error) }),
    )
  }

  /**
   * The library's own handler injects again at every navigation, also of a frame and also after a logout, and its failures are nobody's: they
   * would end this process. This one listens to the page itself only, and turns failures into events.
   */
  #replaceNavigationHandler(): void {
    const page = this.#client?.pupPage
    if (!page) return
    page.removeAllListeners('framenavigated')
    page.on('framenavigated', (frame) => {
      if (frame !== page.mainFrame() || this.#dead) return
      this.#navigated(page, frame.url()).catch((error: unknown) => {
        this.#closed('PAGE_NAVIGATED', errorText(error))
      })
    })
  }

  async #navigated(page: Page, url: string): Promise<void> {
    if (url.includes('post_logout=1') || this.#client!.lastLoggedOut) {
      return this.#loggedOut()
    }
    const navigation = (this.#navigations += 1)
    for (let tries = 1; navigation === this.#navigations; tries++) {
      try {
        return await this.#attach(page)
      } catch (error) {
        // The page is being loaded once more, of which we are about to be told, or we were told of this one before it could be asked anything.
        if (!isBetweenPages(error) || tries === attachTries) throw error
        await sleep(attachPauseMs)
      }
    }
  }

  /** Injects the library into a page that has just been loaded. */
  async #attach(page: Page): Promise<void> {
    const injected = await within(
      deadlines.call,
      'PAGE_UNRESPONSIVE',
      page.evaluate(() => window.AuthStore !== undefined),
    )
    if (injected) return // a change of the address only, the page is the same
    this.#load += 1
    this.#setLink(false)
    await this.#client!.inject()
    void this.#seeToReady()
  }

  #showQr(value: string): void {
    // At times the page has no reference yet; such a code leads nowhere.
    if (this.#ready || /^(undefined|null)?,/.test(value)) return
    this.#qrAttempt += 1
    const expiresAt = new Date(Date.now() + qrLifeMs(this.#qrAttempt))
    this.emit('qr', { value, attempt: this.#qrAttempt, expiresAt })
  }

  /** The library says "ready" again after each sync and each reload; only the first is a start. */
  async #becomeReady(): Promise<void> {
    try {
      const { page } = this.#running()
      await installPageApi(page)
      this.#stuck.clear()
      this.#reported = 0
      const missing = await this.#missingModules(sendModules, 5)
      if (missing) return this.#closed('MODULE_MISSING', missing)
      this.#attachedTo = this.#load
      if (this.#ready) return this.#setLink(true)
      const account = await readAccount(page, this.#client!.info)
      if (this.#ready || this.#dead) return
      const { waId, lid } = account
      this.#me = [waId, lid].flatMap((address) => addressOf(address) ?? [])
      this.#ready = true
      this.emit('ready', account)
    } catch (error) {
      // The page that comes will say so, too.
      if (!isBetweenPages(error)) this.#closed('START_FAILED', errorText(error))
    }
  }

  #stateChanged(state: string): void {
    if (state === 'CONNECTED') this.#setLink(true)
    else if (state === 'TIMEOUT' || state === 'OPENING') this.#setLink(false)
  }

  #setLink(up: boolean): void {
    if (!this.#ready || this.#linkUp === up) return
    this.#linkUp = up
    this.emit('link', up ? 'restored' : 'lost')
  }

  /**
   * Until the library has attached itself to the page that was loaded last, looks after what the library gets wrong: it never asks for new codes once the page stopped making
   * them, it misses a sync that ended before it listened, and it swallows what went wrong while it attached itself to the page.
   */
  async #seeToReady(): Promise<void> {
    const load = this.#load
    let synced = 0
    while (!this.#dead && load === this.#load && this.#attachedTo !== load) {
      try {
        const { page } = this.#running()
        const { hasSynced, begun } = await readProgress(page, Date.now() > this.#codeEndsAt)
        synced = hasSynced ? synced + 1 : 0
        // Twice in a row: the library has had its chance. Once it has begun, asking again would only make it say "ready" without listening.
        if (synced === 2 && !begun) await page.evaluate(() => window.onAppStateHasSyncedEvent?.())
        if (synced === 10) {
          const missing = await this.#missingModules(startModules)
          if (missing) this.#closed('MODULE_MISSING', missing)
          else this.#closed('READY_LOST', 'WhatsApp Web is synced and the library is not.')
        }
      } catch (error) {
        this.#log.debug('page not ready to be asked', { error: errorText(error) })
      }
      await sleep(1_000)
    }
  }

  /** As whatIsMissing(); undefined also when the page cannot be asked. */
  async #missingModules(names: string[], tries = 1): Promise<string | undefined> {
    try {
      return await whatIsMissing(this.#running().page, names, tries)
    } catch (error) {
      this.#log.debug('page could not be tested', { error: errorText(error) })
      return undefined
    }
  }

  #trouble(reason: string, detail: string): void {
    if (this.#dead || this.#stopping) return
    if (this.#ready) this.emit('trouble', { reason, detail })
    else this.#closed(reason, detail)
  }

  #loggedOut(): void {
    if (this.#dead || this.#stopping) return
    this.#dead = true
    this.emit('loggedOut')
  }

  #closed(reason: string, detail?: string): void {
    if (this.#dead || this.#stopping) return
    this.#dead = true
    this.emit('closed', { reason, ...(detail !== undefined && { detail }) })
  }

  /** Once a message. */
  #tellStuck({ keyId }: { keyId: string }): void {
    if (this.#stuck.has(keyId)) return
    this.#stuck.add(keyId)
    this.#trouble('SEND_STUCK', `Message ${keyId} has been handed to WhatsApp Web and hangs there.`)
  }

  async #close(): Promise<void> {
    this.#dead = true
    this.#ending.abort()
    // Before the browser runs the library's destroy() does nothing, and the browser would come up behind our back.
    await withDeadline(this.#launched, deadlines.launch, () => new Error()).catch(() => {})
    const browser = this.#client?.pupBrowser
    if (browser) await closeBrowser(browser, this.#log)
  }

  #running(): { page: Page } {
    const page = this.#client?.pupPage
    if (!page || this.#dead) {
      throw new EngineError('transient', 'SESSION_NOT_READY', 'The browser is not running.')
    }
    return { page }
  }

  #mustBeReady(): { page: Page } {
    if (!this.#ready) {
      throw new EngineError('transient', 'SESSION_NOT_READY', 'WhatsApp is not linked and synced.')
    }
    return this.#running()
  }
}
