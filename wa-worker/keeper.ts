import { isDatabaseAway } from '../shared/db-errors.ts'
import type { Sql } from '../shared/db.ts'
import { errorText } from '../shared/errors.ts'
import type { Logger } from '../shared/logger.ts'
import { endOutbox } from '../shared/outbox.ts'
import { LeaseLost } from '../shared/wa-session-leases.ts'
import type { LeasedSession } from '../shared/wa-session-leases.ts'
import { writeQr } from '../shared/wa-session-transitions.ts'
import type { Account, QrCode } from '../shared/wa-session-transitions.ts'
import type { Backoff } from './backoff.ts'
import { Care } from './care.ts'
import type { CareTimes } from './care.ts'
import { Duties } from './duties.ts'
import type { DutyDeps } from './duties.ts'
import { EngineError } from './engine/engine.ts'
import type { Engine, EngineEvents } from './engine/engine.ts'
import type { Logins } from './logins.ts'
import { withDeadline } from './patience.ts'
import type { SessionState } from './session-state.ts'
import { startAndUnlink, unlink } from './unlink.ts'

export interface KeeperDeps extends CareTimes, DutyDeps {
  sql: Sql
  log: Logger
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
  /** Failed starts in a row before a session that has no login gives up. */
  maxStarts: number
}

/** The session an engine is kept for. */
export interface Kept {
  /** Has work done after what was asked for before. */
  post(work: () => Promise<void>): void
  /** There is nothing more to do for it. */
  leave(): Promise<void>
  /** It is not to be owned any more, or must not. */
  abandon(): Promise<void>
}

/** How long an orderly stop waits for the message in flight, and for its snapshot. */
const graceMs = 6_000
const snapshotAtStopMs = 6_000

/**
 * Keeps an engine at work for a session: starts it from the newest login, follows what it tells, and cures or replaces it when it breaks. All of this, what the
 * engine tells and what timers bring included, happens in the session's queue.
 */
export class Keeper {
  readonly #leased: LeasedSession
  readonly #state: SessionState
  readonly #deps: KeeperDeps
  readonly #kept: Kept
  readonly #duties: Duties
  #waId: string | null
  #engine: Engine | undefined
  #failures = 0
  /** Aborted when the session is handed over or lost: what takes long is not waited for then. */
  readonly #ending = new AbortController()
  /** Aborted when a start is wished for no more while its login still comes out of the vault. */
  #calledOff = new AbortController()
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

  constructor(leased: LeasedSession, state: SessionState, deps: KeeperDeps, kept: Kept) {
    this.#leased = leased
    this.#state = state
    this.#deps = deps
    this.#kept = kept
    this.#duties = new Duties(state.owned, deps)
    this.#waId = leased.waId
  }

  /** There is an engine, or there will be one again. */
  get isKeeping(): boolean {
    return this.#engine !== undefined || this.#retry !== undefined
  }

  /** A start that waits for its login need not go on: whoever says so comes next in the queue. */
  callOff(): void {
    this.#calledOff.abort()
  }

  /** The session is handed over or lost: nothing that takes long is waited for any more. */
  end(): void {
    this.#ending.abort()
  }

  async start(reason?: string): Promise<void> {
    clearTimeout(this.#retry)
    this.#retry = undefined
    if (this.#ending.signal.aborted) return
    this.#linked = false
    const { signal } = (this.#calledOff = new AbortController())
    await this.#state.happened(reason === undefined ? { type: 'start' } : { type: 'start', reason })
    try {
      const done = await this.#deps.logins.prepare(this.#session, this.#patience(signal))
      if (done) this.#deps.log.warn('login taken from the vault', { sessionId: this.#id, done })
    } catch (error) {
      if (error instanceof LeaseLost) throw error
      // Whoever called it off comes next in the queue.
      if (this.#isCalledOff()) return
      return this.#broke(whyNoLogin(error), errorText(error))
    }
    // Abandoned meanwhile: nobody would stop this engine.
    if (this.#state.isLost) return
    const engine = this.#deps.createEngine(this.#leased)
    this.#engine = engine
    this.#listen(engine)
    this.#arm(engine)
    engine.start().catch((error: unknown) => {
      const reason = error instanceof EngineError ? error.code : 'START_FAILED'
      this.#deps.log.error('engine did not start', { sessionId: this.#id, reason, error })
      this.#about(engine, () => this.#broke(reason, errorText(error)))
    })
  }

  /** Replaces the engine at a person's wish: what went wrong before counts no more. */
  async restart(): Promise<void> {
    await this.stop()
    this.#failures = 0
    await this.start(this.#state.status === 'FAILED' ? undefined : 'RESTART_REQUESTED')
  }

  /** Stops the engine at once; what it was doing is cut off, and what it had reported is written. */
  async stop(): Promise<void> {
    this.clearTimers()
    const engine = this.#engine
    const closed = this.#idle()
    await engine?.stop()
    await closed
    if (!engine) return
    await this.#duties.settled(engine)
    this.#engine = undefined
  }

  /**
   * An orderly stop: the message in flight may finish, for a while. It leaves the login of a linked engine complete on the disk, the best
   * moment for a snapshot.
   */
  async stopAndKeep(): Promise<void> {
    const linked = this.#linked && this.#engine !== undefined
    this.clearTimers()
    await this.#finishSending()
    await this.stop()
    if (linked) await this.#deps.logins.keep(this.#session, 'STOPPED', snapshotAtStopMs)
  }

  /** Kills the engine of a session that has another owner: writes nothing, and never rejects. */
  async kill(): Promise<void> {
    this.clearTimers()
    const closed = this.#idle()
    if (this.#engine) void this.#duties.killed(this.#engine)
    try {
      await this.#engine?.stop('atOnce')
      await closed
    } catch (error) {
      this.#deps.log.error('engine did not end', { sessionId: this.#id, error })
    }
    this.#engine = undefined
  }

  /** A code to type on the phone. Rejects while no scan is waited for. */
  async pairingCode(phone: string): Promise<{ code: string; expiresAt: Date }> {
    if (this.#state.status !== 'SCAN_QR_CODE' || !this.#engine) {
      throw new Error('No scan is waited for.')
    }
    return this.#engine.pairingCode(phone)
  }

  /**
   * Unlinks the device, starting an engine for it if need be. Undefined when it is unlinked or never was linked; else why it could not be
   * unlinked. An engine may be left to be stopped.
   */
  async unlink(): Promise<string | undefined> {
    if (this.#state.status === 'WORKING' && this.#engine) {
      await this.#finishSending()
      return unlink(this.#engine)
    }
    if (!(await this.#deps.logins.exists(this.#session))) return undefined
    // What its last owner has left behind is not so any more, and unlinking takes its time.
    if (this.#state.needsEngine && !this.#engine) {
      await this.#state.happened({ type: 'broke', reason: 'WORKER_LOST' })
    }
    await this.stop()
    const { signal } = this.#ending
    try {
      await this.#deps.logins.prepare(this.#session, this.#patience())
    } catch (error) {
      // Handed over, it is the next owner's to unlink.
      if (error instanceof LeaseLost || signal.aborted) throw error
      return `The login could not be opened. ${errorText(error)}`
    }
    signal.throwIfAborted()
    this.#engine = this.#deps.createEngine(this.#leased)
    return startAndUnlink(this.#engine, this.#deps.startTimeoutMs, signal)
  }

  clearTimers(): void {
    clearTimeout(this.#deadline)
    clearTimeout(this.#retry)
    clearTimeout(this.#stable)
    this.#retry = undefined
    this.#care?.stop()
  }

  get #session() {
    return this.#state.owned
  }

  get #id(): string {
    return this.#state.owned.id
  }

  #listen(engine: Engine): void {
    this.#duties.listen(engine)
    const on = <K extends keyof EngineEvents>(
      event: K,
      handle: (...args: EngineEvents[K]) => Promise<void>,
    ) => {
      const listener = (...args: EngineEvents[K]) => this.#about(engine, () => handle(...args))
      engine.on(event, listener as never)
    }
    on('qr', (qr) => this.#showQr(engine, qr))
    on('passkey', async () => {
      await this.#state.happened({ type: 'passkeyAsked' })
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
      await this.stop()
      await this.#state.happened({ type: 'qrTimeout' })
      return this.#kept.leave()
    }
    // The page that worked said it was not paired any more, and the login is gone with it: no older one would be taken either.
    const { status, reason } = this.#state
    if (status === 'RECONNECTING' && reason === 'STATE_UNPAIRED') return this.#unlinked()
    if (await this.#tryOlderLogin('WhatsApp asks for a scan.')) return
    // With the change of state, so that whoever sees SCAN_QR_CODE finds a code.
    if (this.#state.status !== 'SCAN_QR_CODE') await this.#state.happened({ type: 'qr' }, { qr })
    else await this.#state.write(() => writeQr(this.#deps.sql, this.#session, qr))
    this.#arm(engine, qr.expiresAt.getTime() - Date.now())
  }

  /**
   * A session that has a login which WhatsApp does not take: the one on this disk may be torn, hold none, or be behind what the server knows, as happens after
   * kills. Before a person is bothered, each snapshot gets one try, the newest first.
   */
  async #tryOlderLogin(why: string): Promise<boolean> {
    if (this.#state.status === 'SCAN_QR_CODE') return false
    let done: string
    try {
      if (!(await this.#deps.logins.canRollBack(this.#session))) return false
      await this.stop()
      const { signal } = (this.#calledOff = new AbortController())
      done = await this.#deps.logins.rollBack(this.#session, this.#patience(signal))
    } catch (error) {
      if (error instanceof LeaseLost) throw error
      if (this.#isCalledOff()) return true
      await this.#broke(whyNoLogin(error), errorText(error))
      return true
    }
    const detail = `${why} ${done}`
    await this.#state.happened({ type: 'broke', reason: 'LOGIN_LOST' }, { detail })
    await this.start('LOGIN_LOST')
    return true
  }

  async #ready(engine: Engine, account: Account): Promise<void> {
    this.clearTimers()
    this.#linked = true
    this.#deps.logins.accepted(this.#id)
    this.#takeCare(engine)
    await this.#refuseOldAccount(account)
    await this.#state.happened({ type: 'ready' }, { account })
    this.#work(engine)
  }

  /** Another phone was linked: what was accepted for the number before must not leave from this one. */
  async #refuseOldAccount({ waId }: Account): Promise<void> {
    const before = this.#waId
    this.#waId = waId
    if (before === null || before === waId) return
    const ended = await this.#state.write(() =>
      endOutbox(this.#deps.sql, this.#session, {
        code: 'ACCOUNT_CHANGED',
        message: 'The session was linked to another number before this was sent.',
      }),
    )
    this.#deps.log.warn('another account linked', { sessionId: this.#id, messages: ended })
  }

  /** Puts an engine that is WORKING to work, and watches over it. */
  #work(engine: Engine): void {
    this.#care?.watch()
    clearTimeout(this.#stable)
    this.#stable = setTimeout(() => {
      this.#isStable = true
      this.#failures = 0
      this.#reloaded = false
    }, this.#deps.stableMs)
    this.#duties.open(engine, (reason, detail) =>
      this.#about(engine, () => this.#heal(engine, reason, detail)),
    )
  }

  /** Begins nothing more with the engine; resolves when the message in flight is through. */
  #idle(how?: 'broken'): Promise<void> {
    clearTimeout(this.#stable)
    this.#isStable = false
    return this.#duties.close(how)
  }

  #takeCare(engine: Engine): void {
    this.#care = new Care({
      ...this.#deps,
      session: this.#session,
      engine,
      onTrouble: (reason, detail) => this.#about(engine, () => this.#heal(engine, reason, detail)),
      onWeighed: (bytes) => this.#about(engine, () => this.#weighed(bytes)),
      onLost: () => void this.#kept.abandon(),
    })
  }

  /**
   * A browser grows over days. Above the limit it is replaced, but not while it is sending, and not before it has worked for a while: one that is
   * above it from the start would do nothing but start.
   */
  async #weighed(bytes: number): Promise<void> {
    const { memoryLimit } = this.#deps
    if (memoryLimit === 0 || bytes < memoryLimit) return
    if (!this.#isStable || !this.#duties.isIdle) return
    const detail = `The browser uses ${Math.round(bytes / 1_048_576)} MB.`
    await this.#state.happened({ type: 'broke', reason: 'MEMORY_LIMIT' }, { detail })
    await this.stop()
    await this.start('MEMORY_LIMIT')
  }

  /**
   * The ladder of cures: first WhatsApp is loaded anew in the same browser; where that was tried lately, or does not work, the browser
   * is replaced.
   */
  async #heal(engine: Engine, reason: string, detail?: string): Promise<void> {
    if (this.#state.status !== 'WORKING' || this.#reloaded) return this.#broke(reason, detail)
    this.#reloaded = true
    await this.#state.happened(
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
    const before = this.#state.status
    await this.#state.happened({ type: state === 'lost' ? 'linkLost' : 'linkRestored' })
    if (this.#state.status === before) return
    if (state === 'lost') {
      void this.#idle()
      this.#arm(engine)
    } else {
      clearTimeout(this.#deadline)
      this.#work(engine)
    }
  }

  async #loggedOut(): Promise<void> {
    const said = 'WhatsApp says that the device is unlinked.'
    if (!this.#linked && (await this.#tryOlderLogin(said))) return
    return this.#unlinked()
  }

  /** Somebody unlinked the device on the phone. */
  async #unlinked(): Promise<void> {
    const reason = 'LOGGED_OUT_ON_PHONE'
    await this.stop()
    await this.#state.write(() => this.#deps.logins.archive(this.#session, reason))
    await this.#state.happened({ type: 'loggedOut', reason })
    await this.#kept.leave()
  }

  /** The engine is dead or of no more use. Tries again after a while, or gives up where trying cannot help. */
  async #broke(reason: string, detail?: string): Promise<void> {
    this.clearTimers()
    const { status } = this.#state
    // What broke over a message is the message's affair, and it gets few tries: the session owes nobody a longer pause for that.
    const overMessage = status === 'WORKING' && this.#duties.hasMessage
    void this.#idle('broken')
    if (!overMessage) this.#failures += 1
    const exhausted = this.#failures >= this.#deps.maxStarts
    const hopeless =
      reason === 'BROWSER_MISSING' ||
      (exhausted && (reason === 'MODULE_MISSING' || !(await this.#hasLogin())))
    // A wish to restart must not bring it back at once; one that comes after it was said must.
    if (hopeless) await this.#state.close('restart')
    // Said first: closing a browser that hangs takes its time.
    await this.#state.happened({ type: hopeless ? 'gaveUp' : 'broke', reason }, { detail })
    await this.stop()
    if (hopeless) return this.#kept.leave()
    const retry = setTimeout(() => {
      this.#kept.post(async () => {
        // Something else was done meanwhile.
        if (this.#retry === retry) await this.start(reason)
      })
    }, this.#deps.backoff(this.#failures))
    this.#retry = retry
  }

  /** Where there is a login, or nobody can tell, what fails now may work later, and nobody has to scan anything. */
  async #hasLogin(): Promise<boolean> {
    const { status } = this.#state
    if (status === 'WORKING' || status === 'RECONNECTING') return true
    // Every start makes a profile; only of a number that was linked it may be a login.
    if (this.#waId === null) return false
    return this.#deps.logins.exists(this.#session).catch(() => true)
  }

  /** Lets the message in flight finish, for a while. */
  async #finishSending(): Promise<void> {
    await withDeadline(this.#idle(), graceMs, () => new Error('in flight')).catch(() =>
      this.#deps.log.warn('stopped with a message in flight', { sessionId: this.#id }),
    )
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

  /**
   * Queues what concerns one engine; by the time it is its turn that engine may be gone. What fails half way counts as a breakdown of the engine: the
   * session would stay as it is for ever, since nobody tells of the same event twice.
   */
  #about(engine: Engine, work: () => Promise<void>): void {
    this.#kept.post(async () => {
      if (engine !== this.#engine) return
      try {
        await work()
      } catch (error) {
        if (error instanceof LeaseLost || this.#state.isLost) throw error
        this.#deps.log.error('session step failed', { sessionId: this.#id, error })
        try {
          await this.#broke('STEP_FAILED', errorText(error))
        } catch (failure) {
          // Killed rather than left half way; whoever takes the session next starts it afresh.
          this.#deps.log.error('session given up', { sessionId: this.#id, error: failure })
          await this.#kept.abandon()
        }
      }
    })
  }
}

/** What keeps a login from its engine: the vault, or this machine's disk. Only calls of the system name one, and a store tells of its own in words of its own. */
const whyNoLogin = (error: unknown) =>
  error instanceof Error && 'syscall' in error && !isDatabaseAway(error)
    ? 'DISK_FAILED'
    : 'VAULT_UNAVAILABLE'
