/** Reactions to messages and votes in polls: the tables the library listens to by wrapping them. */
import { decode } from './encoding.js'
import { guarded } from './faults.js'
import { createWid, MsgKey } from './ids.js'
import { load } from './messages.js'
import { define } from './modules.js'
import { link, me, onEvent } from './session.js'

const byMessage = new Map()

const WAWebAddonReactionTableMode = {
  reactionTableMode: {
    async bulkUpsert(reactions) {
      for (const reaction of reactions) {
        const parent = String(reaction.reactionParentKey)
        const others = (byMessage.get(parent) ?? []).filter(
          ({ from }) => !from.equals(reaction.from),
        )
        byMessage.set(parent, reaction.reactionText ? [...others, reaction] : others)
        await load(parent)
          ?.set({ hasReaction: byMessage.get(parent).length > 0 })
          .persist()
      }
    },
  },
}

// Through the table, because that is where the library listens.
const upsert = (reaction) => WAWebAddonReactionTableMode.reactionTableMode.bulkUpsert([reaction])

onEvent('reaction', ({ reaction }) => upsert(decode(reaction)))

const WAWebAddonPollVoteTableMode = {
  pollVoteTableMode: {
    async bulkUpsert(votes) {
      for (const { pollUpdateParentKey, from, selectedOptionLocalIds } of votes) {
        const poll = load(String(pollUpdateParentKey))
        const chosen = { [String(from)]: selectedOptionLocalIds }
        await poll?.set({ pollVotes: { ...poll.pollVotes, ...chosen } }).persist()
      }
    },
  },
}
onEvent('vote', ({ vote }) =>
  WAWebAddonPollVoteTableMode.pollVoteTableMode.bulkUpsert([decode(vote)]),
)

const sendReactionToMsg = guarded('sendReactionToMsg', async (msg, text) => {
  const id = new MsgKey({
    from: me.pn,
    to: msg.id.remote,
    id: await MsgKey.newId(),
    selfDir: 'out',
  })
  await link.call('reaction', { key: String(msg.id), id: id.id, text })
  await upsert({
    id,
    reactionParentKey: msg.id,
    reactionText: text,
    reactionTimestamp: Date.now(),
    from: me.pn,
    read: true,
    ack: 1,
  })
  return { messageSendResult: 'OK' }
})

/** The reactions to one message in the library's shape: one entry an emoji. */
export const Reactions = {
  async find(messageId) {
    const all = byMessage.get(String(messageId)) ?? []
    const emojis = [...new Set(all.map(({ reactionText }) => reactionText))]
    const entries = emojis.map((emoji) => {
      const senders = all.filter(({ reactionText }) => reactionText === emoji)
      return {
        id: emoji,
        aggregateEmoji: emoji,
        hasReactionByMe: senders.some(({ from }) => from.equals(me.pn)),
        senders: senders.map((reaction) => ({
          ...reaction,
          msgKey: reaction.id,
          parentMsgKey: reaction.reactionParentKey,
          senderUserJid: String(createWid(reaction.from)),
          timestamp: reaction.reactionTimestamp,
        })),
      }
    })
    return { reactions: { length: entries.length, serialize: () => entries } }
  },
}

define({
  WAWebAddonReactionTableMode,
  WAWebAddonPollVoteTableMode,
  WAWebSendReactionMsgAction: { sendReactionToMsg },
})
