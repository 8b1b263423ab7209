/** Messages: the models in memory, the archive in the profile behind them, and what arrives. */
import { change, Chat, chatFor } from './chats.js'
import { meet } from './contacts.js'
import { decode, encode } from './encoding.js'
import { guarded } from './faults.js'
import { createWid, MsgKey } from './ids.js'
import { attachMedia } from './media.js'
import { Collection, Model } from './models.js'
import { define } from './modules.js'
import { forgetMessage, loadMessages, saveMessage } from './profile.js'
import { Cmd, link, onConnected, onEvent } from './session.js'

const IN_MEMORY_PER_CHAT = 20
const SLICE = 20
/** For so many seconds a message of ours can be edited, and be deleted for everyone. */
const EDITABLE_S = 15 * 60
const REVOCABLE_S = 60 * 3600
const age = (t) => Date.now() / 1000 - t

/** Every message of the profile by serialized key; only some are models in memory. */
const archive = new Map()
/** Orders messages of one second, over all loads of the page. */
let rows = 0

export class MsgModel extends Model {
  constructor(attributes) {
    super({ latestEditMsgKey: null, latestEditSenderTimestampMs: null, ...attributes })
    attachMedia(this)
  }

  get isEphemeral() {
    return false
  }
  get isStatusV3() {
    return this.id.remote.isStatus()
  }
  get isNotification() {
    return false
  }

  canReply() {
    return true
  }

  msgContextInfo() {
    const { type, body, caption, mimetype } = this
    const plain = Object.fromEntries(
      Object.entries({ type, body, caption, mimetype }).filter(([, value]) => value !== undefined),
    )
    const quotedParticipant = this.id.participant ?? this.author ?? this.from
    return { quotedMsg: plain, quotedStanzaID: this.id.id, quotedParticipant }
  }

  persist() {
    const record = encode({ ...this.attributes, isNewMsg: false })
    archive.set(String(this.id), record)
    return saveMessage(String(this.id), record)
  }
}

class MsgCollection extends Collection {
  async getMessagesById(ids) {
    // As the database does.
    if (ids.some((id) => !id)) throw new Error('DataError: No key or key range specified.')
    return { messages: ids.map((id) => this.get(id) ?? load(String(id))).filter(Boolean) }
  }

  async search(query, page = 1, count = 50, remote = undefined) {
    const found = this.filter(
      ({ id, body }) => (!remote || String(id.remote) === remote) && body?.includes(query),
    )
    return { messages: found.slice((page - 1) * count, page * count) }
  }
}

export const Msg = new MsgCollection(MsgModel)

/** Adds a message to memory and its chat; 'add' is heard last, when chat and counts are in place. */
export function addMessage(attributes, options = {}) {
  const rowId = attributes.rowId ?? attributes.t * 1e6 + rows++
  const msg = new MsgModel({ ...attributes, rowId })
  const chat = chatFor(msg.id.remote, msg.t)
  chat.msgs.add(msg, { silent: true })
  if (msg.t > (chat.t ?? 0)) chat.set({ t: msg.t })
  return Msg.add(msg, options)
}

/** The message as a model, taken from the archive when it is not in memory. */
export function load(key) {
  const record = archive.get(key)
  return Msg.get(key) ?? (record && addMessage(decode(record), { silent: true }))
}

/** Nothing is left of it in the profile. */
export function forget(key) {
  archive.delete(String(key))
  return forgetMessage(String(key))
}

export const pendingKeys = () =>
  [...archive]
    .filter(
      ([key, { ack, isSendFailure }]) => ack === 0 && !isSendFailure && key.startsWith('true_'),
    )
    .sort(([, a], [, b]) => a.rowId - b.rowId)
    .map(([key]) => key)

const archivedIn = (chat) =>
  [...archive]
    .filter(([key]) => key.split('_')[1] === String(chat.id))
    .sort(([, a], [, b]) => a.rowId - b.rowId)
    .map(([key]) => key)

/** Fills the archive from the profile, and the memory with the last messages of each chat. */
async function restoreMessages() {
  if (archive.size > 0) return
  for (const record of await loadMessages()) archive.set(record.id.$key, record)
  rows = archive.size
  for (const chat of Chat.getModelsArray())
    archivedIn(chat).slice(-IN_MEMORY_PER_CHAT).forEach(load)
}

const loadEarlierMsgs = guarded('loadEarlierMsgs', async ({ chat }) => {
  const unloaded = archivedIn(chat).filter((key) => !Msg.get(key))
  if (unloaded.length > 0) return unloaded.slice(-SLICE).map(load)
  const before = chat.msgs._models[0]?.t ?? Math.ceil(Date.now() / 1000) + 1
  const { records } = await link.call('history', { chat: String(chat.id), before, limit: SLICE })
  return remember(records)
})

/** Takes messages of the past into memory and profile; they are no news. */
async function remember(records) {
  const unknown = records.filter((record) => !archive.has(record.id.$key))
  const messages = unknown.map((record) =>
    addMessage({ ...decode(record), isNewMsg: false }, { silent: true }),
  )
  await Promise.all(messages.map((msg) => msg.persist()))
  await Promise.all(
    [...new Set(messages.map((msg) => chatFor(msg.id.remote)))].map((chat) => chat.persist()),
  )
  return messages
}

onConnected(restoreMessages)
onConnected(({ history }) => remember(history))

onEvent('message', async ({ record, again }) => {
  const known = load(record.id.$key)
  if (known) {
    if (again) Msg.trigger('add', known)
    return
  }
  const attributes = { ...decode(record), isNewMsg: true }
  if (!attributes.id.fromMe) meet(attributes.author ?? attributes.from, attributes.notifyName)
  const msg = addMessage(attributes)
  const chat = chatFor(msg.id.remote)
  await Promise.all([
    msg.persist(),
    msg.id.fromMe
      ? chat.persist()
      : change(chat, { unreadCount: Math.max(chat.unreadCount, 0) + 1 }),
  ])
})

/** When the reach-out lock of this account ends, in milliseconds; Infinity where the server does not say. */
let lockedUntil = 0

onEvent('ack', async ({ key, level, again, errorCode, lockedUntil: until }) => {
  const msg = load(key)
  if (errorCode === 463) lockedUntil = until ? until * 1000 : Infinity
  if (!msg) return
  if (msg.ack === level && again) msg.trigger('change:ack', msg, level, level)
  msg.set({
    ack: level,
    ...(level > 0 && msg.isUnsentMedia ? { isUnsentMedia: false } : {}),
    ...(level < 0 ? { isSendFailure: true } : {}),
    ...(errorCode ? { errorCode } : {}),
    ...(until ? { timeEnforcementEnds: until } : {}),
  })
  await msg.persist()
})

onEvent('changed', async ({ key, changes }) => {
  const msg = load(key)
  if (!msg) return
  msg.set(decode(changes))
  await msg.persist()
})

Cmd.sendDeleteMsgs = async (chat, { list }) => {
  for (const msg of list) {
    chat.msgs.remove(msg)
    Msg.remove(msg)
    await forget(msg.id)
  }
}
const star = (value) => async (chat, list) => {
  for (const msg of list) await msg.set({ star: value }).persist()
}
Cmd.sendStarMsgs = star(true)
Cmd.sendUnstarMsgs = star(false)

define({
  WAWebMsgKey: MsgKey,
  WAWebMsgReply: { canReplyMsg: ({ type }) => type !== 'revoked' },
  WAWebChatLoadMessages: { loadEarlierMsgs },
  WAWebChatClearBridge: {
    sendClear: (chat) => Cmd.sendDeleteMsgs(chat, { list: chat.msgs.getModelsArray() }),
  },
  WAWebQuotedMsgModelUtils: {
    getQuotedMsgObj: ({ id, quotedMsg, quotedStanzaID, quotedParticipant }) =>
      Msg.filter((msg) => msg.id.id === quotedStanzaID)[0] ??
      new MsgModel({
        ...quotedMsg,
        id: new MsgKey({ fromMe: false, remote: id.remote, id: quotedStanzaID }),
        from: createWid(quotedParticipant),
        to: id.remote,
      }),
  },
  WAWebMsgActionCapability: {
    canStarMsg: () => true,
    canEditText: ({ id, type, t }) => id.fromMe && type === 'chat' && age(t) < EDITABLE_S,
    canEditCaption: ({ id, t, mediaObject }) =>
      id.fromMe && mediaObject !== undefined && age(t) < EDITABLE_S,
    canSenderRevokeMsg: ({ id, t }) => id.fromMe && age(t) < REVOCABLE_S,
    canAdminRevokeMsg: () => false,
  },
  WAWebReachoutTimelockUtils: { isUserReachoutTimelocked: () => Date.now() < lockedUntil },
  WAWebApiMessageInfoStore: {
    queryMsgInfo: async (key) => {
      const { ack, to, t } = load(String(key))
      const at = (level) => (ack >= level ? [{ id: to, t }] : [])
      return { delivery: at(2), read: at(3), played: at(4), deliveryRemaining: 0, readRemaining: 0 }
    },
  },
  WAWebSyncGatingUtils: { isPlaceholderMessageResendEnabled: () => false },
  WAWebNonMessageDataRequestPlaceholderMessageResendUtils: {
    handlePlaceholderMsgsSeen: (msgs) =>
      link.call('resendPlaceholders', { keys: msgs.map((msg) => String(msg.id)) }),
  },
})
