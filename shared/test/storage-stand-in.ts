import { createServer } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

/**
 * A stand-in for the HTTP interface of Supabase Storage, with the manners of the real one (measured on version 1.11.2): every
 * refusal is HTTP 400 and carries the true code in its body, nothing happens without a token, keys are ASCII, objects are not replaced
 * unasked, and what is absent is passed over by a removal.
 */
export interface StorageStandIn {
  url: string
  serviceRoleKey: string
  /** bucket → key → bytes */
  readonly buckets: Map<string, Map<string, Buffer>>
  /** Calls so far, as "POST /storage/v1/object/…". */
  readonly calls: string[]
  /** What happens to the calls from now on. */
  behave(how: Manner): void
  close(): Promise<void>
}

/**
 * `normal`; `overloaded` answers 503, `silent` never, `stuck` stops in the middle of a download, `cut` breaks the connection there,
 * `small` takes no more than 1,000 bytes.
 */
export type Manner = 'normal' | 'overloaded' | 'silent' | 'stuck' | 'cut' | 'small'

export async function startStorageStandIn(): Promise<StorageStandIn> {
  const serviceRoleKey = 'stand-in.service-role.key'
  const buckets = new Map<string, Map<string, Buffer>>()
  const open = new Map<string, boolean>()
  const calls: string[] = []
  let manner: Manner = 'normal'

  const refuse = (reply: ServerResponse, statusCode: string, error: string, message: string) => {
    json(reply, 400, { statusCode, error, message })
  }

  const server = createServer((request, reply) => {
    // A client that goes away in the middle of an upload is no fault of the server.
    handle(request, reply).catch(() => reply.destroy())
  })

  async function handle(request: IncomingMessage, reply: ServerResponse): Promise<void> {
    const { pathname } = new URL(request.url!, 'http://stand-in')
    calls.push(`${request.method} ${pathname}`)
    if (manner === 'silent') return
    if (manner === 'overloaded') return json(reply, 503, { message: 'Service Unavailable' })
    const token = request.headers.authorization?.replace(/^Bearer /, '')
    if (!token) return refuse(reply, '403', 'Unauthorized', 'Authorization header is required')
    if (token !== serviceRoleKey) return refuse(reply, '403', 'Unauthorized', 'Invalid JWT')

    const [kind, name, ...rest] = pathname
      .replace('/storage/v1/', '')
      .split('/')
      .map(decodeURIComponent)
    if (kind === 'bucket') return bucketCall(request, reply, name)
    if (kind === 'object' && name !== undefined) {
      return objectCall(request, reply, name, rest.join('/'))
    }
    json(reply, 404, { message: `Route ${request.method}:${pathname} not found` })
  }

  async function bucketCall(request: IncomingMessage, reply: ServerResponse, name?: string) {
    if (request.method === 'GET' && name !== undefined) {
      if (!buckets.has(name)) return refuse(reply, '404', 'Bucket not found', 'Bucket not found')
      return json(reply, 200, { id: name, name, public: open.get(name) ?? false })
    }
    const wish = JSON.parse((await bytesOf(request)).toString()) as { id: string; public: boolean }
    if (buckets.has(wish.id)) {
      return refuse(reply, '409', 'Duplicate', 'The resource already exists')
    }
    buckets.set(wish.id, new Map())
    open.set(wish.id, wish.public)
    json(reply, 200, { name: wish.id })
  }

  async function objectCall(
    request: IncomingMessage,
    reply: ServerResponse,
    bucket: string,
    key: string,
  ) {
    const objects = buckets.get(bucket)
    switch (request.method) {
      case 'POST': {
        if (!/^[\x20-\x7e]+$/.test(key) || /[\\{}^%`[\]"<>~#|]/.test(key)) {
          return refuse(reply, '400', 'InvalidKey', `Invalid key: ${key}`)
        }
        const bytes = await bytesOf(request)
        if (manner === 'small' && bytes.length > 1_000) {
          return refuse(
            reply,
            '413',
            'Payload too large',
            'The object exceeded the maximum allowed size',
          )
        }
        if (!objects) return refuse(reply, '404', 'Bucket not found', 'Bucket not found')
        if (objects.has(key) && request.headers['x-upsert'] !== 'true') {
          return refuse(reply, '409', 'Duplicate', 'The resource already exists')
        }
        objects.set(key, bytes)
        return json(reply, 200, { Key: `${bucket}/${key}`, Id: `${calls.length}` })
      }
      case 'GET': {
        if (!objects) return refuse(reply, '404', 'Bucket not found', 'Bucket not found')
        const bytes = objects.get(key)
        if (!bytes) return refuse(reply, '404', 'not_found', 'Object not found')
        reply.writeHead(200, { 'content-length': bytes.length })
        if (manner !== 'stuck' && manner !== 'cut') return void reply.end(bytes)
        reply.write(bytes.subarray(0, bytes.length / 2), () => {
          if (manner === 'cut') reply.destroy()
        })
        return
      }
      case 'DELETE': {
        const { prefixes } = JSON.parse((await bytesOf(request)).toString()) as {
          prefixes: string[]
        }
        const removed = prefixes.filter((prefix) => objects?.delete(prefix))
        return json(
          reply,
          200,
          removed.map((prefix) => ({ name: prefix })),
        )
      }
      default:
        return json(reply, 404, { message: 'not found' })
    }
  }

  server.listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    serviceRoleKey,
    buckets,
    calls,
    behave: (how) => (manner = how),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}

function json(reply: ServerResponse, status: number, value: unknown): void {
  reply.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
}

async function bytesOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}
