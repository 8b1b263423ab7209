import type { Sql } from '../shared/db.ts'
import { isSealFault } from '../shared/key-ring.ts'
import type { KeyRing } from '../shared/key-ring.ts'
import type { Logger } from '../shared/logger.ts'
import { Wake } from '../shared/wake.ts'
import type { Lookup } from '../shared/webhook-address.ts'
import {
  circuitFailures,
  claimDeliveries,
  expireDeliveries,
  fanOut,
  recordPost,
  webhooksWithNews,
} from '../shared/webhook-deliveries.ts'
import type { ClaimedDelivery, PostOutcome } from '../shared/webhook-deliveries.ts'
import { signatureHeaders } from '../shared/webhook-secrets.ts'
import { openSecret } from '../shared/webhooks.ts'
import type { Backoff } from './backoff.ts'
import { post } from './webhook-post.ts'

export interface WebhookOptions {
  sql: Sql
  keys: KeyRing
  log: Logger
  allowPrivate: boolean
  pollMs?: number
  /** How long a post may take. */
  timeoutMs?: number
  /** Posts at a time: in all, and to one webhook. */
  limit?: number
  width?: number
  /** When to try a delivery again, and a webhook whose circuit is open. */
  backoff?: Backoff
  circuitBackoff?: Backoff
  lookup?: Lookup
}

const second = 1_000
const minute = 60 * second

/** Twice as long each time, up to a limit, with up to 20 % of jitter. */
const doubling =
  (firstMs: number, maxMs: number): Backoff =>
  (failures) =>
    Math.round(Math.min(maxMs, firstMs * 2 ** (failures - 1)) * (1 - 0.2 * Math.random()))

/** 5 s, 10 s … up to an hour: about thirty tries in a day. */
const retryBackoff = doubling(5 * second, 60 * minute)
const circuitBackoff = doubling(30 * second, 5 * minute)

/** Posts events to the webhooks that want them. Any number of processes may: each delivery is claimed by one of them. */
export class Webhooks {
  readonly #options: Required<Omit<WebhookOptions, 'lookup'>> & { lookup?: Lookup }
  readonly #wake = new Wake()
  /** By webhook. */
  readonly #busy = new Map<string, number>()
  readonly #posts = new Set<Promise<void>>()
  #sweptAt = -Infinity
  #stopped = false

  constructor(options: WebhookOptions) {
    this.#options = {
      pollMs: second,
      // Less than a claim holds, and than a process may take to end.
      timeoutMs: 12 * second,
      limit: 32,
      width: 4,
      backoff: retryBackoff,
      circuitBackoff,
      ...options,
    }
  }

  nudge(): void {
    this.#wake.ring()
  }

  /** Until stop(); what is being posted then is finished first. */
  async run(): Promise<void> {
    while (!this.#stopped) {
      await this.#round().catch((error: unknown) => {
        this.#options.log.error('webhooks not served', { error })
      })
      await this.#wake.wait(this.#options.pollMs)
    }
    await Promise.all(this.#posts)
  }

  stop(): void {
    this.#stopped = true
    this.#wake.ring()
  }

  async #round(): Promise<void> {
    const { sql, limit, width, log } = this.#options
    for (const webhookId of await webhooksWithNews(sql)) {
      while (!this.#stopped && (await fanOut(sql, webhookId)));
    }
    if (performance.now() - this.#sweptAt > minute) {
      this.#sweptAt = performance.now()
      const expired = await expireDeliveries(sql)
      if (expired > 0) log.warn('deliveries given up', { expired })
    }
    const room = limit - this.#posts.size
    if (room <= 0 || this.#stopped) return
    for (const delivery of await claimDeliveries(sql, { busy: this.#busy, width, limit: room })) {
      this.#start(delivery)
    }
  }

  #start(delivery: ClaimedDelivery): void {
    const { webhookId } = delivery
    this.#count(webhookId, 1)
    const posting = this.#deliver(delivery)
      .catch((error: unknown) => {
        // Not recorded: the claim runs out, and it is posted again under the same id.
        this.#options.log.error('delivery not recorded', { deliveryId: delivery.id, error })
      })
      .then(() => {
        this.#posts.delete(posting)
        this.#count(webhookId, -1)
        this.#wake.ring()
      })
    this.#posts.add(posting)
  }

  #count(webhookId: string, by: 1 | -1): void {
    const n = (this.#busy.get(webhookId) ?? 0) + by
    if (n === 0) this.#busy.delete(webhookId)
    else this.#busy.set(webhookId, n)
  }

  async #deliver(delivery: ClaimedDelivery): Promise<void> {
    const { sql, log, backoff, circuitBackoff } = this.#options
    const { id: deliveryId, webhookId, attempts } = delivery
    const outcome = await this.#post(delivery)
    const status = await recordPost(sql, delivery, outcome, {
      delayMs: backoff(attempts),
      circuitMs: (failures) => circuitBackoff(failures - circuitFailures + 1),
    })
    const fields = { deliveryId, webhookId, attempts, ms: outcome.duration }
    if (outcome.ok) log.info('event delivered', fields)
    else log.warn('event not delivered', { ...fields, reason: outcome.error, status })
  }

  async #post({ webhookId, url, secrets, eventId, body }: ClaimedDelivery): Promise<PostOutcome> {
    const { keys, allowPrivate, timeoutMs, lookup } = this.#options
    let opened: Buffer[]
    try {
      opened = secrets.map((sealed) => openSecret(keys, webhookId, sealed))
    } catch (error) {
      if (!isSealFault(error)) throw error
      this.#options.log.error('secret of a webhook not readable', { webhookId, error })
      return { ok: false, status: null, error: 'SECRET_UNREADABLE', duration: 0 }
    }
    const headers = signatureHeaders(opened, eventId, Math.floor(Date.now() / 1_000), body)
    return post(url, body, headers, { allowPrivate, timeoutMs, lookup })
  }
}
