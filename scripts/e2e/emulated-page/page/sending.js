/** Sending: the page's own outbox. What has ack 0 is kept in the profile and goes out at each connection. */
import { Blocklist } from './contacts.js'
import { decode, encode } from './encoding.js'
import { checkpoint, guarded } from './faults.js'
import { MsgKey } from './ids.js'
import { addMessage, load, Msg, pendingKeys } from './messages.js'
import { define } from './modules.js'
import { Cmd, link, me, Socket } from './session.js'

/** Attributes that are of no concern to the server, or to those a message is forwarded to. */
const LOCAL = ['isNewMsg', 'local', 'rowId', 'isUnsentMedia', 'isSendFailure']
const NOT_FORWARDED = [
  'author',
  'star',
  'quotedMsg',
  'quotedStanzaID',
  'quotedParticipant',
  'rowId',
]

let inOrder = Promise.resolve()

/** Two promises: the message is in the chat and in the profile; WhatsApp took or refused it. Nobody need look at the second one. */
function addAndSendMsgToChat(chat, data) {
  const added = addToChat(data)
  return [added, added.then(send)]
}

/** What "try again" does to a message the page has given up; the promise is of the message. */
const resendMsgToChat = (chat, message) => message.then(send)

async function send(msg) {
  // Behind the chat: the message stays there as if it were on its way.
  if (!msg.id.remote.isGroup() && Blocklist.get(msg.id.remote))
    throw new Error('Contact is blocked')
  transmit(msg)
  return answered(msg)
}

async function addToChat(data) {
  await checkpoint('addAndSendMsgToChat', String(data.body ?? ''))
  const { __x_id: id, ...rest } = { __x_id: data.id, ...data }
  // A model reads its attributes where their private names lead.
  if (id === undefined) {
    const text = "Data passed to getter must include an id property (it's how we memoize)"
    throw new Error(`${text} but got undefined`)
  }
  // Only what the profile could hold becomes part of the message.
  const attributes = decode(encode(rest))
  if (attributes.directPath) attributes.isUnsentMedia = true
  const msg = Msg.get(attributes.id) ?? addMessage(attributes)
  await checkpoint('persist')
  await msg.persist()
  return msg
}

const answered = (msg) =>
  new Promise((resolve) => {
    const answer = () => ({ messageSendResult: msg.ack > 0 ? 'OK' : 'ERROR_UNKNOWN', t: msg.t })
    if (msg.ack !== 0) resolve(answer())
    else msg.once('change:ack change:isSendFailure', () => resolve(answer()))
  })

/** Hands the message to the server, after the ones before it; without a link it waits for the next. */
function transmit(msg) {
  inOrder = inOrder.then(async () => {
    if (Socket.state !== 'CONNECTED') return
    try {
      await checkpoint('encrypt', String(msg.body ?? ''))
    } catch {
      // Given up: no server has refused it, and its ack stays what it was.
      await msg.set({ isSendFailure: true }).persist()
      return
    }
    const record = encode(without(LOCAL, msg.attributes))
    await link.call('message', { record }).catch(() => undefined)
  })
}

Socket.on('linked', () => pendingKeys().forEach((key) => transmit(load(key))))

/** The text is changed here first. Where it does not get out the promise resolves all the same, and the message is marked. */
async function sendMessageEdit(msg, content) {
  const id = await MsgKey.newId()
  const edited = msg.directPath ? { caption: content } : { body: content }
  const latestEditMsgKey = new MsgKey({ fromMe: true, remote: msg.id.remote, id })
  msg.set({ ...edited, latestEditMsgKey, latestEditSenderTimestampMs: Date.now() })
  const isSendFailure = await link.call('edit', { key: String(msg.id), id, body: content }).then(
    () => false,
    () => true,
  )
  await msg.set({ isSendFailure }).persist()
}

/** An event for others on the page: whoever calls is not told what becomes of it. */
Cmd.sendRevokeMsgs = (chat, { list }) => {
  for (const msg of list) revoke(msg).catch(() => undefined)
}

async function revoke(msg) {
  await link.call('revoke', { key: String(msg.id), id: await MsgKey.newId() })
  await msg
    .set({ type: 'revoked', subtype: 'sender', body: undefined, caption: undefined })
    .persist()
}

async function forwardMessages({ chat, msgs }) {
  for (const msg of msgs) {
    const id = new MsgKey({ from: me.pn, to: chat.id, id: await MsgKey.newId(), selfDir: 'out' })
    const t = Math.floor(Date.now() / 1000)
    const forwarded = { id, from: me.pn, to: chat.id, t, ack: 0, isNewMsg: true, isForwarded: true }
    await addAndSendMsgToChat(chat, { ...without(NOT_FORWARDED, msg.attributes), ...forwarded })[0]
  }
}

const without = (names, attributes) =>
  Object.fromEntries(Object.entries(attributes).filter(([name]) => !names.includes(name)))

define({
  WAWebSendMsgChatAction: { addAndSendMsgToChat, resendMsgToChat },
  WAWebSendMessageEditAction: { sendMessageEdit: guarded('sendMessageEdit', sendMessageEdit) },
  WAWebChatForwardMessage: { forwardMessages: guarded('forwardMessages', forwardMessages) },
})
