import type { MessageKey } from '../../shared/wa-id.ts'
import { stat } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ElementHandle, Page } from 'puppeteer'
import { errorText } from '../../shared/errors.ts'
import { EngineError } from './engine.ts'
import type {
  NumberCheck,
  OutgoingContent,
  OutgoingMedia,
  OutgoingMessage,
  Receipt,
  Refusal,
} from './engine.ts'
import { deadlines, within } from './webjs-call.ts'
import { addressOf, identify } from './webjs-messages.ts'
import type { PageFailure, PageOutgoing, PageReceipt } from './webjs-page-send.ts'
import type { PageWindow } from './webjs-page.ts'
import { vcardOf } from './vcard.ts'

declare const window: PageWindow

/** What an upload is granted besides the deadline of a send: a line of 4 Mbit/s. */
const bytesPerSecond = 500_000
/** The longest wait for an upload; puppeteer's own limit for a call must lie above it. */
export const longestSendMs = 300_000

/** Modules a file needs besides those of a text. */
const mediaModules = [
  'WAWebMediaOpaqueData',
  'WAWebPrepRawMedia',
  'WAWebMediaStorage',
  'WAWebMmsMediaTypes',
  'WAWebMediaDataUtils',
  'WAWebMediaMmsV4Upload',
]
const stickerModules = ['WAWebUploadManager', 'WAWebStartMediaUploadQpl']

/** Has the page send a message, under the id it is given. As Engine.send(). */
export async function sendMessage(page: Page, message: OutgoingMessage): Promise<Receipt> {
  const { chatId, keyId, content, quoted, mentions = [] } = message
  const stranger = mentions.find((mention) => !/^\d+@(c\.us|lid)$/.test(mention))
  if (stranger !== undefined) {
    throw new EngineError('permanent', 'INVALID_MENTION', `${stranger} is nobody's address.`)
  }
  const parts = partsOf(content)
  const outgoing: PageOutgoing = {
    chatId,
    keyId,
    ...parts,
    options: { mentionedJidList: mentions, ...parts.options },
    quoted: quoted ?? null,
  }
  const size = 'path' in content ? await sizeOf(content) : 0
  const input = 'path' in content ? await inputWith(page, content.path) : null
  try {
    const result = await within(
      Math.min(deadlines.send + (size / bytesPerSecond) * 1_000, longestSendMs),
      'SEND_TIMEOUT',
      page.evaluate(
        (what: PageOutgoing, file) => window.awfar!.send(what, file as never),
        outgoing as never,
        input,
      ),
    )
    if ('failure' in result) throw sendFailure(chatId, result, parts.media !== null)
    return receiptOf(result)
  } finally {
    // The page's own send may outlive its deadline, and so must its file: the page holds it, not the handle.
    input?.dispose().catch(() => {})
  }
}

/** Rejects with SEND_UNDERWAY while the page is busy with it. */
export async function findMessage(
  page: Page,
  { chatId, keyId }: Pick<OutgoingMessage, 'chatId' | 'keyId'>,
): Promise<Receipt | null> {
  const result = await within(
    deadlines.find,
    'FIND_TIMEOUT',
    page.evaluate((chat, id) => window.awfar!.find(chat, id), chatId, keyId),
  )
  if (result === null) return null
  if ('failure' in result) {
    const code = result.failure === 'SEND_UNDERWAY' ? 'SEND_UNDERWAY' : 'FIND_FAILED'
    throw new EngineError('unknown', code, result.error)
  }
  return receiptOf(result)
}

/** As Engine.react(). */
export const react = (page: Page, target: MessageKey, emoji: string) =>
  act(
    page.evaluate((key, text) => window.awfar!.react(key, text), target, emoji),
    target.chatId,
  )

/** As Engine.edit(). */
export const edit = (page: Page, target: MessageKey, body: string) =>
  act(
    page.evaluate((key, text) => window.awfar!.edit(key, text), target, body),
    target.chatId,
  )

/** As Engine.revoke(). */
export const revoke = (page: Page, target: MessageKey) =>
  act(
    page.evaluate((key) => window.awfar!.revoke(key), target),
    target.chatId,
  )

/** As Engine.seen(). */
export const seen = (page: Page, chatId: string) =>
  act(
    page.evaluate((chat) => window.awfar!.seen(chat), chatId),
    chatId,
  )

/** `signal` cuts a typing that goes on for a time short. */
export async function typing(
  page: Page,
  chatId: string,
  on: boolean | number,
  signal: AbortSignal,
): Promise<void> {
  const show = (state: boolean) =>
    act(
      page.evaluate((chat, is) => window.awfar!.typing(chat, is), chatId, state),
      chatId,
    )
  if (typeof on === 'boolean') return show(on)
  const end = Date.now() + Math.min(on, 60_000)
  for (let left = end - Date.now(); left > 0; left = end - Date.now()) {
    await show(true)
    await sleep(Math.min(left, 20_000), undefined, { signal }).catch(() => {
      throw new EngineError('transient', 'SESSION_NOT_READY', 'The engine was stopped.')
    })
  }
  await show(false)
}

/** As Engine.checkNumber(). */
export async function checkNumber(page: Page, phone: string): Promise<NumberCheck> {
  const asked = `${phone.replace(/^\+/, '')}@c.us`
  const result = await within(
    deadlines.call,
    'ACTION_TIMEOUT',
    page.evaluate((waId) => window.awfar!.check(waId), asked),
  )
  if ('failure' in result) throw actionFailure(asked, result)
  const addresses = result.addresses.flatMap((address) => addressOf(address) ?? [])
  const waId = addresses.find((address) => address.endsWith('@c.us')) ?? addresses[0]
  return waId === undefined ? { exists: false, waId: null } : { exists: true, waId }
}

/** The reason of a refusal, as far as the page knows it: 463 is the reach-out lock. */
export function refusalOf({ errorCode, lockedUntil }: PageReceipt): Refusal {
  if (errorCode !== 463) return { code: 'REFUSED_BY_WHATSAPP' }
  return {
    code: 'REACHOUT_LOCKED',
    // Whether the page counts seconds or milliseconds is not known for certain; as seconds, milliseconds lie millennia ahead.
    ...(lockedUntil !== undefined && {
      until: new Date(lockedUntil < 1e11 ? lockedUntil * 1_000 : lockedUntil),
    }),
  }
}

function receiptOf(receipt: PageReceipt): Receipt {
  const identity = identify(receipt.id)
  if (!identity) throw new EngineError('unknown', 'SEND_VANISHED', 'The message has no id.')
  const { waMessageId } = identity
  return { waMessageId, ack: receipt.ack, ...(receipt.ack < 0 && refusalOf(receipt)) }
}

async function act(call: Promise<{ done: true } | PageFailure>, chatId: string): Promise<void> {
  const result = await within(deadlines.call, 'ACTION_TIMEOUT', call)
  if ('failure' in result) throw actionFailure(chatId, result)
}

/** How the library and the page want each kind. */
function partsOf(
  content: OutgoingContent,
): Pick<PageOutgoing, 'body' | 'options' | 'attributes' | 'media' | 'modules'> {
  const none = { body: '', options: {}, attributes: {}, media: null, modules: [] as string[] }
  switch (content.type) {
    case 'text':
      return { ...none, body: content.body }
    case 'location': {
      const { latitude, longitude, name, address } = content
      const description = [name, address].filter((line) => line !== undefined).join('\n')
      return { ...none, options: { location: { latitude, longitude, description } } }
    }
    case 'contact':
      return {
        ...none,
        body: vcardOf(content),
        attributes: { type: 'vcard', vcardFormattedName: content.name },
      }
    case 'poll': {
      const { question, options, multiple } = content
      const pollOptions = options.map((name, localId) => ({ name, localId }))
      const poll = { pollName: question, pollOptions, options: { allowMultipleAnswers: multiple } }
      return { ...none, options: { poll } }
    }
    default: {
      const { type, mimeType, filename, caption } = content
      return {
        ...none,
        options: {
          sendAudioAsVoice: type === 'voice',
          sendMediaAsDocument: type === 'document',
          sendMediaAsSticker: type === 'sticker',
          ...(caption !== null && { caption, isCaptionByUser: true }),
        },
        media: { mimeType, filename },
        modules: [
          ...(type === 'sticker' ? stickerModules : mediaModules),
          ...(type === 'sticker' && mimeType !== 'image/webp' ? ['WAWebImageUtils'] : []),
        ],
      }
    }
  }
}

async function sizeOf({ path, filename }: OutgoingMedia): Promise<number> {
  const { size } = await stat(path).catch((error: unknown) => {
    throw unreadable(errorText(error))
  })
  if (size === 0) throw new EngineError('permanent', 'MEDIA_REFUSED', `${filename} is empty.`)
  return size
}

/**
 * A file input in the page that holds this file. The browser reads the bytes from the disk itself: through the connection to it they would
 * travel as one text of 4/3 the size.
 */
async function inputWith(page: Page, path: string): Promise<ElementHandle> {
  const input = await within(
    deadlines.call,
    'PAGE_UNRESPONSIVE',
    page.evaluateHandle(`Object.assign(document.createElement('input'), { type: 'file' })`),
  )
  const element = input.asElement() as ElementHandle<never> | null
  if (!element) throw new EngineError('transient', 'SEND_FAILED', 'The page makes no file inputs.')
  await within(deadlines.call, 'PAGE_UNRESPONSIVE', element.uploadFile(path))
  return element
}

const unreadable = (error: string) =>
  new EngineError('transient', 'MEDIA_UNREADABLE', `The file cannot be read: ${error}`)

/** What WhatsApp Web says when it does not take a message. */
function sendFailure(
  chatId: string,
  { failure, error }: PageFailure,
  isMedia: boolean,
): EngineError {
  switch (failure) {
    case 'vanished':
      return new EngineError('unknown', 'SEND_VANISHED', error)
    case 'MEDIA_UNREADABLE':
      return unreadable(error)
    case 'RECIPIENT_BLOCKED':
      return new EngineError('permanent', failure, `${chatId} gets nothing: ${error}.`)
    case 'KIND_UNAVAILABLE':
      return new EngineError('transient', failure, `WhatsApp Web no longer has ${error}.`)
    case 'refused':
    case 'failed':
      if (isMedia && failure === 'failed') {
        if (/upload/i.test(error)) {
          const message = `The file did not get to WhatsApp: ${error}`
          return new EngineError('transient', 'MEDIA_UPLOAD_FAILED', message)
        }
        if (/media|corrupt|decode|unsupported/i.test(error)) {
          const message = `WhatsApp Web does not take this file: ${error}`
          return new EngineError('permanent', 'MEDIA_REFUSED', message)
        }
      }
      return (
        refusedAddress(chatId, failure, error) ??
        new EngineError('transient', 'SEND_FAILED', `WhatsApp Web did not take it: ${error}`)
      )
    default:
      return actionFailure(chatId, { failure, error })
  }
}

/** What the page said to anything but a send. */
export function actionFailure(chatId: string, { failure, error }: PageFailure): EngineError {
  switch (failure) {
    case 'MODULE_MISSING':
      return new EngineError('transient', failure, `WhatsApp Web no longer has ${error}.`)
    case 'QUOTED_NOT_FOUND':
    case 'MESSAGE_NOT_FOUND':
    case 'NOT_EDITABLE':
    case 'NOT_REVOCABLE':
      return new EngineError('permanent', failure, `${error}.`)
    default:
      return (
        refusedAddress(chatId, failure, error) ??
        new EngineError('transient', 'ACTION_FAILED', `WhatsApp Web did not do it: ${error}`)
      )
  }
}

function refusedAddress(
  chatId: string,
  failure: PageFailure['failure'],
  error: string,
): EngineError | undefined {
  // Elsewhere it only means that the page has not met the number.
  if (failure === 'refused' && /No LID for user/i.test(error)) {
    return new EngineError('permanent', 'NUMBER_NOT_ON_WHATSAPP', `${chatId} is not on WhatsApp.`)
  }
  if (/invalid wid/i.test(error)) {
    return new EngineError('permanent', 'INVALID_RECIPIENT', `WhatsApp knows no address ${chatId}.`)
  }
  return undefined
}
