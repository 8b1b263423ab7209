import Joi from 'joi'
import {
  readWorkspace,
  unknownPolicies,
  updateWorkspace,
  workspaceResource,
} from '../../shared/workspaces.ts'
import type { Workspace } from '../../shared/workspaces.ts'
import { visibleText } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'

const unknownPolicy = Joi.string()
  .valid(...unknownPolicies)
  .description(
    'A message whose outcome is unknown is looked up and, if that tells nothing, sent once more under the same id; or it stays `unknown` for a person',
  )

export const workspace = Joi.object<Workspace, true>({
  id: Joi.string().guid().required(),
  name: Joi.string().required(),
  unknownPolicy: unknownPolicy.required(),
  optOutWords: Joi.array()
    .items(Joi.string())
    .required()
    .description('Who writes one of them, and nothing else, gets no more messages'),
  createdAt: Joi.date().required(),
})

type Changes = Partial<Pick<Workspace, 'name' | 'unknownPolicy' | 'optOutWords'>>

const changes = Joi.object<Changes, true>({
  name: visibleText().max(120),
  unknownPolicy,
  optOutWords: Joi.array()
    .items(
      visibleText()
        .max(40)
        .custom((word: string) => word.trim().toUpperCase()),
    )
    .max(50)
    .unique()
    .description('Kept in capitals; however they are written makes no difference'),
}).min(1)

const tags = ['workspace']

/** The workspace of the caller and its settings. */
export const workspaceRoutes: Routes = async (app) => {
  const { sql } = app

  app.get(
    '/api/workspace',
    {
      config: { access: 'read' },
      schema: { summary: 'Read the workspace', tags, response: { 200: workspace } },
    },
    async ({ user }) => workspaceResource(await readWorkspace(sql, user.workspaceId)),
  )

  app.patch(
    '/api/workspace',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Change the settings of the workspace',
        tags,
        body: changes,
        response: { 200: workspace },
      },
    },
    async ({ user, body }) => workspaceResource(await updateWorkspace(sql, user.workspaceId, body)),
  )
}
