/** A worker process of the bench: handles messages for one contestant at a time, as it is told. */
import { awfar, awfarQueue } from './awfar.ts'
import type { ConsumerOptions } from './contestant.ts'
import { graphile } from './graphile.ts'
import { pgBoss } from './pg-boss.ts'
import { clock } from './world.ts'

export const contestants = { awfar, awfarQueue, pgBoss, graphile }
export type Name = keyof typeof contestants

export type Order =
  | ({ do: 'open'; name: Name } & Omit<ConsumerOptions, 'onMessage'>)
  | { do: 'start' }
  | { do: 'count' }
  | { do: 'stop' }

/** When a message was about to be handed in, and how long it took from there to its handler. */
export interface Pickup {
  born: number
  ms: number
}

/** What came of a window: messages handled since it was told to count, and milliseconds from there to the last one; for those that carry their birth, how long they waited. */
export interface Result {
  handled: number
  ms: number
  pickups: Pickup[]
  violations: number
}

let consumer: Awaited<ReturnType<(typeof awfar)['openConsumer']>> | undefined
let handled = 0
let countedFrom = 0
let lastAt = 0
let pickups: Pickup[] = []

async function obey(order: Order): Promise<Result | undefined> {
  switch (order.do) {
    case 'open': {
      handled = 0
      pickups = []
      consumer = await contestants[order.name].openConsumer({
        ...order,
        onMessage: (body) => {
          lastAt = clock()
          handled += 1
          if (order.mode !== 'drain')
            pickups.push({ born: Number(body), ms: lastAt - Number(body) })
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
      const result = { handled, ms: lastAt - countedFrom, pickups }
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
