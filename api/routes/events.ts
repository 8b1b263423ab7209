import { Readable } from 'node:stream'
import type { FastifyRequest } from 'fastify'
import Joi from 'joi'
import { Gauge } from 'prom-client'
import { AppError } from '../../shared/errors.ts'
import { eventId, eventJson, eventTypes, parseEventId, startingPoint } from '../../shared/events.ts'
import type { EventType, Position, StoredEvent } from '../../shared/events.ts'
import type { Reader } from '../event-feed.ts'
import { message } from '../message-schema.ts'
import { errorBody } from '../plugins/errors.ts'
import { uuid } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'
import { chat } from './chats.ts'
import { media } from './media.ts'
import { session } from './sessions.ts'

export const eventType = Joi.string().valid(...eventTypes)

export const event = Joi.object({
  id: Joi.string().guid().required().description('Rises with every event of the workspace'),
  type: eventType.required(),
  workspaceId: Joi.string().guid().required(),
  sessionId: Joi.string().guid().allow(null).required(),
  createdAt: Joi.date().required(),
  payload: Joi.alternatives(message, session, chat, media)
    .required()
    .description('The resource after the change'),
}).description('What happened')

interface Wanted {
  types?: EventType[]
  sessionId?: string
  lastEventId?: Position
}

const lastEventId = Joi.string()
  .max(100)
  .empty('')
  .custom((text: string) => {
    const position = parseEventId(text)
    if (position) return position
    throw new Error('must be the id of an event')
  })

const wanted = Joi.object<Wanted>({
  types: Joi.string()
    .max(500)
    .custom((text: string) => {
      const types = text.split(',').map((type) => type.trim())
      const wrong = types.filter((type) => !eventTypes.includes(type as EventType))
      if (wrong.length === 0) return types
      throw new Error(`must list types of events, separated by commas: ${eventTypes.join(', ')}`)
    })
    .description('Only these types, separated by commas; all when absent'),
  sessionId: uuid().description('Only events of this session'),
  lastEventId: lastEventId.description('As the header, for clients that cannot send one'),
})

const headers = Joi.object<{ 'last-event-id'?: Position }>({
  'last-event-id': lastEventId.description(
    'What came after this event comes first; without it only what happens from now on',
  ),
})

/** Events wait for a client up to so many bytes; it is cut when more come while it has these still to take. */
const maxUnsent = 1_048_576
/** Streams of one person or key, in one process. */
const maxStreams = 20

interface Stream {
  caller: string
  /** Ends it in order: the client has all it was told. */
  end: () => void
}

/** What happens, as it happens. */
export const eventsRoutes: Routes = async (app) => {
  const { sql, eventFeed, heartbeatMs } = app
  const streams = new Set<Stream>()
  new Gauge({
    name: 'event_streams',
    help: 'Open streams of events',
    registers: [app.metrics],
    collect() {
      this.set(streams.size)
    },
  })
  // Streams have no end of their own: without this a stop would wait for all of them.
  let closing = false
  app.addHook('preClose', async () => {
    closing = true
    for (const { end } of streams) end()
  })

  app.get(
    '/api/events',
    {
      exposeHeadRoute: false,
      config: { access: 'read' },
      schema: {
        summary: 'Follow what happens, as server-sent events',
        description:
          'Each has the name of its type as `event`, its id as `id`, and itself, as JSON, as `data`. The order is that of the changes; none is left out and none comes twice, also not after a reconnection with `Last-Event-ID`, for seven days. After that, and for ids of another database, the answer is 410: read the state anew and connect without it. The stream ends when the access token expires or the caller may no longer listen; a client that does not take what waits for it is cut off and may resume.',
        tags: ['events'],
        querystring: wanted,
        headers,
        response: {
          200: { content: { 'text/event-stream': { schema: event } } },
          410: errorBody,
        },
      },
    },
    async (request, reply) => {
      const { user, query } = request
      const caller = user.apiKey?.id ?? user.id
      const after = request.headers['last-event-id'] ?? query.lastEventId
      const position = await startingPoint(sql, user.workspaceId, after)
      if (!position) {
        throw new AppError(
          410,
          'EVENTS_GONE',
          'What came after this event is no longer kept: read the state anew, then connect without Last-Event-ID.',
        )
      }
      // From here on nothing is waited for: nobody else may take the last place.
      if (closing) throw new AppError(503, 'SERVICE_UNAVAILABLE', 'This process is ending.')
      if ([...streams].filter((stream) => stream.caller === caller).length >= maxStreams) {
        reply.header('retry-after', '5')
        throw new AppError(
          429,
          'TOO_MANY_STREAMS',
          `There are ${maxStreams} streams of yours already.`,
        )
      }

      const { readable, reader } = openStream(user.workspaceId, position, query)
      const gone = new AbortController()
      // As often it is looked whether the caller may still listen.
      const beat = setInterval(() => {
        readable.push(heartbeat(reader))
        void mayStillListen(request).then((may) => may || end())
      }, heartbeatMs)
      const leave = () => {
        streams.delete(stream)
        clearInterval(beat)
        gone.abort()
      }
      const end = () => {
        if (gone.signal.aborted) return
        leave()
        readable.push(null)
      }
      const stream = { caller, end }
      streams.add(stream)
      readable.once('close', leave)
      void eventFeed.follow(reader, gone.signal)
      // Proxies that collect an answer before they pass it on would pass on nothing.
      reply.header('cache-control', 'no-cache, no-transform').header('x-accel-buffering', 'no')
      return reply.type('text/event-stream; charset=utf-8').send(readable)
    },
  )

  /** Whether who opened a stream is still who they were. While nobody can tell, nobody is told anything either. */
  async function mayStillListen(request: FastifyRequest): Promise<boolean> {
    try {
      return (await app.identify(request))?.workspaceId === request.user.workspaceId
    } catch (error) {
      request.log.warn({ error }, 'listener not checked')
      return true
    }
  }
}

/** A stream that begins to flow when it is sent, and who feeds it. */
function openStream(
  workspaceId: string,
  position: Position,
  { types, sessionId }: Wanted,
): { readable: Readable; reader: Reader } {
  let onDrained = () => {}
  const readable = new Readable({
    read: () => onDrained(),
    destroy: (error, done) => {
      onDrained()
      done(error)
    },
  })
  // The headers leave with the first bytes.
  readable.push('retry: 3000\n\n')
  const reader: Reader = {
    workspaceId,
    position,
    tell(events) {
      if (readable.readableLength > maxUnsent) return void readable.destroy()
      for (const event of events) {
        if (types && !types.includes(event.type)) continue
        if (sessionId !== undefined && event.sessionId !== sessionId) continue
        readable.push(frameOf(event))
      }
    },
    cut: () => void readable.destroy(),
    drained: async () => {
      if (readable.destroyed || readable.readableLength < readable.readableHighWaterMark) return
      await new Promise<void>((resolve) => (onDrained = resolve))
    },
  }
  return { readable, reader }
}

const frames = new WeakMap<StoredEvent, Buffer>()

/** The same bytes for everybody who is told of the event. */
function frameOf(event: StoredEvent): Buffer {
  let frame = frames.get(event)
  if (!frame) {
    frame = Buffer.from(
      `id: ${eventId(event)}\nevent: ${event.type}\ndata: ${eventJson(event)}\n\n`,
    )
    frames.set(event, frame)
  }
  return frame
}

/** Moves the client's Last-Event-ID on, too: what it does not want to know of may go on for longer than events are kept. */
const heartbeat = ({ position }: Reader) => `: heartbeat\nid: ${eventId(position)}\n\n`
