import { setTimeout as sleep } from 'node:timers/promises'
import Joi from 'joi'
import QRCode from 'qrcode'
import { AppError } from '../../shared/errors.ts'
import { askPairingCode, existingSession, takePairingCode } from '../../shared/wa-sessions.ts'
import type { SessionRow } from '../../shared/wa-sessions.ts'
import { errorBody } from '../plugins/errors.ts'
import { idempotent } from '../plugins/idempotency.ts'
import { byId } from '../plugins/joi.ts'
import type { Routes } from '../plugins/joi.ts'
import { phoneDigits } from '../recipients.ts'

const qrCode = Joi.object({
  value: Joi.string().required().description('What the code says'),
  image: Joi.string().required().description('A PNG as data URL'),
  expiresAt: Joi.date().allow(null).required(),
  attempt: Joi.number().integer().required().description('Counts the codes shown, from 1'),
})

interface PairingCode {
  code: string
  expiresAt: string
}

const pairingCode = Joi.object<PairingCode, true>({
  code: Joi.string().required().description('To be typed on the phone'),
  expiresAt: Joi.string().isoDate().required(),
})

/** How long a worker has to answer with a pairing code. */
const pairingMs = 30_000

const tags = ['sessions']

/** Linking a session to a phone: by a code to scan, or by one to type. */
export const linkingRoutes: Routes = async (app) => {
  const { sql } = app

  app.get(
    '/api/whatsapp/sessions/:id/qr',
    {
      config: { access: 'operate' }, // whoever reads the code may link a phone
      schema: {
        summary: 'Read the QR code to scan',
        tags,
        params: byId,
        querystring: Joi.object<{ format: 'json' | 'png' | 'raw' }, true>({
          format: Joi.string().valid('json', 'png', 'raw').default('json'),
        }),
        response: {
          200: {
            content: {
              'application/json': { schema: qrCode },
              'image/png': { schema: Joi.binary() },
              'text/plain': { schema: Joi.string() },
            },
          },
          409: errorBody,
        },
      },
    },
    async ({ user, params, query }, reply) => {
      const session = await existingSession(sql, user.workspaceId, params.id)
      const { qr, qrAttempt, qrExpiresAt } = session
      if (session.status !== 'SCAN_QR_CODE' || qr === null) throw notReady(session)
      reply.header('cache-control', 'no-store') // whoever scans it owns the session
      if (query.format === 'raw') return reply.type('text/plain; charset=utf-8').send(qr)
      if (query.format === 'png') return reply.type('image/png').send(await QRCode.toBuffer(qr))
      const image = await QRCode.toDataURL(qr)
      return reply.send({ value: qr, image, expiresAt: qrExpiresAt, attempt: qrAttempt ?? 1 })
    },
  )

  app.post(
    '/api/whatsapp/sessions/:id/pairing-code',
    {
      config: { access: 'operate', audit: 'session.pairing_code_asked' },
      schema: {
        summary: 'Ask for a code to type on the phone instead of scanning',
        tags,
        params: byId,
        headers: idempotent,
        body: Joi.object<{ phone: string }, true>({ phone: phoneDigits.required() }),
        response: { 200: pairingCode, 409: errorBody },
      },
    },
    async (request, reply) => {
      const { user, params, body } = request
      reply.header('cache-control', 'no-store')
      await app.answerLongWorkOnce(request, reply, async () => {
        const session = await existingSession(sql, user.workspaceId, params.id)
        if (session.status !== 'SCAN_QR_CODE') throw notReady(session)
        const wish = await askPairingCode(sql, user.workspaceId, session.id, body.phone)
        sql.nudge('awfar_sessions')
        const code = await answered(wish)
        // A credential: it is not kept for longer than it is one.
        return { statusCode: 200, body: code, keepUntil: new Date(code.expiresAt) }
      })
      return reply
    },
  )

  /** The worker's answer to a wish for a pairing code. */
  async function answered(wish: number): Promise<PairingCode> {
    const deadline = performance.now() + pairingMs
    while (performance.now() < deadline) {
      const answer = await takePairingCode(sql, wish)
      if (answer?.result) return answer.result
      if (answer) throw new AppError(409, 'PAIRING_FAILED', `No code: ${answer.error ?? 'unknown'}`)
      await sleep(150)
    }
    throw new AppError(409, 'PAIRING_FAILED', 'No worker has answered with a code.')
  }
}

const notReady = ({ name, status }: SessionRow) =>
  new AppError(
    409,
    'SESSION_NOT_READY',
    `Session "${name}" is ${status}: no device is being linked.`,
  )
