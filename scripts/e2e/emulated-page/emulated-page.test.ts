import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { cp, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import wweb from 'whatsapp-web.js'
import type { Client, Message } from 'whatsapp-web.js'
import { createControl } from './control.ts'
import { startEmulatedWhatsApp } from './server.ts'
import type { EmulatedWhatsApp, EmulatedWhatsAppOptions } from './server.ts'

const ME = '4915550000001'
const PEER = '4915550000002'
const PEER_ID = `${PEER}@c.us`

await t.test('a page that is not linked', async (t) => {
  const whatsapp = await start(t, { qrFirstMs: 300, qrIntervalMs: 300, qrRefs: 2 })
  const { client, next } = await open(t, whatsapp)

  const first = await next<string>('qr')
  t.equal(first.split(',').length, 5, 'shows a QR text of five parts')
  const second = await next<string>('qr')
  t.not(second, first, 'shows a new one when the first expires')
  await t.rejects(whatsapp.scan(first, { number: ME }), { message: 'this QR code has expired' })
  await t.rejects(whatsapp.scan('made,up', { number: ME }), {
    message: 'no page shows this QR code',
  })
  await whatsapp.until(async () => String(await client.getState()) === 'UNPAIRED_IDLE')

  const code = await client.requestPairingCode(ME)
  t.match(code, /^[1-9A-Z]{8}$/)
  const ready = next('ready')
  await whatsapp.enterPairingCode(code, { number: ME, pushName: 'Me' })
  await ready
  t.match(client.info, { pushname: 'Me', wid: { _serialized: `${ME}@c.us` } }, 'is linked by code')
})

await t.test('a linked page', async (linked) => {
  const t = linked
  const whatsapp = await start(t)
  whatsapp.register({ number: PEER, name: 'Peer Person', pushName: 'peer' })
  const profile = await temporaryFolder(t)
  const session = await open(t, whatsapp, profile)
  const ready = session.next('ready')
  await whatsapp.scan(await session.next<string>('qr'), { number: ME, pushName: 'Me' })
  await ready
  t.equal(whatsapp.onlineDevices(ME), 1)
  let { client } = session

  await t.test('sends a text once and hears its acknowledgements in order', async (t) => {
    const events: string[] = []
    client.on('message_create', ({ id }: Message) => events.push(`created ${id.id}`))
    client.on('message_ack', (_message: Message, ack: number) => events.push(`ack ${ack}`))

    const message = await client.sendMessage(PEER_ID, 'hello')

    t.same(events, [`created ${message.id.id}`], 'message_create comes before the promise')
    await whatsapp.until(() => events.includes('ack 3'))
    t.same(events.slice(1), ['ack 1', 'ack 2', 'ack 3'])
    t.match(whatsapp.stanzas, [{ account: ME, to: PEER_ID, body: 'hello', transmission: 1 }])
    t.match(whatsapp.received(PEER), [{ from: ME, id: message.id.id, body: 'hello' }])
    client.removeAllListeners('message_create').removeAllListeners('message_ack')
  })

  await t.test('sends under an id of our choice', async (t) => {
    await client.pupPage?.evaluate('require("WAWebMsgKey").newId = async () => "3EB0OURS"')
    const message = await client.sendMessage(PEER_ID, 'with our id')
    t.equal(message.id._serialized, `true_${PEER_ID}_3EB0OURS`)
    await whatsapp.until(() => whatsapp.stanzas.at(-1)?.id === '3EB0OURS')
    await client.pupPage?.reload()
    await next(client, 'ready')
  })

  await t.test('receives a text', async (t) => {
    const message = next<Message>(client, 'message')
    const { id } = whatsapp.deliver({ to: ME, from: PEER, body: 'hi', pushName: 'Peer' })
    t.match(await message, { body: 'hi', from: PEER_ID, fromMe: false, id: { id } })
    const contact = await (await message).getContact()
    t.match(contact, { number: PEER, pushname: 'Peer', name: 'Peer Person', isMyContact: true })
  })

  await t.test('receives from a group, and from a LID that leads to a number', async (t) => {
    const inGroup = next<Message>(client, 'message')
    whatsapp.deliver({ to: ME, from: PEER, group: '120363000000000001', body: 'all' })
    t.match(await inGroup, { from: '120363000000000001@g.us', author: PEER_ID })
    t.match(await (await inGroup).getChat(), { isGroup: true })

    const byLid = next<Message>(client, 'message')
    whatsapp.deliver({ to: ME, from: '4915550000003', lid: '271828182845904@lid', body: 'who' })
    t.equal((await byLid).from, '271828182845904@lid')
    const [known] = await client.getContactLidAndPhone(['271828182845904@lid'])
    t.same(known, { lid: '271828182845904@lid', pn: '4915550000003@c.us' })
  })

  await t.test('has replies, reactions, edits and revocations', async (t) => {
    const asked = next<Message>(client, 'message')
    whatsapp.deliver({ to: ME, from: PEER, body: 'question' })
    const question = await asked

    const answer = await question.reply('answer')
    t.equal((await answer.getQuotedMessage()).body, 'question')
    await question.react('👍')
    t.equal((await answer.edit('better answer'))?.body, 'better answer')
    await answer.delete(true)
    const types = whatsapp.stanzas.slice(-4).map(({ type }) => type)
    t.same(types, ['chat', 'reaction', 'edit', 'revoke'])

    const edited = next<Message>(client, 'message_edit')
    whatsapp.edit(ME, question.id.id, 'better question')
    t.equal((await edited).body, 'better question')
    const reaction = next<{ reaction: string }>(client, 'message_reaction')
    whatsapp.react(ME, { from: PEER, id: answer.id.id, text: '🎉' })
    t.equal((await reaction).reaction, '🎉')
    const revoked = next<Message>(client, 'message_revoke_everyone')
    whatsapp.revoke(ME, question.id.id)
    t.equal((await revoked).type, 'revoked')
  })

  await t.test('sends and receives media byte by byte', async (t) => {
    const bytes = randomBytes(200_000)
    const sha256 = createHash('sha256').update(bytes).digest('hex')
    const media = new wweb.MessageMedia('image/png', bytes.toString('base64'), 'photo.png')

    const uploaded = next<Message>(client, 'media_uploaded')
    const sent = await client.sendMessage(PEER_ID, media, { caption: 'look' })
    t.equal((await uploaded).id.id, sent.id.id)
    t.match(whatsapp.stanzas.at(-1), { type: 'image', body: 'look', mediaSha256: sha256 })
    t.ok(Buffer.from((await sent.downloadMedia()).data, 'base64').equals(bytes))

    const arrived = next<Message>(client, 'message')
    const photo = { data: bytes, mimetype: 'application/pdf', filename: 'bill.pdf' }
    const { id } = whatsapp.deliver({ to: ME, from: PEER, media: photo })
    const document = await arrived
    t.match(document, { type: 'document', hasMedia: true })
    const downloaded = await document.downloadMedia()
    t.match(downloaded, { mimetype: 'application/pdf', filename: 'bill.pdf' })
    t.ok(Buffer.from(downloaded.data, 'base64').equals(bytes))

    whatsapp.expireMedia(ME, id)
    t.equal(await document.downloadMedia(), undefined, 'expired media is undefined')
  })

  await t.test('sends voice, stickers, places, polls and contact cards', async (t) => {
    const sound = new wweb.MessageMedia(
      'audio/ogg; codecs=opus',
      randomBytes(99).toString('base64'),
    )
    await client.sendMessage(PEER_ID, sound, { sendAudioAsVoice: true })
    const webp = new wweb.MessageMedia('image/webp', randomBytes(99).toString('base64'))
    await client.sendMessage(PEER_ID, webp, { sendMediaAsDocument: true })
    await client.sendMessage(PEER_ID, new wweb.Location(52.5, 13.4, { name: 'Berlin' }))
    await client.sendMessage(PEER_ID, new wweb.Poll('Tea?', ['yes', 'no']))
    await client.sendMessage(PEER_ID, await client.getContactById(PEER_ID))
    await client.sendMessage(PEER_ID, 'see https://example.com', { mentions: [PEER_ID] })
    await whatsapp.until(() => whatsapp.stanzas.at(-1)?.type === 'chat')
    const types = whatsapp.stanzas.slice(-6).map(({ type }) => type)
    t.same(types, ['ptt', 'document', 'location', 'poll_creation', 'vcard', 'chat'])
  })

  await t.test('knows who is on WhatsApp and under which number', async (t) => {
    whatsapp.register({ number: '554188887777', aliases: ['5541988887777'] })
    t.equal(await client.getNumberId('4915559999999'), null)
    t.match(await client.getNumberId('5541988887777'), { _serialized: '554188887777@c.us' })
    await t.rejects(client.sendMessage('4915559999999@c.us', 'anyone?'), /No LID for user/)
    await t.rejects(client.sendMessage('nobody@c.us', 'anyone?'), /wid error: invalid wid/)
    t.ok((await client.getContacts()).some(({ number }) => number === PEER))
  })

  await t.test('tells typing and seen', async (t) => {
    const chat = await client.getChatById(PEER_ID)
    await chat.sendSeen()
    await chat.sendStateTyping()
    await whatsapp.until(() => whatsapp.signals.at(-1)?.kind === 'typing')
    t.equal((await client.getChatById(PEER_ID)).unreadCount, 0)
  })

  await t.test(
    'rejects when a call fails, waits when it hangs, and goes on when restored',
    async (t) => {
      await whatsapp.failCall('addAndSendMsgToChat', 'out of order')
      await t.rejects(client.sendMessage(PEER_ID, 'refused'), /out of order/)

      await whatsapp.hangCall('addAndSendMsgToChat')
      const stuck = client.sendMessage(PEER_ID, 'late')
      await client.getState()
      t.notOk(whatsapp.received(PEER).some(({ body }) => body === 'late'))
      await whatsapp.restoreCall('addAndSendMsgToChat')
      await stuck
      await whatsapp.until(() => whatsapp.received(PEER).some(({ body }) => body === 'late'))
    },
  )

  await t.test('hears nacks, lost, repeated and reordered acknowledgements', async (t) => {
    const acks = async (mode: 'fail' | 'duplicate' | 'reorder', count: number) => {
      const heard: number[] = []
      const listen = ({ body }: Message, ack: number) => body === mode && heard.push(ack)
      whatsapp.setAcks({ account: ME, mode })
      client.on('message_ack', listen)
      await client.sendMessage(PEER_ID, mode)
      await whatsapp.until(() => heard.length === count, { what: `${count} acks of ${mode}` })
      client.off('message_ack', listen)
      return heard
    }
    t.same(await acks('fail', 1), [-1])
    t.same(await acks('duplicate', 6), [1, 1, 2, 2, 3, 3])
    t.same(await acks('reorder', 3), [3, 2, 1])

    whatsapp.setAcks({ account: ME, mode: 'hold' })
    const { id } = await client.sendMessage(PEER_ID, 'held')
    await whatsapp.until(() => whatsapp.stanzas.at(-1)?.id === id.id)
    const acked = next(client, 'message_ack')
    whatsapp.ack(id.id, 2)
    await acked
    t.equal((await client.getMessageById(id._serialized)).ack, 2)
    whatsapp.setAcks({ account: ME, mode: 'normal' })
  })

  await t.test('keeps what is sent while the link is down, and gets what arrived', async (t) => {
    const states: string[] = []
    client.on('change_state', (state) => states.push(state))
    whatsapp.dropLink(ME)
    await whatsapp.until(() => states.length > 0)
    const { id, ack } = await client.sendMessage(PEER_ID, 'from the outbox')
    t.equal(ack, 0)
    whatsapp.deliver({ to: ME, from: PEER, body: 'meanwhile' })
    t.not(whatsapp.stanzas.at(-1)?.id, id.id)

    const arrived = next<Message>(client, 'message')
    whatsapp.restoreLink(ME)
    await whatsapp.until(() => whatsapp.stanzas.at(-1)?.id === id.id)
    t.equal((await arrived).body, 'meanwhile')
    t.same(states, ['TIMEOUT', 'OPENING', 'CONNECTED'])
    t.equal(whatsapp.stanzas.filter((stanza) => stanza.id === id.id).length, 1)
  })

  await t.test('comes back from its profile, with what arrived while it was closed', async (t) => {
    await client.destroy()
    await whatsapp.until(() => whatsapp.onlineDevices(ME) === 0)
    for (const body of ['one', 'two', 'three']) whatsapp.deliver({ to: ME, from: PEER, body })
    whatsapp.typeOnPhone({ account: ME, to: PEER, body: 'typed elsewhere' })

    const restored = await open(linked, whatsapp, profile)
    client = restored.client
    client.once('qr', () => t.fail('no QR is shown'))
    client.once('message', () => t.fail('they are no news'))
    await restored.next('ready')

    const chat = await client.getChatById(PEER_ID)
    t.equal(chat.unreadCount, 4, 'three, and the one from the outage')
    const bodies = (await chat.fetchMessages({ limit: 50 })).map(({ body }) => body)
    t.ok(bodies.length > 20, 'earlier messages are loaded')
    t.same(bodies.slice(-4), ['one', 'two', 'three', 'typed elsewhere'])
  })

  await t.test(
    'transmits again what was not acknowledged when the browser was killed',
    async (t) => {
      whatsapp.setAcks({ account: ME, mode: 'lose' })
      const { id } = await client.sendMessage(PEER_ID, 'twice on the wire')
      const transmissions = () => whatsapp.stanzas.filter((stanza) => stanza.id === id.id).length
      await whatsapp.until(() => transmissions() === 1)
      client.pupBrowser?.process()?.kill('SIGKILL')
      await whatsapp.until(() => whatsapp.onlineDevices(ME) === 0)

      whatsapp.setAcks({ account: ME, mode: 'normal' })
      const restored = await open(linked, whatsapp, profile)
      client = restored.client
      await restored.next('ready')
      await whatsapp.until(() => transmissions() === 2)
      await whatsapp.until(
        async () => Number((await client.getMessageById(id._serialized)).ack) === 3,
      )
      t.equal(whatsapp.received(PEER).filter((message) => message.id === id.id).length, 1)
    },
  )

  await t.test('is logged out from the phone and shows a QR again', async (t) => {
    const disconnected = next(client, 'disconnected')
    const qr = next<string>(client, 'qr')
    whatsapp.logoutFromPhone(ME)
    t.equal(await disconnected, 'LOGOUT')
    t.equal((await qr).split(',').length, 5)
    // The library goes on injecting after the QR; a close before its end would reject in nobody's hands.
    const heard = `require('WAWebSocketModel').Socket.isHeard('change:hasSynced')`
    await whatsapp.until(() => client.pupPage?.evaluate(heard))
  })
})

await t.test('one device in two browsers, and a device revoked while it was closed', async (t) => {
  const whatsapp = await start(t)
  const profile = await temporaryFolder(t)
  const copy = await temporaryFolder(t)
  const paired = await open(t, whatsapp, profile)
  const ready = paired.next('ready')
  await whatsapp.scan(await paired.next<string>('qr'), { number: ME })
  await ready
  await paired.client.destroy()
  await cp(profile, copy, { recursive: true, filter: (file) => !file.includes('Singleton') })

  const older = await open(t, whatsapp, profile)
  await older.next('ready')
  const conflict = older.next('disconnected')
  const newer = await open(t, whatsapp, copy)
  await newer.next('ready')
  t.equal(await conflict, 'CONFLICT', 'the older one gives way')
  t.equal(whatsapp.onlineDevices(ME), 1)

  await newer.client.destroy()
  await whatsapp.until(() => whatsapp.onlineDevices(ME) === 0)
  whatsapp.logoutFromPhone(ME)
  const revoked = await open(t, whatsapp, profile)
  await revoked.next('qr')
  t.pass('a device revoked while it was closed shows a plain QR')
})

await t.test('other processes drive it through its control', async (t) => {
  const whatsapp = await start(t)
  const control = createControl(whatsapp).listen(0, '127.0.0.1')
  t.teardown(() => control.close())
  await once(control, 'listening')
  const { port } = control.address() as AddressInfo
  const post = async (verb: string, body?: unknown) => {
    const options = {
      method: 'POST',
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    }
    const response = await fetch(`http://127.0.0.1:${port}/control/${verb}`, options)
    return { status: response.status, body: await response.json() }
  }

  t.match(await post('register', [{ number: PEER }]), { body: { result: { number: PEER } } })
  t.same(await post('stanzas'), { status: 200, body: { result: [] } })
  t.same(await post('onlineDevices', [ME]), { status: 200, body: { result: 0 } })
  t.match(await post('scan', ['made,up', { number: ME }]), {
    status: 400,
    body: { error: /QR code/ },
  })
  t.equal((await post('close')).status, 404, 'what is no verb is not reachable')
})

async function start(t: Test, options?: EmulatedWhatsAppOptions): Promise<EmulatedWhatsApp> {
  // On a page of today the library alone neither finds its messages nor sends media.
  const whatsapp = await startEmulatedWhatsApp({
    variations: ['serializesKeys', 'hidesMediaId', 'downloadsAnyKind'],
    ...options,
  })
  t.teardown(() => whatsapp.close())
  return whatsapp
}

/** Opens a real client in a real browser; `next` is bound to it. */
async function open(t: Test, whatsapp: EmulatedWhatsApp, profile?: string) {
  const isRoot = process.getuid?.() === 0
  const client = new wweb.Client({
    authStrategy: new wweb.LocalAuth({ dataPath: profile ?? (await temporaryFolder(t)) }),
    webVersionCache: { type: 'none' },
    puppeteer: {
      headless: true,
      executablePath: process.env.PUPPETEER_EXECUTABLE_PATH ?? '/usr/bin/chromium',
      pipe: true,
      handleSIGINT: false,
      handleSIGTERM: false,
      handleSIGHUP: false,
      args: [
        ...(isRoot ? ['--no-sandbox'] : []),
        '--no-first-run',
        '--disable-background-networking',
        ...whatsapp.browserArgs,
      ],
    },
  })
  const initialized = client.initialize()
  t.teardown(async () => {
    await initialized // a close in the middle of it rejects in nobody's hands
    await client.destroy()
  })
  return { client, next: <T>(event: string) => next<T>(client, event) }
}

/** The first argument of the client's next event of this name. */
async function next<T>(client: Client, event: string): Promise<T> {
  const signal = AbortSignal.timeout(10_000)
  const [first] = (await once(client, event, { signal }).catch(() => {
    throw new Error(`no ${event} within 10 s`)
  })) as [T]
  return first
}

async function temporaryFolder(t: Test): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'emulated-page-'))
  t.teardown(() => rm(folder, { recursive: true, force: true, maxRetries: 4 }))
  return folder
}
