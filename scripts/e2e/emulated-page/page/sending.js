/** Sending: the page's own outbox. What has ack 0 is kept in the profile and goes out at each connection. */
import { decode, encode } from './encoding.js'
import { checkpoint, guarded } from './faults.js'
import { MsgKey } from './ids.js'
import { addMessage, load, Msg, pendingKeys } from './messages.js'
import { define } from './modules.js'
import { Cmd, link, me, Socket } from './session.js'

/** Attributes that are of no concern to the server, or to those a message is forwarded to. */
const LOCAL = ['isNewMsg', 'local', 'rowId', 'isUnsentMedia']
const NOT_FORWARDED = [
  'author',
  'star',
  'quotedMsg',
  'quotedStanzaID',
  'quotedParticipant',
  'rowId',
]

let inOrder = Promise.resolve()

/** Two promises: the message is in the chat and in the profile; WhatsApp took or refused it. */
function addAndSendMsgToChat(chat, data) {
  const added = addToChat(data)
  const sent = added.then(answered)
  sent.catch(() => undefined) // the library does not always look at the second promise
  added.then(transmit, () => undefined)
  return [added, sent]
}

async function addToChat(data) {
  await checkpoint('addAndSendMsgToChat', String(data.body ?? ''))
  // Only what the profile could hold becomes part of the message.
  const attributes = decode(encode({ ...data }))
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
    else msg.once('change:ack', () => resolve(answer()))
  })

/** Hands the message to the server, after the ones before it; without a link it waits for the next. */
function transmit(msg) {
  inOrder = inOrder.then(async () => {
    if (Socket.state !== 'CONNECTED') return
    const record = encode(without(LOCAL, msg.attributes))
    await link.call('message', { record }).catch(() => undefined)
  })
}

Socket.on('linked', () => pendingKeys().forEach((key) => transmit(load(key))))

async function sendMessageEdit(msg, content) {
  const id = await MsgKey.newId()
  await link.call('edit', { key: String(msg.id), id, body: content })
  const edited = msg.directPath ? { caption: content } : { body: content }
  const latestEditMsgKey = new MsgKey({ fromMe: true, remote: msg.id.remote, id })
  await msg.set({ ...edited, latestEditMsgKey, latestEditSenderTimestampMs: Date.now() }).persist()
}

Cmd.sendRevokeMsgs = async (chat, { list }) => {
  for (const msg of list) {
    await link.call('revoke', { key: String(msg.id), id: await MsgKey.newId() })
    await msg
      .set({ type: 'revoked', subtype: 'sender', body: undefined, caption: undefined })
      .persist()
  }
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
  WAWebSendMsgChatAction: { addAndSendMsgToChat },
  WAWebSendMessageEditAction: { sendMessageEdit: guarded('sendMessageEdit', sendMessageEdit) },
  WAWebChatForwardMessage: { forwardMessages: guarded('forwardMessages', forwardMessages) },
})
