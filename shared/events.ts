import type { Sql } from './db.ts'

export type EventType =
  | 'message'
  | 'message.any'
  | 'message.ack'
  | 'message.reaction'
  | 'message.edited'
  | 'message.revoked'
  | 'session.status'
  | 'session.qr'
  | 'chat.updated'
  | 'media.ready'

export interface NewEvent {
  workspaceId: string
  sessionId: string
  type: EventType
  /** The resource after the change, as the API would answer it. */
  payload: object
}

/** Appends events, in the transaction of the change they tell of. */
export async function appendEvents(sql: Sql, events: NewEvent[]): Promise<void> {
  if (events.length === 0) return
  await sql`
    insert into events (workspace_id, session_id, type, payload)
    select * from unnest(
      ${events.map((event) => event.workspaceId)}::uuid[],
      ${events.map((event) => event.sessionId)}::uuid[],
      ${events.map((event) => event.type)}::text[],
      ${events.map((event) => JSON.stringify(event.payload))}::jsonb[])`
}
