/** Chats: finding and opening them, what the library may change about them, unread counts. */
import { alternateOf, Contact, queryWidExists } from './contacts.js'
import { decode, encode } from './encoding.js'
import { guarded } from './faults.js'
import { createWid } from './ids.js'
import { Collection, Model } from './models.js'
import { define } from './modules.js'
import { forgetChat, loadChats, saveChat } from './profile.js'
import { Cmd, link, onConnected, onEvent } from './session.js'

const KEPT = ['id', 't', 'unreadCount', 'archive', 'pin', 'muteExpiration']

class ChatModel extends Model {
  constructor(attributes) {
    super({ unreadCount: 0, archive: false, pin: 0, muteExpiration: 0, ...attributes })
    for (const [name, value] of Object.entries({
      msgs: new Collection(Model, 'rowId'),
      mute: new MuteModel(this),
      groupMetadata: this.id.isGroup() ? groupMetadataOf(this.id) : undefined,
    })) {
      Object.defineProperty(this, name, { value, writable: true, enumerable: false })
    }
  }

  get formattedTitle() {
    return this.groupMetadata?.subject ?? Contact.get(this.id)?.formattedName ?? `+${this.id.user}`
  }

  get lastReceivedKey() {
    return this.msgs._models.at(-1)?.id
  }

  iAmAdmin() {
    return false
  }

  serialize() {
    const { formattedTitle, lastReceivedKey, msgs } = this
    const name = formattedTitle
    const isGroup = this.id.isGroup()
    // The library only asks whether there are any, then drops them.
    const some = msgs.length > 0 ? [lastReceivedKey] : []
    return { ...super.serialize(), name, formattedTitle, isGroup, lastReceivedKey, msgs: some }
  }

  persist() {
    const kept = Object.fromEntries(KEPT.map((name) => [name, this.attributes[name]]))
    return saveChat(String(this.id), encode(kept))
  }
}

class MuteModel {
  #chat
  constructor(chat) {
    this.#chat = chat
  }
  get expiration() {
    return this.#chat.muteExpiration
  }
  async mute({ expiration }) {
    await change(this.#chat, { muteExpiration: expiration })
  }
  async unmute() {
    await change(this.#chat, { muteExpiration: 0 })
  }
}

class ChatCollection extends Collection {
  async find(id) {
    return (await findOrCreateLatestChat(createWid(id))).chat
  }
}

class GroupMetadataCollection extends Collection {
  update = guarded('updateGroup', async (wid) => groupMetadataOf(wid))
}

export const Chat = new ChatCollection(ChatModel)
export const GroupMetadata = new GroupMetadataCollection()

const groupMetadataOf = (wid) =>
  GroupMetadata.get(wid) ??
  GroupMetadata.add(new Model({ id: wid, subject: wid.user, participants: new Collection() }))

function learnGroup({ id, subject, participants, creation }) {
  const metadata = groupMetadataOf(createWid(id))
  metadata.set({ subject, creation, announce: false })
  for (const participant of participants) {
    const wid = createWid(participant)
    if (!metadata.participants.get(wid)) {
      metadata.participants.add(new Model({ id: wid, isAdmin: false, isSuperAdmin: false }))
    }
  }
}

/** The open chat with this wid, under either of its names, or a new one. */
export function chatFor(wid, t = Math.floor(Date.now() / 1000)) {
  const other = wid.isUser() ? alternateOf(wid) : undefined
  return Chat.get(wid) ?? (other && Chat.get(other)) ?? Chat.add(new ChatModel({ id: wid, t }))
}

const findOrCreateLatestChat = guarded('findOrCreateLatestChat', async (wid) => {
  const known = Chat.get(wid)
  if (known) return { chat: known, created: false }
  if (!wid.isUser()) return { chat: chatFor(wid), created: true }
  const found = await queryWidExists(wid)
  if (!found) throw new Error('No LID for user')
  return { chat: chatFor(found.wid), created: true }
})

export async function change(chat, changes) {
  chat.set(changes)
  await chat.persist()
}

Cmd.archiveChat = (chat, archive) => change(chat, { archive })
Cmd.pinChat = (chat, pinned) => change(chat, { pin: pinned ? Math.floor(Date.now() / 1000) : 0 })
Cmd.markChatUnread = (chat, unread) => change(chat, { unreadCount: unread ? -1 : 0 })

/** Opens the chats the profile remembers. */
async function restoreChats() {
  for (const record of await loadChats()) {
    const attributes = decode(record)
    if (!Chat.get(attributes.id)) Chat.add(new ChatModel(attributes), { silent: true })
  }
}

onConnected(({ groups }) => groups.forEach(learnGroup))
onConnected(restoreChats)
onEvent('group', learnGroup)

const chatState = (state) =>
  guarded('chatState', (wid) => link.call('signal', { kind: state, to: String(wid) }))

define({
  WAWebFindChatAction: { findOrCreateLatestChat },
  WAWebChatGetters: {
    getIsNewsletter: ({ id }) => id.isNewsletter(),
    getIsBroadcast: ({ id }) => id.isBroadcast(),
    getIsGroup: ({ id }) => id.isGroup(),
  },
  WAWebUpdateUnreadChatAction: {
    sendSeen: guarded('sendSeen', async ({ chat }) => {
      if (chat.unreadCount !== 0) await change(chat, { unreadCount: 0 })
      if (link.isOpen) await link.call('signal', { kind: 'seen', to: String(chat.id) })
    }),
  },
  WAWebStreamModel: {
    Stream: { markAvailable: () => undefined, markUnavailable: () => undefined },
  },
  WAWebPresenceChatAction: {
    sendPresenceAvailable: () => link.call('signal', { kind: 'available' }),
    sendPresenceUnavailable: () => link.call('signal', { kind: 'unavailable' }),
  },
  WAWebChatStateBridge: {
    sendChatStateComposing: chatState('typing'),
    sendChatStateRecording: chatState('recording'),
    sendChatStatePaused: chatState('paused'),
  },
  WAWebGetEphemeralFieldsMsgActionsUtils: { getEphemeralFields: () => ({}) },
  WAWebGroupQueryJob: { queryAndUpdateGroupMetadataById: async () => undefined },
  WAWebDeleteChatAction: {
    sendDelete: async (chat) => {
      Chat.remove(chat)
      await forgetChat(String(chat.id))
    },
  },
})
