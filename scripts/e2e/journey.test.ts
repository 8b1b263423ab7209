import t from 'tap'
import type { Test } from 'tap'
import { testDb } from '../../shared/test/db.ts'
import type { Gap } from '../../shared/backfill.ts'
import type { Session } from '../../shared/wa-sessions.ts'
import { findBrowser } from '../../wa-worker/browser.ts'
import { until } from '../../wa-worker/test/waiting.ts'
import { AgentClient } from './client.ts'
import type { Json } from './client.ts'
import { startEmulatedWhatsApp } from './emulated-page/server.ts'
import type { EmulatedWhatsApp } from './emulated-page/server.ts'
import { givenSettings, processesNaming, startProcess } from './processes.ts'

const browser = findBrowser(process.env['PUPPETEER_EXECUTABLE_PATH'])
const noBrowser = 'missing' in browser && browser.missing
const account = '12025550199'
const customer = '12025550100'

/** The far side: who scans the code, and what a customer does. */
interface World {
  settings: Record<string, string>
  scan(qr: string): Promise<void>
  /** What the customer has on the phone. */
  received(): { body?: string | undefined }[] | undefined
  write(body: string): void
}

async function journey(t: Test, world: World): Promise<void> {
  const { url } = await testDb(t)
  const env = await givenSettings(t, {
    DATABASE_URL: url,
    WA_LEASE_TTL_MS: '2000',
    ...world.settings,
  })
  await startProcess(t, 'api/server.js', env)
  let worker = await startProcess(t, 'wa-worker/main.js', env)
  const agent = new AgentClient(`http://127.0.0.1:${env['PORT']}`)
  await agent.register()

  const { status, body: created } = await agent.call<Json<Session>>(
    'POST',
    '/api/whatsapp/sessions',
    {
      name: 'sales',
    },
  )
  t.equal(status, 201)
  const path = `/api/whatsapp/sessions/${created.id}`
  const working = () =>
    until('WORKING', async () => (await agent.session(created.id)).status === 'WORKING', 60_000)
  const read = (id: string) =>
    until('read', async () => {
      const message = await agent.message(id)
      return message.status === 'read' && message
    })

  /** What the customer wrote while nobody listened is in the chat, once. */
  const missed = async (text: string) => {
    if (!world.received()) return
    const [message, ...others] = await until(`"${text}" is stored`, async () => {
      const [chat] = await agent.chats()
      const found = (await agent.messages(chat!.id)).filter(({ body }) => body === text)
      return found.length > 0 && found
    })
    t.match(message, { direction: 'inbound', source: 'backfill', status: 'received' })
    t.same(others, [])
  }

  await t.test('a code is shown as a picture, and scanned', async (t) => {
    await until('a code', async () => (await agent.session(created.id)).status === 'SCAN_QR_CODE')
    const picture = await agent.call('GET', `${path}/qr?format=png`)
    t.equal(picture.headers.get('content-type'), 'image/png')
    t.equal(picture.bytes.subarray(1, 4).toString(), 'PNG')
    const { body } = await agent.call<{ value: string; attempt: number }>('GET', `${path}/qr`)
    t.equal(body.attempt, 1)
    await world.scan(body.value)
    await working()
    const qr = await agent.call<{ code: string }>('GET', `${path}/qr`)
    t.match(qr, { status: 409, body: { code: 'SESSION_NOT_READY' } })
  })

  await t.test('a message is sent, delivered and read, each with its time', async (t) => {
    const { id } = await agent.send(`+${customer}`, 'Good morning ☀️')
    const message = await read(id)
    t.match(message, { ack: 3, attempts: 1, waChatId: `${customer}@c.us`, error: null })
    t.ok(message.sentAt! <= message.deliveredAt! && message.deliveredAt! <= message.readAt!)
    const received = world.received()
    if (received) t.match(received, [{ body: 'Good morning ☀️' }])
  })

  await t.test('what the customer writes is in the chat', async (t) => {
    world.write('Are you open on Sunday?')
    const messages = await until('the answer', async () => {
      const [chat] = await agent.chats()
      const found = chat && (await agent.messages(chat.id))
      return found?.some(({ direction }) => direction === 'inbound') && found
    })
    t.match(messages[0], { direction: 'inbound', source: 'live', status: 'received' })
  })

  await t.test('after a stop and a start it works again without a code', async (t) => {
    await agent.call('POST', `${path}/stop`)
    await until('STOPPED', async () => (await agent.session(created.id)).status === 'STOPPED')
    const waiting = await agent.send(customer, 'while stopped')
    world.write('You are closed?')
    t.match(waiting, { status: 'queued', heldBy: 'SESSION_STOPPED' })
    await agent.call('POST', `${path}/start`)
    await working()
    await read(waiting.id)
    await codesShown(t, agent, path, 1)
    await missed('You are closed?')
  })

  await t.test(
    'a worker killed with SIGKILL leaves no browser, and the next one goes on',
    async (t) => {
      const crashing = await agent.send(customer, 'while crashing')
      await worker.end('SIGKILL')
      const profiles = `${env['DATA_DIR']}/profiles/`
      await until(
        'no browser is left',
        async () => (await processesNaming(profiles)).length === 0,
        5_000,
      )
      const waiting = await agent.send(customer, 'while dead')
      world.write('Anybody there?')
      worker = await startProcess(t, 'wa-worker/main.js', env)
      await read(waiting.id)
      await read(crashing.id)
      await codesShown(t, agent, path, 1)
      const bodies = world.received()?.map(({ body }) => body)
      if (bodies) t.same(bodies.slice(-2), ['while crashing', 'while dead'], 'each once, in order')
      await missed('Anybody there?')
      const { body } = await agent.call<{ data: Json<Gap>[] }>('GET', `${path}/gaps`)
      if (bodies) t.match(body.data[0], { waChatId: `${customer}@c.us`, complete: true })
    },
  )

  await t.test('SIGTERM ends the worker in order, with nothing left running', async (t) => {
    t.same(await worker.end('SIGTERM'), { code: 0, signal: null })
    t.same(await processesNaming(`${env['DATA_DIR']}/profiles/`), [])
    t.match(await agent.session(created.id), { status: 'RECONNECTING', reason: 'WORKER_STOPPED' })
  })
}

async function codesShown(t: Test, agent: AgentClient, path: string, times: number): Promise<void> {
  const { body } = await agent.call<{ data: { to: string }[] }>('GET', `${path}/history`)
  const shown = body.data.filter(({ to }) => to === 'SCAN_QR_CODE')
  t.equal(shown.length, times, 'codes shown')
}

void t.test('over whatsapp-web.js on Chromium', { skip: noBrowser }, async (t) => {
  const whatsapp = await startEmulatedWhatsApp()
  t.teardown(() => whatsapp.close())
  await journey(t, emulated(whatsapp))
})

void t.test('over the simulator, by the same code', async (t) => {
  await journey(t, {
    settings: { WA_ENGINE: 'simulator', WA_SIMULATOR_SCAN_MS: '1500' },
    scan: async () => {}, // the simulated phone does so by itself
    received: () => undefined,
    write: () => {}, // simulated customers answer by themselves
  })
})

void t.test('without a browser the API works and the session says so', async (t) => {
  const { url } = await testDb(t)
  const env = await givenSettings(t, {
    DATABASE_URL: url,
    PUPPETEER_EXECUTABLE_PATH: '/nowhere/chromium',
  })
  await startProcess(t, 'api/server.js', env)
  await startProcess(t, 'wa-worker/main.js', env)
  const agent = new AgentClient(`http://127.0.0.1:${env['PORT']}`)
  await agent.register()
  const { body } = await agent.call<Json<Session>>('POST', '/api/whatsapp/sessions', { name: 'x' })
  const failed = await until('FAILED', async () => {
    const session = await agent.session(body.id)
    return session.status === 'FAILED' && session
  })
  t.equal(failed.reason, 'BROWSER_MISSING')
  t.match(await agent.send(customer, 'later'), { status: 'queued', heldBy: 'SESSION_FAILED' })
})

function emulated(whatsapp: EmulatedWhatsApp): World {
  whatsapp.register({ number: customer })
  return {
    settings: {
      WA_ENGINE: 'webjs',
      WA_BROWSER_ARGS: whatsapp.browserArgs.join(' '),
      ...(process.env['PUPPETEER_EXECUTABLE_PATH'] !== undefined && {
        PUPPETEER_EXECUTABLE_PATH: process.env['PUPPETEER_EXECUTABLE_PATH'],
      }),
    },
    scan: async (qr) => {
      await whatsapp.scan(qr, { number: account, pushName: 'Bakery' })
    },
    received: () => whatsapp.received(customer),
    write: (body) => {
      whatsapp.deliver({ to: account, from: customer, body, pushName: 'Ann' })
    },
  }
}
