import { request as httpRequest } from 'node:http'
import type { IncomingMessage } from 'node:http'
import { request as httpsRequest } from 'node:https'
import type { LookupFunction } from 'node:net'
import { performance } from 'node:perf_hooks'
import { hostOf, resolveHost } from '../shared/webhook-address.ts'
import type { Lookup } from '../shared/webhook-address.ts'
import type { PostOutcome } from '../shared/webhook-deliveries.ts'

export interface PostOptions {
  /** Whether it may lead into private networks. */
  allowPrivate: boolean
  /** From asking for the address to the end of the answer. */
  timeoutMs: number
  /** Instead of the system's resolver. */
  lookup?: Lookup | undefined
}

/** Of an answer so much is read, and dropped; nobody needs to send more to say yes. */
const maxAnswer = 65_536

/**
 * Posts JSON. The host is resolved once, and the connection goes to the address that was looked at. Redirects are not followed: an answer that is no 2xx is a
 * failure. Never rejects.
 */
export async function post(
  url: string,
  body: string,
  headers: Record<string, string>,
  { allowPrivate, timeoutMs, lookup }: PostOptions,
): Promise<PostOutcome> {
  const begun = performance.now()
  const took = () => Math.round(performance.now() - begun)
  try {
    const target = new URL(url)
    // Node asks no resolver for what is an address already, so it is looked at here, before anything is opened.
    const addresses = await inTime(resolveHost(hostOf(target), allowPrivate, lookup), timeoutMs)
    const status = await new Promise<number>((resolve, reject) => {
      const send = target.protocol === 'https:' ? httpsRequest : httpRequest
      const request = send(target, {
        method: 'POST',
        // A connection of its own: one that is kept could lead to where the name pointed before.
        agent: false,
        lookup: pinned(addresses),
        signal: AbortSignal.timeout(Math.max(1, timeoutMs - took())),
        headers: {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(body),
          'user-agent': 'Awfar-Webhooks/1',
          ...headers,
        },
      })
      // The first line of the answer says it: whatever becomes of the rest, it has been received.
      request.on('response', (response) => {
        request.off('error', reject).on('error', () => {})
        void drop(response).finally(() => {
          request.destroy()
          resolve(response.statusCode!)
        })
      })
      request.on('error', reject)
      request.end(body)
    })
    const ok = status >= 200 && status < 300
    return { ok, status, error: ok ? null : `HTTP_${status}`, duration: took() }
  } catch (error) {
    return { ok: false, status: null, error: nameOf(error as Error), duration: took() }
  }
}

/** Answers the addresses that were looked at, whatever the name leads to by now. */
const pinned =
  (addresses: { address: string; family: number }[]): LookupFunction =>
  (_hostname, { all }, callback) => {
    if (all) return callback(null, addresses)
    callback(null, addresses[0]!.address, addresses[0]!.family)
  }

/** Reads an answer until it ends, breaks off, is out of time or longer than anybody needs it to be. */
async function drop(response: IncomingMessage): Promise<void> {
  let bytes = 0
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      bytes += chunk.length
      if (bytes > maxAnswer) return
    }
  } catch {
    // It broke off, or was out of time.
  }
}

async function inTime<T>(work: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(Object.assign(new Error('late'), { name: 'TimeoutError' })), ms)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

/** A word for what went wrong: nothing of what the other side said, which may be a service it was not meant for. */
function nameOf(error: Error & { code?: string; cause?: unknown }): string {
  if (error instanceof AggregateError) return nameOf(error.errors[0] as Error)
  if (error.name === 'AbortError' || error.name === 'TimeoutError') return 'TIMEOUT'
  return error.code ?? 'FAILED'
}
