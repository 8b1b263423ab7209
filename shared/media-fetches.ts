import type { Sql } from './db.ts'
import { appendEvents } from './events.ts'
import { announceInboundMedia } from './media-store.ts'
import { findMedia, giveMediaUp, mediaResource } from './media.ts'
import type { MediaType } from './message-content.ts'
import type { MessageKey } from './wa-id.ts'
import { assertFence } from './wa-session-leases.ts'
import type { Lease, SessionLease } from './wa-session-leases.ts'

/** What WhatsApp says of the file that came with a message. */
export interface ReceivedMedia {
  kind: MediaType
  mimeType: string
  /** Bytes; null where unknown. */
  size: number | null
  filename: string | null
}

const kinds = {
  image: 'image',
  sticker: 'image',
  video: 'video',
  document: 'document',
  audio: 'audio',
  voice: 'audio',
} as const

/** Names the file of a message that is stored in the same transaction; somebody will fetch it; in the background, when nothing else is to be fetched. */
export async function announceMedia(
  tx: Sql,
  session: { id: string; workspaceId: string },
  messageId: string,
  { kind, mimeType, size, filename }: ReceivedMedia,
  background = false,
): Promise<void> {
  const { workspaceId } = session
  const media = await announceInboundMedia(tx, {
    workspaceId,
    kind: kinds[kind],
    mimeType,
    size,
    filename,
  })
  await tx`update messages set media_id = ${media.id} where id = ${messageId}`
  await tx`
    insert into media_fetches (media_id, message_id, workspace_id, session_id, background)
    values (${media.id}, ${messageId}, ${workspaceId}, ${session.id}, ${background})`
}

/** A file to be fetched. */
export interface MediaFetch {
  mediaId: string
  messageId: string
  workspaceId: string
  sessionId: string
  /** As WhatsApp says; null where unknown. */
  size: number | null
  attempts: number
  /** Seconds since it was announced. */
  age: number
  key: MessageKey
}

/** The next file of each of these sessions, of those that work. */
export async function dueFetches(sql: Sql, worker: string, leases: Lease[]): Promise<MediaFetch[]> {
  return sql<MediaFetch>`
    select f.media_id, f.message_id, f.workspace_id, f.session_id, a.size, f.attempts,
      extract(epoch from now() - f.created_at)::float8 as age,
      json_build_object('fromMe', m.direction = 'outbound', 'chatId', c.wa_chat_id, 'id', m.wa_key_id, 'participant', m.wa_participant) as key
    from unnest(${leases.map(({ id }) => id)}::uuid[], ${leases.map(({ fence }) => fence)}::bigint[]) x(id, fence)
    join wa_sessions s on s.id = x.id and s.fence = x.fence and s.owner = ${worker} and s.status = 'WORKING'
    cross join lateral (
      select * from media_fetches d where d.session_id = s.id and d.due_at <= now() order by d.background, d.due_at limit 1) f
    join media a on a.id = f.media_id
    join messages m on m.id = f.message_id
    join chats c on c.id = m.chat_id`
}

/** A file is fetched and stored, or never will be (`failed`; `expired`: WhatsApp has it no more). Throws LeaseLost. */
export async function endFetch(
  sql: Sql,
  session: SessionLease,
  { mediaId }: MediaFetch,
  outcome: 'ready' | 'failed' | 'expired',
): Promise<void> {
  const { id: sessionId, workspaceId } = session
  await sql.begin(async (tx) => {
    await assertFence(tx, session)
    const [ended] =
      await tx`delete from media_fetches where media_id = ${mediaId} returning media_id`
    if (!ended) return
    if (outcome !== 'ready') return giveMediaUp(tx, workspaceId, mediaId, outcome)
    const media = await findMedia(tx, workspaceId, mediaId)
    if (!media) return
    await appendEvents(tx, [
      { workspaceId, sessionId, type: 'media.ready', payload: mediaResource(media) },
    ])
  })
}

/** A file is to be tried again after a while. `forgiven`: it was no fault of its own. */
export async function delayFetch(
  sql: Sql,
  session: Lease,
  { mediaId }: MediaFetch,
  { delayMs, forgiven }: { delayMs: number; forgiven: boolean },
): Promise<void> {
  await sql`
    update media_fetches f
    set attempts = f.attempts + (not ${forgiven}::boolean)::int, due_at = now() + ${delayMs}::int * interval '1 ms'
    from wa_sessions s where f.media_id = ${mediaId} and s.id = f.session_id and s.fence = ${session.fence}`
}
