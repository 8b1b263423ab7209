import { randomUUID } from 'node:crypto'
import t from 'tap'
import { SimulatorEngine } from '../engine/simulator.ts'
import { contactFor, lidOf, seededRandom } from '../engine/simulator-contacts.ts'
import { bodyOf } from '../engine/simulator-phone.ts'
import type { Engine } from '../engine/engine.ts'
import { engineContract } from './engine-contract.ts'
import type { Rig } from './engine-contract.ts'
import { nextEvent, until } from './waiting.ts'

const hello = { type: 'text' as const, body: 'hello' }
const simulator = (engine: Engine) => engine as SimulatorEngine

void t.test('the simulator keeps the engine contract', async (t) => {
  const profileDir = t.testdir()
  await engineContract(t, async (): Promise<Rig> => ({
    createEngine: () =>
      new SimulatorEngine({
        sessionId: 'contract',
        profileDir: async () => profileDir,
        scanMs: Infinity,
        pace: 0.01,
      }),
    scan: async (engine) => simulator(engine).scan(),
    deliver: async (engine, from, body) => void simulator(engine).deliver(from, body),
    // A turn later, so that whoever is given the id can listen for it.
    receive: async (engine, { from, content, ...more }) => {
      const id = `3A${randomUUID().toUpperCase()}`
      setImmediate(() => simulator(engine).deliver(from, content, id, more))
      return id
    },
    receiveLate: async (engine, from, body, placed) => {
      const { id } = simulator(engine).deliver(from, body, undefined, { placeholder: true })
      await placed
      simulator(engine).deliver(from, body, id)
      return id
    },
    editByContact: async (engine, key, body) => simulator(engine).editByContact(key, body),
    revokeByContact: async (engine, key) => simulator(engine).revokeByContact(key),
    reactByContact: async (engine, key, emoji) =>
      simulator(engine).reactByContact(key, '12025550100@c.us', emoji),
    voteByContact: async (engine, poll) =>
      simulator(engine).voteByContact(poll, '12025550100@c.us', ['yes']),
    callByContact: async (engine) => simulator(engine).callByContact('12025550100@c.us', true),
    expireMedia: async (engine, key) => simulator(engine).expireMedia(key),
    dropLink: async (engine) => simulator(engine).dropLink(),
    restoreLink: async (engine) => simulator(engine).restoreLink(),
    logoutFromPhone: async (engine) => simulator(engine).logoutFromPhone(),
    transmissions: (engine, keyId) => simulator(engine).transmissions(keyId),
    countsOn: false,
    state: (engine, keyId) => {
      const message = simulator(engine).arrived(keyId)
      if (!message) return undefined
      const { content, quoted, sha256, reactions, revoked } = message
      return {
        type: content.type,
        body: bodyOf(content),
        quoted: quoted?.id,
        sha256,
        reaction: reactions?.[''],
        revoked,
      }
    },
    signals: (engine) => simulator(engine).signals.map(({ kind }) => kind),
    customer: '12025550100@c.us',
    customerLid: lidOf('12025550100@c.us'),
    group: '120363000000000011@g.us',
    unregistered: '12025550001@c.us',
    refusing: '12025550002@c.us',
    locked: '12025550007@c.us',
    poisons: [{ chatId: '12025550008@c.us', body: 'poison' }],
    alias: { phone: '5541988887777', waId: '554188887777@c.us' },
  }))
})

void t.test(
  'a simulated phone scans by itself, and contacts answer or not by their number',
  async (t) => {
    const profileDir = t.testdir()
    const engine = new SimulatorEngine({
      sessionId: 'self-scan',
      profileDir: async () => profileDir,
      scanMs: 0,
      pace: 0.01,
    })
    const ready = nextEvent(engine, 'ready')
    await engine.start()
    await ready

    const answer = nextEvent(engine, 'message', ({ key }) => !key.fromMe)
    await engine.send({ chatId: '12025550100@c.us', content: hello, keyId: '3EB0A' })
    t.equal((await answer)[0].body, 'You wrote: hello')

    const refused = nextEvent(engine, 'ack', ({ ack }) => ack === -1)
    await engine.send({ chatId: '12025550002@c.us', content: hello, keyId: '3EB0B' })
    await refused
    await engine.stop()

    t.equal(contactFor('12025550003@c.us'), 'loses')
    t.equal(contactFor('12025550005@lid'), 'offline')
  },
)

void t.test(
  'what was cut short by the end of its process goes out at the next start',
  async (t) => {
    const profileDir = t.testdir()
    const start = async () => {
      const engine = new SimulatorEngine({
        sessionId: 'cut-short',
        profileDir: async () => profileDir,
        scanMs: 0,
        pace: 0.01,
      })
      const ready = nextEvent(engine, 'ready')
      await engine.start()
      await ready
      return engine
    }
    const first = await start()
    first.dropLink()
    await first.send({ chatId: '12025550106@c.us', content: hello, keyId: '3EB0C' })
    t.equal(first.transmissions('3EB0C'), 0)
    await first.stop()

    const second = await start()
    const [ack] = await nextEvent(second, 'ack', ({ keyId }) => keyId === '3EB0C')
    t.equal(ack.ack, 1)
    t.equal(second.transmissions('3EB0C'), 1)
    await second.stop()
  },
)

void t.test('the same seed gives the same numbers', async (t) => {
  const [a, b] = [seededRandom(7), seededRandom(7)]
  t.same([a(), a(), a()], [b(), b(), b()])
  t.not(seededRandom(8)(), seededRandom(7)())
})

void t.test('what the server has arrives, whatever becomes of the page', async (t) => {
  const profileDir = t.testdir()
  const start = async (): Promise<SimulatorEngine> => {
    const options = { profileDir: async () => profileDir, scanMs: 0, pace: 0.2 }
    const engine = new SimulatorEngine({ sessionId: 'arrives', ...options })
    const ready = nextEvent(engine, 'ready')
    await engine.start()
    await ready
    return engine
  }
  const before = await start()
  const confirmed = nextEvent(before, 'ack')
  await before.send({ chatId: '12025550100@c.us', content: hello, keyId: '3EB0A' })
  await confirmed
  await before.stop()
  t.equal(before.arrived('3EB0A')?.ack, 1)
  const engine = await start()
  await until('it is read', () => engine.arrived('3EB0A')?.ack === 3)
  t.equal(engine.transmissions('3EB0A'), 0, 'not sent again')
  await engine.stop()
})
