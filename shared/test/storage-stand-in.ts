import { createHmac, randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

/**
 * A stand-in for the HTTP interface of Supabase Storage, with the manners of the real one (measured on version 1.11.2): every
 * refusal is HTTP 400 and carries the true code in its body, nothing happens without a token, keys are ASCII, objects are not replaced
 * unasked, and what is absent is passed over by a removal. Signed URLs need no token of the caller's; theirs is bound to one object and to
 * reading or to putting.
 */
export interface StorageStandIn {
  url: string
  serviceRoleKey: string
  /** bucket → key → bytes */
  readonly buckets: Map<string, Map<string, Buffer>>
  /** bucket/key → the type it was put under */
  readonly types: Map<string, string>
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
  const types = new Map<string, string>()
  /** Uploads in pieces that are under way. */
  const pieces = new Map<string, { bucket: string; key: string; length: number; bytes: Buffer }>()
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
    const { pathname, searchParams } = new URL(request.url!, 'http://stand-in')
    calls.push(`${request.method} ${pathname}`)
    if (manner === 'silent') return
    if (manner === 'overloaded') return json(reply, 503, { message: 'Service Unavailable' })
    const signed = /^\/storage\/v1\/object\/(upload\/)?sign\/([^/]+)\/(.+)$/.exec(pathname)
    const ticket = searchParams.get('token')
    if (signed && request.method !== 'POST') {
      const [, upload, bucket = '', key = ''] = signed
      const use = upload ? 'put' : 'read'
      const fault = ticketFault(ticket, { use, url: `${bucket}/${key}` })
      if (fault) return refuse(reply, '400', fault, fault)
      if (use === 'put' && request.method === 'PUT') return putObject(request, reply, bucket, key)
      if (use === 'read' && request.method === 'GET') {
        return getObject(request, reply, bucket, key, searchParams.get('download'))
      }
    }
    if (pathname.startsWith('/storage/v1/upload/resumable/sign')) {
      return putPieces(request, reply, pathname)
    }
    const token = request.headers.authorization?.replace(/^Bearer /, '')
    if (!token) return refuse(reply, '403', 'Unauthorized', 'Authorization header is required')
    if (token !== serviceRoleKey) return refuse(reply, '403', 'Unauthorized', 'Invalid JWT')

    const [kind, name, ...rest] = pathname
      .replace('/storage/v1/', '')
      .split('/')
      .map(decodeURIComponent)
    if (kind === 'bucket') return bucketCall(request, reply, name)
    if (kind === 'object' && name === 'info')
      return infoCall(reply, rest[0]!, rest.slice(1).join('/'))
    if (kind === 'object' && name === 'list') return listCall(request, reply, rest[0]!)
    if (kind === 'object' && name === 'sign' && request.method === 'POST') {
      const { expiresIn } = JSON.parse((await bytesOf(request)).toString()) as { expiresIn: number }
      const url = rest.join('/')
      if (!buckets.get(rest[0]!)?.has(rest.slice(1).join('/'))) {
        return refuse(reply, '404', 'not_found', 'Object not found')
      }
      const token = newTicket({ use: 'read', url, exp: Date.now() / 1_000 + expiresIn })
      return json(reply, 200, { signedURL: `/object/sign/${url}?token=${token}` })
    }
    if (kind === 'object' && name === 'upload' && request.method === 'POST') {
      const [bucket = '', ...key] = rest.slice(1)
      if (!buckets.has(bucket)) return refuse(reply, '404', 'Bucket not found', 'Bucket not found')
      const url = `${bucket}/${key.join('/')}`
      if (buckets.get(bucket)!.has(key.join('/'))) {
        return refuse(reply, '409', 'Duplicate', 'The resource already exists')
      }
      const token = newTicket({ use: 'put', url, exp: Date.now() / 1_000 + 7_200 })
      return json(reply, 200, { url: `/object/upload/sign/${url}?token=${token}`, token })
    }
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

  async function putObject(
    request: IncomingMessage,
    reply: ServerResponse,
    bucket: string,
    key: string,
  ) {
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
    const objects = buckets.get(bucket)
    if (!objects) return refuse(reply, '404', 'Bucket not found', 'Bucket not found')
    if (objects.has(key) && request.headers['x-upsert'] !== 'true') {
      return refuse(reply, '409', 'Duplicate', 'The resource already exists')
    }
    objects.set(key, bytes)
    types.set(`${bucket}/${key}`, request.headers['content-type'] ?? 'application/octet-stream')
    return json(reply, 200, { Key: `${bucket}/${key}`, Id: `${calls.length}` })
  }

  async function getObject(
    request: IncomingMessage,
    reply: ServerResponse,
    bucket: string,
    key: string,
    download: string | null,
  ) {
    const objects = buckets.get(bucket)
    if (!objects) return refuse(reply, '404', 'Bucket not found', 'Bucket not found')
    const whole = objects.get(key)
    if (!whole) return refuse(reply, '404', 'not_found', 'Object not found')
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? []
    const bytes = from === undefined ? whole : whole.subarray(Number(from), Number(to) + 1)
    reply.writeHead(from === undefined ? 200 : 206, {
      'content-length': bytes.length,
      'content-type': types.get(`${bucket}/${key}`)!,
      ...(download && {
        'content-disposition': `attachment; filename*=UTF-8''${encodeURIComponent(download)}`,
      }),
    })
    if (manner !== 'stuck' && manner !== 'cut') return void reply.end(bytes)
    reply.write(bytes.subarray(0, bytes.length / 2), () => {
      if (manner === 'cut') reply.destroy()
    })
  }

  function infoCall(reply: ServerResponse, bucket: string, key: string) {
    const objects = buckets.get(bucket)
    if (!objects) return refuse(reply, '404', 'Bucket not found', 'Bucket not found')
    const bytes = objects.get(key)
    if (!bytes) return refuse(reply, '404', 'not_found', 'Object not found')
    const name = `${bucket}/${key}`
    json(reply, 200, { id: name, name: key, size: bytes.length, content_type: types.get(name) })
  }

  async function listCall(request: IncomingMessage, reply: ServerResponse, bucket: string) {
    const { prefix, limit, offset } = JSON.parse((await bytesOf(request)).toString()) as {
      prefix: string
      limit: number
      offset: number
    }
    const below = prefix === '' ? '' : `${prefix}/`
    const names = new Map<string, boolean>()
    for (const key of buckets.get(bucket)?.keys() ?? []) {
      if (!key.startsWith(below)) continue
      const [name = '', ...rest] = key.slice(below.length).split('/')
      names.set(name, rest.length > 0)
    }
    const page = [...names].sort().slice(offset, offset + limit)
    const at = new Date().toISOString()
    json(
      reply,
      200,
      page.map(([name, folder]) => ({
        name,
        id: folder ? null : name,
        created_at: folder ? null : at,
      })),
    )
  }

  /** The TUS protocol, as far as a client needs it: begin, ask how far, go on. */
  async function putPieces(request: IncomingMessage, reply: ServerResponse, pathname: string) {
    const headers = { 'tus-resumable': '1.0.0' }
    if (request.method === 'POST') {
      const fields = String(request.headers['upload-metadata']).split(',')
      const metadata = new Map(fields.map((field) => field.trim().split(' ') as [string, string]))
      const value = (name: string) => Buffer.from(metadata.get(name) ?? '', 'base64').toString()
      const [bucket, key] = [value('bucketName'), value('objectName')]
      const ticket = String(request.headers['x-signature'])
      const fault = ticketFault(ticket, { use: 'put', url: `${bucket}/${key}` })
      if (fault) return refuse(reply, '400', fault, fault)
      const id = randomUUID()
      const length = Number(request.headers['upload-length'])
      pieces.set(id, { bucket, key, length, bytes: Buffer.alloc(0) })
      types.set(`${bucket}/${key}`, value('contentType'))
      return void reply
        .writeHead(201, { ...headers, location: `${address()}${pathname}/${id}` })
        .end()
    }
    const upload = pieces.get(pathname.split('/').at(-1)!)
    if (!upload) return void reply.writeHead(404, headers).end()
    if (request.method === 'PATCH') {
      if (Number(request.headers['upload-offset']) !== upload.bytes.length) {
        return void reply.writeHead(409, headers).end()
      }
      upload.bytes = Buffer.concat([upload.bytes, await bytesOf(request)])
      if (upload.bytes.length === upload.length) {
        buckets.get(upload.bucket)!.set(upload.key, upload.bytes)
      }
    }
    const offset = { 'upload-offset': upload.bytes.length }
    reply.writeHead(request.method === 'HEAD' ? 200 : 204, { ...headers, ...offset }).end()
  }

  async function objectCall(
    request: IncomingMessage,
    reply: ServerResponse,
    bucket: string,
    key: string,
  ) {
    const objects = buckets.get(bucket)
    switch (request.method) {
      case 'POST':
        return putObject(request, reply, bucket, key)
      case 'GET':
        return getObject(request, reply, bucket, key, null)
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

  const address = () => `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  server.listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  return {
    url: address(),
    serviceRoleKey,
    buckets,
    types,
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

interface Ticket {
  use: 'read' | 'put'
  url: string
  exp: number
}

const sign = (text: string) => createHmac('sha256', 'stand-in').update(text).digest('base64url')

function newTicket(ticket: Ticket): string {
  const text = Buffer.from(JSON.stringify(ticket)).toString('base64url')
  return `${text}.${sign(text)}`
}

/** What the server calls a ticket that does not let this be done. */
function ticketFault(ticket: string | null, { use, url }: Omit<Ticket, 'exp'>): string | undefined {
  const [text = '', signature] = (ticket ?? '').split('.')
  if (signature !== sign(text)) return 'InvalidJWT'
  const claims = JSON.parse(Buffer.from(text, 'base64url').toString()) as Ticket
  if (claims.exp <= Date.now() / 1_000) return 'InvalidJWT'
  return claims.use === use && claims.url === url ? undefined : 'InvalidSignature'
}
