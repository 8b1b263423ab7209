import { timingSafeEqual } from 'node:crypto'
import { collectDefaultMetrics, Histogram, Registry } from 'prom-client'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import Joi from 'joi'
import { notFound } from '../../shared/errors.ts'
import type { Routes } from '../plugins/joi.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** What /metrics shows. */
    metrics: Registry
  }
}

/** Times all requests, and shows the figures to Prometheus: to callers on this machine, and to who has METRICS_TOKEN. */
const metrics: Routes = async (app) => {
  const { METRICS_TOKEN: token } = app.config
  const registry = new Registry()
  app.decorate('metrics', registry)
  collectDefaultMetrics({ register: registry })
  const duration = new Histogram({
    name: 'http_request_duration_seconds',
    help: 'Requests by route and status',
    labelNames: ['method', 'route', 'status'] as const,
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
    registers: [registry],
  })
  app.addHook('onResponse', async ({ method, routeOptions: { url } }, reply) => {
    // The route, never the URL: one line each, whatever callers ask for.
    const labels = { method, route: url ?? 'none', status: reply.statusCode }
    duration.observe(labels, reply.elapsedTime / 1_000)
  })
  app.addHook('onClose', async () => registry.clear())

  app.get(
    '/metrics',
    {
      config: { access: 'public', limit: 'none' },
      schema: {
        summary: 'Figures for Prometheus',
        description: 'For callers on the same machine, or with METRICS_TOKEN as bearer.',
        tags: ['health'],
        response: { 200: { content: { 'text/plain': { schema: Joi.string() } } } },
      },
    },
    async (request, reply) => {
      if (!isNeighbour(request) && !hasToken(request)) throw notFound('Path')
      return reply.type(registry.contentType).send(await registry.metrics())
    },
  )

  function hasToken({ headers: { authorization = '' } }: FastifyRequest): boolean {
    if (token === undefined) return false
    const [given, expected] = [Buffer.from(authorization), Buffer.from(`Bearer ${token}`)]
    return given.length === expected.length && timingSafeEqual(given, expected)
  }
}

export const metricsRoutes = fp(metrics, { name: 'metrics' })

/** A proxy on this machine forwards strangers: who comes through one is no neighbour. */
function isNeighbour({ socket, headers }: FastifyRequest): boolean {
  if (headers['x-forwarded-for'] !== undefined || headers.forwarded !== undefined) return false
  return /^(127\.|::1$|::ffff:127\.)/.test(socket.remoteAddress ?? '')
}
