/** The page's two sockets: the link to WhatsApp, which tests may cut, and the instrument's own control. */
/* global location, setTimeout, WebSocket */
import { checkpoint } from './faults.js'

const RETRY_MS = 100
const socketUrl = (path) => `wss://${location.host}${path}`

/**
 * The link. `onOpen` runs at each connection, `onLost` when one that had opened is gone;
 * it keeps trying to reconnect until `stop()`.
 */
export class Link {
  #socket
  #calls = new Map()
  #lastCall = 0
  #wanted = false

  constructor({ onOpen, onPush, onLost }) {
    this.noise = ''
    this.onOpen = onOpen
    this.onPush = onPush
    this.onLost = onLost
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN
  }

  start(noise = this.noise) {
    if (this.#wanted) return
    this.#wanted = true
    this.noise = noise
    this.#connect()
  }

  stop() {
    this.#wanted = false
    this.#socket?.close()
  }

  /** Asks the server; rejects when the link is down or the server answers with an error. */
  async call(name, args = {}) {
    await checkpoint(name)
    if (!this.isOpen) throw new Error('link is down')
    const id = ++this.#lastCall
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve, reject })
      this.#socket.send(JSON.stringify({ id, call: name, args }))
    })
  }

  confirm(sequence) {
    if (this.isOpen) this.#socket.send(JSON.stringify({ receipt: sequence }))
  }

  #connect() {
    if (!this.#wanted) return
    const socket = (this.#socket = new WebSocket(
      socketUrl(`/ws?noise=${encodeURIComponent(this.noise)}`),
    ))
    let wasOpen = false
    socket.onopen = () => {
      wasOpen = true
      this.onOpen()
    }
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(data))
    socket.onclose = () => {
      for (const { reject } of this.#calls.values()) reject(new Error('link is down'))
      this.#calls.clear()
      if (!this.#wanted || socket !== this.#socket) return
      if (wasOpen) this.onLost()
      setTimeout(() => this.#connect(), RETRY_MS)
    }
  }

  #receive(frame) {
    if (frame.push) return this.onPush(frame.push, frame.data)
    const waiting = this.#calls.get(frame.id)
    this.#calls.delete(frame.id)
    if (frame.error === undefined) waiting?.resolve(frame.result)
    else waiting?.reject(new Error(frame.error))
  }
}

/** The instrument's hand in the page; it stays when the link is cut. */
export class Control {
  #socket
  #noise

  constructor(commands) {
    this.commands = commands
  }

  /** Resolves with the instrument's settings. */
  open(noise) {
    this.#noise = noise
    return new Promise((resolve) => this.#connect(resolve))
  }

  /** The device has other keys from now on. */
  rename(noise) {
    this.#noise = noise
    this.#socket.send(JSON.stringify({ noise }))
  }

  #connect(onSettings) {
    const socket = (this.#socket = new WebSocket(socketUrl('/control')))
    socket.onopen = () => this.rename(this.#noise)
    socket.onclose = () => setTimeout(() => this.#connect(onSettings), RETRY_MS)
    socket.onmessage = ({ data }) => {
      const frame = JSON.parse(data)
      if (frame.settings) onSettings(frame.settings)
      else this.#run(frame)
    }
  }

  async #run({ id, command, args }) {
    try {
      this.#socket.send(JSON.stringify({ id, result: await this.commands[command](...args) }))
    } catch (error) {
      this.#socket.send(JSON.stringify({ id, error: error.message }))
    }
  }
}
