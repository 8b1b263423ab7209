import { createHash } from 'node:crypto'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { listGaps } from '../../shared/backfill.ts'
import type { Sql } from '../../shared/db.ts'
import { createLogger } from '../../shared/logger.ts'
import { StoreRefused, StoreUnavailable } from '../../shared/object-store.ts'
import { LocalObjectStore } from '../../shared/object-store-local.ts'
import { accept } from '../../shared/outbound.ts'
import { findSession } from '../../shared/wa-sessions.ts'
import type { SessionStatus } from '../../shared/wa-sessions.ts'
import { testDb } from '../../shared/test/db.ts'
import { FaultyStore } from '../../shared/test/faulty-store.ts'
import { keyIdOf } from '../../shared/wa-id.ts'
import type { MessageKey } from '../../shared/wa-id.ts'
import { AckBook } from '../ack-book.ts'
import { Backfill } from '../backfill.ts'
import { EngineError } from '../engine/engine.ts'
import type { IncomingMessage, Recent, RecentChat } from '../engine/engine.ts'
import { plainMessage } from '../engine/plain-message.ts'
import { lidOf } from '../engine/simulator-contacts.ts'
import { SimulatorEngine } from '../engine/simulator.ts'
import { Receiver } from '../receiver.ts'
import { Spool } from '../spool.ts'
import { until } from './waiting.ts'
import { givenSession, startWorker } from './worker.ts'

const customer = '12025550100@c.us'
const silent = '12025550006@c.us'
const unheard = { unheard: true }

void t.test('what came while the browser or the page was away is read again', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  // Else the reading that each connection begins with may be there first.
  await untilAllRead(sql)
  worker.engine().deliver(customer, 'heard')
  await untilStored(sql, 1)

  for (const [n, interrupt] of (['crash', 'reload'] as const).entries()) {
    worker.engine().deliver(customer, `missed at a ${interrupt} 1`, undefined, unheard)
    worker.engine().deliver(customer, `missed at a ${interrupt} 2`, undefined, unheard)
    void worker.engine()[interrupt]()
    await untilStored(sql, 3 + 2 * n)
    // Interrupted before it has been reported, the stretch would be one with the next.
    await untilAllRead(sql)
  }

  const stored =
    await sql`select body, source, status, direction from messages order by created_at, seq`
  t.match(stored, [
    { body: 'heard', source: 'live' },
    ...['crash 1', 'crash 2', 'reload 1', 'reload 2'].map((body) => ({
      body: `missed at a ${body}`,
      source: 'backfill',
      status: 'received',
      direction: 'inbound',
    })),
  ])
  t.match(
    await sql`select unread_count, m.body from chats c join messages m on m.id = last_message_id`,
    [{ unreadCount: 5, body: 'missed at a reload 2' }],
  )
  const events =
    await sql`select payload->>'body' as body from events where type = 'message' order by id`
  t.same(
    events.map(({ body }) => body),
    stored.map(({ body }) => body),
  )

  const { data } = await listGaps(sql, workspaceId, sessionId, { limit: 10 })
  t.ok(data.length >= 2, 'each stretch is reported')
  t.match(data[0], { waChatId: customer, complete: true })
  t.ok(data[0]!.from < data[0]!.to)
})

void t.test('what came while no worker ran, and acks that nobody heard', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const first = startWorker(t, sql, { dataDir })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const [message] = await accept(sql, {
    workspaceId,
    sessionId,
    sentBy: null,
    requestId: 'test',
    messages: [{ waChatId: silent, content: { type: 'text', body: 'Good morning' } }],
  })
  if (!message || 'refusal' in message) throw new Error('not accepted')
  const { id } = message.message
  first.sender.nudge()
  await untilAck(sql, id, 2)
  // Long ago, so that its chat has no news.
  await sql`update messages set created_at = created_at - interval '1 hour' where id = ${id}`
  await first.stop()

  const phone = first.engine()
  phone.arrived(keyIdOf(id))!.ack = 3
  phone.arrived(keyIdOf(id))!.timestamp -= 3_600
  for (let n = 1; n <= 30; n++) phone.deliver(customer, `missed ${n}`, undefined, unheard)
  await settled(phone)
  startWorker(t, sql, { dataDir })

  await untilStored(sql, 30)
  await untilAck(sql, id, 3)
  const rows = await sql<{ body: string }>`
    select body from messages where direction = 'inbound' order by created_at, seq`
  t.same(
    rows.map(({ body }) => body),
    Array.from({ length: 30 }, (_, n) => `missed ${n + 1}`),
  )
  t.match(await sql`select status, ack, source from messages where id = ${id}`, [
    { status: 'read', ack: 3, source: 'api' },
  ])
})

void t.test(
  'the first link reads no old history, and a later one from where it ended',
  async (t) => {
    const { sql } = await testDb(t)
    const { workspaceId, sessionId } = await givenSession(sql)
    const asked: number[] = []
    const worker = startWorker(t, sql, {
      dataDir: t.testdir(),
      changeEngine: (engine) => {
        engine.recent = async ({ sinceSeconds }) => {
          asked.push(sinceSeconds)
          return { chats: [], truncated: false }
        }
        return engine
      },
    })
    const ago = (minutes: number) => Date.now() / 1_000 - 60 * minutes
    await until('it has read', () => asked.length === 1)
    t.ok(asked[0]! > ago(11) && asked[0]! < ago(9))
    await untilAllRead(sql)

    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    worker.engine().dropLink()
    await untilStatus(sql, workspaceId, sessionId, 'RECONNECTING')
    await sql`update wa_sessions set last_seen_at = now() - interval '3 hours'`
    worker.engine().restoreLink()
    await until('it has read again', () => asked.length === 2)
    t.ok(asked[1]! > ago(191) && asked[1]! < ago(189))
  },
)

void t.test('what is missed while another stretch is read is read, too', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  let interrupted = false
  startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      const read = engine.recent.bind(engine)
      engine.recent = async (options) => {
        const before = await read(options)
        if (interrupted) return before
        interrupted = true
        await untilStatus(sql, workspaceId, sessionId, 'WORKING')
        engine.deliver(customer, 'missed meanwhile', undefined, unheard)
        engine.dropLink()
        await untilStatus(sql, workspaceId, sessionId, 'RECONNECTING')
        engine.restoreLink()
        await untilStatus(sql, workspaceId, sessionId, 'WORKING')
        return before
      }
      return engine
    },
  })
  await untilStored(sql, 1)
})

void t.test('a reading that fails is tried again, from the same moment', async (t) => {
  const { sql } = await testDb(t)
  await givenSession(sql)
  const asked: number[] = []
  const late = incoming('late')
  startWorker(t, sql, {
    dataDir: t.testdir(),
    reading: { afterMs: [0, 50, 100] },
    changeEngine: (engine) => {
      engine.recent = async ({ sinceSeconds }) => {
        asked.push(sinceSeconds)
        if (asked.length === 1) throw new EngineError('unknown', 'READ_TIMEOUT', 'too slow')
        return recent([chat([late])])
      }
      return engine
    },
  })
  await until('it has read thrice', () => asked.length === 3)
  t.equal(new Set(asked).size, 1)
  await untilStored(sql, 1)
})

void t.test('what was typed on the phone, deleted, edited, or is not whole', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  let news = recent([])
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      engine.recent = async () => news
      return engine
    },
  })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const [edited, deleted] = ['before', 'oops'].map((body) =>
    worker.engine().deliver(customer, body),
  )
  await untilStored(sql, 2)

  const typed = incoming('from the phone', { fromMe: true, id: '3ATYPED', ack: 3 })
  news = recent(
    [
      chat([
        incoming('after', { id: edited!.id }),
        { ...incoming('', { id: deleted!.id }), body: null, type: 'unknown', revoked: true },
        typed,
        incoming('never left', { fromMe: true, id: '3APENDING', ack: 0 }),
      ]),
      chat([incoming('of many', { chatId: '12025550111@c.us' })], { complete: false }),
    ],
    true,
  )
  void worker.engine().reload()
  await until('it is there', async () => {
    const page = await listGaps(sql, workspaceId, sessionId, { limit: 10 })
    return page.data.length === 3 && page
  })

  const rows =
    await sql`select body, source, direction, status, revoked_at is not null as revoked, edited_at is not null as edited
    from messages order by seq`
  t.same(rows, [
    {
      body: 'after',
      source: 'live',
      direction: 'inbound',
      status: 'received',
      revoked: false,
      edited: true,
    },
    {
      body: 'oops',
      source: 'live',
      direction: 'inbound',
      status: 'received',
      revoked: true,
      edited: false,
    },
    {
      body: 'from the phone',
      source: 'backfill',
      direction: 'outbound',
      status: 'read',
      revoked: false,
      edited: false,
    },
    {
      body: 'of many',
      source: 'backfill',
      direction: 'inbound',
      status: 'received',
      revoked: false,
      edited: false,
    },
  ])
  const { data } = await listGaps(sql, workspaceId, sessionId, { limit: 10 })
  t.match(data, [
    { chatId: null, waChatId: null, complete: false },
    { chatId: String, waChatId: '12025550111@c.us', complete: false },
    { chatId: String, waChatId: customer, complete: true },
  ])
  const types = await sql<{ type: string }>`
    select type from events where type in ('message.edited', 'message.revoked') order by type`
  t.same(types, [{ type: 'message.edited' }, { type: 'message.revoked' }])
})

void t.test('nothing is written for an engine that is over', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`update wa_sessions set fence = 1, backfill_from = now()`
  const log = createLogger('test', { level: 'error', stdout: false })
  const receiver = new Receiver(sql, log, () => {}, new Spool(t.testdir()), new AckBook(sql))
  const backfill = new Backfill({ sql, log, receiver, afterMs: [0] })
  const engine = new SimulatorEngine({ sessionId, profileDir: async () => t.testdir(), scanMs: 0 })
  let answer: (recent: Recent) => void = () => {}
  const asked = new Promise<void>((resolve) => {
    engine.recent = () => {
      resolve()
      return new Promise((resolve) => (answer = resolve))
    }
  })
  backfill.open({ id: sessionId, workspaceId, fence: 1, worker: 'test' }, engine)
  await asked
  const closed = backfill.close(sessionId)
  answer(recent([chat([incoming('too late')])]))
  await closed
  t.same(await sql`select * from messages`, [])
  t.same(await sql`select * from wa_gaps`, [])
})

void t.test('changes to messages are recorded once, in whatever order they are told', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const engine = worker.engine()

  await t.test('an edit and a deletion', async (t) => {
    const key = engine.deliver(customer, 'helo')
    engine.editByContact(key, 'hello')
    await untilRow(sql, key, 'edited_at is not null')
    engine.emit('edit', { key, body: 'older', at: new Date(Date.now() - 60_000) })
    engine.revokeByContact(key)
    engine.revokeByContact(key)
    await untilRow(sql, key, 'revoked_at is not null')
    engine.emit('edit', { key, body: 'after the end', at: new Date() })
    engine.deliver(customer, 'after')
    await untilBody(sql, 'after')
    t.match(await sql`select body from messages where wa_key_id = ${key.id}`, [{ body: 'hello' }])
    t.same(await eventsOf(sql, key), [
      'message',
      'message.any',
      'message.edited',
      'message.revoked',
    ])
  })

  await t.test('reactions: the last one of a person counts', async (t) => {
    const key = engine.deliver(customer, 'look')
    const react = (emoji: string, secondsAgo: number, waId = customer) =>
      engine.emit('reaction', {
        target: key,
        emoji,
        waId,
        fromMe: waId === 'us',
        at: new Date(Date.now() - 1_000 * secondsAgo),
      })
    react('👍', 30)
    react('❤️', 20)
    react('👍', 30)
    react('😂', 10, 'us')
    react('', 5, 'us')
    react('😂', 10, 'us')
    engine.deliver(customer, 'after the reactions')
    await untilBody(sql, 'after the reactions')
    const [last] = await sql<{ payload: { reactions: object[] } }>`
      select payload from events where type = 'message.reaction' order by id desc limit 1`
    t.match(last!.payload.reactions, [{ emoji: '❤️', waId: customer, fromMe: false }])
    t.equal((await eventsOf(sql, key)).filter((type) => type === 'message.reaction').length, 4)
  })

  await t.test('votes, a call, a place, an answer that mentions', async (t) => {
    const poll = engine.deliver(customer, {
      type: 'poll',
      question: 'When?',
      options: ['now', 'later'],
      multiple: false,
    })
    engine.voteByContact(poll, customer, ['now'])
    engine.voteByContact(poll, customer, ['later'])
    engine.callByContact(customer, true)
    engine.deliver(customer, { type: 'location', latitude: 1.5, longitude: -2, name: 'Shop' })
    engine.deliver(customer, 'that one', undefined, { quoted: poll, mentions: [silent] })
    await untilBody(sql, 'that one')
    const [voted] = await sql<{ payload: { poll: object } }>`
      select payload from events where type = 'message.reaction' order by id desc limit 1`
    t.match(voted!.payload.poll, {
      question: 'When?',
      votes: [{ waId: customer, options: ['later'], fromMe: false }],
    })
    const rows = await sql`
      select m.type, m.body, m.content, m.mentions, q.wa_key_id as quoted from messages m
      left join messages q on q.id = m.quoted_message_id
      where m.seq > (select seq from messages where wa_key_id = ${poll.id}) order by m.seq`
    t.match(rows, [
      { type: 'system', body: 'Video call' },
      { type: 'location', content: { latitude: 1.5, longitude: -2, name: 'Shop' } },
      { body: 'that one', quoted: poll.id, mentions: [silent] },
    ])
  })

  await t.test('what is told before its message is made when that comes', async (t) => {
    const early = (id: string, chatId = customer) => ({
      ...{ fromMe: false, chatId, id, participant: '' },
    })
    const now = () => new Date()
    engine.emit('edit', { key: early('3AE1'), body: 'edited', at: now() })
    for (const emoji of ['👍', '🎉']) {
      const by = { emoji, waId: customer, fromMe: false, at: now() }
      engine.emit('reaction', { target: early('3AE1'), ...by })
      engine.emit('reaction', { target: early('3AE1'), ...by })
    }
    engine.emit('revoke', { key: early('3AE2'), at: now() })
    const vote = { options: ['now'], waId: customer, fromMe: false, at: now() }
    engine.emit('pollVote', { poll: early('3AE3'), ...vote })
    engine.deliver(customer, 'after the changes')
    await untilBody(sql, 'after the changes')
    const timestamp = Math.floor(Date.now() / 1_000)
    const poll = { question: 'When?', options: ['now'], multiple: true }
    for (const message of [
      plainMessage(early('3AE1'), { timestamp, type: 'text', body: 'as it was' }),
      plainMessage(early('3AE2'), { timestamp, type: 'text', body: 'taken back' }),
      plainMessage(early('3AE3'), { timestamp, type: 'poll', body: 'When?', poll }),
    ]) {
      engine.emit('message', message)
    }
    engine.deliver(customer, 'after their messages')
    await untilBody(sql, 'after their messages')
    t.same(await eventsOf(sql, early('3AE1')), [
      ...['message', 'message.any', 'message.edited', 'message.reaction', 'message.reaction'],
    ])
    const [last] = await sql<{ payload: { body: string; reactions: object[] } }>`
      select payload from events where payload->>'waMessageId' like '%3AE1' order by id desc limit 1`
    t.match(last!.payload, { body: 'edited', reactions: [{ emoji: '🎉', waId: customer }] })
    t.equal(last!.payload.reactions.length, 1)
    t.same((await eventsOf(sql, early('3AE2'))).at(-1), 'message.revoked')
    t.match(
      await sql`select options from poll_votes v join messages m on m.id = v.message_id where m.wa_key_id = '3AE3'`,
      [{ options: ['now'] }],
    )
    t.same(await sql`select from early_changes`, [])
  })

  await t.test('nobody changes the message of somebody else by its id', async (t) => {
    const group = '120363000000000009@g.us'
    const key = engine.deliver(customer, 'what I said', undefined, { group })
    await untilBody(sql, 'what I said')
    const direct = engine.deliver(customer, 'what I said to you')
    await untilBody(sql, 'what I said to you')
    const stranger = '12025550117@c.us'
    engine.deliver(stranger, 'I know your ids')
    for (const person of [customer, stranger]) {
      await until('both addresses are known', async () => {
        const rows = await sql`
          select from contacts where wa_id = ${person} and phone is not null and lid is not null`
        return rows.length > 0
      })
    }
    for (const forged of [
      { ...key, chatId: silent, participant: '' },
      { ...key, participant: silent },
      { ...key, chatId: '120363000000000010@g.us' },
      { ...direct, chatId: silent },
      { ...direct, chatId: group, participant: '' },
      // Of the other kind, but known to be somebody else's.
      { ...direct, chatId: lidOf(stranger) },
      { ...key, participant: lidOf(stranger) },
    ]) {
      engine.emit('edit', { key: forged, body: 'what I never said', at: new Date() })
      engine.emit('revoke', { key: forged, at: new Date() })
    }
    // The same person, under the other address.
    engine.emit('reaction', {
      target: { ...key, participant: lidOf(customer) },
      ...{ emoji: '👍', waId: silent, fromMe: false, at: new Date() },
    })
    engine.emit('reaction', {
      target: { ...direct, chatId: lidOf(customer) },
      ...{ emoji: '👍', waId: silent, fromMe: false, at: new Date() },
    })
    engine.deliver(customer, 'after the forgeries')
    await untilBody(sql, 'after the forgeries')
    t.match(await sql`select body, revoked_at from messages where wa_key_id = ${key.id}`, [
      { body: 'what I said', revokedAt: null },
    ])
    t.equal((await eventsOf(sql, key)).at(-1), 'message.reaction')
    t.match(await sql`select body, revoked_at from messages where wa_key_id = ${direct.id}`, [
      { body: 'what I said to you', revokedAt: null },
    ])
    t.equal((await eventsOf(sql, direct)).at(-1), 'message.reaction')
  })

  await t.test('a message that becomes readable is one row, and told when it is', async (t) => {
    const id = '3ALATE'
    const key = engine.deliver(customer, 'finally', id, { placeholder: true })
    await untilRow(sql, key, `type = 'unknown'`)
    engine.deliver(customer, 'finally', id)
    await untilBody(sql, 'finally')
    engine.deliver(customer, 'finally', id)
    engine.deliver(customer, 'after that')
    await untilBody(sql, 'after that')
    t.match(await sql`select type, body from messages where wa_key_id = ${id}`, [
      { type: 'text', body: 'finally' },
    ])
    t.same(await eventsOf(sql, key), ['message.any', 'message', 'message.any'])
  })
})

void t.test('media follows its message, with tries of its own', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  let failures = 0
  let downloads = 0
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      const download = engine.download.bind(engine)
      engine.download = async (key, path) => {
        downloads += 1
        if (failures === 0) return download(key, path)
        failures -= 1
        throw new EngineError('transient', 'DOWNLOAD_FAILED', 'not now')
      }
      return engine
    },
  })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const engine = worker.engine()
  const document = (name: string) => ({
    type: 'document' as const,
    mimeType: 'text/plain',
    filename: name,
    caption: 'Here',
    mediaId: '',
  })
  const receive = async (
    name: string,
    bytes = Buffer.from(`The text of ${name}`),
    expire = false,
  ) => {
    const key = engine.deliver(customer, document(name), undefined, {
      bytes,
      ...(expire && unheard),
    })
    if (expire) {
      engine.expireMedia(key)
      engine.deliver(customer, 'after it')
      void engine.reload()
    }
    return until(`${name} is settled`, async () => {
      const [row] = await sql<{
        status: string
        type: string
        body: string
        sha256: string | null
      }>`
        select f.status, m.type, m.body, f.sha256 from messages m join media f on f.id = m.media_id where m.wa_key_id = ${key.id}`
      return row !== undefined && row.status !== 'pending' && row
    })
  }

  t.match(await receive('one.txt'), { status: 'ready', type: 'document', body: 'Here' })
  const [told] = await until('it is told', () =>
    sql<{ payload: object }>`select payload from events where type = 'media.ready'`.then(
      (rows) => rows.length > 0 && rows,
    ),
  )
  t.match(told!.payload, { status: 'ready', filename: 'one.txt', mimeType: 'text/plain' })
  const events = await sql<{ payload: object }>`
    select payload from events where type = 'message' order by id limit 1`
  t.match(events[0]!.payload, { media: { status: 'pending', kind: 'document' } })

  failures = 1
  t.match(await receive('again.txt'), { status: 'ready' })
  failures = 2
  t.match(await receive('never.txt'), { status: 'failed', sha256: null })
  const before = downloads
  t.match(await receive('large.txt', Buffer.alloc(1_001, 'a')), { status: 'failed' })
  t.equal(downloads, before, 'what is too large is not fetched')
  t.match(await receive('gone.txt', undefined, true), { status: 'expired' })
  t.same(await sql`select * from media_fetches`, [])
})

void t.test('an inbound file waits while the store is away, refuses or breaks off', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const mediaStore = new FaultyStore(new LocalObjectStore(join(dataDir, 'objects')))
  const worker = startWorker(t, sql, { dataDir, mediaStore })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const file = async (id: string) => {
    const [row] = await sql<{ status: string; sha256: string | null }>`
      select f.status, f.sha256 from messages m join media f on f.id = m.media_id where m.wa_key_id = ${id}`
    return row
  }
  const waits = () =>
    until('the file waits', async () => {
      const rows = await sql<{ attempts: number }>`
        select attempts from media_fetches where due_at > now() + interval '5 seconds'`
      return rows[0]
    })
  const faults: [string, () => void][] = [
    ['is away', () => (mediaStore.beforePut = fail(new StoreUnavailable('timeout')))],
    ['refuses', () => (mediaStore.beforePut = fail(new StoreRefused(403, 'wrong key')))],
    ['has no room', () => (mediaStore.afterPut = fail(new Error('ENOSPC')))],
  ]
  for (const [what, begin] of faults) {
    begin()
    const bytes = Buffer.from(`The store ${what}`)
    const content = {
      type: 'document' as const,
      mimeType: 'text/plain',
      filename: 'a.txt',
      caption: what,
      mediaId: '',
    }
    const { id } = worker.engine().deliver(customer, content, undefined, { bytes })
    t.match(await waits(), { attempts: 0 }, `${what}: it waits, and no try is counted`)
    t.match(await file(id), { status: 'pending' })
    mediaStore.heal()
    await sql`update media_fetches set due_at = now()`
    const stored = await until('it is there', async () => {
      const row = await file(id)
      return row?.status === 'ready' && row
    })
    t.equal(stored.sha256, createHash('sha256').update(bytes).digest('hex'), what)
    await until('nothing is left', async () => (await readdir(join(dataDir, 'tmp'))).length === 0)
  }
})

const fail = (error: Error) => () => {
  throw error
}

interface Part {
  id?: string
  chatId?: string
  fromMe?: boolean
  ack?: number
}

let made = 0

function incoming(body: string, part: Part = {}): IncomingMessage {
  const { chatId = customer, fromMe = false, ack = 1, id = `3AMADE${(made += 1)}` } = part
  const timestamp = Math.floor(Date.now() / 1_000) - 60
  return plainMessage(
    { fromMe, chatId, id, participant: '' },
    { type: 'text', body, timestamp, ack },
  )
}

const chat = (messages: IncomingMessage[], more: Partial<RecentChat> = {}): RecentChat => ({
  chatId: messages[0]!.key.chatId,
  name: null,
  isGroup: false,
  messages,
  complete: true,
  ...more,
})

const recent = (chats: RecentChat[], truncated = false): Recent => ({ chats, truncated })

/** Whatever the simulated phone has got is on its disk when it has stopped. */
const settled = (engine: SimulatorEngine) => engine.stop()

async function untilStatus(
  sql: Sql,
  workspaceId: string,
  sessionId: string,
  status: SessionStatus,
): Promise<void> {
  await until(`status ${status}`, async () => {
    const session = await findSession(sql, workspaceId, sessionId)
    return session?.status === status
  })
}

async function untilStored(sql: Sql, inboundOrTyped: number): Promise<void> {
  await until(`${inboundOrTyped} messages`, async () => {
    const rows = await sql`select from messages where source <> 'api'`
    return rows.length === inboundOrTyped
  })
}

/** Waits until nothing that was missed is outstanding. */
async function untilAllRead(sql: Sql): Promise<void> {
  await until('nothing is outstanding', async () => {
    const [row] = await sql`select backfill_from from wa_sessions`
    return row!['backfillFrom'] === null
  })
}

async function untilAck(sql: Sql, id: string, ack: number): Promise<void> {
  await until(`ack ${ack}`, async () => {
    const [row] = await sql<{ ack: number | null }>`select ack from messages where id = ${id}`
    return row?.ack === ack
  })
}

const untilBody = (sql: Sql, body: string) =>
  until(`"${body}" is stored`, async () => {
    const rows = await sql`select from messages where body = ${body}`
    return rows.length > 0
  })

async function untilRow(sql: Sql, { id }: MessageKey, what: string): Promise<void> {
  await until(what, async () => {
    const [row] = await sql<{ type: string; editedAt: Date | null; revokedAt: Date | null }>`
      select type, edited_at, revoked_at from messages where wa_key_id = ${id}`
    if (what.startsWith('edited')) return row?.editedAt
    return what.startsWith('revoked') ? row?.revokedAt : row?.type === 'unknown'
  })
}

async function eventsOf(sql: Sql, { id }: MessageKey): Promise<string[]> {
  const rows = await sql<{ type: string }>`
    select e.type from events e join messages m on m.id::text = e.payload->>'id'
    where m.wa_key_id = ${id} order by e.id`
  return rows.map(({ type }) => type)
}
