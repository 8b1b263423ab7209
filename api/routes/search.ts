import Joi from 'joi'
import { searchMessages } from '../../shared/search.ts'
import type { FoundMessage, Search } from '../../shared/search.ts'
import type { Piece } from '../../shared/search-snippet.ts'
import { message } from '../message-schema.ts'
import { pageOf, paging, uuid, visibleText } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'

const found = message.append<FoundMessage>({
  snippet: Joi.array()
    .items(
      Joi.object<Piece, true>({ text: Joi.string().required(), match: Joi.boolean().required() }),
    )
    .required()
    .description('Where the message says it, in pieces of plain text, not HTML'),
})

const query = Joi.object<Search, true>({
  ...paging,
  q: visibleText()
    .max(200)
    .required()
    .description(
      'Words the message must all have, capitals and accents aside. `"in a row"`, `-without`, `this or that`, and `begin*` for the beginning of a word of at least three letters',
    ),
  chatId: uuid(),
  sessionId: uuid(),
})

/** Looking for messages by what they say. */
export const searchRoutes: Routes = async (app) => {
  app.get(
    '/api/search',
    {
      config: { access: 'read' },
      schema: {
        summary: 'Search the messages, newest first',
        description:
          'Of a text longer than 4,096 characters the beginning is searched; of scripts without blanks a third of that.',
        tags: ['messages'],
        querystring: query,
        response: { 200: pageOf(found) },
      },
    },
    async ({ user, query }) => searchMessages(app.sql, user.workspaceId, query),
  )
}
