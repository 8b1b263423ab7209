/** Plain JSON for the wire and the profile: ids and bytes are marked, behaviour is left out. */
/* global atob, btoa */
import { createWid, MsgKey, Wid } from './ids.js'

export function encode(value) {
  if (value instanceof Wid) return { $wid: value._serialized }
  if (value instanceof MsgKey) return { $key: String(value) }
  if (value instanceof Uint8Array) return { $bytes: btoa(String.fromCharCode(...value)) }
  if (Array.isArray(value)) return value.map(encode)
  if (value === null || typeof value !== 'object')
    return typeof value === 'function' ? undefined : value
  if (!isPlain(value)) return undefined
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, encode(part)]))
}

export function decode(value) {
  if (Array.isArray(value)) return value.map(decode)
  if (value === null || typeof value !== 'object') return value
  if ('$wid' in value) return createWid(value.$wid)
  if ('$key' in value) return MsgKey.fromString(value.$key)
  if ('$bytes' in value) return Uint8Array.from(atob(value.$bytes), (char) => char.charCodeAt(0))
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, decode(part)]))
}

const isPlain = (value) => [Object.prototype, null].includes(Object.getPrototypeOf(value))
