import { setTimeout as sleep } from 'node:timers/promises'
import type { Page } from 'puppeteer'
import type { ClientInfo } from 'whatsapp-web.js'
import { phoneOf } from '../../shared/wa-id.ts'
import type { Account } from '../../shared/wa-session-transitions.ts'
import { deadlines, within } from './webjs-call.ts'
import { addressOf, nameOf } from './webjs-messages.ts'
import { installLookUps, missingModules, reportPasskeys } from './webjs-page.ts'
import type { PageWindow } from './webjs-page.ts'
import { installReading } from './webjs-page-read.ts'
import { installSending } from './webjs-page-send.ts'

declare const window: PageWindow

/** Puts what the engine needs inside the page into it; a page that has it already starts to count anew. */
export async function installPageApi(page: Page): Promise<void> {
  const startCount = () => {
    window.awfar!.shown = 0
  }
  for (const install of [installLookUps, installSending, installReading, startCount]) {
    await within(deadlines.call, 'PAGE_UNRESPONSIVE', page.evaluate(install))
  }
}

/** The library knows nothing of passkeys; a page that wants one asks the browser for it, and nobody could answer. */
export async function watchForPasskey(page: Page, onAsked: () => void): Promise<void> {
  await page.exposeFunction('awfarPasskeyAsked', onAsked)
  await page.evaluateOnNewDocument(reportPasskeys)
}

/** The account the page is linked to. */
export async function readAccount(page: Page, { pushname }: ClientInfo): Promise<Account> {
  // Read in the page: of an address, the library hands over what a walk over its own properties finds, which need not be all of it.
  const { pn, lid } = await within(
    deadlines.call,
    'PAGE_UNRESPONSIVE',
    page.evaluate(() => {
      const { getMaybeMePnUser, getMaybeMeLidUser } = window.require('WAWebUserPrefsMeUser')
      return { pn: getMaybeMePnUser()?._serialized, lid: getMaybeMeLidUser()?._serialized ?? null }
    }),
  )
  const waId = addressOf(pn ?? lid)
  if (waId === undefined) throw new Error('WhatsApp Web does not say whose account it is.')
  return { waId, lid, phone: phoneOf(waId), pushName: nameOf(pushname) }
}

/** How far the page is; one whose codes have run out is asked for new ones, where they are wanted. */
export async function readProgress(
  page: Page,
  wantsCodes: boolean,
): Promise<{ hasSynced: boolean; begun: boolean }> {
  return within(
    deadlines.call,
    'PAGE_UNRESPONSIVE',
    page.evaluate((wanted) => {
      const { state, hasSynced } = window.require('WAWebSocketModel').Socket
      if (wanted && state === 'UNPAIRED_IDLE') {
        // It moved in 2026; the library knows both places and asks neither where it would help.
        const { Cmd } = window.require('WAWebCmd')
        if (Cmd.refreshQR) Cmd.refreshQR()
        else window.require('WAWebLaunchSocketUtils').refreshQR()
      }
      return { hasSynced, begun: window.WWebJS !== undefined }
    }, wantsCodes),
  )
}

/** What WhatsApp has renamed or removed, as a sentence; undefined when all is there. Some modules may load a moment later than others. */
export async function whatIsMissing(
  page: Page,
  names: string[],
  tries = 1,
): Promise<string | undefined> {
  const missing = await within(
    deadlines.call,
    'PAGE_UNRESPONSIVE',
    page.evaluate(missingModules, names),
  )
  if (missing.length === 0 || (await hasNotLoaded(page))) return undefined
  if (tries === 1) return `WhatsApp Web no longer has ${missing.join(', ')}.`
  await sleep(1_000)
  return whatIsMissing(page, names, tries - 1)
}

/**
 * Whether the browser shows its own page in place of one that did not load: it lacks everything, and says nothing of
 * WhatsApp Web. Asked of the page, since Puppeteer learns its address a moment later.
 */
const hasNotLoaded = async (page: Page): Promise<boolean> => {
  const asked = page.evaluate('location.protocol')
  return (await within(deadlines.call, 'PAGE_UNRESPONSIVE', asked)) === 'chrome-error:'
}
