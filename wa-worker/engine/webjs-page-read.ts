/** What runs inside WhatsApp Web's page to read messages, media, chats and people; see webjs-page.ts. */
import type { MessageKey } from '../../shared/wa-id.ts'
import type { MessageModel } from './webjs-messages.ts'
import type { LookUpApi, PageChat, PageMessage, PageWindow, Wid } from './webjs-page.ts'
import type { PageFailure } from './webjs-page-send.ts'

export interface PageContact {
  id: Wid
  name?: string
  pushname?: string
  isBusiness?: boolean
}
interface MediaMessage extends PageMessage {
  directPath?: string
  encFilehash?: string
  filehash?: string
  mediaKey?: string
  mediaKeyTimestamp?: number
  mimetype?: string
  mediaData?: { mediaStage?: string }
  downloadMedia?(options: object): Promise<unknown>
}
interface Download extends Pick<
  MediaMessage,
  'directPath' | 'encFilehash' | 'filehash' | 'mediaKey' | 'mediaKeyTimestamp' | 'mimetype' | 'type'
> {
  signal: AbortSignal
  downloadQpl: object
}
export interface ReadingModules {
  WAWebDownloadManager: {
    downloadManager: { downloadAndMaybeDecrypt(download: Download): Promise<ArrayBuffer> }
  }
  WAWebLidMigrationUtils: { toPn?(wid: Wid): Wid | undefined }
  WAWebContactGetters: Record<
    'getName' | 'getPushname',
    (contact: PageContact) => string | undefined
  >
  WAWebQuotedMsgModelUtils: { getQuotedMsgObj(message: PageMessage): PageMessage | undefined }
}

export interface PageChatInfo {
  name: string | null
  isGroup: boolean
  participants: { id: string; isAdmin: boolean }[]
}

export interface PagePerson {
  addresses: string[]
  name: string | null
  pushName: string | null
  isBusiness: boolean
}

export interface ReadingApi {
  /** Fetches the media of a message into the page's memory, where it stays until it is released. */
  fetchMedia(key: MessageKey, ms: number): Promise<{ size: number } | 'expired' | PageFailure>
  /** A part of it, as base64. */
  mediaPart(id: string, from: number, to: number): Promise<string>
  releaseMedia(id: string): void
  chatInfo(chatId: string): Promise<PageChatInfo | PageFailure | null>
  /** Addresses and names of a person; asks WhatsApp when only one address is known. */
  contactInfo(waId: string): Promise<PagePerson | PageFailure | null>
  /** The same of many, as far as the page knows by itself. */
  peopleInfo(waIds: string[]): (PagePerson & { asked: string })[]
  /** Chats with something new since then (seconds), newest first. */
  activeChats(since: number): { chatId: string; name: string | null; isGroup: boolean }[]
  /** The messages of a chat since then, oldest first, and whether none of them is missing. Stops at its time. */
  history(
    chatId: string,
    since: number,
    limit: number,
    ms: number,
  ): Promise<{ name: string | null; messages: MessageModel[]; complete: boolean } | PageFailure>
}

declare const window: PageWindow

/** Adds reading to window.awfar. */
export function installReading(): void {
  const awfar = window.awfar as LookUpApi & Partial<ReadingApi>
  if (awfar.fetchMedia) return
  const fetched = new Map<string, Blob>()

  const failed = (error: unknown): PageFailure => ({ failure: 'failed', error: awfar.text(error) })

  const nameOf = (chat: PageChat): string | null =>
    chat.groupMetadata?.subject ?? chat.name ?? chat.formattedTitle ?? null

  const fetchMedia: ReadingApi['fetchMedia'] = async (key, ms) => {
    const missing = awfar.missing(['WAWebDownloadManager'])
    if (missing.length > 0) return { failure: 'MODULE_MISSING', error: missing.join(', ') }
    const abort = new AbortController()
    const timer = setTimeout(() => abort.abort(), ms)
    try {
      const message = (await awfar.lookUp(key, true)) as MediaMessage | undefined
      if (!message) return { failure: 'MESSAGE_NOT_FOUND', error: key.id }
      const { mediaData } = message
      if (!mediaData || !message.directPath) return 'expired'
      // The phone is asked for it again; it may come.
      if (mediaData.mediaStage === 'REUPLOADING') return failed('the phone is uploading it again')
      if (mediaData.mediaStage !== 'RESOLVED') {
        await message.downloadMedia?.({ downloadEvenIfExpensive: true, rmrReason: 1 })
      }
      const stage = String(mediaData.mediaStage)
      if (/MISSING|NEED_REUPLOAD|EXPIRED/.test(stage)) return 'expired'
      if (stage.includes('ERROR') || stage === 'FETCHING') return failed(`stage ${stage}`)
      const { directPath, encFilehash, filehash, mediaKey, mediaKeyTimestamp } = message
      // The library leaves out the kind of file; since September 2026 WhatsApp Web fetches none without.
      const { mimetype, type } = message
      const qpl: Record<string, () => object> = { addAnnotations: () => qpl, addPoint: () => qpl }
      const bytes = await window
        .require('WAWebDownloadManager')
        .downloadManager.downloadAndMaybeDecrypt({
          ...{ directPath, encFilehash, filehash, mediaKey, mediaKeyTimestamp, mimetype, type },
          signal: abort.signal,
          downloadQpl: qpl,
        } as Download)
      const blob = new Blob([bytes])
      fetched.set(key.id, blob)
      return { size: blob.size }
    } catch (error) {
      const status = (error as { status?: unknown } | null)?.status
      return status === 404 || status === 410 ? 'expired' : failed(error)
    } finally {
      clearTimeout(timer)
    }
  }

  const personOf = (waId: string): PagePerson => {
    const wids = window.require('WAWebWidFactory')
    const addresses = awfar.addressesOf(waId)
    const { Contact } = window.require('WAWebCollections')
    const known = Contact?.get
      ? addresses.flatMap((address) => Contact.get!(wids.createWid(address)) ?? [])
      : (Contact?.getModelsArray?.() ?? []).filter(({ id }) => addresses.includes(id._serialized))
    // As the library reads them; the attributes are where they were before.
    const getters = awfar.missing(['WAWebContactGetters']).length === 0
    const { getName, getPushname } = getters ? window.require('WAWebContactGetters') : {}
    const first = (names: (string | undefined)[]) => names.find((name) => name) ?? null
    return {
      addresses,
      name: first(known.map((one) => getName?.(one) ?? one.name)),
      pushName: first(known.map((one) => getPushname?.(one) ?? one.pushname)),
      isBusiness: known.some(({ isBusiness }) => isBusiness === true),
    }
  }

  const api: ReadingApi = {
    fetchMedia,

    async mediaPart(id, from, to) {
      const bytes = new Uint8Array(await fetched.get(id)!.slice(from, to).arrayBuffer())
      let binary = ''
      for (let at = 0; at < bytes.length; at += 0x8000) {
        binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000))
      }
      return btoa(binary)
    },

    releaseMedia: (id) => void fetched.delete(id),

    async chatInfo(chatId) {
      try {
        const chat = awfar.chatOf(chatId)
        if (!chat) return null
        if (chat.id.isGroup?.() !== true) {
          return { name: nameOf(chat), isGroup: false, participants: [] }
        }
        const collections = window.require('WAWebCollections')
        const groups = collections.GroupMetadata ?? collections.WAWebGroupMetadataCollection
        try {
          await groups?.update?.(chat.id)
        } catch {
          // Who is no longer in a group may not ask about it: what the page knows of it is all there is.
        }
        const hasPn = awfar.missing(['WAWebLidMigrationUtils']).length === 0
        const pnOf = (wid: Wid) =>
          (hasPn && window.require('WAWebLidMigrationUtils').toPn?.(wid)) || wid
        const { participants = [] } = chat.groupMetadata ?? {}
        const members = Array.isArray(participants)
          ? participants
          : (participants.getModelsArray?.() ?? [])
        return {
          name: nameOf(chat),
          isGroup: true,
          participants: members.map(({ id, isAdmin, isSuperAdmin }) => ({
            id: pnOf(id)._serialized,
            isAdmin: isAdmin === true || isSuperAdmin === true,
          })),
        }
      } catch (error) {
        return failed(error)
      }
    },

    async contactInfo(waId) {
      try {
        const wids = window.require('WAWebWidFactory')
        const asked = wids.createWid(waId)
        if (awfar.addressesOf(waId).length === 1) {
          // Only WhatsApp knows the other address; it may not know this one either.
          const found = await window.require('WAWebQueryExistsJob').queryWidExists(asked)
          if (!found?.wid && !window.require('WAWebCollections').Contact?.get?.(asked)) return null
        }
        return personOf(waId)
      } catch (error) {
        return failed(error)
      }
    },

    peopleInfo(waIds) {
      return waIds.flatMap((asked) => {
        try {
          return { asked, ...personOf(asked) }
        } catch {
          return [] // no address of a person
        }
      })
    },

    activeChats(since) {
      const { Chat } = window.require('WAWebCollections')
      const last = ({ t, msgs }: PageChat) =>
        t ?? Math.max(0, ...(msgs?.getModelsArray?.() ?? []).map((message) => message.t ?? 0))
      return Chat.getModelsArray()
        .filter(({ id }) => /@(c\.us|lid|g\.us)$/.test(id._serialized))
        .map((chat) => ({ chat, t: last(chat) }))
        .filter(({ t }) => t >= since)
        .sort((a, b) => b.t - a.t)
        .map(({ chat }) => ({
          chatId: chat.id._serialized,
          name: nameOf(chat),
          isGroup: chat.id.isGroup?.() === true,
        }))
    },

    async history(chatId, since, limit, ms) {
      const end = Date.now() + ms
      try {
        const chat = awfar.chatOf(chatId)
        if (!chat) return { name: null, messages: [], complete: true }
        const loaded = () =>
          [...(chat.msgs?.getModelsArray?.() ?? [])]
            .filter(({ isNotification }) => isNotification !== true)
            .sort((a, b) => (a.t ?? 0) - (b.t ?? 0))
        let older = true
        let beginning = false
        const canLoad = awfar.missing(['WAWebChatLoadMessages']).length === 0
        // Loading may never end by itself, so there are three ends to it.
        while (older && !beginning && Date.now() < end) {
          const messages = loaded()
          if ((messages[0]?.t ?? Infinity) < since) older = false
          else if (!canLoad || messages.filter(({ t }) => (t ?? 0) >= since).length >= limit) break
          else {
            const got = await Promise.race([
              window.require('WAWebChatLoadMessages').loadEarlierMsgs({ chat }),
              new Promise<'late'>((resolve) => setTimeout(() => resolve('late'), end - Date.now())),
            ])
            if (got === 'late') break
            beginning = !Array.isArray(got) || got.length === 0
          }
        }
        const news = loaded().filter(({ t }) => (t ?? 0) >= since)
        return {
          name: nameOf(chat),
          messages: news
            .slice(-limit)
            .map(
              (one) =>
                JSON.parse(JSON.stringify(window.WWebJS!.getMessageModel(one))) as MessageModel,
            ),
          complete: (!older || beginning) && news.length <= limit,
        }
      } catch (error) {
        return failed(error)
      }
    },
  }
  Object.assign(awfar, api)

  // What a message answers is an attribute of it, or known to a module only.
  const library = window.WWebJS!
  const modelOf = library.getMessageModel
  const serialized = (wid: Wid | string | null | undefined) =>
    (typeof wid === 'string' ? wid : wid?._serialized) ?? null
  const quotationOf = (message: PageMessage) => {
    const quoted = window.require('WAWebQuotedMsgModelUtils').getQuotedMsgObj(message)
    if (!quoted) return {}
    const { getMaybeMePnUser, getMaybeMeLidUser } = window.require('WAWebUserPrefsMeUser')
    const author = quoted.id.fromMe
      ? (getMaybeMePnUser() ?? getMaybeMeLidUser())
      : (quoted.author ?? quoted.from)
    return { quotedStanzaID: quoted.id.id, quotedParticipant: serialized(author) }
  }
  library.getMessageModel = (message) => {
    const model = modelOf(message) as MessageModel
    if (!model.quotedMsg || model.quotedStanzaID) return model
    try {
      return { ...model, ...quotationOf(message) }
    } catch {
      return model // the message itself is worth more than what it answers
    }
  }
}
