import { now } from './wire.ts'

export interface Group {
  [attribute: string]: unknown
  id: string
  subject: string
  participants: string[]
  creation: number
}

/** The groups there are; membership is all that is modelled. */
export class Groups {
  readonly #groups = new Map<string, Group>()

  create(id: string, subject: string, participants: string[]): Group {
    const group = { id, subject, participants, creation: now() }
    this.#groups.set(id, group)
    return group
  }

  /** Adds these participants to the group, which comes into being by it. */
  join(id: string, participants: string[]): Group {
    const group = this.#groups.get(id) ?? this.create(id, `Group ${id.slice(0, 6)}`, [])
    group.participants = [...new Set([...group.participants, ...participants])]
    return group
  }

  of(participant: string): Group[] {
    return [...this.#groups.values()].filter(({ participants }) =>
      participants.includes(participant),
    )
  }
}
