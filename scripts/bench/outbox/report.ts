import { availableParallelism, loadavg } from 'node:os'
import { markdownTable, plainTable } from '../../markdown.ts'
import { pollMs } from './awfar.ts'
import { laneCounts } from './claim-cost.ts'
import type { ClaimCost } from './claim-cost.ts'
import { backlog } from './drain.ts'
import type { Rates } from './drain.ts'
import { median, quantile } from './figures.ts'
import type { Name } from './worker.ts'

interface Measured {
  drained: { rates: Rates[]; handled: number; violations: number }
  waited: Waited
  /** The same on a Postgres whose files lie in memory, where there is room for one. */
  waitedInMemory: Waited | undefined
  costs: ClaimCost[]
  quick: boolean
  seconds: number
}

type Waited = Record<Name | 'deaf' | 'commit', number[]> & { violations: number }

/** One line of the table. Without a target it is only told. */
interface Figure {
  figure: string
  ours: string
  peer: string
  ratio: number | undefined
  target: string
  ok: boolean | undefined
}

export interface Report {
  introduction: string
  figures: Figure[]
  notes: string[]
}

/** Judges what was measured. */
export function figuresOf(measured: Measured): Report {
  const { drained, waited, waitedInMemory, costs, quick, seconds } = measured
  const oneLane = (queued: number) => costs.find((cost) => cost.queued === queued)!.ms[0]!
  const most = Math.max(...costs.map(({ queued }) => queued))
  const violations = drained.violations + waited.violations + (waitedInMemory?.violations ?? 0)
  const deaf = quantile(waited.deaf, 0.99)
  const claimMs = costs.find(({ queued }) => queued === 10_000)!.ms[laneCounts.indexOf(100)]!
  return {
    introduction: [
      `${new Date().toISOString().slice(0, 10)}, ${availableParallelism()} cores, load ${loadavg()[0]!.toFixed(1)}, Node ${process.versions.node}, ${Math.round(seconds)} s in all${quick ? ', a short run' : ''}.`,
      'One embedded Postgres with its default durability, two worker processes, a handler that does nothing; contestants took turns.',
      'The machine decides the absolute figures: only the ratios mean something.',
    ].join(' '),
    figures: [
      ...drained.rates.flatMap(drainFigures),
      told(
        `claim of 1 lane, ms: ${most.toLocaleString('en')} queued : 10,000 queued`,
        ms(oneLane(most)),
        ms(oneLane(10_000)),
        oneLane(most) / oneLane(10_000),
        { atMost: 1.5 },
      ),
      ...pickupFigures(waited),
      ...(waitedInMemory ? pickupFiguresInMemory(waitedInMemory) : []),
      told(
        'pickup p99 without LISTEN, ms : poll interval and one claim',
        ms(deaf),
        ms(pollMs + claimMs),
        deaf / (pollMs + claimMs),
        { atMost: 1 },
      ),
      {
        figure: 'messages out of order, or two of a session at a time',
        ours: String(violations),
        peer: '',
        ratio: undefined,
        target: '0',
        ok: violations === 0,
      },
    ],
    notes: [
      `"outbox" is what a queue library does: put in, claim, handle, take out. "send" is all of it: the fence, the message's own row, its chat, the events for webhooks; pgbench sends the statements of "send". By sessions: messages/s of a backlog of ${backlog.toLocaleString('en')}. The message an outbox row is of is there before; a job carries its payload.`,
      'pg-boss: key_strict_fifo, its own fetch/complete loop, batches of 500. graphile-worker: a named queue for each session, 10 jobs at a time. Both run on a Node below the one they ask for.',
      `pickup is from the beginning of handing a message in to the beginning of its handler, at 150 a second; p50/p99, ms: ${pickupTimes(waited)}.`,
      ...(waitedInMemory
        ? [
            `Each pickup waits for two commits, one after the other: what is handed in is durable, and so is that it was claimed. The least commit took ${ms(median(waited.commit))} ms on this disk, p50, and ${ms(median(waitedInMemory.commit))} ms in memory; p50/p99 of the pickups there, ms: ${pickupTimes(waitedInMemory)}.`,
          ]
        : []),
      '"bare queue" is the least that an ordered queue in Postgres can be: a table, an insert, a nudge, a claim; no paces, fences or chats, nor anything else that sending needs.',
      ...costs.map(
        ({ backlog: what, ms: times }) =>
          `claim with ${what}, ms: ${laneCounts.map((count, i) => `${count} lanes ${ms(times[i]!)}`).join(', ')}.`,
      ),
    ],
  }
}

function drainFigures({ sessions, rates }: Rates): Figure[] {
  const few = sessions < 100
  const against = (what: string, ours: number, peer: number, atLeast?: number) =>
    told(
      `${what}, ${sessions} sessions`,
      count(ours),
      count(peer),
      ours / peer,
      atLeast === undefined ? {} : { atLeast },
    )
  const { awfar, awfarQueue, pgBoss, graphile, pgbench } = rates
  return [
    against('outbox : pg-boss', awfarQueue, pgBoss, few ? 4 : 3),
    against('outbox : graphile-worker', awfarQueue, graphile, few ? 5 : 20),
    against('send : pg-boss', awfar, pgBoss),
    against('send : graphile-worker', awfar, graphile),
    ...(pgbench === undefined
      ? []
      : [against('send : pgbench', awfar, pgbench, few ? undefined : 0.45)]),
  ]
}

const pickup = (what: string, ours: number[], peer: number[], atMost?: number) =>
  told(
    `${what}, pickup p50, ms`,
    ms(median(ours)),
    ms(median(peer)),
    median(ours) / median(peer),
    atMost === undefined ? {} : { atMost },
  )

function pickupFigures({ awfar, awfarQueue, bareQueue, pgBoss, graphile }: Waited): Figure[] {
  return [
    pickup('outbox : pg-boss', awfarQueue, pgBoss, 0.6),
    pickup('outbox : graphile-worker', awfarQueue, graphile, 1),
    pickup('bare queue : pg-boss', bareQueue, pgBoss),
    pickup('bare queue : graphile-worker', bareQueue, graphile),
    pickup('send : pg-boss', awfar, pgBoss),
    pickup('send : graphile-worker', awfar, graphile),
  ]
}

/** What is left where nobody waits for a disk; the targets are for one that everybody does. */
const pickupFiguresInMemory = ({ awfarQueue, pgBoss, graphile }: Waited): Figure[] => [
  pickup('outbox : pg-boss in memory', awfarQueue, pgBoss),
  pickup('outbox : graphile-worker in memory', awfarQueue, graphile),
]

const pickupTimes = ({ awfarQueue, bareQueue, awfar, graphile, pgBoss }: Waited) =>
  `outbox ${pair(awfarQueue)}, bare queue ${pair(bareQueue)}, send ${pair(awfar)}, graphile-worker ${pair(graphile)}, pg-boss ${pair(pgBoss)}`

function told(
  figure: string,
  ours: string,
  peer: string,
  ratio: number,
  { atLeast, atMost }: { atLeast?: number; atMost?: number },
): Figure {
  const target = atLeast !== undefined ? `≥ ${atLeast}` : atMost !== undefined ? `≤ ${atMost}` : ''
  const ok =
    atLeast !== undefined ? ratio >= atLeast : atMost !== undefined ? ratio <= atMost : undefined
  return { figure, ours, peer, ratio, target, ok }
}

const ms = (value: number) => value.toFixed(value < 10 ? 2 : 0)
const count = (value: number) => Math.round(value).toLocaleString('en')
const pair = (times: number[]) => `${ms(median(times))} / ${ms(quantile(times, 0.99))}`

const heads = ['Figure', 'Ours', 'Peer', 'Ratio', 'Target', 'OK']
const numbers = new Set([1, 2, 3, 4])
const cells = ({ figure, ours, peer, ratio, target, ok }: Figure) => [
  figure,
  ours,
  peer,
  ratio === undefined ? '' : ratio.toFixed(2),
  target,
  ok === undefined ? '' : ok ? 'yes' : 'NO',
]

export const plain = ({ introduction, figures, notes }: Report) =>
  ['', introduction, '', ...plainTable(heads, figures.map(cells), numbers), '', ...notes, ''].join(
    '\n',
  )

export const markdown = ({ introduction, figures, notes }: Report) =>
  [
    introduction,
    '',
    ...markdownTable(heads, figures.map(cells), numbers),
    '',
    ...notes.map((note) => `- ${note}`),
    '',
  ].join('\n')
