import { open } from 'node:fs/promises'
import type { Page } from 'puppeteer'
import { EngineError } from './engine.ts'
import { isGroup } from '../../shared/wa-id.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import type { Acquaintance, ChatInfo, ContactInfo, Recent, RecentChat } from './engine.ts'
import { deadlines, within } from './webjs-call.ts'
import { addressOf, incomingMessage, nameOf } from './webjs-messages.ts'
import { actionFailure } from './webjs-outgoing.ts'
import type { PageWindow } from './webjs-page.ts'
import type { PagePerson } from './webjs-page-read.ts'

declare const window: PageWindow

const fetchMs = 120_000
const historyMs = 20_000
/** Bytes that cross from the browser at once: what a part costs in memory, several times over. */
const partBytes = 3 * 1024 * 1024

/** Writes the media of a message into a file, part by part. */
export async function download(
  page: Page,
  key: MessageKey,
  path: string,
): Promise<{ size: number } | 'expired'> {
  const fetched = await within(
    fetchMs + deadlines.call,
    'DOWNLOAD_TIMEOUT',
    page.evaluate((message, ms) => window.awfar!.fetchMedia(message, ms), key, fetchMs),
  )
  if (fetched === 'expired') return fetched
  if ('failure' in fetched) {
    if (fetched.failure !== 'failed') throw actionFailure(key.chatId, fetched)
    const message = `The media did not come: ${fetched.error}`
    throw new EngineError('transient', 'DOWNLOAD_FAILED', message)
  }
  const file = await open(path, 'w')
  try {
    for (let from = 0; from < fetched.size; from += partBytes) {
      const part = await within(
        deadlines.send,
        'DOWNLOAD_TIMEOUT',
        page.evaluate(
          (id, start, end) => window.awfar!.mediaPart(id, start, end),
          key.id,
          from,
          from + partBytes,
        ),
      )
      await file.write(Buffer.from(part, 'base64'))
    }
  } finally {
    await file.close()
    page.evaluate((id) => window.awfar?.releaseMedia(id), key.id).catch(() => {})
  }
  return { size: fetched.size }
}

export async function readChat(page: Page, chatId: string): Promise<ChatInfo | null> {
  const chat = await within(
    deadlines.call,
    'READ_TIMEOUT',
    page.evaluate((id) => window.awfar!.chatInfo(id), chatId),
  )
  if (chat === null) return null
  if ('failure' in chat) throw actionFailure(chatId, chat)
  const participants = chat.participants.flatMap(({ id, isAdmin }) => {
    const waId = addressOf(id)
    return waId === undefined ? [] : { waId, isAdmin }
  })
  return { name: nameOf(chat.name), isGroup: chat.isGroup, participants }
}

export async function readContact(page: Page, waId: string): Promise<ContactInfo | null> {
  const contact = await within(
    deadlines.call,
    'READ_TIMEOUT',
    page.evaluate((id) => window.awfar!.contactInfo(id), waId),
  )
  if (contact === null) return null
  if ('failure' in contact) throw actionFailure(waId, contact)
  return infoOf(waId, contact)
}

export async function readPeople(page: Page, waIds: string[]): Promise<Acquaintance[]> {
  if (waIds.length === 0) return []
  const people = await within(
    deadlines.call,
    'READ_TIMEOUT',
    page.evaluate((ids) => window.awfar!.peopleInfo(ids), waIds),
  )
  return people.map(({ asked, ...person }) => ({ asked, ...infoOf(asked, person) }))
}

function infoOf(waId: string, contact: PagePerson): ContactInfo {
  const addresses = contact.addresses.flatMap((address) => addressOf(address) ?? [])
  const pn = addresses.find((address) => address.endsWith('@c.us'))
  const lid = addresses.find((address) => address.endsWith('@lid')) ?? null
  return {
    waId: pn ?? waId,
    lid,
    phone: pn === undefined ? null : `+${pn.slice(0, -5)}`,
    name: nameOf(contact.name),
    pushName: nameOf(contact.pushName),
    isBusiness: contact.isBusiness,
  }
}

export async function readRecent(
  page: Page,
  options: { sinceSeconds: number; limitPerChat: number; maxChats: number },
  me: string[],
): Promise<Recent> {
  const { sinceSeconds, limitPerChat: limit, maxChats } = options
  const active = await readActive(page, sinceSeconds)
  const chats: RecentChat[] = []
  for (const chat of active.slice(0, maxChats)) {
    const read = await readHistory(page, chat.chatId, { sinceSeconds, limit }, me)
    chats.push({ ...read, name: chat.name })
  }
  return { chats, truncated: active.length > maxChats }
}

export async function readActive(
  page: Page,
  sinceSeconds: number,
): Promise<Omit<RecentChat, 'messages' | 'complete'>[]> {
  const active = await within(
    deadlines.call,
    'READ_TIMEOUT',
    page.evaluate((since) => window.awfar!.activeChats(since), sinceSeconds),
  )
  return active.map((chat) => ({ ...chat, name: nameOf(chat.name) }))
}

export async function readHistory(
  page: Page,
  chatId: string,
  { sinceSeconds, limit }: { sinceSeconds: number; limit: number },
  me: string[],
): Promise<RecentChat> {
  const history = await within(
    historyMs + deadlines.call,
    'READ_TIMEOUT',
    page.evaluate(
      (id, since, most, ms) => window.awfar!.history(id, since, most, ms),
      chatId,
      sinceSeconds,
      limit,
      historyMs,
    ),
  )
  if ('failure' in history) throw actionFailure(chatId, history)
  const messages = history.messages.flatMap((model) => incomingMessage(model, me) ?? [])
  const { complete } = history
  return { chatId, name: nameOf(history.name), isGroup: isGroup(chatId), messages, complete }
}
