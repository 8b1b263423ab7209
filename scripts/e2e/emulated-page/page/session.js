/** The life of the linked device: connection states, QR and code pairing, first sync, logout. */
/* global atob, btoa, location, setTimeout */
import { guarded } from './faults.js'
import { createWid } from './ids.js'
import { Link } from './link.js'
import { Emitter, Model } from './models.js'
import { define } from './modules.js'
import { loadKeys, saveKeys, wipeProfile } from './profile.js'

/** States the link cannot come back from by itself. */
const PASSING = ['CONNECTED', 'OPENING', 'PAIRING', 'TIMEOUT', 'UNLAUNCHED', 'UNPAIRED']
const DEVICE_PLATFORM = '1'

/** The account this device is paired with, as Wids. */
export const me = { pn: undefined, lid: undefined }
export const Cmd = new Emitter()
export const Conn = new Model({ ref: undefined, pushname: undefined, platform: 'android' })
export const Socket = new Model({ state: 'UNLAUNCHED', hasSynced: false })
export const link = new Link({ onOpen: greet, onPush: receive, onLost: lost })

const progress = { percent: 0 }
const eventHandlers = new Map()
const connectedHandlers = []
let inOrder = Promise.resolve()
let keys
let settings
let onNewKeys

/** Registers who takes the server's events of one kind; events are taken one after the other. */
export const onEvent = (kind, handler) => eventHandlers.set(kind, handler)
/** Runs at each connection of a paired device, with what the server said about the account. */
export const onConnected = (handler) => connectedHandlers.push(handler)

export function launch(profileKeys, firstSettings, newKeys) {
  keys = profileKeys
  settings = firstSettings
  onNewKeys = newKeys
  Socket.set({ state: 'OPENING' })
  link.start(keys.noise)
}

async function greet() {
  if (Socket.state === 'TIMEOUT') Socket.set({ state: 'OPENING' })
  const { noise, identity, epoch } = keys
  const { account, ref } = await link.call('hello', { noise, identity, epoch })
  if (account) return welcome(account)
  if (Socket.hasSynced) return leave()
  if (keys.number) return forgetPairing()
  Conn.set({ ref })
  Socket.set({ state: 'UNPAIRED' })
}

async function welcome(account) {
  Object.assign(keys, { number: account.number, epoch: account.epoch })
  me.pn = createWid(`${account.number}@c.us`)
  me.lid = createWid(account.lid)
  Conn.set({ wid: me.pn, pushname: account.pushName, platform: account.platform })
  await saveKeys(keys)
  for (const handler of connectedHandlers) await handler(account)
  Socket.set({ state: 'CONNECTED' })
  await link.call('ready')
  Socket.trigger('linked')
}

function lost() {
  if (PASSING.includes(Socket.state)) Socket.set({ state: 'TIMEOUT' })
}

/** The first sync ends with hasSynced; the library hears it only when it subscribed before. */
async function finishSync() {
  if (Socket.hasSynced) return
  const heard = () => Socket.isHeard('change:hasSynced')
  while (settings.syncWaitsForListener && !heard()) await pause(20)
  for (const percent of [50, 100]) {
    await pause(settings.syncMs / 2)
    progress.percent = percent
    Cmd.trigger('offline_progress_update_from_bridge')
  }
  Socket.set({ hasSynced: true })
}

function receive(push, data) {
  if (push !== 'event') return pushes[push](data)
  inOrder = inOrder
    .then(() => eventHandlers.get(data.kind)(data.content))
    .then(() => link.confirm(data.sequence))
    .catch((error) => console.error(`event ${data.kind} failed`, error))
}

const pushes = {
  ref: ({ ref }) => {
    Conn.set({ ref })
    Socket.set({ state: 'UNPAIRED' })
  },
  idle: () => Socket.set({ state: 'UNPAIRED_IDLE' }),
  paired: () => {
    Socket.set({ state: 'PAIRING' })
    greet()
  },
  conflict: () => enterState('CONFLICT'),
  synced: () => {
    inOrder = inOrder.then(finishSync)
  },
  logout: leave,
}

/** Logged out from the phone: everything is forgotten and the page starts anew. */
async function leave() {
  link.stop()
  Cmd.trigger('logout')
  await wipeProfile()
  await pause(settings.logoutMs)
  location.href = '/?post_logout=1'
}

/** Revoked while the page was closed: it goes on as a device nobody knows. */
async function forgetPairing() {
  link.stop()
  await wipeProfile()
  Object.assign(keys, await loadKeys())
  onNewKeys(keys)
  link.start(keys.noise)
}

export function enterState(state) {
  if (state === 'CONNECTED') link.start()
  else if (!PASSING.includes(state)) link.stop()
  Socket.set({ state })
}

export function resync() {
  Socket.set({ hasSynced: false })
  Socket.set({ hasSynced: true })
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
const bytes = (base64) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0))

const unlink = guarded('logout', async () => {
  await pause(settings.logoutMs) // what it has changed is synchronised first
  if (link.isOpen) await link.call('removeDevice')
  link.stop()
  Socket.set({ hasSynced: undefined })
  await wipeProfile()
  await pause(settings.logoutMs)
  location.href = '/?post_logout=1'
})
/** Only begins it: nothing is answered. */
Socket.logout = () => {
  unlink().catch((error) => console.error('logout failed', error))
}
Socket.takeover = Socket.reconnect = async () => {
  link.stop()
  Socket.set({ state: 'OPENING' })
  link.start()
}
function refreshQR() {
  link.call('refreshQr').catch((error) => console.error('no new code', error))
}
Conn.canSetMyPushname = () => true

define({
  WAWebSocketModel: { Socket },
  WAWebConnModel: { Conn },
  WAWebCmd: { Cmd },
  WAWebOfflineHandler: {
    OfflineMessageHandler: { getOfflineDeliveryProgress: () => progress.percent },
  },
  WAWebLaunchSocketUtils: { refreshQR },
  WAWebAltDeviceLinkingApi: {
    setPairingType: () => undefined,
    initializeAltDeviceLinking: async () => undefined,
    initializeQRLinking: async () => undefined,
    startAltLinkingFlow: guarded('startAltLinkingFlow', async (phone) => {
      const { code } = await link.call('pairingCode', { phone })
      return code
    }),
  },
  WAWebMiscBrowserUtils: { info: () => ({ os: 'Linux', name: 'Chrome', version: '1.0' }) },
  WAWebCompanionRegClientUtils: { DEVICE_PLATFORM },
  WAWebAdvSignatureApi: {},
  WAWebUserPrefsInfoStore: {
    waNoiseInfo: { get: async () => ({ staticKeyPair: { pubKey: bytes(keys.noise) } }) },
  },
  WAWebSignalStoreApi: {
    waSignalStore: {
      getRegistrationInfo: async () => ({ identityKeyPair: { pubKey: bytes(keys.identity) } }),
    },
  },
  WAWebUserPrefsMultiDevice: { getADVSecretKey: () => keys.advSecret },
  WAWebUserPrefsMeUser: {
    getMaybeMePnUser: () => me.pn,
    getMaybeMeLidUser: () => me.lid,
  },
  WABase64: { encodeB64: (data) => btoa(String.fromCharCode(...data)) },
  WAWebSetPushnameConnAction: { setPushname: async (pushname) => Conn.set({ pushname }) },
})
