import { setImmediate as turn } from 'node:timers/promises'
import Joi from 'joi'
import type { RejectedRow } from '../shared/batches.ts'
import { findContact } from '../shared/contacts.ts'
import { isDay } from '../shared/days.ts'
import type { Sql } from '../shared/db.ts'
import { AppError, notFound } from '../shared/errors.ts'
import { findMedia } from '../shared/media.ts'
import type { MediaRow } from '../shared/media.ts'
import { notReady } from '../shared/media-store.ts'
import { longestText } from '../shared/message-content.ts'
import type { MessageContent } from '../shared/message-content.ts'
import type { NewMessage } from '../shared/outbound.ts'
import { existingTemplate, renderTemplate, variableName } from '../shared/templates.ts'
import type { Values } from '../shared/templates.ts'
import { phoneOf } from '../shared/wa-id.ts'
import { may } from './plugins/auth.ts'
import type { Caller } from './plugins/auth.ts'
import { judged, text, uuid, visibleText } from './plugins/joi.ts'
import { anybody, person, phone } from './recipients.ts'

/** What one message says, and to whom. */
export interface Draft {
  /** The WhatsApp address; callers may write a phone number. */
  to: string
  message?: string
  mediaId?: string
  caption?: string
  asVoice?: boolean
  asDocument?: boolean
  template?: { id: string; variables: Values }
  location?: { latitude: number; longitude: number; name?: string; address?: string }
  contactCard?: { contactId?: string; name?: string; phone?: string }
  poll?: { question: string; options: string[]; multiple: boolean }
  quotedMessageId?: string
  ifLastMessageId?: string
  mentions?: string[]
  sendAt?: Date
  optOutOverride?: string
}

interface Send extends Draft {
  sessionId?: string
}

/** The session a request is about. */
export const sessionId = uuid()
  .empty(null)
  .description('May be left out when the workspace has one session')

/** With its offset: a time without one means something else on every machine. */
const moment = Joi.string()
  .pattern(
    /^\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)$/,
    'a time in ISO 8601 with its offset, as 2030-01-31T09:00:00Z',
  )
  .custom((value: string) => {
    const at = new Date(value)
    if (Number.isNaN(at.getTime()) || !isDay(value.slice(0, 10)))
      throw new Error('must be a time that exists')
    return at
  })

/** Not part of the schema: what a request was answered once it is answered again, also when its time has come meanwhile. */
function checkTime(sendAt: Date): void {
  const aheadMs = sendAt.getTime() - Date.now()
  if (aheadMs >= -60_000 && aheadMs <= 366 * 86_400_000) return
  const message = `sendAt must ${aheadMs < 0 ? 'not lie in the past' : 'lie within a year'}`
  throw new AppError(400, 'VALIDATION_FAILED', message, [{ path: 'body.sendAt', message }])
}

/** WhatsApp shows the ends of an option without their blanks. */
const asShown = (a: unknown, b: unknown) =>
  typeof a === 'string' && typeof b === 'string' && a.trim() === b.trim()

const label = (max: number) => visibleText().max(max)

/** What answers tell as null when it is not there may come so, too. */
const optional = (schemas: Record<string, Joi.AnySchema>) =>
  Object.fromEntries(Object.entries(schemas).map(([key, schema]) => [key, schema.empty(null)]))

/** Values for the variables of a template. */
export const templateValues = Joi.object<Values>()
  .pattern(variableName, text().max(4096).allow('', null))
  .description('By name of the variable; null, as absence, means that there is no value')

const contents = {
  message: visibleText().max(longestText),
  mediaId: uuid().description('A file that was uploaded'),
  template: Joi.object({ id: uuid().required(), variables: templateValues.default({}) }),
  location: Joi.object({
    latitude: Joi.number().min(-90).max(90).required(),
    longitude: Joi.number().min(-180).max(180).required(),
    ...optional({ name: label(1_000), address: label(1_000) }),
  }),
  contactCard: Joi.object(optional({ contactId: uuid(), name: label(200), phone }))
    .custom((card: { contactId?: string; name?: string; phone?: string }) => {
      const { contactId, name, phone } = card
      const given = [name, phone].filter((value) => value !== undefined).length
      if (given === (contactId === undefined ? 2 : 0)) return card
      throw new Error('must hold "contactId", or "name" and "phone"')
    })
    .description('Either `contactId`, or `name` and `phone`'),
  poll: Joi.object({
    question: label(255).required(),
    options: Joi.array().items(label(100)).min(2).max(12).unique(asShown).required(),
    multiple: Joi.boolean().default(false),
  }),
}

/** What is not wished is not there: it needs no file, and contradicts nothing. */
const wish = Joi.boolean().empty(Joi.valid(false, null))

const draft = {
  to: anybody
    .required()
    .description('`+1 234 567-890`, digits, or an address: `…@c.us`, `…@g.us`, `…@lid`'),
  ...optional(contents),
  caption: visibleText()
    .max(longestText)
    .empty(Joi.valid('', null))
    .description('Of a picture, video or document'),
  asVoice: wish.description('A recording as a voice note'),
  asDocument: wish.description('A picture, video or recording as a file'),
  ...optional({
    quotedMessageId: uuid().description(
      'A message of the same chat; none that failed or was cancelled',
    ),
    ifLastMessageId: uuid().description(
      'The last message of the chat you have seen. When there is a later one nothing is sent, and the answer is 409 `CONVERSATION_MOVED` with the later ones, newest first, in `newerMessages`',
    ),
    mentions: Joi.array().items(person).max(256).unique(),
    sendAt: moment.description('When to send it; until then it can be edited and cancelled'),
    optOutOverride: visibleText()
      .min(3)
      .max(500)
      .description(
        'Why it is sent although the recipient has opted out; for owners and admins, and API keys with the scope `manage`. The audit log keeps it, as `message.opt_out_overridden`',
      ),
  }),
}

const oneContent = <T>(schema: Joi.ObjectSchema<T>) =>
  schema
    .xor(...Object.keys(contents))
    .with('caption', 'mediaId')
    .with('asVoice', 'mediaId')
    .with('asDocument', 'mediaId')
    .oxor('asVoice', 'asDocument')
    .messages({
      'object.with': '{#label} may carry {#mainWithLabel} only with {#peerWithLabel}',
      'object.missing': `{#label} must carry one of ${Object.keys(contents).join(', ')}`,
      'object.xor': '{#label} must carry only one of {#presentWithLabels}',
      'object.oxor': '{#label} may carry only one of {#presentWithLabels}',
    })

/** The body of a single send. */
export const send = oneContent(Joi.object<Send>({ sessionId, ...draft }))
const row = oneContent(Joi.object<Draft>(draft)).required().label('row')

/** What the body of a single send says, with what it only points at. Throws an AppError. */
export const draftOf = (sql: Sql, workspaceId: string, given: Draft, caller: Caller) =>
  readDraft(lookUps(sql, workspaceId), given, caller)

/** So long rows are read before others get their turn: a thousand large ones take seconds. */
const rowsMs = 20

/**
 * What the messages of one batch may say together, in bytes of JSON. They are written in one transaction, and what happens in any
 * workspace is told only once no older transaction is under way: see readEvents().
 */
const mostOfBatch = 4 * 1_048_576

/** What the rows of a batch say; those that are wrong are told by their place. Throws 413 BATCH_TOO_LARGE. */
export async function draftsOf(sql: Sql, workspaceId: string, rows: unknown[], caller: Caller) {
  const rejected: RejectedRow[] = []
  const indexes: number[] = []
  const messages: NewMessage[] = []
  const pointedAt = lookUps(sql, workspaceId)
  let bytes = 0
  let since = performance.now()
  for (const [index, given] of rows.entries()) {
    if (performance.now() - since > rowsMs) {
      await turn()
      since = performance.now()
    }
    let message: NewMessage
    try {
      message = await readDraft(pointedAt, judged(row, given), caller)
    } catch (error) {
      if (!(error instanceof AppError)) throw error
      rejected.push({ index, code: error.code, message: error.message })
      continue
    }
    // While they are read: what templates make of them is many times what was sent.
    bytes += Buffer.byteLength(JSON.stringify([message.content, message.mentions]))
    if (bytes > mostOfBatch) {
      const sentence = `The messages of one batch may have ${mostOfBatch.toLocaleString('en')} bytes together, texts of templates filled in: send them in several.`
      throw new AppError(413, 'BATCH_TOO_LARGE', sentence)
    }
    messages.push(message)
    indexes.push(index)
  }
  return { indexes, messages, rejected }
}

/** What a draft says, with what it only points at. Throws an AppError. */
async function readDraft(pointedAt: LookUps, given: Draft, caller: Caller): Promise<NewMessage> {
  const { to, quotedMessageId, ifLastMessageId, mentions, sendAt, optOutOverride } = given
  if (optOutOverride !== undefined && !may(caller, 'manage')) {
    const sentence =
      'Only owners and admins, and keys of theirs with the scope "manage", may override an opt-out.'
    throw new AppError(403, 'FORBIDDEN', sentence)
  }
  if (sendAt) checkTime(sendAt)
  return {
    waChatId: to,
    content: await contentOf(pointedAt, given),
    ...(mentions && { mentions }),
    quotedMessageId,
    ifLastMessageId,
    sendAt,
    optOutOverride,
  }
}

/** What drafts point at. Each thing is read once, however many of them do: a mailing has one template, or one picture. */
function lookUps(sql: Sql, workspaceId: string) {
  const once = <T>(find: (sql: Sql, workspaceId: string, id: string) => Promise<T>) => {
    const found = new Map<string, Promise<T>>()
    return (id: string) => {
      const looked = found.get(id) ?? find(sql, workspaceId, id)
      found.set(id, looked)
      return looked
    }
  }
  return { template: once(existingTemplate), media: once(findMedia), contact: once(findContact) }
}
type LookUps = ReturnType<typeof lookUps>

async function contentOf(pointedAt: LookUps, given: Draft): Promise<MessageContent> {
  if (given.message !== undefined) return { type: 'text', body: given.message }
  if (given.location) return { type: 'location', ...given.location }
  if (given.template) {
    const { id, variables } = given.template
    return { type: 'text', body: renderTemplate(await pointedAt.template(id), variables) }
  }
  if (given.mediaId !== undefined)
    return mediaOf(await pointedAt.media(given.mediaId), given.mediaId, given)
  if (given.poll) return { type: 'poll', ...given.poll, multiple: given.poll.multiple ?? false }
  const card = given.contactCard!
  if (card.contactId === undefined)
    return { type: 'contact', name: card.name!, phone: phoneOf(card.phone!)! }
  const contact = await pointedAt.contact(card.contactId)
  if (!contact) throw new AppError(404, 'CONTACT_NOT_FOUND', 'There is no such contact.')
  const { name, pushName, phone: number } = contact
  if (number === null)
    throw new AppError(422, 'CONTACT_NOT_FOUND', 'The number of the contact is not known.')
  return { type: 'contact', name: name ?? pushName ?? number, phone: number }
}

function mediaOf(
  media: MediaRow | undefined,
  mediaId: string,
  { caption = null, asVoice, asDocument }: Omit<Draft, 'caption'> & { caption?: string | null },
): MessageContent {
  if (!media) throw notFound('Media')
  if (media.status !== 'ready') throw notReady()
  if (asVoice && media.kind !== 'audio')
    throw new AppError(422, 'VOICE_NOT_POSSIBLE', 'Only a recording can be a voice note.')
  const type = asVoice ? 'voice' : asDocument ? 'document' : media.kind
  if (caption !== null && (type === 'audio' || type === 'voice')) {
    throw new AppError(422, 'CAPTION_NOT_POSSIBLE', 'WhatsApp shows no caption with a recording.')
  }
  return { type, mediaId, mimeType: media.mimeType, filename: media.filename ?? mediaId, caption }
}
