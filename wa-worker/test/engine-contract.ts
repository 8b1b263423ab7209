import { createHash, randomBytes, randomUUID } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Test } from 'tap'
import type { MediaType, MessageContent } from '../../shared/message-content.ts'
import { keyIdOf } from '../../shared/wa-id.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import { EngineError } from '../engine/engine.ts'
import type { Engine, OutgoingContent, OutgoingMessage, Receipt } from '../engine/engine.ts'
import { nextEvent, until } from './waiting.ts'

/** The far side of an engine: the phone it is linked to and the people it writes to. */
export interface Rig {
  /** A new engine over the same login, as a restart makes one. */
  createEngine(): Engine
  scan(engine: Engine, qr: string): Promise<void>
  /** A customer writes. */
  deliver(engine: Engine, from: string, body: string): Promise<void>
  /** The same, with everything a message may have. Answers its id. */
  receive(engine: Engine, message: FarMessage): Promise<string>
  /** A placeholder comes and, once `placed` has resolved, its content; both under the id that is answered. */
  receiveLate(engine: Engine, from: string, body: string, placed: Promise<unknown>): Promise<string>
  /** The customer does something to a message. */
  editByContact(engine: Engine, key: MessageKey, body: string): Promise<void>
  revokeByContact(engine: Engine, key: MessageKey): Promise<void>
  reactByContact(engine: Engine, key: MessageKey, emoji: string): Promise<void>
  /** Chooses the first option. */
  voteByContact(engine: Engine, poll: MessageKey): Promise<void>
  callByContact(engine: Engine): Promise<void>
  expireMedia(engine: Engine, key: MessageKey): Promise<void>
  dropLink(engine: Engine): Promise<void>
  restoreLink(engine: Engine): Promise<void>
  logoutFromPhone(engine: Engine): Promise<void>
  /** How often a message of this id reached WhatsApp's server. */
  transmissions(engine: Engine, keyId: string): number
  /** Whether that count goes on over a restart of the engine. */
  countsOn: boolean
  /** What WhatsApp's server has of a message. */
  state(engine: Engine, keyId: string): MessageState | undefined
  /** What contacts have been shown besides messages, in order: `typing`, `paused`, `seen`. */
  signals(engine: Engine): string[]
  customer: string
  /** The same person. */
  customerLid: string
  group: string
  unregistered: string
  /** Refuses, and does not say why. */
  refusing: string
  /** Refuses because of a reach-out lock. */
  locked: string
  /** Blocked by the account itself, where the engine knows of such a thing. */
  blocked?: string
  /** Messages at which WhatsApp Web throws, or which it gives up. */
  poisons: { chatId: string; body: string }[]
  /** A number whose address on WhatsApp is another. */
  alias: { phone: string; waId: string }
}

export interface FarMessage {
  from: string
  content: MessageContent
  group?: string
  quoted?: MessageKey
  mentions?: string[]
  /** Of media. */
  bytes?: Buffer
}

export interface MessageState {
  type: string
  body: string | null
  /** The id of the message it answers. */
  quoted?: string | undefined
  sha256?: string | undefined
  reaction?: string | undefined
  revoked?: boolean | undefined
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

      const receipt = await engine.send({
        chatId: rig.customer,
        content: text('Good morning ☀️'),
        keyId,
      })

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
    const message = { chatId: rig.customer, content: text('only once'), keyId: newKey() }
    await sendAndWait(engine, message)
    const again = await engine.send(message)
    t.ok(again.ack >= 1)
    t.equal(rig.transmissions(engine, message.keyId), 1)
  })

  await t.test('tells what became of a message, or that it never took it', async (t) => {
    const keyId = newKey()
    t.equal(await engine.find({ chatId: rig.customer, keyId }), null)
    await sendAndWait(engine, { chatId: rig.customer, content: text('find me'), keyId })
    const found = await engine.find({ chatId: rig.customer, keyId })
    t.ok(found && found.ack >= 1)
  })

  await t.test('finds a message under both addresses of its chat', async (t) => {
    const { customer, customerLid } = rig
    for (const [sentTo, other] of [
      [customer, customerLid],
      [customerLid, customer],
    ] as const) {
      const keyId = newKey()
      await sendAndWait(engine, { chatId: sentTo, content: text(`to ${sentTo}`), keyId })
      t.ok(await engine.find({ chatId: other, keyId }), `sent to ${sentTo}`)
      await engine.send({ chatId: other, content: text(`to ${sentTo}`), keyId })
      t.equal(rig.transmissions(engine, keyId), 1, 'and not sent again')
    }
  })

  for (const [kind, content] of Object.entries(plainKinds)) {
    await t.test(`sends a ${kind}, once`, async (t) => {
      const message = { chatId: rig.customer, content, keyId: newKey() }
      const echoed = nextEvent(engine, 'message', ({ key }) => key.id === message.keyId)
      await sendAndWait(engine, message)
      t.equal((await echoed)[0].type, content.type)
      await engine.send(message)
      t.equal(rig.transmissions(engine, message.keyId), 1)
      t.equal(rig.state(engine, message.keyId)?.type, content.type)
    })
  }

  for (const [type, [mimeType, filename, caption]] of Object.entries(mediaKinds)) {
    await t.test(`sends media as ${type}: the bytes arrive as they are, once`, async (t) => {
      const bytes = randomBytes(type === 'video' ? 3_000_000 : 30_000)
      const path = join(t.testdir(), 'stored-without-a-name')
      await writeFile(path, bytes)
      const keyId = newKey()
      const content = { type: type as MediaType, mimeType, filename, caption, mediaId: 'm', path }
      const message = { chatId: rig.customer, content, keyId }
      const echoed = nextEvent(engine, 'message', ({ key }) => key.id === keyId)
      await sendAndWait(engine, message)
      t.match((await echoed)[0], { type, body: caption })
      await engine.send(message)
      t.equal(rig.transmissions(engine, keyId), 1)
      const state = rig.state(engine, keyId)
      t.equal(state?.type, type)
      t.equal(state?.sha256, createHash('sha256').update(bytes).digest('hex'))
      t.equal(state?.body || null, caption)
    })
  }

  await t.test('says so when a file cannot be read, or is empty', async (t) => {
    const folder = t.testdir({ empty: '' })
    const send = (path: string) =>
      engine.send({
        chatId: rig.customer,
        keyId: newKey(),
        content: { ...pdf, path: join(folder, path) },
      })
    t.match(await fails(send('gone')), { certainty: 'transient', code: 'MEDIA_UNREADABLE' })
    t.match(await fails(send('empty')), { certainty: 'permanent', code: 'MEDIA_REFUSED' })
  })

  await t.test('answers a message, and names people; to a group as well', async (t) => {
    const came = nextEvent(engine, 'message', ({ key }) => !key.fromMe)
    await rig.deliver(engine, rig.customer, 'How much is it?')
    const [{ key: quoted }] = await came
    const answer = { chatId: rig.customer, content: text('Two euros'), keyId: newKey(), quoted }
    await sendAndWait(engine, answer)
    t.match(rig.state(engine, answer.keyId), { body: 'Two euros', quoted: quoted.id })

    const missing = { ...answer, keyId: newKey(), quoted: { ...quoted, id: '3AFFFFFF' } }
    t.match(await fails(engine.send(missing)), { certainty: 'permanent', code: 'QUOTED_NOT_FOUND' })
    t.equal(rig.transmissions(engine, missing.keyId), 0)

    const toGroup = {
      chatId: rig.group,
      content: text('Thanks @12025550100'),
      keyId: newKey(),
      mentions: [rig.customer],
    }
    const receipt = await sendAndWait(engine, toGroup)
    t.match(receipt.waMessageId, new RegExp(`^true_${rig.group}_${toGroup.keyId}`))
    await engine.send(toGroup)
    t.equal(rig.transmissions(engine, toGroup.keyId), 1)
    t.ok(await engine.find(toGroup))
    const nobody = { ...toGroup, keyId: newKey(), mentions: ['the baker'] }
    t.match(await fails(engine.send(nobody)), { certainty: 'permanent', code: 'INVALID_MENTION' })
  })

  await t.test('reacts, edits and deletes for everyone', async (t) => {
    const message = { chatId: rig.customer, content: text('Open at 9'), keyId: newKey() }
    await sendAndWait(engine, message)
    const target = ownKey(message)
    const state = () => rig.state(engine, message.keyId)

    await engine.react({ target, emoji: '👍' })
    t.equal(state()?.reaction, '👍')
    await engine.react({ target: { ...target, chatId: rig.customerLid }, emoji: '' })
    t.equal(state()?.reaction, '', 'and takes it back, under the other address')

    await engine.edit({ target, body: 'Open at 10' })
    await engine.edit({ target, body: 'Open at 10' })
    t.equal(state()?.body, 'Open at 10')
    t.ok(await engine.find(message), 'found as before')

    await engine.revoke({ target })
    await engine.revoke({ target })
    t.equal(state()?.revoked, true)
    t.match(await engine.find(message), { waMessageId: `true_${rig.customer}_${message.keyId}` })
    await engine.send(message)
    t.equal(rig.transmissions(engine, message.keyId), 1, 'and is not sent again')
    t.match(await fails(engine.edit({ target, body: 'x' })), {
      certainty: 'permanent',
      code: 'NOT_EDITABLE',
    })
  })

  await t.test('does not do to a message what cannot be done', async (t) => {
    const came = nextEvent(engine, 'message', ({ key }) => !key.fromMe)
    await rig.deliver(engine, rig.customer, 'mine')
    const [{ key: target }] = await came
    t.match(await fails(engine.edit({ target, body: 'yours' })), {
      certainty: 'permanent',
      code: 'NOT_EDITABLE',
    })
    t.match(await fails(engine.revoke({ target })), {
      certainty: 'permanent',
      code: 'NOT_REVOCABLE',
    })
    const gone = { ...target, id: '3AFFFFFF' }
    for (const act of [
      () => engine.react({ target: gone, emoji: '👍' }),
      () => engine.edit({ target: gone, body: 'x' }),
      () => engine.revoke({ target: gone }),
    ]) {
      t.match(await fails(act()), { certainty: 'permanent', code: 'MESSAGE_NOT_FOUND' })
    }
  })

  await t.test('shows typing and marks as read', async (t) => {
    const before = rig.signals(engine).length
    await engine.typing(rig.customer, true)
    await engine.typing(rig.customer, false)
    await engine.typing(rig.customer, 50)
    await engine.seen(rig.customer)
    await engine.seen('12025559999@c.us')
    const signals = rig.signals(engine).slice(before, before + 5)
    t.same(signals, ['typing', 'paused', 'typing', 'paused', 'seen'])
  })

  await t.test('knows who is on WhatsApp, and under which address', async (t) => {
    const phone = `+${rig.customer.slice(0, -5)}`
    t.same(await engine.checkNumber(phone), { exists: true, waId: rig.customer })
    t.same(await engine.checkNumber(rig.alias.phone), { exists: true, waId: rig.alias.waId })
    const unknown = rig.unregistered.slice(0, -5)
    t.same(await engine.checkNumber(unknown), { exists: false, waId: null })
  })

  await t.test('tells why a message was refused, as far as WhatsApp says', async (t) => {
    for (const [chatId, code] of [
      [rig.refusing, 'REFUSED_BY_WHATSAPP'],
      [rig.locked, 'REACHOUT_LOCKED'],
    ] as const) {
      const keyId = newKey()
      const refused = nextEvent(engine, 'ack', (ack) => ack.keyId === keyId && ack.ack === -1)
      await engine.send({ chatId, content: text('hello'), keyId })
      const [ack] = await refused
      t.equal(ack.code, code)
      const found = await engine.find({ chatId, keyId })
      t.match(found, { ack: -1, code })
      if (code === 'REACHOUT_LOCKED') {
        t.ok(ack.until && ack.until.getTime() > Date.now())
        t.same(found?.until, ack.until)
      }
    }
  })

  await t.test('refuses for good what can never be sent', async (t) => {
    const send = (chatId: string) =>
      fails(engine.send({ chatId, content: text('hello?'), keyId: newKey() }))
    t.match(await send(rig.unregistered), {
      certainty: 'permanent',
      code: 'NUMBER_NOT_ON_WHATSAPP',
    })
    t.match(await send('nobody@c.us'), { certainty: 'permanent', code: 'INVALID_RECIPIENT' })
    if (rig.blocked !== undefined)
      t.match(await send(rig.blocked), { certainty: 'permanent', code: 'RECIPIENT_BLOCKED' })
  })

  await t.test(
    'survives a message WhatsApp Web throws at or gives up, and knows it is not out',
    async (t) => {
      for (const { chatId, body } of rig.poisons) {
        const message = { chatId, content: text(body), keyId: newKey() }
        for (let times = 0; times < 2; times++) {
          t.match(await fails(engine.send(message)), {
            certainty: 'transient',
            code: 'SEND_FAILED',
          })
          t.equal(await engine.find(message), null)
        }
        t.equal(rig.transmissions(engine, message.keyId), 0)
      }
      await sendAndWait(engine, { chatId: rig.customer, content: text('next'), keyId: newKey() })
    },
  )

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

  /** What comes in next, from the customer or somebody else. */
  const receive = async (message: FarMessage) => {
    const came = nextEvent(engine, 'message', ({ key }) => !key.fromMe && key.id === id)
    let id = ''
    id = await rig.receive(engine, message)
    return (await came)[0]
  }

  await t.test('tells of messages of every kind', async (t) => {
    const from = rig.customer
    const place = plainKinds.location
    t.match(await receive({ from, content: place }), {
      type: 'location',
      body: null,
      location: {
        latitude: 52.5163,
        longitude: 13.3777,
        name: 'Bakery',
        address: 'Pariser Platz 1',
      },
    })
    t.match(await receive({ from, content: plainKinds['contact card'] }), {
      type: 'contact',
      body: 'Ann; the baker, really',
      contacts: [{ name: 'Ann; the baker, really', phone: '+12025550142' }],
    })
    const poll = await receive({ from, content: plainKinds.poll })
    t.match(poll, {
      type: 'poll',
      body: 'Tea?',
      poll: { question: 'Tea?', options: ['yes', 'no'], multiple: false },
    })
    const voted = nextEvent(engine, 'pollVote', ({ poll: { id } }) => id === poll.key.id)
    await rig.voteByContact(engine, poll.key)
    t.match((await voted)[0], { options: ['yes'], waId: from, fromMe: false })

    const question = await receive({ from, content: text('Two or three?') })
    const answer = await receive({
      from,
      content: text('@12025550199 three'),
      quoted: question.key,
      mentions: [rig.customer],
    })
    t.same(answer.quoted, question.key)
    t.same(answer.mentions, [rig.customer])
    t.match(question, { quoted: null, media: null, pending: false, revoked: false })
    t.same(question.mentions, [])
  })

  await t.test('tells who wrote in a group, and who is in it', async (t) => {
    const { customer: from, group } = rig
    const message = await receive({ from, group, content: text('all') })
    t.match(message.key, { fromMe: false, chatId: group, participant: from })
    const chat = await engine.chat(group)
    t.equal(chat?.isGroup, true)
    t.ok(chat?.name)
    t.ok(chat?.participants.some(({ waId }) => waId === from))
    t.equal(await engine.chat('120363999999999999@g.us'), null)
  })

  const gone: string[] = []
  await t.test('tells of what is done to messages afterwards, here and there', async (t) => {
    const { key } = await receive({ from: rig.customer, content: text('tomato') })
    const edited = nextEvent(engine, 'edit', (edit) => edit.key.id === key.id)
    await rig.editByContact(engine, key, 'potato')
    t.match((await edited)[0], { key, body: 'potato' })

    const reacted = nextEvent(engine, 'reaction', ({ target }) => target.id === key.id)
    await rig.reactByContact(engine, key, '🍅')
    t.match((await reacted)[0], { target: key, emoji: '🍅', waId: rig.customer, fromMe: false })

    const ours = nextEvent(
      engine,
      'reaction',
      ({ target, fromMe }) => fromMe && target.id === key.id,
    )
    await engine.react({ target: key, emoji: '👍' })
    t.match((await ours)[0], { emoji: '👍' })

    const revoked = nextEvent(engine, 'revoke', (gone) => gone.key.id === key.id)
    await rig.revokeByContact(engine, key)
    t.match((await revoked)[0], { key })

    const own = { chatId: rig.customer, content: text('own'), keyId: newKey() }
    await sendAndWait(engine, own)
    const changes: string[] = []
    engine.on('edit', (edit) => edit.key.id === own.keyId && changes.push(edit.body))
    engine.on('revoke', (gone) => gone.key.id === own.keyId && changes.push('revoked'))
    await engine.edit({ target: ownKey(own), body: 'changed' })
    await engine.revoke({ target: ownKey(own) })
    await until('both are told', () => changes.length === 2)
    t.same(changes, ['changed', 'revoked'])
    gone.push(key.id, own.keyId)
  })

  await t.test('tells of a call', async (t) => {
    const rang = nextEvent(engine, 'call')
    await rig.callByContact(engine)
    t.match((await rang)[0], { key: { fromMe: false, chatId: rig.customer }, video: true })
  })

  await t.test('tells of a message that cannot be read yet, then of the message', async (t) => {
    const placed = nextEvent(engine, 'placeholder')
    const came = nextEvent(engine, 'message', ({ key, body }) => !key.fromMe && body === 'at last')
    const edits: string[] = []
    const onEdit = ({ key }: { key: MessageKey }) => edits.push(key.id)
    engine.on('edit', onEdit)
    const id = await rig.receiveLate(engine, rig.customer, 'at last', placed)
    const [placeholder] = await placed
    t.match(placeholder, { key: { id }, pending: true, body: null, type: 'unknown' })
    t.match((await came)[0], { key: { id }, pending: false, type: 'text' })
    await receive({ from: rig.customer, content: text('afterwards') })
    engine.off('edit', onEdit)
    t.same(edits, [], 'which is no edit')
  })

  await t.test('describes media, and fetches them as they are', async (t) => {
    const bytes = randomBytes(7_000_001) // more than one part
    const content = { ...pdf, caption: 'the bill' }
    const { key, ...message } = await receive({ from: rig.customer, content, bytes })
    t.match(message, {
      type: 'document',
      body: 'the bill',
      media: {
        kind: 'document',
        mimeType: 'application/pdf',
        size: bytes.length,
        filename: 'bill.pdf',
        isVoice: false,
      },
    })
    const path = join(t.testdir(), 'fetched')
    t.same(await engine.download(key, path), { size: bytes.length })
    t.ok((await readFile(path)).equals(bytes))

    const voice = { ...content, type: 'voice' as const, mimeType: 'audio/ogg', caption: null }
    const spoken = await receive({ from: rig.customer, content: voice, bytes: randomBytes(99) })
    t.match(spoken, {
      type: 'voice',
      body: null,
      media: { kind: 'voice', isVoice: true, size: 99 },
    })
    await rig.expireMedia(engine, spoken.key)
    t.equal(await engine.download(spoken.key, path), 'expired')
    t.match(await fails(engine.download({ ...key, id: '3AFFFFFF' }, path)), {
      certainty: 'permanent',
      code: 'MESSAGE_NOT_FOUND',
    })
  })

  await t.test('knows people under both addresses', async (t) => {
    const expected = {
      waId: rig.customer,
      lid: rig.customerLid,
      phone: `+${rig.customer.slice(0, -5)}`,
      isBusiness: false,
    }
    t.match(await engine.contact(rig.customer), expected)
    t.match(await engine.contact(rig.customerLid), expected)
    t.equal(await engine.contact(rig.unregistered), null)
    t.match(await engine.people([rig.customer, rig.customerLid]), [
      { asked: rig.customer, ...expected },
      { asked: rig.customerLid, ...expected },
    ])
    t.same(await engine.people([]), [])
  })

  await t.test(
    'reads what happened of late, within limits, and says what is left out',
    async (t) => {
      const { key } = await receive({ from: rig.customer, content: text('newest') })
      const sinceSeconds = Math.floor(Date.now() / 1_000) - 3_600
      const all = await engine.recent({ sinceSeconds, limitPerChat: 1_000, maxChats: 100 })
      t.equal(all.truncated, false)
      t.ok(all.chats.length > 1)
      const chat = all.chats.find(({ chatId }) => chatId === key.chatId)
      t.equal(chat?.complete, true)
      t.match(chat?.messages.at(-1), { key, body: 'newest', pending: false })
      t.ok(chat?.messages.some((message) => message.key.fromMe))
      const revoked = chat?.messages.filter((message) => message.revoked)
      for (const id of gone) t.ok(revoked?.some((message) => message.key.id === id))

      const few = await engine.recent({ sinceSeconds, limitPerChat: 2, maxChats: 1 })
      t.equal(few.truncated, true)
      t.equal(few.chats.length, 1)
      t.match(few.chats[0], { complete: false, messages: { length: 2 } })
      const future = { sinceSeconds: sinceSeconds + 7_200, limitPerChat: 10, maxChats: 10 }
      t.same(await engine.recent(future), { chats: [], truncated: false })

      const active = await engine.chatsSince(sinceSeconds)
      t.same(
        active,
        all.chats.map(({ chatId, name, isGroup }) => ({ chatId, name, isGroup })),
      )
      t.same(await engine.chatsSince(future.sinceSeconds), [])
      t.same(await engine.history(key.chatId, { sinceSeconds, limit: 1_000 }), chat)
      const last = await engine.history(key.chatId, { sinceSeconds, limit: 1 })
      t.match(last, { complete: false, messages: [{ key }] })
      const none = await engine.history('12025559876@c.us', { sinceSeconds, limit: 10 })
      t.same([none.messages, none.complete], [[], true])
    },
  )

  await t.test('says when the link is lost, and sends what was written meanwhile', async (t) => {
    const lost = nextEvent(engine, 'link', (state) => state === 'lost')
    await rig.dropLink(engine)
    await lost
    const keyId = newKey()
    const receipt = await engine.send({ chatId: rig.customer, content: text('while away'), keyId })
    t.equal(receipt.ack, 0)
    const confirmed = nextEvent(engine, 'ack', (ack) => ack.keyId === keyId && ack.ack === 1)
    const restored = nextEvent(engine, 'link', (state) => state === 'restored')
    await rig.restoreLink(engine)
    await restored
    await confirmed
  })

  await t.test('keeps the login over a stop, and remembers what it sent', async (t) => {
    const keyId = newKey()
    await sendAndWait(engine, { chatId: rig.customer, content: text('before the stop'), keyId })
    const transmittedBefore = rig.transmissions(engine, keyId)
    await engine.stop()
    await engine.stop()
    t.match(
      await fails(engine.send({ chatId: rig.customer, content: text('x'), keyId: newKey() })),
      {
        certainty: 'transient',
        code: 'SESSION_NOT_READY',
      },
    )

    engine = rig.createEngine()
    let codes = 0
    engine.on('qr', () => (codes += 1))
    const ready = nextEvent(engine, 'ready')
    await engine.start()
    await ready
    t.equal(codes, 0)
    const found = await engine.find({ chatId: rig.customer, keyId })
    t.ok(found && found.ack >= 1, 'the message of before is found')
    const again = await engine.send({
      chatId: rig.customer,
      content: text('before the stop'),
      keyId,
    })
    t.ok(again.ack >= 1, 'and not sent again')
    t.equal(transmittedBefore, 1)
    t.equal(rig.transmissions(engine, keyId), rig.countsOn ? 1 : 0)
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
const text = (body: string) => ({ type: 'text' as const, body })
const ownKey = ({ chatId, keyId }: { chatId: string; keyId: string }): MessageKey => ({
  fromMe: true,
  chatId,
  id: keyId,
  participant: '',
})

const plainKinds = {
  text: text('*bold* https://example.com BEGIN:VCARD'),
  location: {
    type: 'location',
    latitude: 52.5163,
    longitude: 13.3777,
    name: 'Bakery',
    address: 'Pariser Platz 1',
  },
  'location without a name': { type: 'location', latitude: -33.9, longitude: 18.4 },
  'contact card': { type: 'contact', name: 'Ann; the baker, really', phone: '+12025550142' },
  poll: { type: 'poll', question: 'Tea?', options: ['yes', 'no'], multiple: false },
} satisfies Record<string, OutgoingContent>

/** MIME type, filename and caption of each kind of media. */
const mediaKinds: Record<MediaType, [string, string, string | null]> = {
  image: ['image/png', 'photo.png', 'look'],
  video: ['video/mp4', 'clip.mp4', null],
  document: ['application/pdf', 'Rechnung Ü.pdf', 'the bill'],
  audio: ['audio/mpeg', 'song.mp3', null],
  voice: ['audio/ogg; codecs=opus', 'voice.ogg', null],
  sticker: ['image/webp', 'sticker.webp', null],
}
const pdf = {
  type: 'document' as const,
  mimeType: 'application/pdf',
  filename: 'bill.pdf',
  caption: null,
  mediaId: 'm',
}

/** Sends, and waits until the server has confirmed. */
async function sendAndWait(engine: Engine, message: OutgoingMessage): Promise<Receipt> {
  let confirmed = false
  const listen = ({ keyId, ack }: { keyId: string; ack: number }) => {
    confirmed ||= keyId === message.keyId && ack >= 1
  }
  engine.on('ack', listen)
  const receipt = await engine.send(message)
  confirmed ||= receipt.ack >= 1
  await until('the server confirms', () => confirmed)
  engine.off('ack', listen)
  return receipt
}

async function fails(promise: Promise<unknown>): Promise<EngineError> {
  const outcome = await promise.then(
    () => new Error('It resolved.'),
    (error: unknown) => error,
  )
  if (outcome instanceof EngineError) return outcome
  throw outcome
}
