import { readFile } from 'node:fs/promises'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer } from 'node:https'
import type { Server } from 'node:https'
import { buffer } from 'node:stream/consumers'
import type { Duplex } from 'node:stream'
import { generate } from 'selfsigned'
import { WebSocketServer } from 'ws'
import type { WebSocket } from 'ws'
import type { MediaStore } from './media.ts'

export interface Certificate {
  key: string
  cert: string
}

export interface Serving {
  /** `silent` accepts connections and never answers. */
  page: 'normal' | 'maintenance' | 'silent'
  /** The link's socket; `silent` never opens. */
  socket: 'normal' | 'refused' | 'silent'
}

interface Parts {
  certificate: Certificate | undefined
  media: MediaStore
  serving: Serving
  isLinkDropped: (noise: string) => boolean
  onLink: (socket: WebSocket) => void
  onControl: (socket: WebSocket) => void
}

const PAGE = new URL('../page/', import.meta.url)
const SCRIPT = /^\/emulated-page\/([a-z-]+\.js)$/
const MAX_FRAME = 64 * 1024 * 1024

/** The HTTPS server behind the address web.whatsapp.com: page, media, and the upgrades to WebSockets. */
export async function createWeb(parts: Parts): Promise<Server> {
  const { key, cert } = parts.certificate ?? (await selfSigned())
  const server = createServer({ key, cert }, (request, response) => {
    answer(parts, request, response).catch(() => response.destroy())
  })
  const sockets = new WebSocketServer({ noServer: true, maxPayload: MAX_FRAME })
  server.on('upgrade', (request: IncomingMessage, stream: Duplex, head: Buffer) => {
    const url = addressOf(request)
    if (url.pathname === '/ws' && parts.serving.socket === 'silent') return
    if (url.pathname === '/ws' && isRefused(parts, url)) return stream.destroy()
    const accept = url.pathname === '/control' ? parts.onControl : parts.onLink
    sockets.handleUpgrade(request, stream, head, accept)
  })
  return server
}

const isRefused = ({ serving, isLinkDropped }: Parts, url: URL) =>
  serving.socket === 'refused' || isLinkDropped(url.searchParams.get('noise') ?? '')

async function answer(parts: Parts, request: IncomingMessage, response: ServerResponse) {
  const { pathname } = addressOf(request)
  if (pathname === '/mms/upload') {
    const stored = parts.media.put(await buffer(request))
    return response.end(JSON.stringify(stored))
  }
  if (pathname.startsWith('/mms/')) {
    const bytes = parts.media.get(pathname)?.bytes
    response.statusCode = bytes ? 200 : 404
    return response.end(bytes)
  }
  const script = SCRIPT.exec(pathname)?.[1]
  if (script) {
    response.setHeader('content-type', 'text/javascript')
    return response.end(await readFile(new URL(script, PAGE)))
  }
  if (parts.serving.page === 'silent') return
  response.setHeader('content-type', 'text/html')
  if (pathname === '/iframe') return response.end('<!doctype html><title>frame</title>')
  const isMaintained = parts.serving.page === 'maintenance' || pathname === '/maintenance'
  response.end(await readFile(new URL(isMaintained ? 'maintenance.html' : 'index.html', PAGE)))
}

const addressOf = (request: IncomingMessage) =>
  new URL(request.url ?? '/', 'https://web.whatsapp.com')

async function selfSigned(): Promise<Certificate> {
  const attributes = [{ name: 'commonName', value: 'web.whatsapp.com' }]
  const { private: key, cert } = await generate(attributes, { keyType: 'ec', algorithm: 'sha256' })
  return { key, cert }
}
