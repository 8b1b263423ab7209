import Joi from 'joi'
import type { MessageMedia } from '../shared/media.ts'
import { directions, messageStatuses, messageTypes, sources } from '../shared/messages.ts'
import type { Message, MessageAction } from '../shared/messages.ts'

export const messageType = Joi.string().valid(...messageTypes)

export const messageStatus = Joi.string().valid(...messageStatuses)

export const direction = Joi.string().valid(...directions)

const moment = () => Joi.date().allow(null).required()

const location = Joi.object({
  latitude: Joi.number().required(),
  longitude: Joi.number().required(),
  name: Joi.string(),
  address: Joi.string(),
})

const card = {
  name: Joi.string().required(),
  phone: Joi.string().allow(null).required().description('null: it has no number on WhatsApp'),
}
const contactCard = Joi.object({
  ...card,
  contacts: Joi.array().items(Joi.object(card)).description('All of them where there are several'),
})

const poll = Joi.object({
  question: Joi.string().allow(''),
  options: Joi.array().items(Joi.string().allow('')),
  multiple: Joi.boolean().description('Whether one person may choose several'),
  votes: Joi.array()
    .items(
      Joi.object({
        waId: Joi.string().required().description('Who voted; `me` for the session itself'),
        fromMe: Joi.boolean().required(),
        options: Joi.array().items(Joi.string().allow('')).required(),
        at: Joi.date().required(),
      }),
    )
    .required(),
})

/** A message as the API answers it. */
export const message = Joi.object<Message>({
  id: Joi.string().guid().required(),
  sessionId: Joi.string().guid().required(),
  chatId: Joi.string().guid().required(),
  waChatId: Joi.string()
    .required()
    .description('The number it was handed in for, else the address of its chat'),
  waMessageId: Joi.string().allow(null).required(),
  direction: direction.required(),
  source: Joi.string()
    .valid(...sources)
    .required(),
  type: messageType.required(),
  body: Joi.string().allow(null, '').required(),
  location: location.allow(null).required(),
  contactCard: contactCard.allow(null).required(),
  poll: poll.allow(null).required(),
  mentions: Joi.array().items(Joi.string()).required(),
  media: Joi.object<MessageMedia>({
    id: Joi.string().guid().required(),
    kind: Joi.string().valid('image', 'video', 'document', 'audio').required(),
    mimeType: Joi.string().required(),
    size: Joi.number().integer().allow(null).required(),
    filename: Joi.string().allow(null).required(),
    status: Joi.string().valid('pending', 'ready', 'failed', 'expired').required(),
  })
    .allow(null)
    .required(),
  status: messageStatus.required(),
  ack: Joi.number().integer().min(-1).max(4).allow(null).required(),
  error: Joi.object({ code: Joi.string().required(), message: Joi.string().allow('').required() })
    .allow(null)
    .required(),
  attempts: Joi.number().integer().required(),
  notBefore: moment().description('It waits at least until then'),
  heldBy: Joi.string().allow(null).required().description('Why a queued message is waiting'),
  sendAt: moment(),
  quotedMessageId: Joi.string().guid().allow(null).required(),
  author: Joi.object({
    waId: Joi.string().required(),
    name: Joi.string().allow(null).required(),
    contactId: Joi.string().guid().allow(null).required(),
  })
    .allow(null)
    .required(),
  sentBy: Joi.object({ id: Joi.string().guid().required(), fullName: Joi.string().required() })
    .allow(null)
    .required(),
  reactions: Joi.array()
    .items(
      Joi.object({
        emoji: Joi.string().required(),
        waId: Joi.string().required().description('Who reacted; `me` for the session itself'),
        fromMe: Joi.boolean().required(),
        at: Joi.date().required(),
      }),
    )
    .required(),
  actions: Joi.array()
    .items(
      Joi.object<MessageAction>({
        kind: Joi.string().valid('edit', 'reaction', 'deletion').required(),
        value: Joi.string().allow(null, '').required().description('The new text, or the emoji'),
        status: Joi.string().valid('pending', 'failed').required(),
        error: Joi.object({
          code: Joi.string().required(),
          message: Joi.string().allow('').required(),
        })
          .allow(null)
          .required()
          .description('Why it failed; while it is pending, why the last try did'),
        at: Joi.date().required().description('When it was asked for'),
      }),
    )
    .required()
    .description(
      'Changes that were asked for (202) and are not made on WhatsApp: not yet, or, with the event `message.action`, not at all. What is made goes; a failure goes after a week, or once a later one of its kind is made',
    ),
  editedAt: moment(),
  revokedAt: moment(),
  createdAt: Joi.date().required(),
  sentAt: moment(),
  deliveredAt: moment(),
  readAt: moment(),
})
