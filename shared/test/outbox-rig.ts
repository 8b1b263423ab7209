import { randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import { recordAck } from '../acks.ts'
import { claim } from '../claims.ts'
import { storeReceived } from '../inbox.ts'
import type { MessageContent } from '../message-content.ts'
import { findMessage, messageResource } from '../messages.ts'
import type { Message } from '../messages.ts'
import { accept } from '../outbound.ts'
import type { NewMessage } from '../outbound.ts'
import { setPacing } from '../pacing.ts'
import type { Pacing, PacingConfig } from '../pacing.ts'
import { askAction, dueActions } from '../wa-actions.ts'
import { createSession } from '../wa-sessions.ts'
import { testDb } from './db.ts'

export const worker = 'test'
export const atOnce: PacingConfig = {
  WA_SEND_MIN_GAP_MS: 0,
  WA_SEND_JITTER_MS: 0,
  WA_SENDS_PER_MINUTE: 0,
  WA_NEW_CONTACTS_PER_DAY: 0,
  WA_TYPING: false,
}
export const ada = '12025550101@c.us'
export const bob = '12025550102@c.us'
export const cleo = '12025550103@c.us'

export const text = (
  waChatId: string,
  body: string,
  more: Partial<NewMessage> = {},
): NewMessage => ({
  waChatId,
  content: { type: 'text', body },
  ...more,
})

/** A session that works and belongs to `worker`. */
export async function rig(t: Test) {
  const { url, sql } = await testDb(t)
  const [workspace] = await sql<{ id: string }>`
    insert into workspaces (name) values ('Bakery') returning id`
  const workspaceId = workspace!.id
  const open = async (name: string) => {
    const session = await createSession(sql, {
      workspaceId,
      name,
      engine: 'simulator',
      start: true,
      expiryDays: 30,
    })
    await sql`
      update wa_sessions set owner = ${worker}, fence = 1, lease_until = now() + interval '1 hour', status = 'WORKING', linked_at = now()
      where id = ${session.id}`
    return session.id
  }
  const sessionId = await open('sales')
  const lane = { id: sessionId, workspaceId, fence: 1 }
  const queue = async (...messages: NewMessage[]): Promise<Message[]> => {
    const outcomes = await accept(sql, {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: randomUUID(),
      messages,
    })
    return outcomes.map((outcome) => {
      if ('refusal' in outcome) throw new Error(outcome.refusal)
      return outcome.message
    })
  }
  const next = async (pacing = atOnce) => (await claim(sql, worker, [lane], pacing))[0]
  const body = (claimed: { content: MessageContent } | undefined) =>
    claimed?.content.type === 'text' ? claimed.content.body : undefined
  const confirm = (claimed: { keyId: string }, ack = 1) =>
    recordAck(sql, lane, { keyId: claimed.keyId, ack })
  const read = async (id: string) => messageResource((await findMessage(sql, workspaceId, id))!)
  const receive = (from: string, said: string) =>
    storeReceived(sql, lane, {
      fromMe: false,
      waChatId: from,
      keyId: randomUUID(),
      participant: '',
      waMessageId: 'x',
      type: 'text',
      body: said,
      timestamp: Date.now() / 1000,
      ack: 0,
      senderName: null,
      chatName: null,
    })
  const edit = ({ id, chatId }: Message, body: string) =>
    askAction(
      sql,
      { workspaceId, sessionId, chatId },
      { kind: 'edit', messageId: id, payload: { body } },
    )
  const due = () => dueActions(sql, worker, [lane])
  const pace = (pacing: Partial<Pacing>) =>
    setPacing(sql, workspaceId, sessionId, { ...noPace, ...pacing }, atOnce)
  return {
    url,
    sql,
    workspaceId,
    sessionId,
    lane,
    open,
    queue,
    next,
    body,
    confirm,
    read,
    receive,
    edit,
    due,
    pace,
  }
}

export const noPace: Pacing = {
  minGapMs: null,
  jitterMs: null,
  perMinute: null,
  newContactsPerDay: null,
  typing: null,
  numberSince: null,
  quietHours: null,
  timeZone: 'UTC',
}
