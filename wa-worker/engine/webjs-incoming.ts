import type { EngineEvents } from './engine.ts'
import {
  addressOf,
  bodyOf,
  identify,
  idOf,
  incomingMessage,
  storable,
  typeOf,
} from './webjs-messages.ts'
import type { LibraryId, LibraryMessage } from './webjs-messages.ts'

type Emit = <K extends keyof EngineEvents>(event: K, ...args: EngineEvents[K]) => void
/** Handles an event of the library; what it throws is logged by whoever calls it. */
export type On = <A extends unknown[]>(event: string, handle: (...args: A) => void) => void

type Address = Parameters<typeof addressOf>[0]
interface LibraryReaction {
  msgId?: LibraryId
  reaction?: string
  senderId?: Address
  /** Seconds. */
  timestamp?: number
}
interface LibraryVote {
  parentMsgKey?: LibraryId
  voter?: Address
  selectedOptions?: { name?: string }[]
  /** Milliseconds. */
  interractedAtTs?: number
}
interface LibraryCall {
  id?: string
  from?: Address
  fromMe?: boolean
  isVideo?: boolean
}

/** Turns what the library tells of messages into events of the port. `me` are the addresses of this account. */
export function listenToMessages(on: On, emit: Emit, me: () => string[]): void {
  for (const [event, kind] of [
    ['message_create', 'message'],
    ['message_ciphertext', 'placeholder'],
  ] as const) {
    on(event, ({ _data }: LibraryMessage) => {
      const incoming = incomingMessage(_data, me())
      if (incoming) emit(kind, incoming)
    })
  }

  on('message_edit', ({ _data }: LibraryMessage, newBody?: string, oldBody?: string) => {
    const identity = identify(_data.id, _data.author)
    const body = bodyOf(typeOf(_data), _data)
    // It also comes when a message has become readable, and when the small picture of media changes.
    const editedAt = _data.latestEditSenderTimestampMs ?? undefined
    const edited = Boolean(oldBody) || editedAt !== undefined
    if (!identity || body === null || !edited || storable(newBody ?? '') !== body) return
    const at = new Date(editedAt ?? Date.now())
    emit('edit', { key: identity.key, body, at })
  })

  on('message_revoke_everyone', ({ _data }: LibraryMessage) => {
    const identity = identify(idOf(_data), _data.author)
    if (identity) emit('revoke', { key: identity.key, at: new Date() })
  })

  on('message_reaction', ({ msgId, reaction, senderId, timestamp }: LibraryReaction) => {
    const target = identify(msgId)
    const waId = addressOf(senderId)
    if (!target || waId === undefined) return
    emit('reaction', {
      target: target.key,
      emoji: storable(reaction ?? ''),
      waId,
      fromMe: me().includes(waId),
      at: new Date((timestamp ?? Date.now() / 1_000) * 1_000),
    })
  })

  on('vote_update', ({ parentMsgKey, voter, selectedOptions, interractedAtTs }: LibraryVote) => {
    const poll = identify(parentMsgKey)
    const waId = addressOf(voter)
    if (!poll || waId === undefined) return
    emit('pollVote', {
      poll: poll.key,
      options: (selectedOptions ?? []).flatMap(({ name }) => storable(name ?? '') || []),
      waId,
      fromMe: me().includes(waId),
      at: new Date(interractedAtTs ?? Date.now()),
    })
  })

  on('call', ({ id, from, fromMe, isVideo }: LibraryCall) => {
    const chatId = addressOf(from)
    if (chatId === undefined || id === undefined) return
    const key = { fromMe: fromMe === true, chatId, id, participant: '' }
    emit('call', { key, video: isVideo === true, at: new Date() })
  })
}
