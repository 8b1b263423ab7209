/** F1, in the page: workers are killed while their pages, real ones in a real Chromium, have a message between the call and the ack. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Family, Lab } from './lab.ts'
import { unpaced } from './program.ts'
import type { Program } from './program.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'
import { World } from './world.ts'
import type { Subject } from './world.ts'

export const killsInPage: Family = { id: 'F1P', run }

const sessions = 3

/** How a message is held there. */
const points = {
  'before it is in the store': { call: 'addAndSendMsgToChat' },
  'in the store, before it is on the wire': { call: 'message' },
  'on the wire, before the ack': { call: undefined },
} as const

interface Sent {
  id: string
  customer: string
  body: string
}

async function run(lab: Lab): Promise<Row[]> {
  const world = await World.open(lab, 'f1p', {
    settings: {
      WA_LEASE_TTL_MS: '5000',
      // One each: every kill meets one message.
      WA_MAX_SESSIONS: '1',
      ...unpaced,
    },
  })
  const { whatsapp, sql } = world
  let named = 0
  const start = () => world.startWorker(`worker-${named++}`)
  const startAll = () => Promise.all(Array.from({ length: sessions }, start))
  let running: Program[] = await startAll()
  const subjects: Subject[] = []
  // One after the other: sessions of one number would hear each other's messages, as a phone's devices do.
  for (let index = 0; index < sessions; index++) subjects.push(...(await world.link(1)))
  await world.loginsOnDisk(subjects)

  const rows: Row[] = []
  let kills = 0
  let extra = 0
  for (const [point, { call }] of Object.entries(points)) {
    const trials = new Trials('F1', `SIGKILL, Chromium, ${point}: lost 0, seen once`)
    const claims = new Map<number, number>()
    for (let round = 0; round * sessions < lab.scaled(10); round++) {
      lab.signal.throwIfAborted()
      for (const { id } of subjects)
        await eventually('WORKING', async () => (await world.status(id)) === 'WORKING', 180_000)
      if (call) await whatsapp.hangCall(call)
      else whatsapp.setAcks({ mode: 'hold' })
      const sent: Sent[] = []
      for (const subject of subjects) {
        const { customer, body } = world.unique()
        sent.push({ id: await world.send(subject, customer, body), customer, body })
      }
      const held = async () => {
        const rows = await sql`select from outbox where state = 's'`
        const onWire = sent.filter(({ customer, body }) => world.seenBy(customer, body).seen > 0)
        return rows.length === sessions && onWire.length === (call ? 0 : sessions)
      }
      await eventually('all messages are held', held)
      // From the claim to the call in the page.
      if (call) await sleep(700)
      await Promise.all(running.map((worker) => worker.end('SIGKILL')))
      kills += sessions
      if (call) await whatsapp.restoreCall(call)
      else whatsapp.setAcks({ mode: 'normal' })
      running = await startAll()
      for (const { id, customer, body } of sent) {
        await trials.attempt(async () => {
          await world.confirmed(id, 120_000)
          const { seen, transmitted } = world.seenBy(customer, body)
          extra += transmitted - 1
          const stored = await sql<{
            attempts: number
            source: string
            waKeyId: string
            waParticipant: string
            sessionId: string
            fromMe: string
          }>`
            select attempts, source, wa_key_id, wa_participant, session_id, direction || ' ' || (select wa_chat_id from chats where id = chat_id) as from_me from messages where body = ${body}`
          const { attempts } = stored[0]!
          claims.set(attempts, (claims.get(attempts) ?? 0) + 1)
          if (seen !== 1 || stored.length !== 1)
            throw new Error(`seen ${seen} times, stored as ${JSON.stringify(stored)}`)
        })
      }
    }
    trials.note = `${[...claims].map(([attempts, count]) => `${count} with ${attempts} claims`).join(', ')}; emulated page in a real Chromium`
    rows.push(trials.row())
  }
  const bounded = new Trials('F1', 'Chromium: transmissions beyond the first ≤ kills')
  bounded.check(extra <= kills, `${extra} for ${kills} kills`)
  bounded.note = `${extra} for ${kills} kills, each under its own id`
  await world.close()
  return [...rows, bounded.row()]
}
