/**
 * What runs inside WhatsApp Web's page, beside the library's own code. The function is sent to the page as text: it must not use anything
 * from outside itself.
 */

interface PageMessage {
  id: { _serialized: string; id: string; fromMe: boolean }
  ack: number
}
interface Wid {
  _serialized: string
  isLid?(): boolean
  isGroup?(): boolean
}
interface PageChat {
  id: Wid
  msgs?: { getModelsArray?(): PageMessage[] }
  groupMetadata?: { isLidAddressingMode?: boolean }
}
interface MsgCollection {
  get(id: string): PageMessage | undefined
  on(event: 'add', listener: (message: { isNewMsg?: boolean; type?: string }) => void): void
  getMessagesById?(ids: string[]): Promise<{ messages?: PageMessage[] } | undefined>
}
type MsgKeyClass = new (parts: object) => { _serialized: string }
interface Modules {
  WAWebCollections: { Msg: MsgCollection; Chat: { get(wid: Wid): PageChat | undefined } }
  WAWebMsgKey: MsgKeyClass
  WAWebWidFactory: { createWid(id: string): Wid; asUserWidOrThrow(wid: Wid | null): Wid }
  WAWebUserPrefsMeUser: { getMaybeMeLidUser(): Wid | null; getMaybeMePnUser(): Wid | null }
  WAWebApiContact: {
    getCurrentLid?(wid: Wid): Wid | undefined
    getPhoneNumber?(wid: Wid): Wid | undefined
  }
  WAWebChatLoadMessages: { loadEarlierMsgs(of: { chat: PageChat }): Promise<unknown> }
  WAWebSocketModel: { Socket: { state: string; hasSynced: boolean } }
  WAWebCmd: { Cmd: { refreshQR(): void } }
}

export interface PageWindow {
  require<K extends keyof Modules>(name: K): Modules[K]
  WWebJS?: {
    getChat(id: string, options: object): Promise<PageChat | null>
    sendMessage(chat: PageChat, content: string, options: object): Promise<unknown>
  }
  AuthStore?: unknown
  onAppStateHasSyncedEvent?(): void
  awfar?: PageApi
}

/** sent: WhatsApp Web has it. refused: it never will. failed: it has not, a later try may work. vanished: nobody can say. */
export type SendOutcome =
  | { outcome: 'sent'; waMessageId: string; ack: number }
  | { outcome: 'refused' | 'failed' | 'vanished'; error: string }

export interface PageApi {
  /** New messages the page has shown since this was installed, of the kinds the library reports at once. */
  shown: number
  find(chatId: string, keyId: string): Promise<{ waMessageId: string; ack: number } | null>
  send(chatId: string, body: string, keyId: string): Promise<SendOutcome>
}

declare const window: PageWindow

/** Defines window.awfar, once a page. */
export function installPageApi(): void {
  if (window.awfar) return

  const text = (error: unknown): string => {
    const message = (error as { message?: unknown } | null)?.message
    return typeof message === 'string' ? message : String(error)
  }

  /** The addresses a chat may be known under: a person has a phone number and a lid. */
  const addressesOf = (chatId: string): string[] => {
    const addresses = [chatId]
    try {
      const wid = window.require('WAWebWidFactory').createWid(chatId)
      const contacts = window.require('WAWebApiContact')
      for (const other of [contacts.getCurrentLid?.(wid), contacts.getPhoneNumber?.(wid)]) {
        if (other) addresses.push(other._serialized)
      }
    } catch {
      // A contact the page does not know has one address only.
    }
    return addresses
  }

  const inChat = (chat: PageChat | undefined, keyId: string): PageMessage | undefined =>
    chat?.msgs?.getModelsArray?.().find(({ id }) => id.fromMe && id.id === keyId)

  const lookUp = async (chatId: string, keyId: string, deep: boolean) => {
    const { Msg, Chat } = window.require('WAWebCollections')
    const addresses = addressesOf(chatId)
    const ids = addresses.map((address) => `true_${address}_${keyId}`)
    for (const id of ids) {
      const message = Msg.get(id)
      if (message) return message
    }
    const chats = addresses.map((address) =>
      Chat.get(window.require('WAWebWidFactory').createWid(address)),
    )
    for (const chat of chats) {
      const message = inChat(chat, keyId)
      if (message) return message
    }
    // Not in memory, but perhaps in the page's database: so it is after a restart.
    const stored = (await Msg.getMessagesById?.(ids))?.messages?.find((message) => message)
    if (stored || !deep) return stored
    for (const chat of chats) {
      if (!chat) continue
      await window.require('WAWebChatLoadMessages').loadEarlierMsgs({ chat })
      const message = inChat(chat, keyId)
      if (message) return message
    }
    return undefined
  }

  const receipt = ({ id, ack }: PageMessage) => ({ waMessageId: id._serialized, ack })

  /** A key as the library makes one, but with our id. */
  const keyFor = (chat: PageChat, keyId: string) => {
    const me = window.require('WAWebUserPrefsMeUser')
    const group = chat.id.isGroup?.() === true
    const byLid = group
      ? chat.groupMetadata?.isLidAddressingMode === true
      : chat.id.isLid?.() === true
    const from = byLid ? me.getMaybeMeLidUser() : me.getMaybeMePnUser()
    const participant = group ? window.require('WAWebWidFactory').asUserWidOrThrow(from) : undefined
    const MsgKey = window.require('WAWebMsgKey')
    return new MsgKey({ from, to: chat.id, id: keyId, participant, selfDir: 'out' })
  }

  window.awfar = {
    shown: 0,

    async find(chatId, keyId) {
      const message = await lookUp(chatId, keyId, true)
      return message ? receipt(message) : null
    },

    async send(chatId, body, keyId) {
      const known = await lookUp(chatId, keyId, false)
      if (known) return { outcome: 'sent', ...receipt(known) }

      let chat: PageChat | null
      try {
        chat = await window.WWebJS!.getChat(chatId, { getAsModel: false })
      } catch (error) {
        return { outcome: 'refused', error: text(error) }
      }
      if (!chat) return { outcome: 'refused', error: 'no such chat' }

      const key = keyFor(chat, keyId)
      const { Msg } = window.require('WAWebCollections')
      try {
        // extraOptions is spread over the message last, so our key replaces the one the library makes up. What the
        // library answers is the message of its own key, undefined: the truth is in the collection.
        await window.WWebJS!.sendMessage(chat, body, {
          mentionedJidList: [],
          extraOptions: { id: key },
        })
      } catch (error) {
        const added = Msg.get(key._serialized)
        if (!added) return { outcome: 'failed', error: text(error) }
      }
      const sent = Msg.get(key._serialized) ?? (await lookUp(chatId, keyId, false))
      if (sent) return { outcome: 'sent', ...receipt(sent) }
      return { outcome: 'vanished', error: 'WhatsApp Web took the message and does not list it' }
    },
  }

  window.require('WAWebCollections').Msg.on('add', ({ isNewMsg, type }) => {
    if (isNewMsg && type !== 'ciphertext' && type !== 'gp2') window.awfar!.shown += 1
  })
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

/** Modules it needs only when a text is sent: one that is gone would let the session look well until then. */
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

/** Those of these modules the page does not have (any more). */
export function missingModules(names: string[]): string[] {
  return names.filter((name) => {
    try {
      return !(window.require as (name: string) => unknown)(name)
    } catch {
      return true
    }
  })
}
