/** What runs inside WhatsApp Web's page to send and to change messages; see webjs-page.ts. */
import type { MessageKey } from '../../shared/wa-id.ts'
import type { LookUpApi, PageChat, PageKey, PageMessage, PageWindow, Wid } from './webjs-page.ts'

type MsgKeyClass = new (parts: object) => PageMessage['id']
export interface SendingModules {
  WAWebMsgKey: MsgKeyClass
  WAWebSendMsgChatAction: {
    /** Answers two promises: it is in the chat; what became of it. */
    addAndSendMsgToChat(chat: PageChat, message: { id: PageKey }, ...more: unknown[]): unknown
    resendMsgToChat?(chat: PageChat, message: Promise<PageMessage>): Promise<unknown>
  }
  WAWebMsgReply: { canReplyMsg(message: PageMessage): boolean } | null | undefined
  WAWebSendReactionMsgAction: { sendReactionToMsg(message: PageMessage, emoji: string): unknown }
  WAWebMsgActionCapability: Record<
    'canEditText' | 'canEditCaption' | 'canSenderRevokeMsg' | 'canAdminRevokeMsg',
    (message: PageMessage) => boolean
  >
  WAWebCmd: {
    Cmd: {
      refreshQR?(): void
      sendRevokeMsgs(chat: PageChat, what: object, how: object): unknown
    }
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
    | 'RECIPIENT_BLOCKED'
  error: string
}
type Done = { done: true }

export interface SendingApi {
  send(message: PageOutgoing, input: { files: File[] } | null): Promise<PageReceipt | PageFailure>
  /** The receipt of a message of ours, or null where there is none or the page has given it up; a failure while it is being sent. */
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

  /** Whoever asks for a deletion waits for ten seconds. */
  const revokeMs = 7_000
  /** What the page gives up it gives up at once, as a rule; of the rest a later look-up tells. */
  const settleMs = 1_000
  const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))

  const addressOf = (value: Wid | string) => (typeof value === 'string' ? value : value._serialized)

  /** Which attribute holds the reason of a refusal is not known for certain, so each that may is read. */
  const receipt = (message: PageMessage): PageReceipt => {
    const { fromMe, remote, id, participant } = awfar.sentAs(message)
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

  /** What becomes of messages that are in their chats; of those only that are being sent here. The library does not ask. */
  const outcomes = new Map<string, Promise<unknown> | undefined>()
  const watched = new WeakSet<object>()
  const watchOutcomes = () => {
    try {
      const action = window.require('WAWebSendMsgChatAction')
      if (watched.has(action)) return
      watched.add(action)
      const add = action.addAndSendMsgToChat.bind(action)
      action.addAndSendMsgToChat = (chat, message, ...more) => {
        const both = add(chat, message, ...more)
        const id = awfar.serialized(message.id)
        if (outcomes.has(id) && Array.isArray(both)) {
          const outcome = Promise.resolve(both[1])
          outcome.catch(() => {}) // it is asked for later, and not at all where the message does not get into its chat
          outcomes.set(id, outcome)
        }
        return both
      }
    } catch {
      // What becomes of them is in the message, too, if later.
    }
  }

  /** No server has refused it and none will have it: it is not on its way. */
  const isGivenUp = ({ ack, isSendFailure }: PageMessage) => ack === 0 && isSendFailure === true

  const blocked: PageFailure = {
    failure: 'RECIPIENT_BLOCKED',
    error: 'this account has blocked the recipient',
  }

  /** How a message that is in its chat does in its first moments. */
  const settled = async (
    message: PageMessage,
    outcome: Promise<unknown> | undefined,
  ): Promise<PageReceipt | PageFailure> => {
    let isOver = false
    let refusal = ''
    const over = outcome?.then(
      () => void (isOver = true),
      (error: unknown) => {
        isOver = true
        refusal = awfar.text(error)
      },
    )
    const end = Date.now() + settleMs
    while (!isOver && message.ack === 0 && !message.isSendFailure && Date.now() < end)
      await Promise.race([pause(20), ...(over ? [over] : [])])
    if (message.ack === 0 && /blocked/i.test(refusal)) return blocked
    return isGivenUp(message) ? { failure: 'failed', error: 'it was given up' } : receipt(message)
  }

  /** As "try again" on the page does it, under the same id. */
  const sendAgain = async (message: PageMessage): Promise<PageReceipt | PageFailure> => {
    const action = window.require('WAWebSendMsgChatAction')
    const chat = awfar.chatOf(addressOf(message.id.remote))
    if (!action.resendMsgToChat || !chat)
      return { failure: 'failed', error: 'it was given up and cannot be tried again' }
    message.isSendFailure = false
    return settled(message, action.resendMsgToChat(chat, Promise.resolve(message)))
  }

  const isBlocked = ({ id }: PageChat): boolean => {
    try {
      if (id.isGroup?.() === true) return false
      return Boolean(window.require('WAWebCollections').Blocklist?.get?.(id))
    } catch {
      return false
    }
  }

  /** That the page has no LID for a number says nothing about the number, or it would have asked the server; so that is done here. */
  const openChat = async (chatId: string): Promise<PageChat | PageFailure> => {
    const open = async (id: string): Promise<PageChat | PageFailure> =>
      (await window.WWebJS!.getChat(id, { getAsModel: false })) ?? {
        failure: 'refused',
        error: 'no such chat',
      }
    let refusal: PageFailure
    try {
      return await open(chatId)
    } catch (error) {
      refusal = { failure: 'refused', error: awfar.text(error) }
    }
    if (!/No LID for user/i.test(refusal.error)) return refusal
    if (awfar.missing(['WAWebQueryExistsJob']).length > 0) return refusal
    try {
      const asked = window.require('WAWebWidFactory').createWid(chatId)
      const found = await window.require('WAWebQueryExistsJob').queryWidExists(asked)
      return found?.wid ? await open(found.wid._serialized) : refusal
    } catch (error) {
      return { failure: 'failed', error: awfar.text(error) }
    }
  }

  const sendNow = async (
    message: PageOutgoing,
    input: { files: File[] } | null,
    onHandOver: () => void,
  ): Promise<PageReceipt | PageFailure> => {
    const { chatId, keyId, body, attributes, quoted, media, modules } = message
    const own: MessageKey = { fromMe: true, chatId, id: keyId, participant: '' }
    const known = await awfar.lookUp(own, false)
    if (known) return isGivenUp(known) ? sendAgain(known) : receipt(known)
    const missing = missingModules(modules)
    if (missing) return { ...missing, failure: 'KIND_UNAVAILABLE' }

    const chat = await openChat(chatId)
    if ('failure' in chat) return chat
    // Asked before the message is in the chat, where it would stay as if it were on its way.
    if (isBlocked(chat)) return blocked

    // extraOptions is spread over the message last, so our key replaces the one the library makes up. What the
    // library answers is the message of its own key, undefined: the truth is in the collection.
    const key = keyFor(chat, keyId)
    // The chat may have an address the page had forgotten before it asked for the chat.
    const wholeId = awfar.serialized(key)
    const before = await awfar.byId(wholeId)
    if (before) return isGivenUp(before) ? sendAgain(before) : receipt(before)
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
    let outcome: Promise<unknown> | undefined
    onHandOver()
    watchOutcomes()
    outcomes.set(wholeId, undefined)
    try {
      await window.WWebJS!.sendMessage(chat, body, options)
    } catch (error) {
      const added = Msg.get(wholeId)
      if (!added) return { failure: 'failed', error: awfar.text(error) }
    } finally {
      outcome = outcomes.get(wholeId)
      outcomes.delete(wholeId)
    }
    const sent = Msg.get(wholeId) ?? (await awfar.lookUp(own, false))
    if (sent) return settled(sent, outcome)
    return { failure: 'vanished', error: 'WhatsApp Web took the message and does not list it' }
  }

  const done: Done = { done: true }

  /** Edits that have not settled. The page shows their text already, so a second one would take it for done. */
  const editing = new Map<string, Promise<Done | PageFailure>>()

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
      let isHandedOver = false
      const sending = sendNow(message, input, () => (isHandedOver = true)).catch(
        (error: unknown): PageFailure => {
          // Only before that it is certain that nothing went out.
          if (isHandedOver) throw error
          return { failure: 'failed', error: awfar.text(error) }
        },
      )
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
        // What is given up is not there: it can be sent again, under its id.
        if (message && !isGivenUp(message)) return receipt(message)
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

    async edit(target, body) {
      const which = `${target.id} ${body}`
      const first = editing.get(which)
      if (first) return first
      const edit = actOn(
        target,
        ['WAWebMsgActionCapability', 'WAWebSendMessageEditAction'],
        async (message) => {
          const says = message.caption ?? message.body
          if (message.type !== 'revoked' && says === body && !message.isSendFailure) return done
          const can = window.require('WAWebMsgActionCapability')
          if (!target.fromMe || (!can.canEditText(message) && !can.canEditCaption(message)))
            return { failure: 'NOT_EDITABLE', error: 'WhatsApp Web does not let it be edited' }
          await window.WWebJS!.editMessage(message, body, {})
          // The page shows the new text first, and does not take it back where it does not get out.
          if (message.isSendFailure) return { failure: 'failed', error: 'it did not get out' }
          return done
        },
      )
      editing.set(which, edit)
      try {
        return await edit
      } finally {
        editing.delete(which)
      }
    },

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
        let asked: unknown
        if (window.WWebJS!.compareWwebVersions(window.Debug.VERSION, '>=', '2.3000.0')) {
          const what = { list: [message], type: 'message' }
          asked = Cmd.sendRevokeMsgs(chat, what, { clearMedia: true })
        } else {
          const type = target.fromMe ? 'Sender' : 'Admin'
          asked = Cmd.sendRevokeMsgs(chat, [message], { clearMedia: true, type })
        }
        // A page that answers says when it is done. As an event it has no answer, and is done when the message says so.
        if (asked !== undefined) return Promise.resolve(asked).then(() => done)
        const { Msg } = window.require('WAWebCollections')
        const wholeId = awfar.serialized(message.id)
        const wasListed = Msg.get(wholeId) !== undefined
        const isDone = () =>
          String(message.type) === 'revoked' || (wasListed && Msg.get(wholeId) === undefined)
        for (const end = Date.now() + revokeMs; !isDone() && Date.now() < end;) await pause(50)
        return isDone() ? done : { failure: 'failed', error: 'it is still there' }
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

  // Since September 2026 the page's model of media shows its private id, empty. The library spreads the model over the message, which
  // loses its own id by that; a field that is not enumerable is not spread.
  const library = window.WWebJS!
  const process = library.processMediaData.bind(library)
  library.processMediaData = async (media, how) => {
    const model = await process(media, how)
    if ('__x_id' in model)
      Reflect.defineProperty(model, '__x_id', {
        value: model.__x_id,
        writable: true,
        configurable: true,
        enumerable: false,
      })
    return model
  }
}
