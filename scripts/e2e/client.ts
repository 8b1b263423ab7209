import type { Chat } from '../../shared/chats.ts'
import type { Media } from '../../shared/media.ts'
import type { Message } from '../../shared/messages.ts'
import type { Session } from '../../shared/wa-sessions.ts'

/** Times travel as text. */
export type Json<T> = T extends Date
  ? string
  : T extends object
    ? { [K in keyof T]: Json<T[K]> }
    : T

export interface Answer<T> {
  status: number
  headers: Headers
  body: T
  bytes: Buffer
}

interface Tokens {
  accessToken: string
  refreshToken: string
}

export interface Registered extends Tokens {
  user: { id: string; workspaceId: string }
}

/** An agent's client: HTTP and nothing else. */
export class AgentClient {
  readonly #base: string
  #tokens: Tokens | undefined
  #renewal: Promise<void> | undefined

  constructor(base: string) {
    this.#base = base
  }

  /** Registers a new workspace and stays logged in. */
  async register(): Promise<Registered> {
    const { status, body } = await this.call<Registered>('POST', '/api/auth/register', {
      email: `agent-${Date.now()}-${Math.random().toString(36).slice(2)}@example.com`,
      password: 'correct horse battery staple',
      fullName: 'Ann Agent',
    })
    if (status !== 201) throw new Error(`register: ${status} ${JSON.stringify(body)}`)
    this.#tokens = body
    return body
  }

  /** As somebody who stays logged in: an access token lasts a quarter of an hour. */
  async call<T>(method: string, path: string, body?: object): Promise<Answer<T>> {
    const answer = await this.#request<T>(method, path, body)
    if (answer.status !== 401 || this.#tokens === undefined) return answer
    // One for all who wait: a refresh token works once.
    await (this.#renewal ??= this.#renew(this.#tokens).finally(() => (this.#renewal = undefined)))
    return this.#request<T>(method, path, body)
  }

  async #renew({ refreshToken }: Tokens): Promise<void> {
    const { status, body } = await this.#request<Tokens>('POST', '/api/auth/refresh', {
      refreshToken,
    })
    if (status === 200) this.#tokens = body
  }

  async #request<T>(method: string, path: string, body?: object): Promise<Answer<T>> {
    const form = body instanceof FormData
    const response = await fetch(this.#base + path, {
      method,
      headers: {
        ...(this.#tokens && { authorization: `Bearer ${this.#tokens.accessToken}` }),
        ...(body !== undefined && !form && { 'content-type': 'application/json' }),
      },
      ...(body !== undefined && { body: form ? body : JSON.stringify(body) }),
    })
    const bytes = Buffer.from(await response.arrayBuffer())
    const json = response.headers.get('content-type')?.includes('json') && bytes.length > 0
    return {
      status: response.status,
      headers: response.headers,
      body: (json ? JSON.parse(bytes.toString()) : undefined) as T,
      bytes,
    }
  }

  async session(id: string): Promise<Json<Session>> {
    return (await this.call<Json<Session>>('GET', `/api/whatsapp/sessions/${id}`)).body
  }

  async message(id: string): Promise<Json<Message>> {
    return (await this.call<Json<Message>>('GET', `/api/messages/${id}`)).body
  }

  async send(to: string, message: string): Promise<Json<Message>> {
    const { status, body } = await this.call<Json<Message>>('POST', '/api/whatsapp/send', {
      to,
      message,
    })
    if (status !== 202) throw new Error(`send: ${status} ${JSON.stringify(body)}`)
    return body
  }

  async upload(bytes: Buffer, filename: string): Promise<Json<Media>> {
    const form = new FormData()
    form.append('file', new Blob([new Uint8Array(bytes)]), filename)
    const { status, body } = await this.call<Json<Media>>('POST', '/api/upload/media', form)
    if (status !== 201) throw new Error(`upload: ${status} ${JSON.stringify(body)}`)
    return body
  }

  /** The bytes of a file, as an `<img>` gets them: by a signed URL and no token. */
  async download(mediaId: string): Promise<Buffer> {
    const path = `/api/upload/signed-url?mediaId=${mediaId}`
    const { body } = await this.call<{ url: string }>('GET', path)
    const response = await fetch(body.url)
    if (!response.ok) throw new Error(`download: ${response.status}`)
    return Buffer.from(await response.arrayBuffer())
  }

  async chats(): Promise<Json<Chat>[]> {
    return (await this.call<{ data: Json<Chat>[] }>('GET', '/api/chats')).body.data
  }

  /** Newest first. */
  async messages(chatId: string): Promise<Json<Message>[]> {
    const path = `/api/chats/${chatId}/messages`
    return (await this.call<{ data: Json<Message>[] }>('GET', path)).body.data
  }
}
