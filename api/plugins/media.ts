import fp from 'fastify-plugin'
import { tempDir } from '../../shared/media-files.ts'
import { openBucket } from '../../shared/media-store.ts'
import type { MediaParts } from '../../shared/media-store.ts'
import type { ObjectStore } from '../../shared/object-store.ts'
import { openObjectStore, quotaOf } from '../../shared/storage.ts'
import { createUrlSigner } from '../media-urls.ts'
import type { UrlSigner } from '../media-urls.ts'
import type { Pace } from '../uploading.ts'

declare module 'fastify' {
  interface FastifyInstance {
    media: MediaParts
    urlSigner: UrlSigner
    uploadPace: Pace
  }
}

export interface MediaOptions {
  /** The store to use instead of the one the settings name. */
  store?: ObjectStore | undefined
  /** How slowly an upload may come: 64 KB in half a minute is less than any line that is used for files. */
  pace?: Pace | undefined
}

/** What the routes about files work with. */
export default fp<MediaOptions>(
  async function media(app, { store, pace = { everyMs: 30_000, bytes: 65_536 } }) {
    const { config, sql } = app
    const parts: MediaParts = {
      sql,
      store: store ?? openObjectStore(config),
      dir: tempDir(config.DATA_DIR),
      quota: quotaOf(config),
    }
    app.decorate('media', parts)
    app.decorate('urlSigner', createUrlSigner(config.JWT_SECRET))
    app.decorate('uploadPace', pace)
    // A store that is away at the start is asked again when it is needed, and /health/ready tells.
    app.addHook('onReady', async () => {
      await openBucket(parts.store).catch((error: unknown) =>
        app.log.warn({ error }, 'media store not ready'),
      )
    })
  },
  { name: 'media', dependencies: ['auth', 'rate-limit'] },
)
