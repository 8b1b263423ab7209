import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { writeAudit } from '../../shared/audit-log.ts'
import type { Actor, Deed } from '../../shared/audit-log.ts'
import type { Sql } from '../../shared/db.ts'
import type { ProfileRow } from '../../shared/profiles.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What the audit log calls a successful call, such as `session.deleted`. For routes that do not write the entry themselves; answerOnce() writes it with what it tells of. */
    audit?: string
  }
  interface FastifyInstance {
    /**
     * Writes what a request did to the audit log. `by` is who, where the request does not say: somebody who is just signing in. Inside a
     * transaction pass it as `tx`: the entry then stands or falls with it.
     */
    audit(
      request: FastifyRequest,
      deed: Omit<Deed, 'workspaceId'>,
      options?: { by?: ProfileRow; workspaceId?: string; tx?: Sql },
    ): Promise<void>
    /** Writes the entry that the route declares, if it does. `made` is what the call has made, where the URL does not name it. */
    auditDeclared(request: FastifyRequest, made: { id?: unknown } | null, tx: Sql): Promise<void>
  }
}

/** Who did what: the routes write it, or declare it. */
export default fp(
  async function audit(app) {
    app.decorate(
      'audit',
      async (
        request: FastifyRequest,
        deed: Omit<Deed, 'workspaceId'>,
        { by, workspaceId, tx = app.sql }: { by?: ProfileRow; workspaceId?: string; tx?: Sql } = {},
      ) => {
        const workspace = workspaceId ?? by?.workspaceId ?? request.user?.workspaceId
        if (workspace === undefined) throw new Error('An audit entry must belong to a workspace.')
        await writeAudit(tx, actorOf(request, by), { workspaceId: workspace, ...deed })
      },
    )

    const audited = new WeakSet<FastifyRequest>()
    app.decorate(
      'auditDeclared',
      async (request: FastifyRequest, made: { id?: unknown } | null, tx: Sql) => {
        const { audit: action } = request.routeOptions.config
        if (action === undefined) return
        audited.add(request)
        const { id = made?.id } = (request.params ?? {}) as { id?: unknown }
        const targetType = action.split('.')[0]!
        const target = typeof id === 'string' ? { targetType, targetId: id } : { targetType }
        await app.audit(request, { action, ...target }, { tx })
      },
    )

    // Before the answer leaves: who is told that something was done finds it in the log. What is told again was done before.
    app.addHook('onSend', async (request, reply) => {
      const replayed = reply.hasHeader('idempotency-replayed')
      if (reply.statusCode >= 300 || replayed || audited.has(request)) return
      await app.auditDeclared(request, null, app.sql)
    })
  },
  { name: 'audit', dependencies: ['auth'] },
)

/** Who sends a request, as the audit log names them. */
export function actorOf(request: FastifyRequest, by?: ProfileRow): Actor {
  const user = by ?? request.user
  const apiKey = by ? null : (request.user as FastifyRequest['user'] | null)?.apiKey
  return {
    type: apiKey ? 'api_key' : user ? 'person' : 'anonymous',
    id: apiKey?.id ?? user?.id ?? null,
    name: user?.fullName ?? null,
    ip: request.ip,
    userAgent: request.headers['user-agent']?.slice(0, 300).replaceAll('\0', '') ?? null,
    requestId: request.id,
  }
}
