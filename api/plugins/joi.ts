import type {
  FastifyPluginAsync,
  FastifyRequest,
  FastifyTypeProvider,
  RawServerDefault,
} from 'fastify'
import fp from 'fastify-plugin'
import Joi from 'joi'
import { AppError } from '../../shared/errors.ts'
import type { Fault } from '../../shared/errors.ts'

/** Types request parts and replies from the joi schemas of the route. */
export interface JoiTypeProvider extends FastifyTypeProvider {
  validator: this['schema'] extends Joi.AnySchema<infer T> ? T : unknown
  serializer: this['schema'] extends Joi.AnySchema<infer T> ? T : unknown
}

/** A file of routes. */
export type Routes = FastifyPluginAsync<Record<never, never>, RawServerDefault, JoiTypeProvider>

type Part = 'params' | 'querystring' | 'body' | 'headers'
type Validate = (
  data: unknown,
  everyFault?: boolean,
) => { error: Joi.ValidationError } | { value: unknown }

/** How the parts of a request are called in `details[].path`. */
const names = { params: 'params', querystring: 'query', body: 'body', headers: 'headers' } as const

const maxFaults = 100

/** The most values a body holds, or one row of many: several times what any message needs. */
const maxValues = 2_000
/** A row with more values than this is told its first fault only: there may be a thousand of them. */
const listedValues = 100
const outsized = `must hold no more than ${maxValues} values`

/**
 * Validates with joi and writes JSON. Bodies are taken as they are (`"5"` is no number), parameters and queries are converted.
 * Unknown keys are refused in bodies and, below /api, in queries: a misspelt filter must not be passed over.
 * Response schemas document; they strip nothing.
 */
export default fp(
  async function joi(app) {
    app.setValidatorCompiler<Joi.AnySchema>(({ schema, httpPart }) => {
      const part = httpPart as Part
      const ready = (part === 'body' && !isOptional(schema) ? schema.required() : schema)
        .label(names[part])
        .prefs({
          convert: part !== 'body',
          stripUnknown: part === 'headers',
          errors: { label: 'path' },
          messages,
        })
      const { levels } = descriptionOf(schema).metas?.find(({ levels }) => levels) ?? {}
      const validate: Validate = (data, everyFault = false) => {
        // Before joi: it looks at every item of a list that is too long, and lists what is wrong with each.
        if (part === 'body' && holdsMore(data, maxValues, levels)) {
          const detail = { message: `"${names[part]}" ${outsized}`, path: [], type: 'any.custom' }
          return { error: new Joi.ValidationError(detail.message, [detail], undefined) }
        }
        const result: Joi.ValidationResult<unknown> = ready.validate(data ?? undefined, {
          abortEarly: !everyFault,
        })
        return result.error ? { error: result.error } : { value: result.value }
      }
      return validate
    })
    app.setSerializerCompiler(() => (data) => JSON.stringify(data))

    app.addHook('onRoute', (route) => {
      if (!route.url.startsWith('/api/')) return
      // Without a schema Fastify lets any body pass: that of a PUT is the bytes of a file.
      const body = route.method === 'POST' && { body: noBody }
      route.schema = { querystring: Joi.object({}), ...body, ...route.schema }
    })
  },
  { name: 'joi' },
)

/** Of routes that declare no body. */
export const noBody = Joi.object({}).optional()

/** Everything that is wrong with a request, in all its parts. Fastify itself stops at the first part that fails. */
export function faultsOf(request: FastifyRequest): Fault[] {
  const faults = (Object.keys(names) as Part[]).flatMap((part) => {
    const validate = request.getValidationFunction(part) as Validate | undefined
    const data = part === 'querystring' ? request.query : request[part]
    const result = validate?.(data, true)
    if (!result || 'value' in result) return []
    return result.error.details.map(({ path, message }) => ({
      path: [names[part], ...path].join('.'),
      message,
    }))
  })
  return faults.slice(0, maxFaults)
}

/** Values are not quoted back: they may be secrets. What a custom() throws needs no messages() at its schema. */
const messages = {
  'object.base': '{#label} must be a JSON object',
  'string.pattern.base': '{#label} has the wrong form',
  'string.pattern.name': '{#label} must be {#name}',
  'any.custom': '{#label} {#error.message}',
}

/** Of a body whose rows are judged one by one: the limit of values goes so many levels down. To be put on its schema as meta; its rows go through rowOfMany. */
export const levels = (levels: number) => ({ levels })

const tooLarge = Symbol('a row that is too large')

/** A row that judged() judges. What is too large for one is let go at once: nothing after this has to bear its size, or its depth. */
export const rowOfMany = Joi.any().custom((row: unknown) =>
  holdsMore(row, maxValues) ? tooLarge : row,
)

/** A row as its schema makes it. Throws 400 VALIDATION_FAILED with its faults in one line that can be stored. */
export function judged<T>(schema: Joi.ObjectSchema<T>, row: unknown): T {
  if (row === tooLarge) throw new AppError(400, 'VALIDATION_FAILED', `The row ${outsized}.`)
  const result: Joi.ValidationResult<T> = schema.validate(row, asBody)
  if (!result.error) return result.value
  const { error = result.error } = holdsMore(row, listedValues)
    ? result
    : schema.validate(row, { ...asBody, abortEarly: false })
  const faults = error.details.slice(0, maxFaults / 10).map(({ message }) => message)
  // The names of keys are the caller's.
  const line = faults
    .join('; ')
    .slice(0, 1_000)
    .replaceAll(/[\0\p{Surrogate}]/gu, '')
  throw new AppError(400, 'VALIDATION_FAILED', line)
}

/** How whatever is part of a body is checked. */
const asBody: Joi.ValidationOptions = { convert: false, errors: { label: 'path' }, messages }

/** Whether something that was parsed from JSON holds more values than so many, on so many levels. It stops as soon as it knows, and does not recurse. */
function holdsMore(parsed: unknown, values: number, levels = Infinity): boolean {
  let level = [parsed]
  for (let depth = 0, count = 0; depth < levels && level.length > 0; depth += 1) {
    const below: unknown[] = []
    for (const value of level) {
      if (typeof value !== 'object' || value === null) continue
      const inside: unknown[] = Array.isArray(value) ? value : Object.values(value)
      count += inside.length
      if (count > values) return true
      below.push(...inside)
    }
    level = below
  }
  return false
}

const descriptionOf = (schema: Joi.AnySchema) =>
  schema.describe() as { flags?: { presence?: string }; metas?: { levels?: number }[] }

const isOptional = (schema: Joi.AnySchema) => descriptionOf(schema).flags?.presence === 'optional'

/** Text as Postgres can keep it: it has no place for NUL, nor, in JSON, for half a character. */
export const text = () =>
  Joi.string().pattern(/^[^\0\p{Surrogate}]*$/u, 'Unicode text without NUL characters')

/** Text that shows something. */
export const visibleText = () => text().pattern(/\S/, 'more than blanks')

/** An id that is part of something signed: to the letter. */
export const exactUuid = () => Joi.string().guid({ separator: '-', wrapper: false })

/** Told again as the database writes it. */
export const uuid = () => exactUuid().custom((id: string) => id.toLowerCase())

export interface ById {
  id: string
}

/** The parameters of a URL that names one resource. */
export const byId = Joi.object<ById, true>({ id: uuid().required() })

export interface Paging {
  limit: number
  cursor?: string
}

/** The most rows a list gives at once. */
export const longestPage = 200

/** The query of every list. */
export const paging = {
  limit: Joi.number().integer().min(1).max(longestPage).default(50),
  cursor: Joi.string().max(200).description('`nextCursor` of the page before'),
}

/** A page of `items`. */
export const pageOf = <T>(items: Joi.ObjectSchema<T>) =>
  Joi.object<{ data: T[]; nextCursor: string | null }>({
    data: Joi.array().items(items).required(),
    nextCursor: Joi.string().allow(null).required(),
  })

/** The answer 204. */
export const nothing = Joi.valid(null).description('Done')
