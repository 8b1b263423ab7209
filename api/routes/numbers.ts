import { setTimeout as sleep } from 'node:timers/promises'
import Joi from 'joi'
import { AppError } from '../../shared/errors.ts'
import { actionAnswer, askAction } from '../../shared/wa-actions.ts'
import { knownNumber } from '../../shared/wa-numbers.ts'
import { existingSession, sessionToSend } from '../../shared/wa-sessions.ts'
import { sessionId } from '../drafts.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import type { Routes } from '../plugins/joi.ts'
import { phoneDigits } from '../recipients.ts'

/** How long the worker may take to ask WhatsApp. */
const answerMs = 15_000

interface Check {
  sessionId?: string
  /** Digits; callers may write it as people do. */
  phone: string
}

const wanted = Joi.object<Check, true>({
  sessionId,
  phone: phoneDigits.required(),
})

/** What WhatsApp knows of numbers. */
export const numbersRoutes: Routes = async (app) => {
  const { sql } = app

  app.post(
    '/api/whatsapp/check-number',
    {
      config: { access: 'send', limit: 'messages' },
      schema: {
        summary: 'Ask whether a number is on WhatsApp',
        description:
          'What was asked lately is answered from memory: 30 days when it is there, 24 hours when it is not.',
        tags: ['contacts'],
        headers: idempotent,
        body: wanted,
        response: {
          200: Joi.object({
            exists: Joi.boolean().required(),
            waId: Joi.string()
              .allow(null)
              .required()
              .description('Its address there, which may differ from the number'),
          }),
          404: errorBody,
          409: errorBody,
          422: errorBody,
        },
      },
    },
    async (request, reply) => {
      const { workspaceId } = request.user
      await app.answerLongWorkOnce(request, reply, async () => {
        return { statusCode: 200, body: await check(workspaceId, request.body) }
      })
      return reply
    },
  )

  async function check(workspaceId: string, { sessionId, phone }: Check) {
    const asking = await sessionToSend(sql, workspaceId, sessionId)
    const known = await knownNumber(sql, workspaceId, phone)
    if (known) return { exists: known.waId !== null, waId: known.waId }
    const session = await existingSession(sql, workspaceId, asking)
    if (session.status !== 'WORKING') {
      throw new AppError(
        409,
        'SESSION_NOT_READY',
        `Session "${session.name}" is ${session.status}: it cannot ask WhatsApp.`,
      )
    }
    const id = await askAction(
      sql,
      { workspaceId, sessionId: asking },
      { kind: 'check_number', payload: { phone } },
    )
    const deadline = performance.now() + answerMs
    while (performance.now() < deadline) {
      const answer = await actionAnswer(sql, workspaceId, id)
      if (answer?.result) return answer.result
      if (answer)
        throw new AppError(
          409,
          answer.errorCode ?? 'CHECK_FAILED',
          `WhatsApp could not be asked: ${answer.errorMessage ?? 'unknown'}`,
        )
      await sleep(100)
    }
    throw new AppError(409, 'SESSION_NOT_READY', 'No worker has answered in time.')
  }
}
