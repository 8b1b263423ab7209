import { errorText } from '../shared/errors.ts'
import { cancelQueued, endOutbox } from '../shared/outbox.ts'
import { LeaseLost, releaseLease, wishesOf } from '../shared/wa-session-leases.ts'
import type { LeasedSession } from '../shared/wa-session-leases.ts'
import { isUnused, pairingWish } from '../shared/wa-session-transitions.ts'
import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import { Keeper } from './keeper.ts'
import type { KeeperDeps } from './keeper.ts'
import { SessionState } from './session-state.ts'

export interface SessionDeps extends KeeperDeps {
  worker: string
  /** There is no room for it to run: what is wished once is done, and no more. */
  isErrand: boolean
}

/** Tries of an errand; another one may be waiting for its place. */
const errandTries = 3

/**
 * One session this worker owns, and what is wished of it. Everything that happens to it, wishes, engine events and timers, goes through one queue and is
 * dealt with one at a time, so no two of them ever see the state half changed.
 */
export class Session {
  readonly id: string
  readonly owned: OwnedSession
  /** Resolves when this worker has nothing more to do with the session: given back, or lost. */
  readonly ended: Promise<void>

  readonly #deps: SessionDeps
  readonly #state: SessionState
  readonly #keeper: Keeper
  #queue: Promise<void> = Promise.resolve()
  #wishing = false
  /** What was last tried in vain, how often in a row, and until when it is left alone. */
  #vain: { wishes: string; failures: number; until: number } | undefined
  #leaving = false
  #end!: () => void

  constructor(leased: LeasedSession, deps: SessionDeps) {
    this.#deps = deps
    this.#state = new SessionState(leased, deps)
    this.id = leased.id
    this.owned = this.#state.owned
    this.#keeper = new Keeper(leased, this.#state, deps, {
      post: (work) => this.#post(work),
      leave: () => this.#leave(),
      abandon: () => this.abandon(),
    })
    this.ended = new Promise((resolve) => (this.#end = resolve))
  }

  /** Tells the session that there may be something wished of it. What is met already does nothing, what failed has its pause. */
  wish(wishes: LeasedSession): void {
    const { desiredState, requests } = wishes
    if (desiredState === 'stopped') this.#keeper.callOff()
    const isMet = desiredState === 'running' && requests.length === 0 && this.#keeper.isKeeping
    if (this.#wishing || isMet || this.#isPausing(wishes)) return
    this.#wishing = true
    this.#post(async () => {
      this.#wishing = false
      // Read when it is their turn: what was wished before may have been done meanwhile.
      const wishes = await wishesOf(this.#deps.sql, this.owned)
      if (!wishes) throw new LeaseLost(this.id)
      try {
        await this.#meet(wishes)
        this.#vain = undefined
      } catch (error) {
        if (error instanceof LeaseLost || this.#state.isLost) throw error
        this.#deps.log.error('wish not met', { sessionId: this.id, ...named(wishes), error })
        // The row still says that it works: without an owner, that is not believed.
        if (this.#state.needsEngine && !this.#keeper.isKeeping) return this.abandon()
        if (this.#pause(wishes) >= errandTries && this.#deps.isErrand) await this.abandon()
      }
    })
  }

  /** Stops the engine, keeps the login and gives the session to whichever worker wants it. */
  async handOver(): Promise<void> {
    this.#keeper.end()
    this.#post(async () => {
      if (this.#leaving) return
      try {
        await this.#keeper.stopAndKeep()
        await this.#state.happened({ type: 'handedOver' })
        await this.#leave()
      } catch (error) {
        this.#deps.log.error('session given up', { sessionId: this.id, error })
        await this.abandon()
      }
    })
    await this.ended
  }

  /** The lease is gone: kills the engine and writes nothing more. Never rejects. */
  async abandon(): Promise<void> {
    if (this.#state.isLost) return this.ended
    this.#state.lose()
    this.#keeper.end()
    await this.#keeper.kill()
    this.#deps.log.warn('session abandoned', { sessionId: this.id, fence: this.owned.fence })
    this.#end()
  }

  /** Answers how often the same has failed. */
  #pause(wishes: LeasedSession): number {
    const same = this.#vain?.wishes === keyOf(wishes) ? this.#vain.failures : 0
    const failures = same + 1
    const until = performance.now() + this.#deps.backoff(failures)
    this.#vain = { wishes: keyOf(wishes), failures, until }
    return failures
  }

  /** The same was tried of late and failed. */
  #isPausing(wishes: LeasedSession): boolean {
    return this.#vain?.wishes === keyOf(wishes) && performance.now() < this.#vain.until
  }

  async #meet({ desiredState, requests }: LeasedSession): Promise<void> {
    if (this.#leaving) return
    if (requests.includes('delete')) return this.#delete()
    if (requests.includes('logout')) return this.#logout()
    if (requests.includes('expire')) {
      if (await this.#expired()) return
      await this.#state.close('expire', { error: 'It is used again.' })
    }
    if (requests.includes('pairing_code')) await this.#pair()
    if (desiredState === 'stopped') return this.#stop()
    // Started meanwhile; whoever has room takes it.
    if (this.#deps.isErrand) return this.#leave()
    if (requests.includes('restart')) {
      await this.#keeper.restart()
      return this.#state.close('restart')
    }
    if (!this.#keeper.isKeeping) await this.#keeper.start()
  }

  /** Answers a wish for a pairing code; whoever asked is waiting for it, or for the reason there is none. */
  async #pair(): Promise<void> {
    const wish = await pairingWish(this.#deps.sql, this.owned)
    if (!wish) return
    const { id, phone } = wish
    try {
      const result = await this.#keeper.pairingCode(phone)
      await this.#state.close('pairing_code', { id, result })
    } catch (error) {
      if (error instanceof LeaseLost) throw error
      await this.#state.close('pairing_code', { id, error: errorText(error) })
    }
  }

  async #stop(): Promise<void> {
    await this.#keeper.stopAndKeep()
    if (this.#state.status !== 'STOPPED') await this.#state.happened({ type: 'stopped' })
    await this.#state.dismiss('restart')
    await this.#leave()
  }

  /** Nobody used it for long: the engine ends, the login is put away, and a person can start it again. False when somebody has used it. */
  async #expired(): Promise<boolean> {
    if (!(await isUnused(this.#deps.sql, this.owned))) return false
    await this.#keeper.stopAndKeep()
    // Stopping takes its time.
    if (!(await isUnused(this.#deps.sql, this.owned))) return false
    await this.#archive('EXPIRED')
    await this.#state.happened({ type: 'expired' })
    await this.#state.close('expire')
    await this.#state.dismiss('restart')
    await this.#leave()
    return true
  }

  /** Unlinks the device and puts the login away. */
  async #logout(): Promise<void> {
    const failure = await this.#unlink()
    await this.#archive('LOGGED_OUT_BY_REQUEST')
    await this.#loggedOut(failure)
    await this.#state.close('logout', { error: failure })
    await this.#state.dismiss('restart')
    await this.#leave()
  }

  /** Unlinks the device and destroys the login; what was accepted and not sent will not be. */
  async #delete(): Promise<void> {
    const { sql, logins } = this.#deps
    const failure = await this.#unlink()
    await this.#state.write(() => logins.destroy(this.owned))
    // Accepted in the very moment of the deletion, or on its way when it came.
    await this.#state.write(() => cancelQueued(sql, this.id))
    await this.#state.write(() =>
      endOutbox(sql, this.owned, {
        code: 'SESSION_DELETED',
        message: 'The session was deleted while this was on its way.',
      }),
    )
    await this.#loggedOut(failure)
    await this.#state.close('delete', { error: failure })
    await this.#state.dismiss('logout', 'restart', 'expire', 'pairing_code')
    await this.#leave()
  }

  /** Undefined when the device is unlinked, else why WhatsApp did not confirm; no engine runs afterwards. */
  async #unlink(): Promise<string | undefined> {
    const failure = await this.#keeper.unlink()
    await this.#keeper.stop()
    return failure
  }

  #loggedOut(failure: string | undefined): Promise<void> {
    const reason = failure === undefined ? 'LOGGED_OUT_BY_REQUEST' : 'LOGOUT_UNCONFIRMED'
    return this.#state.happened({ type: 'loggedOut', reason }, { detail: failure })
  }

  /** Puts the login away. */
  #archive(reason: string): Promise<void> {
    return this.#state.write(() => this.#deps.logins.archive(this.owned, reason))
  }

  async #leave(): Promise<void> {
    this.#leaving = true
    this.#keeper.clearTimers()
    try {
      await this.#state.write(() => releaseLease(this.#deps.sql, this.owned))
    } catch (error) {
      this.#deps.log.warn('lease left to run out', { sessionId: this.id, error })
    }
    this.#end()
  }

  #post(work: () => Promise<void>): void {
    this.#queue = this.#queue.then(async () => {
      if (this.#state.isLost) return
      try {
        await work()
      } catch (error) {
        if (error instanceof LeaseLost) return this.abandon()
        this.#deps.log.error('session step failed', { sessionId: this.id, error })
      }
    })
  }
}

const named = ({ desiredState, requests }: LeasedSession) => ({ desiredState, requests })
const keyOf = (wishes: LeasedSession) => JSON.stringify(named(wishes))
