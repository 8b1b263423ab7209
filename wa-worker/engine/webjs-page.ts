/**
 * What runs inside WhatsApp Web's page, beside the library's own code: how messages are found there. The functions are sent to the page as
 * text: they must not use anything from outside themselves but window.
 */
import type { MessageKey } from '../../shared/wa-id.ts'
import type { PageContact, ReadingApi, ReadingModules } from './webjs-page-read.ts'
import type { SendingApi, SendingModules } from './webjs-page-send.ts'

export interface Wid {
  _serialized: string
  isLid?(): boolean
  isGroup?(): boolean
}
/** A message's id as the page has it. */
export interface PageKey {
  fromMe: boolean
  remote: Wid | string
  id: string
  participant?: Wid | string
  /** Until 2.3000.1042401057 (July 2026). */
  _serialized?: string
  toString(): string
}
export interface PageMessage {
  id: PageKey
  ack: number
  type?: string
  body?: string
  caption?: string
  t?: number
  isNotification?: boolean
  /** Of a revoked one: what it was known by before. Its own id may be that of its revocation. */
  protocolMessageKey?: PageKey | string
  /** The page has given up to get it out, or the latest change of it; no server need have refused it. */
  isSendFailure?: boolean
  author?: Wid | string
  from?: Wid | string
  unsafe?(): PageMessage
  canReply?(): boolean
}
export interface PageChat {
  id: Wid
  msgs?: { getModelsArray?(): PageMessage[] }
  /** Of its last message, in seconds. */
  t?: number
  name?: string
  formattedTitle?: string
  groupMetadata?: {
    isLidAddressingMode?: boolean
    subject?: string
    participants?: GroupMember[] | { getModelsArray?(): GroupMember[] }
  }
}
interface GroupMember {
  id: Wid
  isAdmin?: boolean
  isSuperAdmin?: boolean
}
interface GroupMetadata {
  update?(wid: Wid): Promise<unknown>
}
interface NewMessage {
  isNewMsg?: boolean
  type?: string
  once?(event: 'change:type', listener: (message: { type?: string }) => void): void
}
interface MsgCollection {
  get(id: string): PageMessage | undefined
  on(event: 'add', listener: (message: NewMessage) => void): void
  getMessagesById?(ids: string[]): Promise<{ messages?: PageMessage[] } | undefined>
}
interface Modules extends SendingModules, ReadingModules {
  WAWebCollections: {
    Msg: MsgCollection
    Chat: { get(wid: Wid): PageChat | undefined; getModelsArray(): PageChat[] }
    Contact?: {
      get?(wid: Wid): PageContact | undefined
      getModelsArray?(): PageContact[]
    }
    /** Whom the account has blocked. */
    Blocklist?: { get?(wid: Wid): unknown }
    GroupMetadata?: GroupMetadata
    WAWebGroupMetadataCollection?: GroupMetadata
  }
  WAWebWidFactory: {
    createWid(id: string): Wid
    asUserWidOrThrow(wid: Wid | null | undefined): Wid
  }
  WAWebUserPrefsMeUser: Record<
    'getMaybeMeLidUser' | 'getMaybeMePnUser',
    () => Wid | null | undefined
  >
  WAWebApiContact: {
    getCurrentLid?(wid: Wid): Wid | undefined
    getPhoneNumber?(wid: Wid): Wid | undefined
  }
  WAWebChatLoadMessages: { loadEarlierMsgs(of: { chat: PageChat }): Promise<unknown> }
  WAWebLaunchSocketUtils: { refreshQR(): void }
  WAWebSocketModel: {
    Socket: {
      state: string
      hasSynced: boolean
      logout(): Promise<unknown> | undefined
      on(event: string, listener: () => void): void
    }
  }
}

export interface PageWindow {
  require<K extends keyof Modules>(name: K): Modules[K]
  WWebJS?: {
    getChat(id: string, options: object): Promise<PageChat | null>
    sendMessage(chat: PageChat, content: string, options: object): Promise<unknown>
    editMessage(message: PageMessage, body: string, options: object): Promise<unknown>
    sendSeen(chatId: string): Promise<boolean>
    mediaInfoToFile(media: { file: File }): File
    processMediaData(media: object, how: object): Promise<object>
    getMessageModel: (message: PageMessage) => object
    compareWwebVersions(one: string, operator: '>=', other: string): boolean
  }
  Debug: { VERSION: string }
  AuthStore?: unknown
  onAppStateHasSyncedEvent?(): void
  awfar?: LookUpApi & SendingApi & ReadingApi
}

export interface LookUpApi {
  /** New messages the page has shown since this was installed, of the kinds the library reports at once. */
  shown: number
  /** The addresses a person or chat may be known under, the given one first: a person has a phone number and a lid. */
  addressesOf(id: string): string[]
  /** The whole of a message's id as text. */
  serialized(key: PageKey): string
  /** What a message was sent under. */
  sentAs(message: PageMessage): PageKey
  /** The open chat with this id, under any of its addresses. */
  chatOf(id: string): PageChat | undefined
  /** A message by the whole of its id: in memory or in the page's database. */
  byId(id: string): Promise<PageMessage | undefined>
  /** A message under any address of its chat and author: in memory or in the page's database; `deep` also loads earlier ones of its chat. */
  lookUp(key: MessageKey, deep: boolean): Promise<PageMessage | undefined>
  /** Those of these modules the page does not have (any more). */
  missing(names: string[]): string[]
  /** What an error says. */
  text(error: unknown): string
}

declare const window: PageWindow

/** Defines window.awfar, once a page. The other parts add to it, right after. */
export function installLookUps(): void {
  if (window.awfar) return

  const addressesOf = (id: string): string[] => {
    const addresses = [id]
    try {
      const wid = window.require('WAWebWidFactory').createWid(id)
      const kind = /@(c\.us|lid)$/.exec(wid._serialized)?.[1]
      if (kind === undefined) return addresses // a group has one address only
      const contacts = window.require('WAWebApiContact')
      // Each getter takes its own kind: asked for the other, one throws and the other reports an error to WhatsApp.
      const other = kind === 'lid' ? contacts.getPhoneNumber?.(wid) : contacts.getCurrentLid?.(wid)
      if (other && !addresses.includes(other._serialized)) addresses.push(other._serialized)
    } catch {
      // A contact the page does not know has one address only.
    }
    return addresses
  }

  /** What a key says of itself is the same in all versions of the page; the field it is kept in is not. */
  const serialized = (key: PageKey): string => {
    const text = key._serialized ?? String(key)
    if (text.includes(key.id)) return text
    const parts = [key.fromMe, key.remote, key.id, key.participant]
    return parts
      .flatMap((part) => (typeof part === 'object' ? part._serialized : (part ?? [])))
      .join('_')
  }

  const sentAs = ({ type, id, protocolMessageKey: before }: PageMessage): PageKey => {
    if (type !== 'revoked' || before === undefined) return id
    if (typeof before !== 'string') return before
    // In all of its parts but one it is as it was.
    const { fromMe, remote, participant } = id
    const bare = before.split('_')[2] ?? id.id
    return { fromMe, remote, id: bare, ...(participant && { participant }), toString: () => before }
  }

  /** The library's own code reads the field: without it, a vote is lost on the way to its poll, for one. */
  const restoreSerialized = () => {
    try {
      const MsgKey = window.require('WAWebMsgKey')
      const wid = window.require('WAWebWidFactory').createWid('1@c.us')
      if (new MsgKey({ from: wid, to: wid, id: 'A', selfDir: 'out' })._serialized) return
      Object.defineProperty(MsgKey.prototype, '_serialized', {
        configurable: true,
        get() {
          return String(this)
        },
      })
    } catch {
      // What is asked for here does without it.
    }
  }

  const chatsOf = (id: string): PageChat[] => {
    const { Chat } = window.require('WAWebCollections')
    const wids = window.require('WAWebWidFactory')
    try {
      return addressesOf(id).flatMap((address) => Chat.get(wids.createWid(address)) ?? [])
    } catch {
      return [] // no such form of an address: whoever sends there is told so
    }
  }

  /** Who may stand in the serialized id behind the message's own: nobody outside a group. */
  const authorsOf = ({ fromMe, chatId, participant }: MessageKey): string[] => {
    if (!chatId.endsWith('@g.us')) return ['']
    if (!fromMe) return ['', ...(participant ? addressesOf(participant) : [])]
    const me = window.require('WAWebUserPrefsMeUser')
    return [
      '',
      ...[me.getMaybeMePnUser(), me.getMaybeMeLidUser()].flatMap((wid) => wid?._serialized ?? []),
    ]
  }

  /**
   * What the page's database has under an id: there a message is after a restart. `unsaid` where the page throws, which it may also do for a message it
   * does not have. The library asks for one at a time, and so do we.
   */
  const stored = async (id: string): Promise<PageMessage | 'unsaid' | undefined> => {
    try {
      const found = await window.require('WAWebCollections').Msg.getMessagesById?.([id])
      return found?.messages?.find((message) => message)
    } catch {
      return 'unsaid'
    }
  }

  const byId = async (id: string): Promise<PageMessage | undefined> => {
    const message = window.require('WAWebCollections').Msg.get(id) ?? (await stored(id))
    return message === 'unsaid' ? undefined : message
  }

  const lookUp = async (key: MessageKey, deep: boolean): Promise<PageMessage | undefined> => {
    const { Msg } = window.require('WAWebCollections')
    const inChat = (chat: PageChat) =>
      chat.msgs?.getModelsArray?.().find((message) => {
        const { fromMe, id } = sentAs(message)
        return fromMe === key.fromMe && id === key.id
      })
    const ids = addressesOf(key.chatId).flatMap((address) =>
      authorsOf(key).map((author) => `${key.fromMe}_${address}_${key.id}${author && `_${author}`}`),
    )
    for (const id of ids) {
      const message = Msg.get(id)
      if (message) return message
    }
    const chats = chatsOf(key.chatId)
    for (const chat of chats) {
      const message = inChat(chat)
      if (message) return message
    }
    let sure = true
    for (const id of ids) {
      const message = await stored(id)
      if (message === 'unsaid') sure = false
      else if (message) return message
    }
    if (!deep || (sure && api.missing(['WAWebChatLoadMessages']).length > 0)) return undefined
    for (const chat of chats) {
      await window.require('WAWebChatLoadMessages').loadEarlierMsgs({ chat })
      const message = inChat(chat)
      if (message) return message
    }
    return undefined
  }

  const api: LookUpApi = {
    shown: 0,
    addressesOf,
    serialized,
    sentAs,
    chatOf: (id) => chatsOf(id)[0],
    byId,
    lookUp,
    missing: (names) =>
      names.filter((name) => {
        try {
          return !(window.require as (name: string) => unknown)(name)
        } catch {
          return true
        }
      }),
    text: (error) => {
      const message = (error as { message?: unknown } | null)?.message
      return typeof message === 'string' ? message : String(error)
    },
  }
  window.awfar = api as NonNullable<PageWindow['awfar']>
  restoreSerialized()

  window.require('WAWebCollections').Msg.on('add', (message) => {
    if (!message.isNewMsg || message.type === 'gp2') return
    if (message.type !== 'ciphertext') api.shown += 1
    // The library tells of it twice: as a placeholder at once, and as what it turns out to be.
    else message.once?.('change:type', ({ type }) => (api.shown += type === 'revoked' ? 0 : 1))
  })
}

/**
 * Unlinks the device. WhatsApp Web answers at once and has only begun: a browser that is closed then leaves the device linked. It has
 * told WhatsApp, or given that up, when it forgets that it was synced; next it loads itself anew, which may end this call.
 */
export async function logOut(): Promise<void> {
  const { Socket } = window.require('WAWebSocketModel')
  const forgotten = new Promise<void>((resolve) => {
    const onChange = () => {
      if (!Socket.hasSynced || Socket.state.startsWith('UNPAIRED')) resolve()
    }
    // One by one: the library, too, names no two events at once.
    for (const event of ['change:hasSynced', 'change:state']) Socket.on(event, onChange)
  })
  // An answer, where there is one to wait for, is the end of it.
  await (Socket.logout() ?? forgotten)
}

/** Tells of a page that asks the browser for a passkey. Runs before the page's own scripts. */
export function reportPasskeys(): void {
  const page = globalThis as unknown as {
    awfarPasskeyAsked?(): void
    navigator?: { credentials?: Record<'get' | 'create', (options?: object) => Promise<unknown>> }
  }
  const credentials = page.navigator?.credentials
  if (!credentials) return
  for (const name of ['get', 'create'] as const) {
    const ask = credentials[name].bind(credentials)
    credentials[name] = (options) => {
      if (options && 'publicKey' in options) page.awfarPasskeyAsked?.()
      return ask(options)
    }
  }
}

/** Modules of the page the library needs to start: one that is gone explains a start that fails. */
export const startModules = [
  'WAWebSocketModel',
  'WAWebCmd',
  'WAWebConnModel',
  'WAWebOfflineHandler',
  'WAWebAltDeviceLinkingApi',
  'WABase64',
  'WAWebCompanionRegClientUtils',
  'WAWebAdvSignatureApi',
  'WAWebUserPrefsInfoStore',
  'WAWebSignalStoreApi',
  'WAWebUserPrefsMultiDevice',
  'WAWebUserPrefsMeUser',
  'WAWebCollections',
  'WAWebSyncGatingUtils',
  'WAWebCallCollection',
]

/**
 * Modules it needs only when a text is sent: one that is gone would let the session look well until then. What other kinds need besides is
 * asked for when one is sent.
 */
export const sendModules = [
  'WAWebMsgKey',
  'WAWebWidFactory',
  'WAWebUserPrefsMeUser',
  'WAWebChatGetters',
  'WALinkify',
  'WAWebFindChatAction',
  'WAWebGetEphemeralFieldsMsgActionsUtils',
  'WAWebSendMsgChatAction',
]

/** Those of these modules the page does not have (any more). Asked also before anything is installed. */
export function missingModules(names: string[]): string[] {
  return names.filter((name) => {
    try {
      return !(window.require as (name: string) => unknown)(name)
    } catch {
      return true
    }
  })
}
