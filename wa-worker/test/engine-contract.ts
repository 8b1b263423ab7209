import { randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import { keyIdOf } from '../../shared/wa-id.ts'
import { EngineError } from '../engine/engine.ts'
import type { Engine } from '../engine/engine.ts'
import { nextEvent, until } from './waiting.ts'

/** The far side of an engine: the phone it is linked to and the people it writes to. */
export interface Rig {
  /** A new engine over the same login, as a restart makes one. */
  createEngine(): Engine
  scan(engine: Engine, qr: string): Promise<void>
  deliver(engine: Engine, from: string, body: string): Promise<void>
  dropLink(engine: Engine): Promise<void>
  restoreLink(engine: Engine): Promise<void>
  logoutFromPhone(engine: Engine): Promise<void>
  /** How often a message of this id reached WhatsApp's server; undefined where the rig cannot count. */
  transmissions(keyId: string): number | undefined
  customer: string
  unregistered: string
}

/** What every engine owes the worker. The same suite runs over each adapter. */
export async function engineContract(t: Test, createRig: (t: Test) => Promise<Rig>): Promise<void> {
  const rig = await createRig(t)
  let engine = rig.createEngine()
  t.teardown(() => engine.stop())

  await t.test('shows a code, and is ready once it is scanned', async (t) => {
    const qr = nextEvent(engine, 'qr')
    await engine.start()
    const [{ value, attempt, expiresAt }] = await qr
    t.equal(attempt, 1)
    t.ok(value.length > 20)
    t.ok(expiresAt.getTime() > Date.now())

    const ready = nextEvent(engine, 'ready')
    await rig.scan(engine, value)
    const [account] = await ready
    t.match(account.waId, /^\d+@c\.us$/)
    t.match(account.phone, /^\+\d+$/)
  })

  await t.test(
    'sends under the id it is given, and tells of the message and its acks',
    async (t) => {
      const keyId = newKey()
      const echoed = nextEvent(engine, 'message', ({ key }) => key.id === keyId)
      const read = nextEvent(engine, 'ack', (ack) => ack.keyId === keyId && ack.ack === 3)
      const levels: number[] = []
      engine.on('ack', (ack) => ack.keyId === keyId && levels.push(ack.ack))

      const receipt = await engine.send({ chatId: rig.customer, body: 'Good morning ☀️', keyId })

      t.equal(receipt.waMessageId, `true_${rig.customer}_${keyId}`)
      const [echo] = await echoed
      t.match(echo, {
        key: { fromMe: true, chatId: rig.customer },
        type: 'text',
        body: 'Good morning ☀️',
      })
      await read
      t.same(levels, [1, 2, 3])
    },
  )

  await t.test('sends nothing when it has a message of that id', async (t) => {
    const message = { chatId: rig.customer, body: 'only once', keyId: newKey() }
    await sendAndWait(engine, message)
    const again = await engine.send(message)
    t.ok(again.ack >= 1)
    const count = rig.transmissions(message.keyId)
    t.ok(count === undefined || count === 1, `transmitted once (${count})`)
  })

  await t.test('tells what became of a message, or that it never took it', async (t) => {
    const keyId = newKey()
    t.equal(await engine.find({ chatId: rig.customer, keyId }), null)
    await sendAndWait(engine, { chatId: rig.customer, body: 'find me', keyId })
    const found = await engine.find({ chatId: rig.customer, keyId })
    t.ok(found && found.ack >= 1)
  })

  await t.test('refuses a number that is not on WhatsApp for good', async (t) => {
    const failure = await fails(
      engine.send({ chatId: rig.unregistered, body: 'hello?', keyId: newKey() }),
    )
    t.match(failure, { certainty: 'permanent', code: 'NUMBER_NOT_ON_WHATSAPP' })
  })

  await t.test('tells of a message that comes in', async (t) => {
    const came = nextEvent(engine, 'message', ({ key }) => !key.fromMe)
    await rig.deliver(engine, rig.customer, 'Is it open on Sunday?')
    const [message] = await came
    t.match(message, {
      key: { fromMe: false, chatId: rig.customer, participant: '' },
      type: 'text',
      body: 'Is it open on Sunday?',
    })
    t.ok(Math.abs(message.timestamp - Date.now() / 1_000) < 60, 'in seconds')
  })

  await t.test('says when the link is lost, and sends what was written meanwhile', async (t) => {
    const lost = nextEvent(engine, 'link', (state) => state === 'lost')
    await rig.dropLink(engine)
    await lost
    const keyId = newKey()
    const receipt = await engine.send({ chatId: rig.customer, body: 'while away', keyId })
    t.equal(receipt.ack, 0)
    const confirmed = nextEvent(engine, 'ack', (ack) => ack.keyId === keyId && ack.ack === 1)
    const restored = nextEvent(engine, 'link', (state) => state === 'restored')
    await rig.restoreLink(engine)
    await restored
    await confirmed
  })

  await t.test('keeps the login over a stop, and remembers what it sent', async (t) => {
    const keyId = newKey()
    await sendAndWait(engine, { chatId: rig.customer, body: 'before the stop', keyId })
    await engine.stop()
    await engine.stop()
    t.match(await fails(engine.send({ chatId: rig.customer, body: 'x', keyId: newKey() })), {
      certainty: 'transient',
      code: 'SESSION_NOT_READY',
    })

    engine = rig.createEngine()
    let codes = 0
    engine.on('qr', () => (codes += 1))
    const ready = nextEvent(engine, 'ready')
    await engine.start()
    await ready
    t.equal(codes, 0)
    const found = await engine.find({ chatId: rig.customer, keyId })
    t.ok(found && found.ack >= 1, 'the message of before is found')
    const again = await engine.send({ chatId: rig.customer, body: 'before the stop', keyId })
    t.ok(again.ack >= 1, 'and not sent again')
    const count = rig.transmissions(keyId)
    t.ok(count === undefined || count === 1)
  })

  await t.test(
    'says when the device is unlinked on the phone; the next start pairs anew',
    async () => {
      const out = nextEvent(engine, 'loggedOut')
      await rig.logoutFromPhone(engine)
      await out
      await engine.stop()

      engine = rig.createEngine()
      const qr = nextEvent(engine, 'qr')
      await engine.start()
      const [{ value }] = await qr
      const ready = nextEvent(engine, 'ready')
      await rig.scan(engine, value)
      await ready
    },
  )

  await t.test(
    'unlinks the device by itself; a code can be typed instead of scanned',
    async (t) => {
      await t.rejects(engine.pairingCode('12025550199'), { code: 'SESSION_NOT_READY' })
      await engine.logout()
      engine = rig.createEngine()
      const qr = nextEvent(engine, 'qr')
      await engine.start()
      await qr
      const { code, expiresAt } = await engine.pairingCode('12025550199')
      t.match(code, /^[A-Z0-9]{8}$/)
      t.ok(expiresAt.getTime() > Date.now())
    },
  )

  await t.test('stops at any moment of its start', async (t) => {
    await engine.stop()
    for (const delay of [0, 50, 300]) {
      engine = rig.createEngine()
      let events = 0
      engine.on('qr', () => (events += 1))
      const starting = engine.start().catch(() => {}) // a start that is cut short may reject or resolve
      await new Promise((resolve) => setTimeout(resolve, delay))
      await engine.stop()
      events = 0
      await starting
      t.equal(events, 0, `silent after a stop at ${delay} ms`)
    }
  })
}

const newKey = () => keyIdOf(randomUUID())

async function sendAndWait(
  engine: Engine,
  message: { chatId: string; body: string; keyId: string },
): Promise<void> {
  let confirmed = false
  engine.on('ack', ({ keyId, ack }) => (confirmed ||= keyId === message.keyId && ack >= 1))
  const { ack } = await engine.send(message)
  confirmed ||= ack >= 1
  await until('the server confirms', () => confirmed)
}

async function fails(promise: Promise<unknown>): Promise<EngineError> {
  const outcome = await promise.then(
    () => new Error('It resolved.'),
    (error: unknown) => error,
  )
  if (outcome instanceof EngineError) return outcome
  throw outcome
}
