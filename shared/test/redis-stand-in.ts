import { createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'

/** A stand-in for Redis that knows what counting needs: SET with PX and NX, INCR, PTTL, MULTI and EXEC. */
export interface RedisStandIn {
  url: string
  readonly values: Map<string, { value: number; endsAt: number }>
  /** `silent` answers nothing more; `normal` does again. */
  behave(how: 'normal' | 'silent'): void
  close(): Promise<void>
}

export async function startRedisStandIn(): Promise<RedisStandIn> {
  const values: RedisStandIn['values'] = new Map()
  const sockets = new Set<Socket>()
  let silent = false

  const alive = (key: string) => {
    const entry = values.get(key)
    return entry && entry.endsAt > Date.now() ? entry : undefined
  }
  const run = ([name = '', key = '', ...rest]: string[]): string => {
    switch (name.toUpperCase()) {
      case 'SET': {
        if (alive(key)) return '$-1\r\n'
        values.set(key, { value: Number(rest[0]), endsAt: Date.now() + Number(rest[2]) })
        return '+OK\r\n'
      }
      case 'INCR': {
        const entry = alive(key) ?? { value: 0, endsAt: Infinity }
        entry.value += 1
        values.set(key, entry)
        return `:${entry.value}\r\n`
      }
      case 'PTTL':
        return `:${Math.round((alive(key)?.endsAt ?? 0) - Date.now())}\r\n`
      case 'INFO':
        return bulk('redis_version:7.0.15\r\nloading:0\r\n')
      default:
        return '+OK\r\n'
    }
  }

  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket)).on('error', () => {})
    let pending = ''
    let queued: string[][] | undefined
    socket.setEncoding('latin1').on('data', (chunk: string) => {
      pending += chunk
      for (;;) {
        const parsed = parse(pending)
        if (!parsed) return
        pending = parsed.rest
        const name = parsed.words[0]!.toUpperCase()
        let reply: string
        if (name === 'MULTI') {
          queued = []
          reply = '+OK\r\n'
        } else if (name === 'EXEC') {
          const replies = queued!.map(run)
          queued = undefined
          reply = `*${replies.length}\r\n${replies.join('')}`
        } else if (queued) {
          queued.push(parsed.words)
          reply = '+QUEUED\r\n'
        } else {
          reply = run(parsed.words)
        }
        if (!silent) socket.write(reply)
      }
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `redis://127.0.0.1:${(server.address() as AddressInfo).port}`,
    values,
    behave: (how) => (silent = how === 'silent'),
    close: () =>
      new Promise((resolve) => {
        for (const socket of sockets) socket.destroy()
        server.close(() => resolve())
      }),
  }
}

const bulk = (text: string) => `$${text.length}\r\n${text}\r\n`

/** One command of RESP: `*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n`. */
function parse(text: string): { words: string[]; rest: string } | undefined {
  const head = /^\*(\d+)\r\n/.exec(text)
  if (!head) return undefined
  let at = head[0].length
  const words: string[] = []
  for (let i = 0; i < Number(head[1]); i++) {
    const length = /^\$(\d+)\r\n/.exec(text.slice(at, at + 20))
    if (!length) return undefined
    at += length[0].length
    if (text.length < at + Number(length[1]) + 2) return undefined
    words.push(text.slice(at, at + Number(length[1])))
    at += Number(length[1]) + 2
  }
  return { words, rest: text.slice(at) }
}
