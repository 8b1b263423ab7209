import Joi from 'joi'
import { isDay } from '../../shared/days.ts'
import { pgCode } from '../../shared/db-errors.ts'
import { AppError, notFound } from '../../shared/errors.ts'
import { findPacing, setPacing } from '../../shared/pacing.ts'
import type { Pacing, PacingState } from '../../shared/pacing.ts'
import { existingSession } from '../../shared/wa-sessions.ts'
import { byId } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'

const number = (max: number) => Joi.number().integer().min(0).max(max).allow(null).default(null)
const timeOfDay = Joi.string()
  .pattern(/^([01]\d|2[0-3]):[0-5]\d$/, 'a time of day, as 21:30')
  .required()

const wrongZone = 'must be a time zone, as Europe/Berlin'

/** Region and city: of an abbreviation Postgres may think something else than its writer. */
const timeZone = Joi.string()
  .max(64)
  .custom((value: string) => {
    if (value !== 'UTC' && !(value.includes('/') && isZone(value))) throw new Error(wrongZone)
    return value
  })
  .default('UTC')

/** Intl.supportedValuesOf() has but one name, an old one where there are several, for each zone. */
function isZone(timeZone: string): boolean {
  try {
    return Boolean(new Intl.DateTimeFormat('en', { timeZone }))
  } catch {
    return false
  }
}

/** To be called with what setting a pace throws. Zones that Postgres does not know are known only by trying: Node's list is another one. */
function explained(error: unknown): never {
  if (pgCode(error) !== '22023') throw error
  const message = `"timeZone" ${wrongZone}`
  throw new AppError(400, 'VALIDATION_FAILED', message, [{ path: 'body.timeZone', message }])
}

const settings = {
  minGapMs: number(3_600_000).description('Between two messages'),
  jitterMs: number(3_600_000).description('Up to so much more'),
  perMinute: number(1_000).description('In any 60 seconds; 0 for no limit'),
  newContactsPerDay: number(1_000_000).description('Conversations opened a day; 0 for no limit'),
  typing: Joi.boolean().allow(null).default(null).description('Show "typing…" first'),
  numberSince: Joi.string()
    .custom((value: string) => {
      if (!isDay(value)) throw new Error('must be a day, as 2024-05-31')
      return value
    })
    .allow(null)
    .default(null)
    .description('Since when the number is in use; a number that is not new needs no warm-up'),
  quietHours: Joi.object({
    from: timeOfDay,
    to: timeOfDay.disallow(Joi.ref('from')).messages({
      'any.invalid': '{#label} must be another time than "from"',
    }),
  })
    .allow(null)
    .default(null)
    .description('Only who wrote within 24 hours is answered'),
  timeZone,
}

const wanted = Joi.object<Pacing>(settings)

const pacing = Joi.object<Pacing & { state: PacingState }>({
  ...settings,
  state: Joi.object<PacingState>({
    nextSendAt: Joi.date().allow(null).required(),
    newContactsToday: Joi.number().integer().required(),
    newContactsHeldBy: Joi.string().allow(null).required(),
    newContactsHeldUntil: Joi.date().allow(null).required(),
  }).required(),
})

const tags = ['sessions']

/** How fast a session sends. */
export const pacingRoutes: Routes = async (app) => {
  const { sql, config } = app

  app.get(
    '/api/whatsapp/sessions/:id/pacing',
    {
      config: { access: 'read' },
      schema: {
        summary: 'Read the pace of a session',
        description: '`null` is what the settings of the worker say.',
        tags,
        params: byId,
        response: { 200: pacing },
      },
    },
    async ({ user, params }) => {
      const { id } = await existingSession(sql, user.workspaceId, params.id)
      const found = await findPacing(sql, user.workspaceId, id)
      if (!found) throw notFound('Session')
      return found
    },
  )

  app.put(
    '/api/whatsapp/sessions/:id/pacing',
    {
      config: { access: 'manage' },
      schema: {
        summary: 'Set the pace of a session',
        description:
          'What is left out goes back to what the settings of the worker say. What has left within the minute, and been opened today, counts.',
        tags,
        params: byId,
        body: wanted,
        response: { 200: pacing },
      },
    },
    async ({ user, params, body }) => {
      const { id } = await existingSession(sql, user.workspaceId, params.id)
      const set = await setPacing(sql, user.workspaceId, id, body, config).catch(explained)
      if (!set) throw notFound('Session')
      sql.nudge('awfar_outbox', id)
      return set
    },
  )
}
