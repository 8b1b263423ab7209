import type { Db } from '../../../shared/db.ts'
import type { BenchSession } from './world.ts'

export interface Submission {
  session: BenchSession
  /** A number that says its place among all. */
  body: string
}

/** What hands messages in. */
export interface Producer {
  /** Tops the backlog of each session up to so many messages. */
  fill(perSession: number): Promise<void>
  /** Writes what has to be there before these are handed in, and is no part of that. */
  prepare?(submissions: Submission[]): Promise<void>
  /** Hands in one message, and resolves when it is durable. */
  submit(session: BenchSession, body: string): Promise<void>
  close(): Promise<void>
}

/** What handles messages, in a worker process. */
export interface Consumer {
  /** Handles messages until stop() is called. */
  start(): void
  /** Resolves when what was begun is done. Answers how often the order was broken, where that can be seen in one process. */
  stop(): Promise<{ violations: number }>
}

export interface ConsumerOptions {
  url: string
  /** Of all workers; those with the own name are this worker's. Peers use their ids as keys. */
  sessions: BenchSession[]
  worker: string
  /** Called with each message as its handler begins. */
  onMessage: (body: string) => void
  /** drain: a backlog, as fast as it goes. wait: for messages, and be told of them. poll: for messages, told of nothing. */
  mode: 'drain' | 'wait' | 'poll'
}

export interface Contestant {
  openProducer(url: string, sessions: BenchSession[], sql: Db): Promise<Producer>
  openConsumer(options: ConsumerOptions): Promise<Consumer>
}
