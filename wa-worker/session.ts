import type { Sql } from '../shared/db.ts'
import { errorText } from '../shared/errors.ts'
import type { Logger } from '../shared/logger.ts'
import { cancelQueued, endOutbox } from '../shared/outbox.ts'
import { LeaseLost, releaseLease, wishesOf } from '../shared/wa-session-leases.ts'
import type { LeasedSession } from '../shared/wa-session-leases.ts'
import {
  closeRequest,
  isUnused,
  pairingWish,
  writeQr,
  writeTransition,
} from '../shared/wa-session-transitions.ts'
import type { Account, OwnedSession, QrCode, Transition } from '../shared/wa-session-transitions.ts'
import type { SessionRequest, SessionStatus } from '../shared/wa-sessions.ts'
import type { Backfill } from './backfill.ts'
import type { Backoff } from './backoff.ts'
import { Care } from './care.ts'
import type { CareTimes } from './care.ts'
import type { Downloads } from './downloads.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine, EngineEvents } from './engine/engine.ts'
import type { History } from './history.ts'
import { next } from './lifecycle.ts'
import type { LifecycleEvent } from './lifecycle.ts'
import { waitOutOutage, withDeadline } from './patience.ts'
import type { Logins } from './logins.ts'
import type { People } from './people.ts'
import type { Receiver } from './receiver.ts'
import type { Actions } from './actions.ts'
import type { Sender } from './sender.ts'
import { startAndUnlink, unlink } from './unlink.ts'

export interface SessionDeps extends CareTimes {
  sql: Sql
  log: Logger
  worker: string
  sender: Sender
  actions: Actions
  receiver: Receiver
  backfill: Backfill
  downloads: Downloads
  people: People
  history: History
  logins: Logins
  createEngine(session: LeasedSession): Engine
  backoff: Backoff
  /** How long a start, or a lost link, may take before the engine is started afresh. */
  startTimeoutMs: number
  /** After this long without a failure the quick attempts are back. */
  stableMs: number
  /** Bytes above which an idle session's engine is replaced; 0 for never. */
  memoryLimit: number
  /** Codes shown to nobody before the session stops asking. */
  maxQrCodes: number
  /** Failed starts in a row before a session that was never linked gives up. */
  maxStarts: number
}

/** How long an orderly stop waits for the message in flight, and for its snapshot. */
const graceMs = 6_000
const snapshotAtStopMs = 6_000

/**
 * One session this worker owns. Everything that happens to it, wishes, engine events and timers, goes through one queue and is dealt
 * with one at a time, so no two of them ever see the state half changed.
 */
export class Session {
  readonly id: string
  readonly owned: OwnedSession
  /** Resolves when this worker has nothing more to do with the session: given back, or lost. */
  readonly ended: Promise<void>

  readonly #leased: LeasedSession
  readonly #deps: SessionDeps
  #status: SessionStatus
  #waId: string | null
  #reason: string | null = null
  #detail: string | undefined
  #engine: Engine | undefined
  #queue: Promise<void> = Promise.resolve()
  #failures = 0
  #wishing = false
  #lost = false
  #leaving = false
  /** Aborted when the session is handed over or lost: what takes long is not waited for then. */
  readonly #ending = new AbortController()
  /** Aborted when a start is wished for no more while its login still comes out of the vault. */
  #calledOff = new AbortController()
  #end!: () => void
  /** The deadline of the state it is in. */
  #deadline: NodeJS.Timeout | undefined
  #retry: NodeJS.Timeout | undefined
  #stable: NodeJS.Timeout | undefined
  #care: Care | undefined
  /** The engine is linked: its profile is a login. */
  #linked = false
  /** It has worked without a break for so long that earlier failures count no more. */
  #isStable = false
  /** First aid was tried since the session was last stable: the next trouble needs a new browser. */
  #reloaded = false

  constructor(leased: LeasedSession, deps: SessionDeps) {
    this.id = leased.id
    this.owned = {
      id: leased.id,
      workspaceId: leased.workspaceId,
      fence: leased.fence,
      worker: deps.worker,
    }
    this.#leased = leased
    this.#deps = deps
    this.#status = leased.status
    this.#waId = leased.waId
    this.ended = new Promise((resolve) => (this.#end = resolve))
  }

  /** Tells the session that there may be something wished of it. What is met already does nothing. */
  wish({ desiredState, requests }: LeasedSession): void {
    if (desiredState === 'stopped') this.#calledOff.abort()
    const running = this.#engine !== undefined || this.#retry !== undefined
    if (this.#wishing || (desiredState === 'running' && requests.length === 0 && running)) return
    this.#wishing = true
    this.#post(async () => {
      this.#wishing = false
      // Read when it is their turn: what was wished before may have been done meanwhile.
      const wishes = await wishesOf(this.#deps.sql, this.owned)
      if (!wishes) throw new LeaseLost(this.id)
      await this.#meet(wishes)
    })
  }

  /** Stops the engine, keeps the login and gives the session to whichever worker wants it. */
  async handOver(): Promise<void> {
    this.#ending.abort()
    this.#post(() =>
      this.#orAbandon(async () => {
        if (this.#leaving) return
        await this.#stopAndKeep()
        await this.#transition({ type: 'handedOver' })
        await this.#leave()
      }),
    )
    await this.ended
  }

  /** The lease is gone: kills the engine and writes nothing more. Never rejects. */
  async abandon(): Promise<void> {
    if (this.#lost) return this.ended
    this.#lost = true
    this.#ending.abort()
    this.#clearTimers()
    const closed = this.#idle()
    try {
      await this.#engine?.stop('atOnce')
      await closed
    } catch (error) {
      this.#deps.log.error('engine did not end', { sessionId: this.id, error })
    }
    this.#engine = undefined
    this.#deps.log.warn('session abandoned', { sessionId: this.id, fence: this.owned.fence })
    this.#end()
  }

  async #meet({ desiredState, requests }: LeasedSession): Promise<void> {
    if (this.#leaving) return
    if (requests.includes('delete')) return this.#unlink('delete')
    if (requests.includes('logout')) return this.#unlink('logout')
    if (requests.includes('expire')) {
      if (await isUnused(this.#deps.sql, this.owned)) return this.#expire()
      await this.#close('expire', { error: 'It is used again.' })
    }
    if (requests.includes('pairing_code')) await this.#pair()
    if (desiredState === 'stopped') return this.#stop()
    if (requests.includes('restart')) {
      await this.#stopEngine()
      this.#failures = 0
      await this.#start(this.#status === 'FAILED' ? undefined : 'RESTART_REQUESTED')
      return this.#close('restart')
    }
    if (!this.#engine && !this.#retry) await this.#start()
  }

  /** Answers a wish for a pairing code; whoever asked is waiting for it, or for the reason there is none. */
  async #pair(): Promise<void> {
    const wish = await pairingWish(this.#deps.sql, this.owned)
    if (!wish) return
    const { id, phone } = wish
    try {
      if (this.#status !== 'SCAN_QR_CODE' || !this.#engine)
        throw new Error('No scan is waited for.')
      await this.#close('pairing_code', { id, result: await this.#engine.pairingCode(phone) })
    } catch (error) {
      if (error instanceof LeaseLost) throw error
      await this.#close('pairing_code', { id, error: errorText(error) })
    }
  }

  /** Nobody used it for long: the engine ends, the login is put away, and a person can start it again. */
  async #expire(): Promise<void> {
    await this.#stopAndKeep()
    await this.#archive('EXPIRED')
    await this.#transition({ type: 'expired' })
    await this.#close('expire')
    await this.#leave()
  }

  async #stop(): Promise<void> {
    await this.#stopAndKeep()
    if (this.#status !== 'STOPPED') await this.#transition({ type: 'stopped' })
    await this.#dismiss('restart')
    await this.#leave()
  }

  async #start(reason?: string): Promise<void> {
    clearTimeout(this.#retry)
    this.#retry = undefined
    if (this.#ending.signal.aborted) return
    this.#linked = false
    const { signal } = (this.#calledOff = new AbortController())
    await this.#transition(reason === undefined ? { type: 'start' } : { type: 'start', reason })
    try {
      const done = await this.#deps.logins.prepare(this.owned, this.#patience(signal))
      if (done) this.#deps.log.warn('login taken from the vault', { sessionId: this.id, done })
    } catch (error) {
      if (error instanceof LeaseLost) throw error
      // Whoever called it off comes next in the queue.
      if (this.#isCalledOff()) return
      return this.#broke('VAULT_UNAVAILABLE', errorText(error))
    }
    // Abandoned meanwhile: nobody would stop this engine.
    if (this.#lost) return
    const engine = this.#deps.createEngine(this.#leased)
    this.#engine = engine
    this.#listen(engine)
    this.#arm(engine)
    engine.start().catch((error: unknown) => {
      const reason = error instanceof EngineError ? error.code : 'START_FAILED'
      this.#deps.log.error('engine did not start', { sessionId: this.id, reason, error })
      this.#about(engine, () => this.#broke(reason, errorText(error)))
    })
  }

  #listen(engine: Engine): void {
    this.#deps.receiver.attach(this.owned, engine)
    const on = <K extends keyof EngineEvents>(
      event: K,
      handle: (...args: EngineEvents[K]) => Promise<void>,
    ) => {
      const listener = (...args: EngineEvents[K]) => this.#about(engine, () => handle(...args))
      engine.on(event, listener as never)
    }
    on('qr', (qr) => this.#showQr(engine, qr))
    on('passkey', async () => {
      await this.#transition({ type: 'passkeyAsked' })
      this.#arm(engine)
    })
    on('ready', (account) => this.#ready(engine, account))
    on('link', (state) => this.#link(engine, state))
    on('loggedOut', () => this.#loggedOut())
    on('trouble', ({ reason, detail }) => this.#heal(engine, reason, detail))
    on('closed', ({ reason, detail }) => this.#broke(reason, detail))
  }

  async #showQr(engine: Engine, qr: QrCode): Promise<void> {
    if (qr.attempt > this.#deps.maxQrCodes) {
      await this.#stopEngine()
      await this.#transition({ type: 'qrTimeout' })
      return this.#leave()
    }
    // The page that worked said it was not paired any more, and the login is gone with it: no older one would be taken either.
    if (this.#status === 'RECONNECTING' && this.#reason === 'STATE_UNPAIRED')
      return this.#loggedOut()
    if (await this.#tryOlderLogin()) return
    // With the change of state, so that whoever sees SCAN_QR_CODE finds a code.
    if (this.#status !== 'SCAN_QR_CODE') await this.#transition({ type: 'qr' }, { qr })
    else await this.#write(() => writeQr(this.#deps.sql, this.owned, qr))
    this.#arm(engine, qr.expiresAt.getTime() - Date.now())
  }

  /**
   * A session that has a login and is asked for a scan all the same: the login on this disk may be torn, or hold none. Before a person is bothered, each
   * snapshot gets one try, the newest first.
   */
  async #tryOlderLogin(): Promise<boolean> {
    if (this.#status === 'SCAN_QR_CODE') return false
    let done: string
    try {
      if (!(await this.#deps.logins.canRollBack(this.owned))) return false
      await this.#stopEngine()
      const { signal } = (this.#calledOff = new AbortController())
      done = await this.#deps.logins.rollBack(this.owned, this.#patience(signal))
    } catch (error) {
      if (error instanceof LeaseLost) throw error
      if (this.#isCalledOff()) return true
      await this.#broke('VAULT_UNAVAILABLE', errorText(error))
      return true
    }
    const detail = `WhatsApp asks for a scan. ${done}`
    await this.#transition({ type: 'broke', reason: 'LOGIN_LOST' }, { detail })
    await this.#start('LOGIN_LOST')
    return true
  }

  async #ready(engine: Engine, account: Account): Promise<void> {
    this.#clearTimers()
    this.#linked = true
    this.#deps.logins.accepted(this.id)
    this.#takeCare(engine)
    await this.#refuseOldAccount(account)
    await this.#transition({ type: 'ready' }, { account })
    this.#work(engine)
  }

  /** Another phone was linked: what was accepted for the number before must not leave from this one. */
  async #refuseOldAccount({ waId }: Account): Promise<void> {
    const before = this.#waId
    this.#waId = waId
    if (before === null || before === waId) return
    const ended = await this.#write(() =>
      endOutbox(this.#deps.sql, this.owned, {
        code: 'ACCOUNT_CHANGED',
        message: 'The session was linked to another number before this was sent.',
      }),
    )
    this.#deps.log.warn('another account linked', { sessionId: this.id, messages: ended })
  }

  /** Sends, and watches over, an engine that is WORKING. */
  #work(engine: Engine): void {
    this.#care?.watch()
    clearTimeout(this.#stable)
    this.#stable = setTimeout(() => {
      this.#isStable = true
      this.#failures = 0
      this.#reloaded = false
    }, this.#deps.stableMs)
    this.#deps.actions.open(this.owned, engine)
    this.#deps.backfill.open(this.owned, engine)
    this.#deps.downloads.open(this.owned, engine)
    this.#deps.people.open(this.owned, engine)
    this.#deps.history.open(this.owned, engine)
    this.#deps.sender.open(this.owned, engine, (reason) => {
      const detail =
        reason === 'ACKS_STALLED'
          ? 'No server confirms what is sent.'
          : 'WhatsApp Web lacks what sending needs.'
      this.#about(engine, () => this.#heal(engine, reason, detail))
    })
  }

  /** Sends nothing more; resolves when the message in flight is through. */
  #idle(how?: 'broken'): Promise<void> {
    clearTimeout(this.#stable)
    this.#isStable = false
    this.#deps.actions.close(this.id)
    void this.#deps.backfill.close(this.id)
    this.#deps.downloads.close(this.id)
    this.#deps.people.close(this.id)
    void this.#deps.history.close(this.id)
    return this.#deps.sender.close(this.id, how)
  }

  #takeCare(engine: Engine): void {
    this.#care = new Care({
      ...this.#deps,
      session: this.owned,
      engine,
      onTrouble: (reason, detail) => this.#about(engine, () => this.#heal(engine, reason, detail)),
      onWeighed: (bytes) => this.#about(engine, () => this.#weighed(bytes)),
      onLost: () => void this.abandon(),
    })
  }

  /**
   * A browser grows over days. Above the limit it is replaced, but not while it is sending, and not before it has worked for a while: one that is
   * above it from the start would do nothing but start.
   */
  async #weighed(bytes: number): Promise<void> {
    const { memoryLimit, sender } = this.#deps
    if (memoryLimit === 0 || bytes < memoryLimit) return
    if (!this.#isStable || !sender.isIdle(this.id)) return
    const detail = `The browser uses ${Math.round(bytes / 1_048_576)} MB.`
    await this.#transition({ type: 'broke', reason: 'MEMORY_LIMIT' }, { detail })
    await this.#stopEngine()
    await this.#start('MEMORY_LIMIT')
  }

  /**
   * The ladder of cures: first WhatsApp is loaded anew in the same browser; where that was tried lately, or does not work, the browser
   * is replaced.
   */
  async #heal(engine: Engine, reason: string, detail?: string): Promise<void> {
    if (this.#status !== 'WORKING' || this.#reloaded) return this.#broke(reason, detail)
    this.#reloaded = true
    await this.#transition(
      { type: 'broke', reason },
      { detail: `${detail ?? ''} Reloading the page.`.trim() },
    )
    this.#arm(engine)
    try {
      // The message in flight, if any, is cut off by the reload: it is not waited for.
      void this.#idle('broken')
      await engine.reload()
    } catch (error) {
      await this.#broke(reason, errorText(error))
    }
  }

  async #link(engine: Engine, state: 'lost' | 'restored'): Promise<void> {
    const before = this.#status
    await this.#transition({ type: state === 'lost' ? 'linkLost' : 'linkRestored' })
    if (this.#status === before) return
    if (state === 'lost') {
      void this.#idle()
      this.#arm(engine)
    } else {
      clearTimeout(this.#deadline)
      this.#work(engine)
    }
  }

  async #loggedOut(): Promise<void> {
    await this.#stopEngine()
    await this.#archive('LOGGED_OUT_ON_PHONE')
    await this.#transition({ type: 'loggedOut', reason: 'LOGGED_OUT_ON_PHONE' })
    await this.#leave()
  }

  /** The engine is dead or of no more use. Tries again after a while, or gives up where trying cannot help. */
  async #broke(reason: string, detail?: string): Promise<void> {
    this.#clearTimers()
    // What broke over a message is the message's affair, and it gets few tries: the session owes nobody a longer pause for that.
    const overMessage = this.#status === 'WORKING' && this.#deps.sender.isBusy(this.id)
    void this.#idle('broken')
    if (!overMessage) this.#failures += 1
    const linked = this.#status === 'WORKING' || this.#status === 'RECONNECTING'
    const exhausted = this.#failures >= this.#deps.maxStarts
    const hopeless =
      reason === 'BROWSER_MISSING' || (exhausted && (!linked || reason === 'MODULE_MISSING'))
    // A wish to restart must not bring it back at once; one that comes after it was said must.
    if (hopeless) await this.#close('restart')
    // Said first: closing a browser that hangs takes its time.
    await this.#transition({ type: hopeless ? 'gaveUp' : 'broke', reason }, { detail })
    await this.#stopEngine()
    if (hopeless) return this.#leave()
    this.#retry = setTimeout(() => {
      this.#post(async () => {
        this.#retry = undefined
        if (!this.#engine && !this.#leaving) await this.#start(reason)
      })
    }, this.#deps.backoff(this.#failures))
  }

  /** Unlinks the device, starting the engine for it if need be, and puts the login away. */
  async #unlink(kind: 'logout' | 'delete'): Promise<void> {
    const failure = await this.#tryUnlink()
    await this.#stopEngine()
    if (kind === 'delete') {
      await this.#write(() => this.#deps.logins.destroy(this.owned))
      // Accepted in the very moment of the deletion, or on its way when it came.
      await this.#write(() => cancelQueued(this.#deps.sql, this.id))
      await this.#write(() =>
        endOutbox(this.#deps.sql, this.owned, {
          code: 'SESSION_DELETED',
          message: 'The session was deleted while this was on its way.',
        }),
      )
    } else await this.#archive('LOGGED_OUT_BY_REQUEST')
    const detail = failure && `WhatsApp did not confirm: ${failure}`
    await this.#transition({ type: 'loggedOut', reason: 'LOGGED_OUT_BY_REQUEST' }, { detail })
    await this.#close(kind, { error: failure })
    if (kind === 'delete') await this.#dismiss('logout', 'expire', 'pairing_code')
    await this.#leave()
  }

  /** Puts the login away. */
  #archive(reason: string): Promise<void> {
    return this.#write(() => this.#deps.logins.archive(this.owned, reason))
  }

  /** Undefined when the device is unlinked or never was linked; else why it could not be unlinked. */
  async #tryUnlink(): Promise<string | undefined> {
    if (this.#status === 'WORKING' && this.#engine) {
      await this.#finishSending()
      return unlink(this.#engine)
    }
    if (!(await this.#deps.logins.exists(this.owned))) return undefined
    await this.#stopEngine()
    const { signal } = this.#ending
    try {
      await this.#deps.logins.prepare(this.owned, this.#patience())
    } catch (error) {
      // Handed over, it is the next owner's to unlink.
      if (error instanceof LeaseLost || signal.aborted) throw error
      return `The login could not be opened. ${errorText(error)}`
    }
    signal.throwIfAborted()
    this.#engine = this.#deps.createEngine(this.#leased)
    return startAndUnlink(this.#engine, this.#deps.startTimeoutMs, signal)
  }

  /** Lets the message in flight finish, for a while. */
  async #finishSending(): Promise<void> {
    const closed = this.#idle()
    await withDeadline(closed, graceMs, () => new Error('in flight')).catch(() =>
      this.#deps.log.warn('stopped with a message in flight', { sessionId: this.id }),
    )
  }

  /**
   * An orderly stop: the message in flight may finish, for a while. It leaves the login of a linked engine complete on the disk, the best
   * moment for a snapshot.
   */
  async #stopAndKeep(): Promise<void> {
    const linked = this.#linked && this.#engine !== undefined
    this.#clearTimers()
    await this.#finishSending()
    await this.#stopEngine()
    if (linked) await this.#deps.logins.keep(this.owned, 'STOPPED', snapshotAtStopMs)
  }

  /** Stops the engine at once; what it was doing is cut off, and what it had reported is written. */
  async #stopEngine(): Promise<void> {
    this.#clearTimers()
    const engine = this.#engine
    const closed = this.#idle()
    await engine?.stop()
    await closed
    if (!engine) return
    await this.#deps.backfill.close(this.id)
    await this.#deps.receiver.settled(engine)
    this.#engine = undefined
  }

  async #leave(): Promise<void> {
    this.#leaving = true
    this.#clearTimers()
    try {
      await this.#write(() => releaseLease(this.#deps.sql, this.owned))
    } catch (error) {
      this.#deps.log.warn('lease left to run out', { sessionId: this.id, error })
    }
    this.#end()
  }

  /** How long the vault is waited for: not longer than for a start, and not when nobody wants it any more. */
  #patience(calledOff?: AbortSignal): AbortSignal {
    const limits = [this.#ending.signal, AbortSignal.timeout(this.#deps.startTimeoutMs)]
    return AbortSignal.any(calledOff ? [...limits, calledOff] : limits)
  }

  #isCalledOff(): boolean {
    return this.#ending.signal.aborted || this.#calledOff.signal.aborted
  }

  /** (Re)starts the deadline of a state that must not last: after it the engine is started afresh. */
  #arm(engine: Engine, extraMs = 0): void {
    clearTimeout(this.#deadline)
    this.#deadline = setTimeout(
      () => this.#about(engine, () => this.#broke('START_TIMEOUT')),
      this.#deps.startTimeoutMs + Math.max(0, extraMs),
    )
  }

  #clearTimers(): void {
    clearTimeout(this.#deadline)
    clearTimeout(this.#retry)
    clearTimeout(this.#stable)
    this.#retry = undefined
    this.#care?.stop()
  }

  async #transition(
    event: LifecycleEvent,
    more: Pick<Transition, 'detail' | 'account' | 'qr'> = {},
  ): Promise<void> {
    const from = this.#status
    const change = next(from, event)
    if (!change) return
    const { detail = this.#detail } = more
    // The same state for the same reason is no news, unless there is more to say about it.
    const isOld = change.to === from && change.reason === this.#reason && detail === this.#detail
    if (isOld) return
    const transition = { from, ...change, ...more }
    await this.#write(() => writeTransition(this.#deps.sql, this.owned, transition))
    this.#status = change.to
    this.#reason = change.reason
    this.#detail = detail
    if (change.stops) await this.#dismiss('restart')
    this.#deps.log.info('session changed', {
      sessionId: this.id,
      from,
      to: change.to,
      reason: change.reason,
      ...(more.detail !== undefined && { detail: more.detail }),
    })
  }

  #close(
    kind: SessionRequest,
    answer: {
      error?: string | undefined
      result?: object | undefined
      id?: number | undefined
    } = {},
  ): Promise<void> {
    return this.#write(() => closeRequest(this.#deps.sql, this.owned, kind, answer))
  }

  /** Ends wishes that something else has overtaken: left open, they would have the session taken and let go of again and again. */
  async #dismiss(...kinds: SessionRequest[]): Promise<void> {
    for (const kind of kinds) await this.#close(kind, { error: 'Something else was wished for.' })
  }

  #write<T>(work: () => Promise<T>): Promise<T> {
    return waitOutOutage(work, () => !this.#lost)
  }

  /**
   * Queues what concerns one engine; by the time it is its turn that engine may be gone. What fails half way counts as a breakdown of the engine: the
   * session would stay as it is for ever, since nobody tells of the same event twice.
   */
  #about(engine: Engine, work: () => Promise<void>): void {
    this.#post(async () => {
      if (engine !== this.#engine || this.#leaving) return
      try {
        await work()
      } catch (error) {
        if (error instanceof LeaseLost || this.#lost) throw error
        this.#deps.log.error('session step failed', { sessionId: this.id, error })
        await this.#orAbandon(() => this.#broke('STEP_FAILED', errorText(error)))
      }
    })
  }

  /** Does what must not be left half done; where that fails the engine is killed, and whoever takes the session next starts it afresh. */
  async #orAbandon(work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (error) {
      this.#deps.log.error('session given up', { sessionId: this.id, error })
      await this.abandon()
    }
  }

  #post(work: () => Promise<void>): void {
    this.#queue = this.#queue.then(async () => {
      if (this.#lost) return
      try {
        await work()
      } catch (error) {
        if (error instanceof LeaseLost) return this.abandon()
        this.#deps.log.error('session step failed', { sessionId: this.id, error })
      }
    })
  }
}
