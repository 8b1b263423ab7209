import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { createLogger } from '../../shared/logger.ts'
import { findBrowser } from '../../wa-worker/browser.ts'
import { WebjsEngine } from '../../wa-worker/engine/webjs.ts'
import { engineContract } from '../../wa-worker/test/engine-contract.ts'
import { nextEvent, until } from '../../wa-worker/test/waiting.ts'
import { listProcesses } from '../faults/proc.ts'
import { startEmulatedWhatsApp } from './emulated-page/server.ts'
import { webjsRig } from './webjs-rig.ts'

const browser = findBrowser(process.env['PUPPETEER_EXECUTABLE_PATH'])
const account = '12025550199'
const customer = '12025550100'

await t.test(
  'whatsapp-web.js on Chromium keeps the engine contract',
  { skip: 'missing' in browser && browser.missing },
  (t) => engineContract(t, (t) => webjsRig(t)),
)

for (const variations of [[], ['refreshesByCommand' as const]])
  await t.test(
    `codes go on when the page has run out of them ${variations.join()}`,
    { skip: 'missing' in browser && browser.missing },
    async (t) => {
      const times = { qrFirstMs: 300, qrIntervalMs: 300, qrRefs: 2 }
      const whatsapp = await startEmulatedWhatsApp({ ...times, variations })
      const engine = new WebjsEngine({
        sessionId: 'codes',
        log: createLogger('test', { level: 'error', stdout: false }),
        profileDir: async () => join(t.testdir({}), 'profile'),
        executablePath: process.env['PUPPETEER_EXECUTABLE_PATH'],
        browserArgs: whatsapp.browserArgs,
      })
      t.teardown(async () => {
        await engine.stop()
        await whatsapp.close()
      })
      const fresh = nextEvent(engine, 'qr', ({ attempt }) => attempt > times.qrRefs)
      await engine.start()
      t.ok((await fresh)[0].value)
    },
  )

await t.test(
  'what WhatsApp Web does to a send is told apart',
  { skip: 'missing' in browser && browser.missing },
  async (t) => {
    const whatsapp = await startEmulatedWhatsApp({
      everyoneRegistered: true,
      variations: ['opensKnownChatsOnly'],
    })
    const folder = await mkdtemp(join(tmpdir(), 'awfar-webjs-'))
    // Neither is needed to start or to send a text.
    whatsapp.removeModule('WAWebMsgReply')
    whatsapp.removeModule('WAWebSendReactionMsgAction')
    const createEngine = () =>
      new WebjsEngine({
        sessionId: 'faults',
        log: createLogger('test', { level: 'error', stdout: false }),
        profileDir: async () => join(folder, 'profile'),
        executablePath: process.env['PUPPETEER_EXECUTABLE_PATH'],
        browserArgs: whatsapp.browserArgs,
      })
    let engine = createEngine()
    t.teardown(async () => {
      await engine.stop()
      await whatsapp.close()
      await rm(folder, { recursive: true, force: true, maxRetries: 5 })
    })
    const qr = nextEvent(engine, 'qr')
    const ready = nextEvent(engine, 'ready')
    await engine.start()
    await whatsapp.scan((await qr)[0].value, { number: account })
    await ready

    const chatId = `${customer}@c.us`
    const text = (keyId: string) => ({
      chatId,
      keyId,
      content: { type: 'text' as const, body: keyId },
    })
    const path = join(t.testdir({ file: 'some bytes' }), 'file')
    const image = (keyId: string) => ({
      chatId,
      keyId,
      content: {
        type: 'image' as const,
        mimeType: 'image/png',
        filename: 'photo.png',
        caption: null,
        mediaId: 'm',
        path,
      },
    })
    const transmissions = (keyId: string) =>
      whatsapp.stanzas.filter(({ id }) => id === keyId).length

    await t.test('Chromium keeps no page but WhatsApp’s', async (t) => {
      const ours = listProcesses().filter(({ command }) => command.includes(folder))
      t.ok(ours.some(({ command }) => command.includes('--type=renderer')))
      t.notOk(ours.find(({ command }) => command.includes('--top-chrome-webui')))
    })

    await t.test('the profile tells which browser runs on it', async (t) => {
      const main = listProcesses().find(
        ({ command }) =>
          command.includes(`--user-data-dir=${folder}/profile`) && !command.includes('--type='),
      )
      const text = await readFile(join(folder, 'profile', 'awfar-browser'), 'utf8')
      const record = JSON.parse(text) as object
      t.match(record, { pid: main!.pid, startedAt: Number(main!.startedAt) })
    })

    await t.test(
      'each of the two addresses leads to the other, and gives no cause for a report',
      async (t) => {
        const { lid } = whatsapp.register({ number: customer })
        await engine.checkNumber(customer)
        t.match(await engine.people([chatId, lid]), [
          { asked: chatId, waId: chatId, lid },
          { asked: lid, waId: chatId, lid },
        ])
        t.same(whatsapp.signals, [], 'nothing is reported to WhatsApp')
      },
    )

    await t.test('a part that is gone is missed by those who need it only', async (t) => {
      const { waMessageId } = await engine.send(text('3EB0TEXT'))
      t.ok(waMessageId)
      const target = { fromMe: true, chatId, id: '3EB0TEXT', participant: '' }
      await t.rejects(engine.send({ ...text('3EB0REPLY'), quoted: target }), {
        certainty: 'transient',
        code: 'KIND_UNAVAILABLE',
        message: /WAWebMsgReply/,
      })
      await t.rejects(engine.react({ target, emoji: '👍' }), { code: 'MODULE_MISSING' })
    })

    await t.test('a file that does not get there, or is not taken', async (t) => {
      await whatsapp.failCall('uploadMedia', 'upload failed: 503')
      await t.rejects(engine.send(image('3EB0UP')), {
        certainty: 'transient',
        code: 'MEDIA_UPLOAD_FAILED',
      })
      await whatsapp.restoreCall('uploadMedia')
      await whatsapp.failCall('prepRawMedia', 'MediaFileCorrupted')
      await t.rejects(engine.send(image('3EB0PREP')), {
        certainty: 'permanent',
        code: 'MEDIA_REFUSED',
      })
      await whatsapp.restoreCall('prepRawMedia')
      t.equal(await engine.find(image('3EB0UP')), null)
      await engine.send(image('3EB0UP'))
      await until('it is out', () => transmissions('3EB0UP') === 1)
    })

    await t.test('a send that hangs is not certain, and never goes out twice', async (t) => {
      await whatsapp.hangCall('uploadMedia')
      const first = engine.send(image('3EB0HANGS'))
      const stuck = nextEvent(engine, 'trouble', ({ reason }) => reason === 'SEND_STUCK')
      await until('the send is under way', async () => {
        const failure = await engine.find(image('3EB0HANGS')).catch((error: unknown) => error)
        return (failure as { code?: string } | null)?.code === 'SEND_UNDERWAY'
      })
      await stuck
      const second = engine.send(image('3EB0HANGS'))
      await whatsapp.restoreCall('uploadMedia')
      t.same((await first).waMessageId, (await second).waMessageId)
      await until('it is out', () => transmissions('3EB0HANGS') > 0)
      await engine.send(text('3EB0AFTER'))
      await until('the next is out', () => transmissions('3EB0AFTER') === 1)
      t.equal(transmissions('3EB0HANGS'), 1)
    })

    await t.test('what WhatsApp Web gives up is sent again under its id', async (t) => {
      await whatsapp.failCall('encrypt', 'no keys')
      for (const message of [text('3EB0GIVENUP'), image('3EB0GIVENUPTOO')]) {
        await t.rejects(engine.send(message), { certainty: 'transient', code: 'SEND_FAILED' })
        await t.rejects(engine.send(message), { certainty: 'transient', code: 'SEND_FAILED' })
        t.equal(await engine.find(message), null, 'nothing waits for it')
      }
      await whatsapp.restoreCall('encrypt')
      for (const message of [text('3EB0GIVENUP'), image('3EB0GIVENUPTOO')]) {
        await engine.send(message)
        await until('it is confirmed', async () => (await engine.find(message))!.ack > 0)
        t.equal(transmissions(message.keyId), 1)
      }
    })

    await t.test('a number the page has no LID for is asked for before it is missed', async (t) => {
      const to = (number: string, keyId: string) => ({ ...text(keyId), chatId: `${number}@c.us` })
      await whatsapp.failCall('queryWidExists', 'rate-overlimit')
      await t.rejects(engine.send(to('12025550155', '3EB0LIMIT')), {
        certainty: 'transient',
        code: 'SEND_FAILED',
      })
      await whatsapp.restoreCall('queryWidExists')
      await engine.send(to('12025550155', '3EB0LIMIT'))
      await until('it is out', () => transmissions('3EB0LIMIT') === 1)
      whatsapp.register({ number: '12025550156' })
      whatsapp.unregister('12025550156')
      await t.rejects(engine.send(to('12025550156', '3EB0NOBODY')), {
        certainty: 'permanent',
        code: 'NUMBER_NOT_ON_WHATSAPP',
      })
    })

    await t.test('an edit or a deletion that does not get out is not done', async (t) => {
      await engine.send(text('3EB0CHANGE'))
      const target = { fromMe: true, chatId, id: '3EB0CHANGE', participant: '' }
      const told: string[] = []
      engine.on('edit', ({ key, body }) => key.id === target.id && told.push(body))
      const done = (type: string) =>
        whatsapp.stanzas.filter((stanza) => stanza.type === type).map(({ body }) => body)

      await whatsapp.failCall('edit', 'no keys')
      await whatsapp.failCall('revoke', 'no keys')
      // The second time the page shows the new text already.
      for (let times = 0; times < 2; times++)
        await t.rejects(engine.edit({ target, body: 'new' }), { code: 'ACTION_FAILED' })
      await t.rejects(engine.revoke({ target }), { code: 'ACTION_FAILED' })
      t.same([told, done('edit'), done('revoke')], [[], [], []])

      await whatsapp.restoreCall('edit')
      await whatsapp.restoreCall('revoke')
      await engine.edit({ target, body: 'new' })
      await until('the edit is told', () => told.length > 0)
      await engine.revoke({ target })
      await engine.revoke({ target })
      t.same([told, done('edit'), done('revoke')], [['new'], ['new'], ['']])
    })

    await t.test('a new sync is no trouble', async (t) => {
      whatsapp.deliver({ to: account, from: customer, body: 'shown' })
      await until('it is told', async () => (await engine.probe()).unreported === 0)
      await whatsapp.resync(account)
      whatsapp.deliver({ to: account, from: customer, body: 'after the sync' })
      await nextEvent(engine, 'message', ({ body }) => body === 'after the sync')
      t.equal((await engine.probe()).unreported, 0)
    })

    await t.test(
      'a page that is loaded anew while it is being attached to is attached to',
      async (t) => {
        const closed: unknown[] = []
        engine.on('closed', (reason) => closed.push(reason))
        whatsapp.restoreModule('WAWebMsgReply')
        for (let times = 0; times < 20; times++) {
          const reload = () =>
            whatsapp.reload(account).then(
              () => true,
              () => false, // not open again yet
            )
          await until('it is loaded once more', reload)
        }
        await until('it works', () =>
          engine.probe().then(
            ({ online }) => online,
            () => false, // between two pages
          ),
        )
        t.strictSame(closed, [])
      },
    )

    await t.test('what throws before the send has sent nothing', async (t) => {
      await whatsapp.failCall('loadEarlierMsgs', 'no such chat')
      const quoted = { fromMe: false, chatId, id: '3EB0UNSEEN', participant: '' }
      await t.rejects(engine.send({ ...text('3EB0ANSWER'), quoted }), {
        certainty: 'transient',
        code: 'SEND_FAILED',
      })
      await whatsapp.restoreCall('loadEarlierMsgs')
      t.equal(await engine.find(text('3EB0ANSWER')), null)
    })

    await t.test('a page without WhatsApp is alive, and not online', async (t) => {
      const lost = nextEvent(engine, 'link', (state) => state === 'lost')
      whatsapp.setServing({ page: 'maintenance' })
      await whatsapp.reload(account)
      await lost
      t.same(await engine.probe(), { online: false, unreported: 0 })
      whatsapp.setServing({ page: 'normal' })
      const restored = nextEvent(engine, 'link', (state) => state === 'restored')
      await engine.reload()
      await restored
    })

    await t.test('a refusal without a reason is one all the same', async (t) => {
      whatsapp.setAcks({ mode: 'fail' })
      const refused = nextEvent(engine, 'ack', ({ keyId }) => keyId === '3EB0NO')
      await engine.send(text('3EB0NO'))
      t.match((await refused)[0], { ack: -1, code: 'REFUSED_BY_WHATSAPP' })
    })

    await t.test('a group that may not be asked about is what the page knows of it', async (t) => {
      const group = '120363000000000012@g.us'
      const waId = `${customer}@c.us`
      whatsapp.createGroup(group, 'Bakers', [`${account}@c.us`, waId])
      const came = nextEvent(engine, 'message', ({ key }) => key.chatId === group)
      whatsapp.deliver({ to: account, from: customer, group, body: 'all' })
      await came
      await whatsapp.failCall('updateGroup', 'forbidden')
      const chat = await engine.chat(group)
      await whatsapp.restoreCall('updateGroup')
      t.match(chat, { name: 'Bakers', isGroup: true })
      t.ok(chat?.participants.some((member) => member.waId === waId))
    })

    await t.test('a round video is a video', async (t) => {
      const came = nextEvent(engine, 'message', ({ type }) => type === 'video')
      const data = Buffer.from('some bytes')
      const media = { data, mimetype: 'video/mp4' }
      whatsapp.deliver({ to: account, from: customer, type: 'ptv', media })
      const [{ key, ...message }] = await came
      t.match(message, { media: { kind: 'video', mimeType: 'video/mp4', isVoice: false } })
      const file = join(t.testdir({}), 'round.mp4')
      t.same(await engine.download(key, file), { size: data.length })
    })

    await t.test('what came while no engine ran makes no event, and can be read', async (t) => {
      const sinceSeconds = Math.floor(Date.now() / 1_000)
      await engine.stop()
      await until('the device is off', () => whatsapp.onlineDevices(account) === 0)
      for (let n = 1; n <= 30; n++) {
        whatsapp.deliver({ to: account, from: customer, body: `missed ${n}` })
      }
      engine = createEngine()
      const heard: unknown[] = []
      engine.on('message', ({ body }) => heard.push(body))
      const ready = nextEvent(engine, 'ready')
      await engine.start()
      await ready
      const { chats } = await engine.recent({ sinceSeconds, limitPerChat: 100, maxChats: 10 })
      const missed = chats.flatMap(({ messages }) => messages.map(({ body }) => body))
      t.same(
        missed.filter((body) => body?.startsWith('missed')),
        Array.from({ length: 30 }, (_, n) => `missed ${n + 1}`),
      )
      t.ok(chats.every(({ complete }) => complete))
      t.same(heard, [])
    })

    await t.test('after a logout the device is off the list of the phone', async (t) => {
      await engine.logout()
      t.equal(whatsapp.linkedDevices(account), 0)
    })
  },
)
