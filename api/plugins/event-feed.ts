import fp from 'fastify-plugin'
import { EventFeed } from '../event-feed.ts'

declare module 'fastify' {
  interface FastifyInstance {
    eventFeed: EventFeed
    heartbeatMs: number
  }
}

export interface FeedOptions {
  /** Proxies and clients take a connection for dead that is silent for longer. */
  heartbeatMs?: number | undefined
}

/** Reads events for whoever follows them; see EventFeed. */
export default fp<FeedOptions>(
  async function eventFeed(app, { heartbeatMs = 15_000 }) {
    const feed = new EventFeed(app.sql, app.log)
    app.decorate('eventFeed', feed)
    app.decorate('heartbeatMs', heartbeatMs)
    app.addHook('onClose', () => feed.close())
  },
  { name: 'event-feed' },
)
