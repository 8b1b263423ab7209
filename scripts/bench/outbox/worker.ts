/** A worker process of the bench: handles messages for one contestant at a time, as it is told. */
import { awfar } from './awfar.ts'
import { awfarQueue } from './awfar-queue.ts'
import { bareQueue } from './bare-queue.ts'
import type { ConsumerOptions } from './contestant.ts'
import { graphile } from './graphile.ts'
import { pgBoss } from './pg-boss.ts'
import { clock } from './world.ts'

export const contestants = { awfar, awfarQueue, bareQueue, pgBoss, graphile }
export type Name = keyof typeof contestants

export type Order =
  | ({ do: 'open'; name: Name } & Omit<ConsumerOptions, 'onMessage'>)
  | { do: 'start' }
  | { do: 'count' }
  | { do: 'stop' }

/** What came of a window: messages handled since it was told to count, and milliseconds from there to the last one; but for a drain, when each message came to its handler. */
export interface Result {
  handled: number
  ms: number
  cameAt: Record<string, number>
  violations: number
}

let consumer: Awaited<ReturnType<(typeof awfar)['openConsumer']>> | undefined
let handled = 0
let countedFrom = 0
let lastAt = 0
let cameAt: Record<string, number> = {}

async function obey(order: Order): Promise<Result | undefined> {
  switch (order.do) {
    case 'open': {
      handled = 0
      cameAt = {}
      consumer = await contestants[order.name].openConsumer({
        ...order,
        onMessage: (body) => {
          lastAt = clock()
          handled += 1
          if (order.mode !== 'drain') cameAt[body] = lastAt
        },
      })
      return undefined
    }
    case 'start':
      consumer!.start()
      return undefined
    case 'count':
      handled = 0
      countedFrom = clock()
      return undefined
    case 'stop': {
      const result = { handled, ms: lastAt - countedFrom, cameAt }
      return { ...result, ...(await consumer!.stop()) }
    }
  }
}

process.on('message', (order: Order) => {
  obey(order).then(
    (result) => process.send!({ result }),
    (error: unknown) =>
      process.send!({ error: error instanceof Error ? error.stack : String(error) }),
  )
})
process.on('disconnect', () => process.exit(0))
