import Joi from 'joi'
import { findChat, listParticipants } from '../../shared/chats.ts'
import type { Participant } from '../../shared/chats.ts'
import { changeContact, findContact, listContacts } from '../../shared/contacts.ts'
import type { Contact, ContactChanges } from '../../shared/contacts.ts'
import { AppError, notFound } from '../../shared/errors.ts'
import { mergeContacts, unmerge } from '../../shared/identities.ts'
import { may } from '../plugins/auth.ts'
import { errorBody } from '../plugins/errors.ts'
import { byId, pageOf, paging, text, uuid, visibleText } from '../plugins/joi.ts'
import type { Paging, Routes } from '../plugins/joi.ts'

export const contact = Joi.object<Contact, true>({
  id: Joi.string().guid().required(),
  name: Joi.string()
    .allow(null)
    .required()
    .description('As the workspace calls them, or the address book of the phone'),
  pushName: Joi.string().allow(null).required().description('As they call themselves'),
  phone: Joi.string().allow(null).required(),
  lid: Joi.string().allow(null).required(),
  waId: Joi.string().required(),
  isBusiness: Joi.boolean().required(),
  optedOut: Joi.boolean().required(),
  addresses: Joi.array()
    .items(Joi.string())
    .required()
    .description('All that are theirs: what they are joined from'),
})

const filter = Joi.object<Paging & { search?: string }, true>({
  ...paging,
  search: text()
    .max(200)
    .description(
      'Beginnings of words of their names, or pieces of their number from four digits on; all of them must fit',
    ),
})

const changes = Joi.object<ContactChanges & { reason?: string }, true>({
  name: visibleText().max(200).allow(null).description('null: the name that is heard counts again'),
  optedOut: Joi.boolean().description('Taking an opt-out back is for owners and admins'),
  reason: visibleText().max(500).description('Kept in the audit log'),
})
  .or('name', 'optedOut')
  .messages({ 'object.missing': '{#label} must hold "name" or "optedOut"' })

const apart = Joi.object<{ contact: Contact; separated: Contact }, true>({
  contact: contact.required(),
  separated: contact.required(),
})

const participant = Joi.object<Participant, true>({
  waId: Joi.string().required(),
  contactId: Joi.string().guid().allow(null).required(),
  name: Joi.string().allow(null).required(),
  isAdmin: Joi.boolean().required(),
})

const tags = ['contacts']

/** The people a workspace talks to. */
export const contactsRoutes: Routes = async (app) => {
  const { sql } = app

  app.get(
    '/api/contacts',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List or search the contacts, newest first',
        tags,
        querystring: filter,
        response: { 200: pageOf(contact) },
      },
    },
    async ({ user, query }) => listContacts(sql, user.workspaceId, query),
  )

  app.get(
    '/api/contacts/:id',
    {
      config: { access: 'read' },
      schema: {
        summary: 'Read a contact',
        description:
          'The id of a contact that was joined with another answers the one they are now.',
        tags,
        params: byId,
        response: { 200: contact },
      },
    },
    async ({ user, params }) => existing(user.workspaceId, params.id),
  )

  app.patch(
    '/api/contacts/:id',
    {
      config: { access: 'send' },
      schema: {
        summary: 'Name a contact, or note that they want no messages',
        tags,
        params: byId,
        body: changes,
        response: { 200: contact, 403: errorBody },
      },
    },
    async (request) => {
      const { user, params, body } = request
      const { reason, ...wanted } = body
      if (wanted.optedOut === false && !may(user, 'manage')) {
        throw new AppError(403, 'FORBIDDEN', 'Only owners and admins may take back an opt-out.')
      }
      return sql.begin(async (tx) => {
        const changed = await changeContact(tx, user.workspaceId, params.id, wanted)
        if (!changed) throw notFound('Contact')
        const { before, after } = changed
        const shown = ({ name, optedOut }: Contact) => ({ name, optedOut })
        await app.audit(
          request,
          {
            ...{ action: 'contact.changed', targetType: 'contact', targetId: after.id },
            before: shown(before),
            after: { ...shown(after), ...(reason !== undefined && { reason }) },
          },
          { tx },
        )
        return after
      })
    },
  )

  app.post(
    '/api/contacts/:id/unmerge',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Take apart the two that were joined last into this contact',
        description:
          'Each is what it was; chats go with the address they came from, and messages with their chats. What WhatsApp says does not join the two again, only a person does.',
        tags,
        params: byId,
        response: { 200: apart, 409: errorBody },
      },
    },
    async (request) => {
      const { workspaceId } = request.user
      const { id } = request.params
      const parts = await unmerge(sql, workspaceId, id, (tx) =>
        app.audit(
          request,
          { action: 'contact.unmerged', targetType: 'contact', targetId: id },
          { tx },
        ),
      )
      if (!parts) throw notFound('Contact')
      return {
        contact: await existing(workspaceId, parts.contact),
        separated: await existing(workspaceId, parts.separated),
      }
    },
  )

  app.post(
    '/api/contacts/:id/merge',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Join two contacts that are one person',
        description: 'The older one stays; an opt-out of either holds for both.',
        tags,
        params: byId,
        body: Joi.object<{ contactId: string }, true>({ contactId: uuid().required() }),
        response: { 200: contact },
      },
    },
    async (request) => {
      const { workspaceId } = request.user
      const { id } = request.params
      const { contactId } = request.body
      const joined = await mergeContacts(sql, workspaceId, id, contactId, (tx) =>
        app.audit(
          request,
          {
            ...{ action: 'contact.merged', targetType: 'contact', targetId: id },
            after: { contactId },
          },
          { tx },
        ),
      )
      if (joined === undefined) throw notFound('Contact')
      return existing(workspaceId, joined)
    },
  )

  app.get(
    '/api/chats/:id/participants',
    {
      config: { access: 'read' },
      schema: {
        summary: 'List who is in a group, as far as WhatsApp told',
        tags,
        params: byId,
        querystring: Joi.object<Paging, true>(paging),
        response: { 200: pageOf(participant) },
      },
    },
    async ({ user, params, query }) => {
      if (!(await findChat(sql, user.workspaceId, params.id))) throw notFound('Chat')
      return listParticipants(sql, user.workspaceId, params.id, query)
    },
  )

  async function existing(workspaceId: string, id: string): Promise<Contact> {
    const found = await findContact(sql, workspaceId, id)
    if (!found) throw notFound('Contact')
    return found
  }
}
