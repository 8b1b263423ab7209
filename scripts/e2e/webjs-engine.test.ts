import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { createLogger } from '../../shared/logger.ts'
import { findBrowser } from '../../wa-worker/browser.ts'
import { vcardOf } from '../../wa-worker/engine/vcard.ts'
import { WebjsEngine } from '../../wa-worker/engine/webjs.ts'
import { engineContract } from '../../wa-worker/test/engine-contract.ts'
import type { FarMessage, Rig } from '../../wa-worker/test/engine-contract.ts'
import { nextEvent, until } from '../../wa-worker/test/waiting.ts'
import { listProcesses } from '../faults/proc.ts'
import { startEmulatedWhatsApp } from './emulated-page/server.ts'
import type { InboundMessage } from './emulated-page/server.ts'

const browser = findBrowser(process.env['PUPPETEER_EXECUTABLE_PATH'])
const account = '12025550199'
const customer = '12025550100'
const refusing = '12025550102'
const locked = '12025550107'
const group = '120363000000000011@g.us'
/** What the page calls a kind by another name than we do. */
const types: Record<string, string> = {
  chat: 'text',
  ptt: 'voice',
  vcard: 'contact',
  poll_creation: 'poll',
}

/** A customer's message as the emulated page takes it. */
function delivery({ from, content, group, quoted, mentions, bytes }: FarMessage): InboundMessage {
  const message = {
    to: account,
    from,
    ...(group !== undefined && { group }),
    ...(quoted && { quoted: quoted.id }),
  }
  const extra = mentions && { mentionedJidList: mentions.map((id) => ({ $wid: id })) }
  switch (content.type) {
    case 'text':
      return { ...message, body: content.body, ...(extra && { extra }) }
    case 'location': {
      const { latitude: lat, longitude: lng, name, address } = content
      return {
        ...message,
        type: 'location',
        body: '/9j/4AAQ',
        extra: { lat, lng, loc: `${name}\n${address}` },
      }
    }
    case 'contact':
      return { ...message, type: 'vcard', body: vcardOf(content) }
    case 'poll': {
      const pollOptions = content.options.map((name, localId) => ({ name, localId }))
      const pollSelectableOptionsCount = content.multiple ? 0 : 1
      return {
        ...message,
        type: 'poll_creation',
        extra: { pollName: content.question, pollOptions, pollSelectableOptionsCount },
      }
    }
    default: {
      const { type, mimeType, filename, caption } = content
      return {
        ...message,
        type: type === 'voice' ? 'ptt' : type,
        ...(caption !== null && { body: caption }),
        media: { data: bytes!, mimetype: mimeType, filename },
      }
    }
  }
}

await t.test(
  'whatsapp-web.js on Chromium keeps the engine contract',
  { skip: 'missing' in browser && browser.missing },
  async (t) => {
    await engineContract(t, async (t): Promise<Rig> => {
      const whatsapp = await startEmulatedWhatsApp()
      const folder = await mkdtemp(join(tmpdir(), 'awfar-webjs-'))
      t.teardown(async () => {
        await whatsapp.close()
        await rm(folder, { recursive: true, force: true, maxRetries: 5 })
      })
      const { lid } = whatsapp.register({ number: customer })
      whatsapp.register({ number: '554188887777', aliases: ['5541988887777'] })
      whatsapp.register({ number: refusing })
      whatsapp.register({ number: locked })
      whatsapp.setAcks({ recipient: refusing, mode: 'fail' })
      const lockedUntil = Math.floor(Date.now() / 1_000) + 3_600
      whatsapp.setAcks({ recipient: locked, mode: 'fail', errorCode: 463, lockedUntil })
      whatsapp.createGroup(group, 'Bakers', [`${account}@c.us`, `${customer}@c.us`])
      await whatsapp.failCall('addAndSendMsgToChat', 'out of order', undefined, 'POISON')
      const done = (type: string, keyId: string) =>
        whatsapp.stanzas.findLast(
          ({ content, ...stanza }) =>
            stanza.type === type && String(content['target']).split('_')[2] === keyId,
        )
      return {
        createEngine: () =>
          new WebjsEngine({
            sessionId: 'contract',
            log: createLogger('test', { level: 'error', stdout: false }),
            profileDir: async () => join(folder, 'profile'),
            executablePath: process.env['PUPPETEER_EXECUTABLE_PATH'],
            browserArgs: whatsapp.browserArgs,
          }),
        scan: async (_, qr) => {
          await whatsapp.scan(qr, { number: account, pushName: 'Bakery' })
        },
        deliver: async (_, from, body) => {
          whatsapp.deliver({ to: account, from: from.slice(0, -5), body, pushName: 'Ann' })
        },
        receive: async (_, message) => whatsapp.deliver(delivery(message)).id,
        receiveLate: async (_, from, body, placed) => {
          const { id } = whatsapp.deliver({ to: account, from, type: 'ciphertext' })
          await placed
          whatsapp.decrypt(account, id, body)
          return id
        },
        editByContact: async (_, { id }, body) => whatsapp.edit(account, id, body),
        revokeByContact: async (_, { id }) => whatsapp.revoke(account, id),
        reactByContact: async (_, { id }, text) =>
          whatsapp.react(account, { from: customer, id, text }),
        voteByContact: async (_, { id }) =>
          whatsapp.vote(account, { from: customer, id, options: [0] }),
        callByContact: async () => void whatsapp.call(account, { from: customer, video: true }),
        expireMedia: async (_, { id }) => whatsapp.expireMedia(account, id),
        dropLink: async () => whatsapp.dropLink(account),
        restoreLink: async () => whatsapp.restoreLink(account),
        logoutFromPhone: async () => {
          whatsapp.logoutFromPhone(account)
          await until('the device is off the list', () => whatsapp.onlineDevices(account) === 0)
        },
        transmissions: (_, keyId) => whatsapp.stanzas.filter(({ id }) => id === keyId).length,
        countsOn: true,
        state: (_, keyId) => {
          const sent = whatsapp.stanzas.find(({ id }) => id === keyId)
          return (
            sent && {
              type: types[sent.type] ?? sent.type,
              body: done('edit', keyId)?.body ?? sent.body,
              sha256: sent.mediaSha256,
              reaction: done('reaction', keyId)?.body,
              revoked: done('revoke', keyId) !== undefined,
            }
          )
        },
        signals: () => whatsapp.signals.map(({ kind }) => kind),
        customer: `${customer}@c.us`,
        customerLid: lid,
        group,
        unregistered: '12025550001@c.us',
        refusing: `${refusing}@c.us`,
        locked: `${locked}@c.us`,
        poison: { chatId: `${customer}@c.us`, body: 'a POISON one' },
        alias: { phone: '5541988887777', waId: '554188887777@c.us' },
      }
    })
  },
)

await t.test(
  'what WhatsApp Web does to a send is told apart',
  { skip: 'missing' in browser && browser.missing },
  async (t) => {
    const whatsapp = await startEmulatedWhatsApp({ everyoneRegistered: true })
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

    await t.test('a part that is gone is missed by those who need it only', async (t) => {
      const { waMessageId } = await engine.send(text('3EB0TEXT'))
      t.ok(waMessageId)
      const target = { fromMe: true, chatId, id: '3EB0TEXT', participant: '' }
      await t.rejects(engine.send({ ...text('3EB0REPLY'), quoted: target }), {
        certainty: 'transient',
        code: 'MODULE_MISSING',
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

    await t.test('a new sync is no trouble', async (t) => {
      whatsapp.deliver({ to: account, from: customer, body: 'shown' })
      await until('it is told', async () => (await engine.probe()).unreported === 0)
      await whatsapp.resync(account)
      whatsapp.deliver({ to: account, from: customer, body: 'after the sync' })
      await nextEvent(engine, 'message', ({ body }) => body === 'after the sync')
      t.equal((await engine.probe()).unreported, 0)
    })

    await t.test('a refusal without a reason is one all the same', async (t) => {
      whatsapp.setAcks({ mode: 'fail' })
      const refused = nextEvent(engine, 'ack', ({ keyId }) => keyId === '3EB0NO')
      await engine.send(text('3EB0NO'))
      t.match((await refused)[0], { ack: -1, code: 'REFUSED_BY_WHATSAPP' })
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
  },
)
