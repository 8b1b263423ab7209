import Joi from 'joi'
import { sizeLimits } from '../../shared/media-types.ts'
import { longestText } from '../../shared/message-content.ts'
import { passwordBytes } from '../passwords.ts'
import { longestPage } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'

const clientConfig = Joi.object({
  apiBaseUrl: Joi.string().required().description('Where the API answers'),
  features: Joi.object({
    registration: Joi.boolean().required(),
    passwordReset: Joi.boolean().required().description('Whether e-mail can be sent'),
    twoFactor: Joi.boolean().required(),
    apiKeys: Joi.boolean().required(),
  }).required(),
  limits: Joi.object({
    passwordMinScore: Joi.number().integer().required().description('As zxcvbn counts: 0 to 4'),
    passwordMaxBytes: Joi.number().integer().required(),
    messageLength: Joi.number().integer().required(),
    pageSize: Joi.number().integer().required(),
    uploadBytes: Joi.object({
      image: Joi.number().integer().required(),
      video: Joi.number().integer().required(),
      document: Joi.number().integer().required(),
      audio: Joi.number().integer().required(),
    }).required(),
  }).required(),
})

/** What a frontend that is only files has to know. */
export const clientConfigRoutes: Routes = async (app) => {
  const { config } = app
  app.get(
    '/config.json',
    {
      config: { access: 'public', limit: 'none' },
      schema: {
        summary: 'What a static frontend needs',
        tags: ['service'],
        response: { 200: clientConfig },
      },
    },
    async ({ protocol, host }, reply) => {
      reply.header('cache-control', 'no-store')
      return {
        apiBaseUrl: config.PUBLIC_URL ?? `${protocol}://${host}`,
        features: {
          registration: config.ALLOW_REGISTRATION,
          passwordReset: app.mailer.enabled,
          twoFactor: true,
          apiKeys: true,
        },
        limits: {
          passwordMinScore: config.PASSWORD_MIN_SCORE,
          passwordMaxBytes: passwordBytes,
          messageLength: longestText,
          pageSize: longestPage,
          uploadBytes: sizeLimits,
        },
      }
    },
  )
}
