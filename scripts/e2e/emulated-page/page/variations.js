/**
 * What the library's source leaves open, done in another way than the rest of this page does it. A product that depends on one of the two ways
 * depends on this page and not on the library.
 */
/* global Blob, setTimeout, window */
import { Chat, GroupMetadata } from './chats.js'
import { MsgKey, serializeKeys } from './ids.js'
import { hidePrivateId, takeAnyKind } from './media.js'
import { forget, Msg, MsgModel } from './messages.js'
import { define, requireModule } from './modules.js'
import { wipeProfile } from './profile.js'
import { link, me, Socket } from './session.js'

/** The address without the parts that a walk over own properties would find. */
const opaque = (wid) => wid && Object.create(wid)

/** The models of a collection keep these attributes to themselves. */
function hide({ modelClass }, ...names) {
  const hidden = { get: () => undefined, set: () => undefined }
  for (const name of names) Object.defineProperty(modelClass.prototype, name, hidden)
}

const variations = {
  /** The text of a message's key is where the library looks for it, as it was until July 2026. */
  serializesKeys: serializeKeys,

  /** The model of media has no private id that could be spread, as it was until September 2026. */
  hidesMediaId: hidePrivateId,

  /** A download need not say what kind of file it is after, as it was until September 2026. */
  downloadsAnyKind: takeAnyKind,

  /** A chat is opened with those whose LID the page knows by itself. */
  opensKnownChatsOnly() {
    const chats = requireModule('WAWebFindChatAction')
    const { toLid } = requireModule('WAWebLidMigrationUtils')
    const find = chats.findOrCreateLatestChat
    chats.findOrCreateLatestChat = async (wid) => {
      if (wid.isUser() && !Chat.get(wid) && !toLid(wid)) throw new Error('No LID for user')
      return find(wid)
    }
  },

  /** Who is blocked is known to the page only. */
  hidesBlocklist() {
    delete requireModule('WAWebCollections').Blocklist
  },

  /** There is no way to send a message again. */
  neverResends() {
    delete requireModule('WAWebSendMsgChatAction').resendMsgToChat
  },

  /** The database throws for an id it does not have, and for a list of ids. */
  looksUpStrictly() {
    const lookUp = Msg.getMessagesById.bind(Msg)
    Msg.getMessagesById = async (ids) => {
      const { messages } = await lookUp(ids)
      if (ids.length !== 1 || messages.length !== 1) throw new Error('MsgKey error: not found')
      return { messages }
    }
  },

  /** The account has no LID, and its address is an object of behaviour only. */
  hidesAccount() {
    Object.assign(requireModule('WAWebUserPrefsMeUser'), {
      getMaybeMePnUser: () => opaque(me.pn),
      getMaybeMeLidUser: () => undefined,
    })
  },

  downloadsBlobs() {
    const { downloadManager } = requireModule('WAWebDownloadManager')
    const download = downloadManager.downloadAndMaybeDecrypt
    downloadManager.downloadAndMaybeDecrypt = async (of) => new Blob([await download(of)])
  },

  /** Who is in a group is a plain list. */
  listsMembers() {
    const update = GroupMetadata.update.bind(GroupMetadata)
    GroupMetadata.update = async (wid) => {
      const metadata = await update(wid)
      const participants = metadata.participants.getModelsArray()
      const chat = Chat.get(wid)
      if (chat) chat.groupMetadata = { subject: metadata.subject, participants }
      return metadata
    }
  },

  /** Contacts have the methods the library calls, and their names are what the getters say. */
  namesByGetter() {
    const getters = requireModule('WAWebContactGetters')
    const collections = requireModule('WAWebCollections')
    const { Contact } = collections
    hide(Contact, 'name', 'pushname')
    collections.Contact = {
      find: (wid) => Contact.find(wid),
      getModelsArray: () => Contact.getModelsArray(),
    }
    getters.getName = ({ attributes }) => attributes.name
    getters.getPushname = ({ attributes }) => attributes.pushname
  },

  /** When a chat was last used is told by its messages only. */
  chatsWithoutTime() {
    hide(Chat, 't')
  },

  /** A quotation leads to its message through a module only. */
  quotesByModule() {
    const { serialize } = MsgModel.prototype
    MsgModel.prototype.serialize = function () {
      return { ...serialize.call(this), quotedStanzaID: undefined, quotedParticipant: undefined }
    }
  },

  /** A revoked message is known by the id of its revocation, and names the message that is gone in a field of its own. */
  revokesUnderAnotherId() {
    const { set } = MsgModel.prototype
    MsgModel.prototype.set = function (changes, options) {
      const before = this.id
      if (!before || changes.type !== 'revoked' || this.type === 'revoked')
        return set.call(this, changes, options)
      const { fromMe, remote, participant } = before
      const id = new MsgKey({ fromMe, remote, id: `R${before.id}`, participant })
      void forget(before)
      for (const collection of this.collections) collection.replaceId(before, id)
      return set.call(this, { ...changes, id, protocolMessageKey: before }, options)
    }
  },

  /** New chats are known under the LID. */
  chatsByLid() {
    const chats = requireModule('WAWebFindChatAction')
    const { queryWidExists } = requireModule('WAWebQueryExistsJob')
    const find = chats.findOrCreateLatestChat
    chats.findOrCreateLatestChat = async (wid) => {
      if (wid.isUser()) await queryWidExists(wid)
      return find(wid.isLid() ? wid : (requireModule('WAWebApiContact').getCurrentLid(wid) ?? wid))
    }
  },

  /** Whether a message can be answered is asked of the message. */
  repliesByMessage() {
    define({ WAWebMsgReply: undefined })
  },

  /** The arguments of a deletion were others before 2.3000. */
  isOlder() {
    window.Debug = { VERSION: '2.2412.54' }
    const { Cmd } = requireModule('WAWebCmd')
    const revoke = Cmd.sendRevokeMsgs
    Cmd.sendRevokeMsgs = (chat, messages, { type }) => {
      if (!Array.isArray(messages) || type !== 'Sender') throw new TypeError('not a list')
      return revoke(chat, { list: messages })
    }
  },

  /** New codes are asked for by a command, as they were until 2026. */
  refreshesByCommand() {
    const utils = requireModule('WAWebLaunchSocketUtils')
    requireModule('WAWebCmd').Cmd.refreshQR = utils.refreshQR
    delete utils.refreshQR
  },

  /** A logout answers when the device is off the list, and leaves the page where it is. */
  answersLogout() {
    Socket.logout = async () => {
      await link.call('removeDevice')
      link.stop()
      await wipeProfile()
    }
  },

  /** A device that was logged out is UNPAIRED before its page is loaded anew. */
  unpairsFirst() {
    const unpair = () => Socket.set({ state: 'UNPAIRED' })
    requireModule('WAWebCmd').Cmd.on('logout', () => setTimeout(unpair, 20))
  },
}

export function vary(names) {
  for (const name of names) variations[name]()
}
