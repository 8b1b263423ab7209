import { get } from 'node:http'
import type { IncomingMessage } from 'node:http'
import type { Sql } from '../db.ts'
import { until } from './until.ts'

/** An event as a client has it. */
export interface Told {
  id: string
  type: string
  workspaceId: string
  sessionId: string | null
  createdAt: string
  payload: Record<string, unknown>
}

/** What came over a connection: an event, with its id and type as the stream says them. */
export interface Frame {
  id: string
  event: string
  data: Told
}

export interface OpenStream {
  status: number
  headers: IncomingMessage['headers']
  /** Of an answer that is no stream. */
  body: () => string
  frames: Frame[]
  /** As a browser keeps it. */
  lastEventId: () => string | undefined
  comments: () => number
  /** How the connection ended. */
  ended: Promise<'in order' | 'cut'>
  response: IncomingMessage
  close: () => void
}

/** Waits until no transaction is running that began before now: what is written by now lies before everything that follows. */
export async function settled(sql: Sql): Promise<void> {
  const [now] = await sql<{ tx: number }>`select pg_current_xact_id()::text::bigint as tx`
  await until('all transactions of before are over', async () => {
    const [horizon] = await sql<{ tx: number }>`
      select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as tx`
    return horizon!.tx > now!.tx
  })
}

/** Opens a stream of events and collects what comes. Resolves with the headers. */
export function openStream(
  url: string,
  headers: Record<string, string>,
  onFrame: (frame: Frame) => void = () => {},
): Promise<OpenStream> {
  return new Promise((resolve, reject) => {
    const request = get(url, { headers, agent: false }, (response) => {
      let text = ''
      let lastEventId: string | undefined
      let comments = 0
      const frames: Frame[] = []
      const stream = response.headers['content-type']?.startsWith('text/event-stream') ?? false
      response.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
        for (let end; stream && (end = text.indexOf('\n\n')) !== -1;) {
          const block = text.slice(0, end)
          text = text.slice(end + 2)
          const fields = new Map<string, string>()
          for (const line of block.split('\n')) {
            const [, name = '', value = ''] = /^([^:]*):? ?(.*)$/.exec(line) ?? []
            if (name === '') comments += 1
            else fields.set(name, value)
          }
          lastEventId = fields.get('id') ?? lastEventId
          const data = fields.get('data')
          if (data === undefined) continue
          const frame = {
            id: lastEventId!,
            event: fields.get('event') ?? 'message',
            data: JSON.parse(data) as Told,
          }
          frames.push(frame)
          onFrame(frame)
        }
      })
      const ended = new Promise<'in order' | 'cut'>((over) => {
        response.once('close', () => over(response.complete ? 'in order' : 'cut'))
      })
      response.on('error', () => {}) // told by `ended`
      resolve({
        status: response.statusCode!,
        headers: response.headers,
        body: () => text,
        frames,
        lastEventId: () => lastEventId,
        comments: () => comments,
        ended,
        response,
        close: () => request.destroy(),
      })
    })
    request.on('error', reject)
  })
}
