/**
 * What survives in the browser profile. One half of the device's keys lives in localStorage, the
 * other in IndexedDB, as on the real page: a profile that lost one half is no longer a paired device.
 */
/* global btoa, crypto, indexedDB, localStorage */

const STORES = ['identity', 'messages', 'chats']
let opened

const database = () =>
  (opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open('emulated-whatsapp', 1)
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name))
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  }))

/** Runs `work` on one store and resolves with its request's result once the transaction is committed. */
async function transact(name, mode, work) {
  const transaction = (await database()).transaction(name, mode)
  const request = work(transaction.objectStore(name))
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result)
    transaction.onerror = transaction.onabort = () => reject(transaction.error)
  })
}

const put = (name, key, value) => transact(name, 'readwrite', (store) => store.put(value, key))

export const saveMessage = (key, record) => put('messages', key, record)
export const saveChat = (key, record) => put('chats', key, record)
export const forgetMessage = (key) =>
  transact('messages', 'readwrite', (store) => store.delete(key))
export const forgetChat = (key) => transact('chats', 'readwrite', (store) => store.delete(key))
export const loadMessages = () => transact('messages', 'readonly', (store) => store.getAll())
export const loadChats = () => transact('chats', 'readonly', (store) => store.getAll())

/** The keys of this device, made on the first load. `number` is there once it was paired. */
export async function loadKeys() {
  const identity = (await transact('identity', 'readonly', (store) => store.get('keys'))) ?? {}
  const noise = JSON.parse(localStorage.getItem('WANoiseInfo') ?? '{}')
  identity.publicKey ??= randomKey()
  noise.publicKey ??= randomKey()
  noise.advSecret ??= randomKey()
  const keys = {
    noise: noise.publicKey,
    advSecret: noise.advSecret,
    identity: identity.publicKey,
    number: identity.number,
    epoch: identity.epoch ?? 0,
  }
  await saveKeys(keys)
  return keys
}

export async function saveKeys({ noise, advSecret, identity, number, epoch }) {
  localStorage.setItem('WANoiseInfo', JSON.stringify({ publicKey: noise, advSecret }))
  await put('identity', 'keys', { publicKey: identity, number, epoch })
}

/** A device that was logged out keeps nothing. */
export async function wipeProfile() {
  localStorage.clear()
  for (const name of STORES) await transact(name, 'readwrite', (store) => store.clear())
}

const randomKey = () => btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(32))))
