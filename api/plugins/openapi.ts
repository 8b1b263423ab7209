import { STATUS_CODES } from 'node:http'
import swagger from '@fastify/swagger'
import type { SwaggerTransformObject } from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyContextConfig, FastifySchema } from 'fastify'
import fp from 'fastify-plugin'
import Joi from 'joi'
import { idempotent } from './idempotency.ts'
import { describeAccess } from './auth.ts'
import { noBody } from './joi.ts'

type Json = Record<string, unknown>

/**
 * The OpenAPI document, written from the schemas that validate: at /documentation for people, at /documentation/json for
 * programs. `components` are the resources it gives names to. To be registered before the routes it documents.
 */
export default fp<{ components: Record<string, Joi.AnySchema> }>(
  async function openapi(app, { components }) {
    const references = new Map<string, Json>()
    for (const [name, schema] of Object.entries(components)) {
      app.addSchema({ $id: name, ...toJson(schema) })
      references.set(JSON.stringify(toJson(schema)), { $ref: `${name}#` })
    }

    /** The same with every part that is a named resource turned into a reference to it. */
    function refer(value: unknown): unknown {
      if (typeof value !== 'object' || value === null) return value
      const reference = references.get(JSON.stringify(value))
      if (reference) return reference
      if (Array.isArray(value)) return value.map(refer)
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, refer(item)]))
    }
    const document = (schema: Joi.AnySchema) => refer(toJson(schema)) as Json

    /** A body of which nothing is required may be left out. */
    const relaxBodies: SwaggerTransformObject = (document) => {
      if (!('openapiObject' in document)) return document.swaggerObject
      for (const path of Object.values(document.openapiObject.paths ?? {})) {
        const { requestBody } = path?.post ?? {}
        if (!requestBody || '$ref' in requestBody) continue
        const { schema } = requestBody.content['application/json'] ?? {}
        if (schema && !('required' in schema)) requestBody.required = false
      }
      return document.openapiObject
    }

    await app.register(swagger, {
      openapi: {
        openapi: '3.1.0',
        info: {
          title: 'Awfar',
          version: '0.1.0',
          description: 'WhatsApp for a CRM: sessions, messages and chats.',
        },
        components: {
          securitySchemes: {
            bearer: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' },
            apiKey: { type: 'apiKey', in: 'header', name: 'X-Api-Key' },
          },
        },
        security: [{ bearer: [] }, { apiKey: [] }],
      },
      refResolver: { buildLocalReference: ({ $id }) => $id as string },
      transformObject: relaxBodies,
      transform: ({ schema: { body, ...rest }, url, route }) => {
        const schema: FastifySchema = body === noBody ? rest : { ...rest, body }
        if (schema.hide) return { schema, url }
        const config = route.config ?? {}
        const parts = (['params', 'querystring', 'body', 'headers'] as const).filter(
          (part) => schema[part],
        )
        return {
          url,
          schema: {
            ...schema,
            // Parameters are spelt out: OpenAPI has no reference for a whole set of them.
            ...Object.fromEntries(
              parts.map((part) => [part, toJson(schema[part] as Joi.AnySchema)]),
            ),
            response: responses(schema, config, parts.length > 0),
            description: [schema.description, describeAccess(config.access ?? 'public')]
              .filter(Boolean)
              .join('\n\n'),
            ...(config.access === 'public' && { security: [] }),
          },
        }
      },
    })

    /** What the route itself documents, and the refusals that every route of its kind shares. */
    function responses(schema: FastifySchema, config: FastifyContextConfig, input: boolean) {
      const refusal = (text: string) => ({ 'x-response-description': text, $ref: 'Error#' })
      const shared = {
        ...(input && { 400: refusal('Something in the request is wrong') }),
        ...(config.access !== 'public' && {
          401: refusal('Not signed in'),
          403: refusal('Not for this role, or not for this API key'),
        }),
        ...(schema.params !== undefined && { 404: refusal('Not found') }),
        ...(schema.headers === idempotent && {
          409: refusal('Another request with the Idempotency-Key is still running'),
          422: refusal('The Idempotency-Key was used for another request'),
        }),
        ...(schema.body !== undefined && {
          413: refusal('The body is too large'),
          415: refusal('The body is of another type'),
        }),
        ...(config.limit !== 'none' && { 429: refusal('Too many requests') }),
      }
      const own = Object.entries(schema.response ?? {}).map(([code, answer]) => [
        code,
        isByContentType(answer)
          ? { description: STATUS_CODES[code], content: refer(mapContent(answer.content)) }
          : { 'x-response-description': STATUS_CODES[code], ...document(answer as Joi.AnySchema) },
      ])
      return { ...shared, ...(Object.fromEntries(own) as Json) }
    }

    await app.register(swaggerUi, {
      routePrefix: '/documentation',
      staticCSP: true,
      // Would send people who open it over plain HTTP to an HTTPS port that may not exist.
      transformStaticCSP: (header) => header.replace(/upgrade-insecure-requests;?/, '').trim(),
    })
  },
  { name: 'openapi', dependencies: ['auth'] },
)

interface ByContentType {
  content: Record<string, { schema: Joi.AnySchema }>
}

const isByContentType = (answer: unknown): answer is ByContentType =>
  !Joi.isSchema(answer) && typeof answer === 'object' && answer !== null && 'content' in answer

const mapContent = (content: ByContentType['content']) =>
  Object.fromEntries(
    Object.entries(content).map(([type, { schema }]) => [type, { schema: toJson(schema) }]),
  )

const toJson = (schema: Joi.AnySchema): Json =>
  schema['~standard'].jsonSchema.input({ target: 'draft-2020-12' })
