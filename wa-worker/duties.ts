import type { OwnedSession } from '../shared/wa-session-transitions.ts'
import type { Actions } from './actions.ts'
import type { Backfill } from './backfill.ts'
import type { Downloads } from './downloads.ts'
import type { Engine } from './engine/engine.ts'
import type { History } from './history.ts'
import type { People } from './people.ts'
import type { Receiver } from './receiver.ts'
import type { Sender } from './sender.ts'

/** Who works with the engine of a session. */
export interface DutyDeps {
  sender: Sender
  actions: Actions
  receiver: Receiver
  backfill: Backfill
  downloads: Downloads
  people: People
  history: History
}

/** What is done for a session with its engine: it is listened to from the start, and everything else while it is WORKING. */
export class Duties {
  readonly #session: OwnedSession
  readonly #deps: DutyDeps

  constructor(session: OwnedSession, deps: DutyDeps) {
    this.#session = session
    this.#deps = deps
  }

  /** Stores what the engine tells of messages, from now on and for as long as it lives. */
  listen(engine: Engine): void {
    this.#deps.receiver.attach(this.#session, engine)
  }

  /** The engine works. `onTrouble`: what came of sending says that it does not. */
  open(engine: Engine, onTrouble: (reason: string, detail: string) => void): void {
    const { sender, actions, backfill, downloads, people, history } = this.#deps
    for (const desk of [actions, backfill, downloads, people, history]) {
      desk.open(this.#session, engine)
    }
    sender.open(this.#session, engine, (reason) => onTrouble(reason, troubles[reason]))
  }

  /** Begins nothing more; resolves when the message in flight is through. What a broken engine has in flight is given up. */
  close(how?: 'broken'): Promise<void> {
    const { sender, actions, backfill, downloads, people, history } = this.#deps
    const { id } = this.#session
    actions.close(id)
    void backfill.close(id)
    downloads.close(id)
    people.close(id)
    void history.close(id)
    return sender.close(id, how)
  }

  /** Resolves when all that a stopped engine had told is written. */
  async settled(engine: Engine): Promise<void> {
    await this.#deps.backfill.close(this.#session.id)
    await this.#deps.receiver.settled(engine)
  }

  /** An engine was killed, of a session that may be somebody else's by now: what it had told is kept. Never rejects. */
  async killed(engine: Engine): Promise<void> {
    await this.#deps.receiver.killed(engine)
  }

  /** The engine has a message in its hands, which is blamed should it break down now. */
  get hasMessage(): boolean {
    return this.#deps.sender.hasInHand(this.#session.id)
  }

  /** It could send, and has nothing in flight. */
  get isIdle(): boolean {
    return this.#deps.sender.isIdle(this.#session.id)
  }
}

const troubles = {
  ACKS_STALLED: 'No server confirms what is sent.',
  MODULE_MISSING: 'WhatsApp Web lacks what sending needs.',
}
