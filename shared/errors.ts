/** One fault of an input: where it is ("body.to") and what is wrong with it. */
export interface Fault {
  path: string
  message: string
}

/** An error the caller is told about: a stable code, a sentence with its subject, an HTTP status below 500 (or 503). */
export class AppError extends Error {
  readonly code: string
  readonly statusCode: number
  readonly details: Fault[] | undefined
  /** What this code's answer holds besides. */
  readonly more: object | undefined

  constructor(statusCode: number, code: string, message: string, details?: Fault[], more?: object) {
    super(message)
    this.name = 'AppError'
    this.statusCode = statusCode
    this.code = code
    this.details = details
    this.more = more
  }
}

export const notFound = (what: string) => new AppError(404, 'NOT_FOUND', `${what} not found.`)

/** The text of whatever was thrown: libraries throw strings and nothing at all, too. */
export function errorText(error: unknown): string {
  if (error instanceof Error) return error.message
  return typeof error === 'string' ? error : (JSON.stringify(error) ?? 'unknown error')
}
