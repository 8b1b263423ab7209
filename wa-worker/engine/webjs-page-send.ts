/** What runs inside WhatsApp Web's page to send and to change messages; see webjs-page.ts. */
import type { MessageKey } from '../../shared/wa-id.ts'
import type { LookUpApi, PageChat, PageMessage, PageWindow, Wid } from './webjs-page.ts'

type MsgKeyClass = new (parts: object) => PageMessage['id']
export interface SendingModules {
  WAWebMsgKey: MsgKeyClass
  WAWebMsgReply: { canReplyMsg(message: PageMessage): boolean } | null | undefined
  WAWebSendReactionMsgAction: { sendReactionToMsg(message: PageMessage, emoji: string): unknown }
  WAWebMsgActionCapability: Record<
    'canEditText' | 'canEditCaption' | 'canSenderRevokeMsg' | 'canAdminRevokeMsg',
    (message: PageMessage) => boolean
  >
  WAWebCmd: {
    Cmd: { refreshQR(): void; sendRevokeMsgs(chat: PageChat, what: object, how: object): unknown }
  }
  WAWebChatStateBridge: Record<
    'sendChatStateComposing' | 'sendChatStatePaused',
    (to: Wid) => unknown
  >
  WAWebQueryExistsJob: { queryWidExists(wid: Wid): Promise<{ wid?: Wid } | null> }
  WAWebImageUtils: { toWebpSticker(file: File): Promise<Blob> }
  WAWebReachoutTimelockUtils: { isUserReachoutTimelocked?(): boolean }
}

/** A message as the page is handed it. */
export interface PageOutgoing {
  chatId: string
  keyId: string
  body: string
  /** Of the library's sendMessage. */
  options: Record<string, unknown>
  /** Attributes of the page's message that replace the library's. */
  attributes: Record<string, unknown>
  quoted: MessageKey | null
  media: { mimeType: string; filename: string } | null
  /** Modules this kind needs besides those of a text. */
  modules: string[]
}

export interface PageReceipt {
  id: { fromMe: boolean; remote: string; id: string; participant?: string }
  ack: number
  /** Only of a refused one, where the page tells. */
  errorCode?: number
  lockedUntil?: number
}

/**
 * Why the page did not do what was asked. refused: it will not. failed: it threw and did nothing. vanished: nobody can say. The others
 * are codes of their own.
 */
export interface PageFailure {
  failure:
    | 'refused'
    | 'failed'
    | 'vanished'
    | 'MODULE_MISSING'
    | 'KIND_UNAVAILABLE'
    | 'QUOTED_NOT_FOUND'
    | 'MESSAGE_NOT_FOUND'
    | 'NOT_EDITABLE'
    | 'NOT_REVOCABLE'
    | 'MEDIA_UNREADABLE'
    | 'SEND_UNDERWAY'
  error: string
}
type Done = { done: true }

export interface SendingApi {
  send(message: PageOutgoing, input: { files: File[] } | null): Promise<PageReceipt | PageFailure>
  /** The receipt of a message of ours, or null; a failure while it is being sent. */
  find(chatId: string, keyId: string): Promise<PageReceipt | PageFailure | null>
  react(target: MessageKey, emoji: string): Promise<Done | PageFailure>
  edit(target: MessageKey, body: string): Promise<Done | PageFailure>
  revoke(target: MessageKey): Promise<Done | PageFailure>
  typing(chatId: string, on: boolean): Promise<Done | PageFailure>
  seen(chatId: string): Promise<Done | PageFailure>
  /** The addresses of the number, the asked one's own first; none when it is not on WhatsApp. */
  check(waId: string): Promise<{ addresses: string[] } | PageFailure>
}

declare const window: PageWindow

/** Adds sending to window.awfar. */
export function installSending(): void {
  const awfar = window.awfar as LookUpApi & Partial<SendingApi>
  if (awfar.send) return
  /** Sends that have not settled. A second one of the same id waits for the first: two at once would go out twice. */
  const underWay = new Map<string, Promise<PageReceipt | PageFailure>>()

  const addressOf = (value: Wid | string) => (typeof value === 'string' ? value : value._serialized)

  /** Which attribute holds the reason of a refusal is not known for certain, so each that may is read. */
  const receipt = (message: PageMessage): PageReceipt => {
    const { fromMe, remote, id, participant } = message.id
    const all = message as unknown as Record<string, unknown>
    const number = (...names: string[]) =>
      names.map((name) => Number(all[name] ?? NaN)).find((value) => value > 0)
    const result: PageReceipt = {
      id: {
        fromMe,
        remote: addressOf(remote),
        id,
        ...(participant && { participant: addressOf(participant) }),
      },
      ack: message.ack,
    }
    if (message.ack >= 0) return result
    let errorCode = number('errorCode', 'ackErrorCode', 'nackReason', 'serverErrorCode')
    const lockedUntil = number('timeEnforcementEnds')
    if (errorCode === undefined && awfar.missing(['WAWebReachoutTimelockUtils']).length === 0) {
      const locks = window.require('WAWebReachoutTimelockUtils')
      if (locks.isUserReachoutTimelocked?.() === true) errorCode = 463
    }
    return {
      ...result,
      ...(errorCode !== undefined && { errorCode }),
      ...(lockedUntil !== undefined && { lockedUntil }),
    }
  }

  const missingModules = (names: string[]): PageFailure | undefined => {
    const missing = awfar.missing(names)
    if (missing.length === 0) return undefined
    return { failure: 'MODULE_MISSING', error: missing.join(', ') }
  }

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

  /** The file of the input under its own name and type; its bytes stay on the disk until WhatsApp Web reads them. */
  const fileOf = async (
    { mimeType, filename }: { mimeType: string; filename: string },
    input: { files: File[] } | null,
    sticker: boolean,
  ): Promise<File> => {
    const picked = input?.files[0]
    if (!picked) throw new Error('no file was handed over')
    await picked.slice(0, 1).arrayBuffer() // a file that cannot be read says so here
    const file = new File([picked], filename, { type: mimeType })
    if (!sticker || mimeType === 'image/webp') return file
    const webp = await window.require('WAWebImageUtils').toWebpSticker(file)
    return new File([webp], filename, { type: 'image/webp' })
  }

  const sendNow = async (
    message: PageOutgoing,
    input: { files: File[] } | null,
  ): Promise<PageReceipt | PageFailure> => {
    const { chatId, keyId, body, attributes, quoted, media, modules } = message
    const own: MessageKey = { fromMe: true, chatId, id: keyId, participant: '' }
    const known = await awfar.lookUp(own, false)
    if (known) return receipt(known)
    const missing = missingModules(modules)
    if (missing) return { ...missing, failure: 'KIND_UNAVAILABLE' }

    let chat: PageChat | null
    try {
      chat = await window.WWebJS!.getChat(chatId, { getAsModel: false })
    } catch (error) {
      return { failure: 'refused', error: awfar.text(error) }
    }
    if (!chat) return { failure: 'refused', error: 'no such chat' }

    // extraOptions is spread over the message last, so our key replaces the one the library makes up. What the
    // library answers is the message of its own key, undefined: the truth is in the collection.
    const key = keyFor(chat, keyId)
    // The chat may have an address the page had forgotten before it asked for the chat.
    const wholeId = awfar.serialized(key)
    const before = await awfar.byId(wholeId)
    if (before) return receipt(before)
    const options = { ...message.options, extraOptions: { ...attributes, id: key } } as Record<
      string,
      unknown
    >
    if (quoted) {
      let replies: SendingModules['WAWebMsgReply']
      try {
        replies = window.require('WAWebMsgReply')
      } catch {
        return { failure: 'KIND_UNAVAILABLE', error: 'WAWebMsgReply' }
      }
      const answered = await awfar.lookUp(quoted, true)
      // As the library asks, which would leave the quotation out in silence.
      const can = replies
        ? answered && replies.canReplyMsg(answered.unsafe?.() ?? answered)
        : answered?.canReply?.()
      if (!answered || !can)
        return { failure: 'QUOTED_NOT_FOUND', error: `${quoted.id} cannot be answered` }
      options['quotedMessageId'] = awfar.serialized(answered.id)
      options['ignoreQuoteErrors'] = false
    }
    if (media) {
      try {
        const file = await fileOf(media, input, options['sendMediaAsSticker'] === true)
        options['media'] = { file, mimetype: file.type, filename: media.filename }
      } catch (error) {
        return { failure: 'MEDIA_UNREADABLE', error: awfar.text(error) }
      }
      // The library would have the bytes as one base64 text; a file it takes as it is.
      window.WWebJS!.mediaInfoToFile = ({ file }) => file
    }

    const { Msg } = window.require('WAWebCollections')
    try {
      await window.WWebJS!.sendMessage(chat, body, options)
    } catch (error) {
      const added = Msg.get(wholeId)
      if (!added) return { failure: 'failed', error: awfar.text(error) }
    }
    const sent = Msg.get(wholeId) ?? (await awfar.lookUp(own, false))
    if (sent) return receipt(sent)
    return { failure: 'vanished', error: 'WhatsApp Web took the message and does not list it' }
  }

  const done: Done = { done: true }

  /** Does something to a message that must be there, with modules that must be there. */
  const actOn = async (
    target: MessageKey,
    modules: string[],
    act: (message: PageMessage) => Promise<Done | PageFailure>,
  ): Promise<Done | PageFailure> => {
    const missing = missingModules(modules)
    if (missing) return missing
    try {
      const message = await awfar.lookUp(target, true)
      if (message) return await act(message)
      return { failure: 'MESSAGE_NOT_FOUND', error: target.id }
    } catch (error) {
      return { failure: 'failed', error: awfar.text(error) }
    }
  }

  /** What a page's action answers when it did not throw and did not succeed. */
  const unlessRefused = (result: unknown): Done | PageFailure => {
    const said = (result as { messageSendResult?: unknown } | null | undefined)?.messageSendResult
    return said === undefined || said === 'OK'
      ? done
      : { failure: 'failed', error: awfar.text(said) }
  }

  const api: SendingApi = {
    async send(message, input) {
      const first = underWay.get(message.keyId)
      if (first) return first
      const sending = sendNow(message, input)
      underWay.set(message.keyId, sending)
      try {
        return await sending
      } finally {
        underWay.delete(message.keyId)
      }
    },

    async find(chatId, keyId) {
      // Asked first: a send that settles during the look-up is found by it or by the next one.
      const sending = underWay.has(keyId)
      try {
        const own = { fromMe: true, chatId, id: keyId, participant: '' }
        const message = await awfar.lookUp(own, true)
        if (message) return receipt(message)
      } catch (error) {
        return { failure: 'failed', error: awfar.text(error) }
      }
      return sending ? { failure: 'SEND_UNDERWAY', error: 'it is still being sent' } : null
    },

    react: (target, emoji) =>
      actOn(target, ['WAWebSendReactionMsgAction'], async (message) =>
        unlessRefused(
          await window.require('WAWebSendReactionMsgAction').sendReactionToMsg(message, emoji),
        ),
      ),

    edit: (target, body) =>
      actOn(target, ['WAWebMsgActionCapability', 'WAWebSendMessageEditAction'], async (message) => {
        if (message.type !== 'revoked' && (message.caption ?? message.body) === body) return done
        const can = window.require('WAWebMsgActionCapability')
        if (!target.fromMe || (!can.canEditText(message) && !can.canEditCaption(message)))
          return { failure: 'NOT_EDITABLE', error: 'WhatsApp Web does not let it be edited' }
        await window.WWebJS!.editMessage(message, body, {})
        return done
      }),

    revoke: (target) =>
      actOn(target, ['WAWebMsgActionCapability', 'WAWebCmd'], async (message) => {
        if (message.type === 'revoked') return done
        const can = window.require('WAWebMsgActionCapability')
        if (!can.canSenderRevokeMsg(message) && !can.canAdminRevokeMsg(message))
          return { failure: 'NOT_REVOCABLE', error: 'WhatsApp Web does not let it be deleted' }
        const chat = awfar.chatOf(addressOf(message.id.remote))
        if (!chat) return { failure: 'MESSAGE_NOT_FOUND', error: 'its chat is gone' }
        // As the library asks for it; before 2.3000 the arguments were others.
        const { Cmd } = window.require('WAWebCmd')
        if (window.WWebJS!.compareWwebVersions(window.Debug.VERSION, '>=', '2.3000.0')) {
          const what = { list: [message], type: 'message' }
          await Cmd.sendRevokeMsgs(chat, what, { clearMedia: true })
        } else {
          const type = target.fromMe ? 'Sender' : 'Admin'
          await Cmd.sendRevokeMsgs(chat, [message], { clearMedia: true, type })
        }
        return done
      }),

    async typing(chatId, on) {
      const missing = missingModules(['WAWebChatStateBridge'])
      if (missing) return missing
      try {
        const to = awfar.chatOf(chatId)?.id ?? window.require('WAWebWidFactory').createWid(chatId)
        const bridge = window.require('WAWebChatStateBridge')
        await (on ? bridge.sendChatStateComposing(to) : bridge.sendChatStatePaused(to))
        return done
      } catch (error) {
        return { failure: 'failed', error: awfar.text(error) }
      }
    },

    async seen(chatId) {
      const missing = missingModules(['WAWebUpdateUnreadChatAction', 'WAWebStreamModel'])
      if (missing) return missing
      try {
        const chat = awfar.chatOf(chatId)
        if (chat) await window.WWebJS!.sendSeen(chat.id._serialized)
        return done
      } catch (error) {
        return { failure: 'failed', error: awfar.text(error) }
      }
    },

    async check(waId) {
      const missing = missingModules(['WAWebQueryExistsJob'])
      if (missing) return missing
      try {
        const wid = window.require('WAWebWidFactory').createWid(waId)
        const found = await window.require('WAWebQueryExistsJob').queryWidExists(wid)
        return { addresses: found?.wid ? awfar.addressesOf(found.wid._serialized) : [] }
      } catch (error) {
        return { failure: 'failed', error: awfar.text(error) }
      }
    },
  }
  Object.assign(awfar, api)
}
