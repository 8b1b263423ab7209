import type { Socket } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { answerUnreadable } from './plugins/errors.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Takes bodies for which no fixed time would be enough; see guardUploads(). */
    upload?: boolean
  }
}

/** How slowly a body may come. */
export interface Pace {
  /** Looked at so often, in milliseconds. */
  everyMs: number
  /** Less than this since the last look cuts the connection. */
  bytes: number
}

/** A client gets so long to read an answer that came before it had sent everything. */
const lingerMs = 1_000

/** Whether the request is still being sent; no longer, once its connection is gone. Those that are injected have no socket and are complete. */
const isArriving = ({ raw }: FastifyRequest) =>
  !raw.complete && !raw.readableEnded && !raw.destroyed

/** Gives the body of every request so long to arrive; those of uploads have a pace instead. */
export function limitBodies(app: FastifyInstance, ms: number): void {
  app.addHook('onRequest', async (request, reply) => {
    const { 'content-length': length = '0', 'transfer-encoding': encoding } = request.headers
    if (request.routeOptions.config.upload || (length === '0' && !encoding)) return
    if (!isArriving(request)) return
    const timer = setTimeout(() => {
      const late = Object.assign(new Error('late'), { code: 'ERR_HTTP_REQUEST_TIMEOUT' })
      if (isArriving(request)) answerUnreadable(late, request.raw.socket, request.id)
    }, ms)
    reply.raw.once('close', () => clearTimeout(timer))
  })
}

/**
 * For routes that take large bodies: a client that crawls is cut off, and an answer given before everything was read ends the connection without
 * reading the rest.
 */
export function guardUploads(app: FastifyInstance, { everyMs, bytes }: Pace): void {
  app.addHook('onRoute', (route) => {
    route.config = { ...route.config, upload: true }
  })
  app.addHook('onRequest', async (request, reply) => {
    // Who has gone already is not told of again: nothing would ever clear the timer.
    if (!isArriving(request)) return
    const { socket } = request.raw
    let seen = socket.bytesRead
    const timer = setInterval(() => {
      if (!isArriving(request)) return clearInterval(timer)
      if (socket.bytesRead - seen < bytes) {
        request.log.info({ route: request.routeOptions.url }, 'upload cut: it came too slowly')
        socket.destroy()
      }
      seen = socket.bytesRead
    }, everyMs)
    reply.raw.once('close', () => clearInterval(timer))
  })

  app.addHook('onSend', async (request, reply) => {
    if (!isArriving(request)) return
    reply.header('connection', 'close')
    request.raw.unpipe()
    request.raw.pause()
    stopReading(request.raw.socket)
  })
}

/**
 * Reads nothing more of a connection. The answer goes out first, and then only our half is closed: a connection that is cut with unread bytes in
 * it would take the answer away from the client.
 */
function stopReading(socket: Socket): void {
  socket.pause()
  // Node would go on once the answer is out, and throw away what it reads.
  socket.resume = () => socket
  socket.destroySoon = () => {
    socket.end()
    const timer = setTimeout(() => socket.destroy(), lingerMs)
    socket.once('close', () => clearTimeout(timer))
  }
}
