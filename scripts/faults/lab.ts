import type { BrowserKind, Browsers } from './browsers.ts'
import type { Random } from './random.ts'
import type { Row } from './trials.ts'
import type { World } from './world.ts'

/** What the faults are run with. */
export interface Lab {
  /** The product under test: `dist` lies in it. */
  root: string
  folder: string
  browsers: Browsers
  /** Which of them a family has run sessions on. */
  used: Set<BrowserKind>
  /** Open ones, for when the run is broken off. */
  worlds: Set<World>
  /** Aborted when the run is broken off: nothing new may be started then. */
  signal: AbortSignal
  createDatabase(): Promise<string>
  random(name: string): Random
  /** How many trials: all of them, or a few for a short run. */
  scaled(trials: number): number
  say(text: string): void
}

/** A family of faults and its promises. */
export interface Family {
  id: string
  run(lab: Lab): Promise<Row[]>
}
