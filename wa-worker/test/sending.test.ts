import { createHash, randomUUID } from 'node:crypto'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import t from 'tap'
import type { Test } from 'tap'
import type { MessageContent } from '../../shared/message-content.ts'
import { receiveUpload } from '../../shared/media-store.ts'
import { findMessage, messageResource } from '../../shared/messages.ts'
import type { Message } from '../../shared/messages.ts'
import { LocalObjectStore } from '../../shared/object-store-local.ts'
import { accept } from '../../shared/outbound.ts'
import type { NewMessage } from '../../shared/outbound.ts'
import { editQueued, retry } from '../../shared/waiting-messages.ts'
import type { Db } from '../../shared/db.ts'
import { StoreUnavailable } from '../../shared/object-store.ts'
import type { ObjectStore } from '../../shared/object-store.ts'
import { testDb } from '../../shared/test/db.ts'
import { FaultyStore } from '../../shared/test/faulty-store.ts'
import { actionAnswer, askAction } from '../../shared/wa-actions.ts'
import { findPacing } from '../../shared/pacing.ts'
import { matchWhole } from '../../shared/test/match.ts'
import { keyIdOf } from '../../shared/wa-id.ts'
import { findSession, wantRunning } from '../../shared/wa-sessions.ts'
import { EngineError } from '../engine/engine.ts'
import type { Engine, OutgoingMessage } from '../engine/engine.ts'
import type { SimulatorEngine } from '../engine/simulator.ts'
import { until } from './waiting.ts'
import { givenSession, startWorker } from './worker.ts'

const ada = '12025550101@c.us'

async function rig(t: Test, options: Partial<Parameters<typeof startWorker>[2]> = {}) {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const worker = startWorker(t, sql, { dataDir, ...options })
  await until('the session to work', async () => {
    const session = await findSession(sql, workspaceId, sessionId)
    return session?.status === 'WORKING'
  })
  const queue = async (
    waChatId: string,
    content: MessageContent | string,
    more: Partial<NewMessage> = {},
  ) => {
    const message: NewMessage = {
      waChatId,
      content: typeof content === 'string' ? { type: 'text', body: content } : content,
      ...more,
    }
    const [outcome] = await accept(sql, {
      workspaceId,
      sessionId,
      sentBy: null,
      requestId: randomUUID(),
      messages: [message],
    })
    if (!outcome || 'refusal' in outcome) throw new Error('not accepted')
    return outcome.message
  }
  const message = (id: string, what: string, fits: (message: Message) => boolean) =>
    until(what, async () => {
      const row = await findMessage(sql, workspaceId, id)
      const found = row && messageResource(row)
      return found && fits(found) && found
    })
  return { sql, workspaceId, sessionId, dataDir, worker, queue, message }
}

const is =
  (status: Message['status']) =>
  (message: Message): boolean =>
    message.status === status

const textOf = ({ content }: OutgoingMessage) => (content.type === 'text' ? content.body : '')

void t.test('every kind arrives as it was accepted', async (t) => {
  const { worker, queue, message } = await rig(t)
  const first = await queue(ada, 'Hello')
  await message(first.id, 'the first', is('read'))
  const contents: MessageContent[] = [
    { type: 'location', latitude: 52.5, longitude: 13.4, name: 'Office' },
    { type: 'contact', name: 'Cleo', phone: '+12025550103' },
    { type: 'poll', question: 'When?', options: ['Mon', 'Tue'], multiple: true },
  ]
  for (const content of contents) {
    const sent = await queue(ada, content, { quotedMessageId: first.id, mentions: [ada] })
    await message(sent.id, content.type, is('read'))
    const arrived = worker.engine().arrived(keyIdOf(sent.id))
    t.strictSame(arrived?.content, content)
    matchWhole(t, arrived, { quoted: { id: keyIdOf(first.id), fromMe: true }, mentions: [ada] })
  }
})

void t.test(
  'reactions, edits and deletions reach WhatsApp once the message is there',
  async (t) => {
    const { sql, workspaceId, sessionId, worker, queue, message } = await rig(t)
    const sent = await queue(ada, 'Helo')
    const wish = (kind: 'react' | 'edit' | 'revoke', payload: object) =>
      askAction(sql, { workspaceId, sessionId, chatId: sent.chatId }, {
        kind,
        messageId: sent.id,
        payload,
      } as Parameters<typeof askAction>[2])
    await wish('edit', { body: 'Hello' })
    await wish('react', { emoji: '👍' })
    const changed = await message(
      sent.id,
      'both',
      ({ editedAt, reactions }) => !!editedAt && reactions.length > 0,
    )
    matchWhole(t, changed, {
      body: 'Hello',
      reactions: [{ emoji: '👍', waId: 'me', fromMe: true }],
    })
    t.match(worker.engine().arrived(keyIdOf(sent.id)), {
      content: { body: 'Hello' },
      reactions: { '': '👍' },
    })
    await wish('react', { emoji: '' })
    await message(sent.id, 'no reaction', ({ reactions }) => reactions.length === 0)
    await wish('revoke', {})
    await message(sent.id, 'the deletion', ({ revokedAt }) => revokedAt !== null)
    t.equal(worker.engine().arrived(keyIdOf(sent.id))?.revoked, true)
    await wish('edit', { body: 'too late' })
    const refused = await message(
      sent.id,
      'the refusal',
      ({ actions }) => actions[0]?.status === 'failed',
    )
    matchWhole(t, refused, {
      ...{ body: 'Hello', error: null },
      actions: [{ kind: 'edit', value: 'too late', error: { code: 'NOT_EDITABLE' } }],
    })
    t.same(
      await sql`
      select type from events where type not in ('message', 'message.any', 'message.ack', 'chat.updated', 'session.status', 'session.qr') order by id`,
      [
        'message.edited',
        'message.reaction',
        'message.reaction',
        'message.revoked',
        'message.action',
      ].map((type) => ({ type })),
    )
  },
)

void t.test('a change nobody could make in its time is told of', async (t) => {
  const { sql, workspaceId, sessionId, worker, queue, message } = await rig(t)
  const sent = await queue(ada, 'Helo')
  await message(sent.id, 'the ack', is('read'))
  worker.engine().dropLink()
  await until(
    'no link',
    async () => (await sql`select from wa_sessions where status = 'RECONNECTING'`).length > 0,
  )
  const wish = { kind: 'edit', messageId: sent.id, payload: { body: 'Hello' } } as const
  await askAction(sql, { workspaceId, sessionId, chatId: sent.chatId }, wish)
  await sql`update wa_actions set expires_at = now()`
  const refused = await message(sent.id, 'the end', ({ actions }) => actions[0]?.error !== null)
  matchWhole(t, refused, {
    body: 'Helo',
    actions: [{ status: 'failed', error: { code: 'EXPIRED' } }],
  })
})

void t.test('seen, typing and a look-up of a number', async (t) => {
  const { sql, workspaceId, sessionId, worker, queue, message } = await rig(t)
  const { id, chatId } = await queue(ada, 'Hello')
  await message(id, 'the ack', is('read'))
  const session = { workspaceId, sessionId, chatId }
  await askAction(sql, session, { kind: 'typing', payload: { on: true } })
  await askAction(sql, session, { kind: 'seen', payload: {} })
  await until('both', () => worker.engine().signals.length === 2)
  t.same(worker.engine().signals, [
    { kind: 'typing', chatId: ada },
    { kind: 'seen', chatId: ada },
  ])
  const asked = await askAction(sql, session, {
    kind: 'check_number',
    payload: { phone: '5531987654321' },
  })
  const answer = await until('the answer', () => actionAnswer(sql, workspaceId, asked))
  t.match(answer, { result: { exists: true, waId: '553187654321@c.us' } })
})

void t.test('a stranger’s number is looked up once, and his answer finds its chat', async (t) => {
  const { sql, workspaceId, worker, queue, message } = await rig(t)
  let checks = 0
  const engine = worker.engine()
  const check = engine.checkNumber.bind(engine)
  engine.checkNumber = async (phone) => {
    checks += 1
    return check(phone)
  }
  const sent = await queue('5531987654321@c.us', 'Olá')
  await message(sent.id, 'the ack', is('read'))
  t.equal(sent.waChatId, '5531987654321@c.us', 'the chat keeps the number that was dialled')
  t.match(engine.arrived(keyIdOf(sent.id)), { key: { chatId: '553187654321@c.us' } })
  const [answer] = await until('the answer', async () => {
    const rows = await sql<{
      chatId: string
    }>`select chat_id from messages where direction = 'inbound'`
    return rows.length > 0 && rows
  })
  t.equal(answer!.chatId, sent.chatId)
  const again = await queue('5531987654321@c.us', 'Tudo bem?')
  await message(again.id, 'the ack', is('read'))
  t.equal(checks, 1)

  const nobody = await queue('12025550001@c.us', 'hello?')
  t.match(await message(nobody.id, 'the failure', is('failed')), {
    error: { code: 'NUMBER_NOT_ON_WHATSAPP' },
  })
  matchWhole(
    t,
    await sql`select phone, wa_id from wa_numbers where workspace_id = ${workspaceId} order by phone`,
    [
      { phone: '12025550001', waId: null },
      { phone: '5531987654321', waId: '553187654321@c.us' },
    ],
  )
  t.equal(engine.transmissions(keyIdOf(nobody.id)), 0)
})

void t.test('a check WhatsApp Web has lost does not keep a message back', async (t) => {
  const { worker, queue, message } = await rig(t)
  worker.engine().checkNumber = async () => {
    throw new EngineError('transient', 'MODULE_MISSING', 'WAWebQueryExistsJob')
  }
  const sent = await queue(ada, 'Hello')
  await message(sent.id, 'the ack', is('read'))
})

void t.test('typing is shown before a message, for as long as it takes', async (t) => {
  const { worker, queue, message } = await rig(t, { pacing: { WA_TYPING: true } })
  const sent = await queue(ada, 'Hello')
  await message(sent.id, 'the ack', is('read'))
  t.same(
    worker.engine().signals.map(({ kind }) => kind),
    ['typing', 'paused'],
  )
})

void t.test('a recipient who opted out after the message was accepted gets nothing', async (t) => {
  const { sql, worker, queue, message } = await rig(t)
  worker.engine().dropLink()
  await until(
    'no link',
    async () => (await sql`select from wa_sessions where status = 'RECONNECTING'`).length > 0,
  )
  const sent = await queue(ada, 'offer')
  await sql`update contacts set opted_out = true`
  worker.engine().restoreLink()
  t.match(await message(sent.id, 'the refusal', is('failed')), {
    error: { code: 'RECIPIENT_OPTED_OUT' },
  })
  t.equal(worker.engine().transmissions(keyIdOf(sent.id)), 0)
})

void t.test('who opts out while typing is shown gets nothing', async (t) => {
  const { sql, worker, queue, message } = await rig(t, { pacing: { WA_TYPING: true } })
  worker.engine().typing = async () => {
    await sql`update contacts set opted_out = true`
  }
  const sent = await queue(ada, 'offer')
  t.match(await message(sent.id, 'the refusal', is('failed')), {
    error: { code: 'RECIPIENT_OPTED_OUT' },
  })
  t.equal(worker.engine().transmissions(keyIdOf(sent.id)), 0)
})

void t.test('an opt-out holds for the number as it is dialled, too', async (t) => {
  const { sql, workspaceId, sessionId, worker, queue, message } = await rig(t)
  await sql`insert into contacts (workspace_id, session_id, wa_id, opted_out) values (${workspaceId}, ${sessionId}, '553187654321@c.us', true)`
  const sent = await queue('5531987654321@c.us', 'offer')
  t.match(await message(sent.id, 'the refusal', is('failed')), {
    error: { code: 'RECIPIENT_OPTED_OUT' },
  })
  t.equal(worker.engine().transmissions(keyIdOf(sent.id)), 0)
  await t.rejects(queue('5531987654321@c.us', 'offer'), { message: 'not accepted' }, 'it is known')
})

/** An engine that misbehaves over some messages. */
const spoiling =
  (spoil: (message: OutgoingMessage, engine: SimulatorEngine) => Promise<void>) =>
  (engine: SimulatorEngine): Engine => {
    const send = engine.send.bind(engine)
    engine.send = async (message) => {
      await spoil(message, engine)
      return send(message)
    }
    return engine
  }

void t.test('a message the page breaks down over is given up, the others are sent', async (t) => {
  let breaks = 0
  const { queue, message, worker } = await rig(t, {
    changeEngine: spoiling(async (message, engine) => {
      if (textOf(message) !== 'poison') return
      breaks += 1
      engine.crash()
      throw new EngineError('unknown', 'BROWSER_GONE', 'Target closed.')
    }),
  })
  // The third time comes after a pause in which the others go first; the test does not wait for it.
  const poison = await queue(ada, 'poison')
  const other = await queue('12025550102@c.us', 'fine')
  await message(other.id, 'the other', is('read'))
  await until('two tries', () => breaks >= 2)
  t.ok(worker.engines.length >= 2)
  const waiting = await message(poison.id, 'its pause', ({ heldBy }) => heldBy === 'RETRY_BACKOFF')
  t.ok(waiting.notBefore)
})

void t.test('the third breakdown over a message is its last', async (t) => {
  let breaks = 0
  const { sql, queue, message } = await rig(t, {
    changeEngine: spoiling(async (_message, engine) => {
      breaks += 1
      engine.crash()
      throw new EngineError('unknown', 'BROWSER_GONE', 'Target closed.')
    }),
  })
  const poison = await queue(ada, 'poison')
  await until('two tries', () => breaks === 2)
  await message(poison.id, 'its pause', ({ heldBy }) => heldBy === 'RETRY_BACKOFF')
  await sql`update outbox_lanes set due_at = now()`
  t.match(await message(poison.id, 'the end', is('failed')), { error: { code: 'PAGE_CRASHED' } })
  t.equal(breaks, 3)
})

void t.test(
  'what the page throws over is tried again, then given up; its chat goes on',
  async (t) => {
    const { sql, queue, message } = await rig(t)
    const poison = await queue('12025550008@c.us', 'poison')
    await message(poison.id, 'a try', ({ attempts }) => attempts >= 1)
    for (let tries = 1; tries < 5; tries += 1) {
      await message(
        poison.id,
        'a pause',
        ({ heldBy, attempts }) => heldBy === 'RETRY_BACKOFF' && attempts === tries,
      )
      await sql`update outbox_lanes set due_at = now()`
    }
    t.match(await message(poison.id, 'the end', is('failed')), {
      error: { code: 'SEND_FAILED' },
      attempts: 5,
    })
  },
)

void t.test(
  'a session that lacks what sending needs is healed, and the message is not blamed',
  async (t) => {
    let missing = true
    const { sql, queue, message } = await rig(t, {
      changeEngine: spoiling(async () => {
        if (!missing) return
        missing = false
        throw new EngineError('transient', 'MODULE_MISSING', 'WAWebSendMsgChatAction')
      }),
    })
    const sent = await queue(ada, 'Hello')
    t.match(await message(sent.id, 'the ack', is('read')), { attempts: 1 })
    matchWhole(
      t,
      await sql`select reason from wa_session_history where reason = 'MODULE_MISSING'`,
      [{ reason: 'MODULE_MISSING' }],
    )
  },
)

void t.test('what is never confirmed ends as unknown', async (t) => {
  const { worker, queue, message } = await rig(t, { unknownMs: 1_200 })
  const sent = await queue('12025550003@c.us', 'into the void')
  t.match(await message(sent.id, 'the end', is('unknown')), { error: { code: 'OUTCOME_UNKNOWN' } })
  worker.engine().emit('ack', { keyId: keyIdOf(sent.id), waMessageId: 'x', ack: 1 })
  t.match(await message(sent.id, 'the late ack', is('sent')), { error: null })
})

void t.test(
  'what is edited while it waits to be sent once more says what the phone says',
  async (t) => {
    const { sql, workspaceId, sessionId, worker, queue, message } = await rig(t)
    const { id, chatId } = await queue(ada, 'Helo')
    await message(id, 'the ack', is('read'))
    // Its acks were lost.
    await sql`
    update messages set status = 'unknown', ack = null, sent_at = null, delivered_at = null, read_at = null, error_code = 'OUTCOME_UNKNOWN' where id = ${id}`
    worker.engine().dropLink()
    await until(
      'no link',
      async () => (await sql`select from wa_sessions where status = 'RECONNECTING'`).length > 0,
    )
    await retry(sql, workspaceId, id)
    t.equal(await editQueued(sql, workspaceId, id, 'Hello'), undefined)
    const edit = { kind: 'edit', messageId: id, payload: { body: 'Hello' } } as const
    await askAction(sql, { workspaceId, sessionId, chatId }, edit)
    worker.engine().restoreLink()
    await message(id, 'the edit', ({ editedAt }) => editedAt !== null)
    t.equal(worker.engine().transmissions(keyIdOf(id)), 1)
    t.match(worker.engine().arrived(keyIdOf(id)), { content: { body: 'Hello' } })
    const { body, actions } = await message(id, 'the ack', is('read'))
    t.strictSame({ body, actions }, { body: 'Hello', actions: [] })
  },
)

void t.test(
  'under another login nobody knows what became of a message: the workspace’s policy decides',
  async (t) => {
    const { sql, workspaceId, sessionId, dataDir, worker, queue, message } = await rig(t)
    await worker.stop()
    const resent = await queue(ada, 'resent')
    const doubted = await queue('12025550102@c.us', 'doubted twice')
    await sql`update outbox set state = 's', claimed_by = 'dead', claimed_at = now(), attempts = 1, login_epoch = -1`
    await sql`update outbox set doubts = 1 where message_id = ${doubted.id}`
    await sql`update outbox_lanes set due_at = 'infinity'`
    const second = startWorker(t, sql, { dataDir })
    t.match(await message(resent.id, 'the second try', is('read')), { attempts: 2 })
    t.match(await message(doubted.id, 'the end', is('unknown')), {
      error: { code: 'OUTCOME_UNKNOWN' },
    })
    await second.stop()

    await sql`update workspaces set unknown_policy = 'at_most_once' where id = ${workspaceId}`
    const once = await queue(ada, 'at most once')
    await sql`update outbox set state = 's', claimed_by = 'dead', claimed_at = now(), attempts = 1, login_epoch = -1`
    await sql`update outbox_lanes set due_at = 'infinity' where waiting > 0`
    const third = startWorker(t, sql, { dataDir })
    t.match(await message(once.id, 'the end', is('unknown')), { attempts: 1 })
    t.equal(third.engine().transmissions(keyIdOf(once.id)), 0)
    t.match(await findSession(sql, workspaceId, sessionId), { status: 'WORKING' })
  },
)

void t.test('a new scan is another login', async (t) => {
  const { sql, workspaceId, sessionId, worker, queue, message } = await rig(t)
  await sql`update workspaces set unknown_policy = 'at_most_once'`
  const [before] = await sql<{ loginEpoch: number }>`select login_epoch from wa_sessions`
  worker.engine().logoutFromPhone()
  await until('the logout', async () => {
    const session = await findSession(sql, workspaceId, sessionId)
    return session?.status === 'LOGGED_OUT'
  })
  const { id } = await queue(ada, 'at most once')
  await sql`update outbox set state = 's', claimed_by = 'dead', claimed_at = now(), attempts = 1, login_epoch = ${before!.loginEpoch}`
  await sql`update outbox_lanes set due_at = 'infinity'`
  await wantRunning(sql, workspaceId, sessionId, 30)
  worker.supervisor.nudge()
  t.match(await message(id, 'the end', (it) => !['sending', 'queued'].includes(it.status)), {
    status: 'unknown',
    error: { code: 'OUTCOME_UNKNOWN' },
  })
  t.equal(worker.engine().transmissions(keyIdOf(id)), 0)
})

/** A text file of the workspace, stored. */
async function givenFile(sql: Db, workspaceId: string, dir: string, store: ObjectStore) {
  const bytes = Buffer.from('Opening hours: nine to five.\n'.repeat(1_000))
  const media = await receiveUpload(
    { sql, store, dir, quota: undefined },
    { filename: 'hours.txt', source: Readable.from([bytes]) },
    (upload) => upload.keep(workspaceId),
  )
  const content: MessageContent = {
    type: 'document',
    mediaId: media.id,
    mimeType: media.mimeType,
    filename: 'hours.txt',
    caption: 'Our hours',
  }
  return { bytes, media, content }
}

void t.test('files arrive as they were stored; one that is gone is said to be', async (t) => {
  const { sql, workspaceId, dataDir, worker, queue, message } = await rig(t)
  const store = new LocalObjectStore(join(dataDir, 'objects'))
  const { bytes, media, content } = await givenFile(sql, workspaceId, join(dataDir, 'up'), store)
  const sent = await queue(ada, content)
  await message(sent.id, 'the ack', is('read'))
  t.match(worker.engine().arrived(keyIdOf(sent.id)), {
    content: { filename: 'hours.txt', caption: 'Our hours' },
    sha256: createHash('sha256').update(bytes).digest('hex'),
  })
  t.same(await readdir(join(dataDir, 'tmp')), [], 'the copy that was sent is removed')

  await sql`update media set status = 'expired', object_id = null where id = ${media.id}`
  const other = await queue(ada, content)
  t.match(await message(other.id, 'the failure', is('failed')), { error: { code: 'MEDIA_GONE' } })
})

void t.test('what WhatsApp is not asked to send costs no new conversation', async (t) => {
  const { sql, workspaceId, sessionId, dataDir, worker, queue, message } = await rig(t, {
    pacing: { WA_NEW_CONTACTS_PER_DAY: 1 },
    changeEngine: spoiling(async ({ content }) => {
      if (content.type === 'text' && content.body === 'refused')
        throw new EngineError('permanent', 'INVALID_RECIPIENT', 'no')
    }),
  })
  const store = new LocalObjectStore(join(dataDir, 'objects'))
  const { media, content } = await givenFile(sql, workspaceId, join(dataDir, 'up'), store)
  await sql`update media set status = 'expired', object_id = null where id = ${media.id}`
  const openedToday = async () => (await findPacing(sql, workspaceId, sessionId))!.state

  worker.engine().dropLink()
  await until(
    'no link',
    async () => (await sql`select from wa_sessions where status = 'RECONNECTING'`).length > 0,
  )
  const optedOut = await queue('12025550103@c.us', 'offer')
  await sql`update contacts set opted_out = true`
  worker.engine().restoreLink()
  t.match(await message(optedOut.id, 'the refusal', is('failed')), {
    error: { code: 'RECIPIENT_OPTED_OUT' },
  })
  t.match(await openedToday(), { newContactsToday: 0, newContactsHeldUntil: null })

  const gone = await queue('12025550102@c.us', content)
  t.match(await message(gone.id, 'the refusal', is('failed')), { error: { code: 'MEDIA_GONE' } })
  t.match(await openedToday(), { newContactsToday: 0 })

  const refused = await queue(ada, 'refused')
  t.match(await message(refused.id, 'the refusal', is('failed')), {
    error: { code: 'INVALID_RECIPIENT' },
  })
  t.match(await openedToday(), { newContactsToday: 1 }, 'the page was asked')
})

void t.test('a media store that is away keeps messages waiting, and blames nobody', async (t) => {
  const dir = t.testdir()
  const mediaStore = new FaultyStore(new LocalObjectStore(join(dir, 'objects')))
  const { sql, workspaceId, queue, message } = await rig(t, { mediaStore })
  const { content } = await givenFile(sql, workspaceId, join(dir, 'up'), mediaStore)
  mediaStore.beforeGet = () => {
    throw new StoreUnavailable('timeout')
  }
  const sent = await queue(ada, content)
  const held = await message(sent.id, 'its wait', ({ heldBy }) => heldBy === 'RETRY_BACKOFF')
  t.match(held, { attempts: 0, error: null })
  mediaStore.heal()
  await sql`update outbox_lanes set due_at = now()`
  await message(sent.id, 'the ack', is('read'))
})

void t.test(
  'who opts out while a file is fetched gets nothing, though written to before',
  async (t) => {
    const dir = t.testdir()
    const mediaStore = new FaultyStore(new LocalObjectStore(join(dir, 'objects')))
    const { sql, workspaceId, worker, queue, message } = await rig(t, { mediaStore })
    const { content } = await givenFile(sql, workspaceId, join(dir, 'up'), mediaStore)
    const first = await queue(ada, 'Hello')
    await message(first.id, 'the ack', is('read'))
    mediaStore.beforeGet = async () => {
      await sql`update contacts set opted_out = true`
    }
    const sent = await queue(ada, content)
    t.match(await message(sent.id, 'the refusal', is('failed')), {
      error: { code: 'RECIPIENT_OPTED_OUT' },
    })
    t.equal(worker.engine().transmissions(keyIdOf(sent.id)), 0)
  },
)

void t.test('a media store that breaks off while a file is read for sending', async (t) => {
  const dir = t.testdir()
  const mediaStore = new FaultyStore(new LocalObjectStore(join(dir, 'objects')))
  const { sql, workspaceId, dataDir, worker, queue, message } = await rig(t, { mediaStore })
  const { bytes, content } = await givenFile(sql, workspaceId, join(dir, 'up'), mediaStore)
  const again = () => sql`update outbox_lanes set due_at = now()`

  mediaStore.changeResult = (source) =>
    breakingOff(source, () => {
      throw new StoreUnavailable('reset')
    })
  const sent = await queue(ada, content)
  const held = await message(sent.id, 'its wait', ({ heldBy }) => heldBy === 'RETRY_BACKOFF')
  t.match(held, { attempts: 0, error: null }, 'it waits, and is not to blame')

  // Some stores end early and say nothing.
  mediaStore.changeResult = (source) => breakingOff(source, () => {})
  await again()
  await message(sent.id, 'a try', ({ attempts, status }) => attempts > 0 && status === 'queued')
  t.equal(worker.engine().arrived(keyIdOf(sent.id)), undefined, 'half a file is not sent')
  t.same(await readdir(join(dataDir, 'tmp')), [], 'nor left behind')

  mediaStore.heal()
  await again()
  await message(sent.id, 'the ack', is('read'))
  t.match(worker.engine().arrived(keyIdOf(sent.id)), {
    sha256: createHash('sha256').update(bytes).digest('hex'),
  })
})

void t.test('a stored file that is not what it was is not sent, and it is said why', async (t) => {
  const dir = t.testdir()
  const mediaStore = new FaultyStore(new LocalObjectStore(join(dir, 'objects')))
  const { sql, workspaceId, worker, queue } = await rig(t, { mediaStore })
  const { content } = await givenFile(sql, workspaceId, join(dir, 'up'), mediaStore)
  mediaStore.changeResult = () => Readable.from([Buffer.from('something else')])
  const sent = await queue(ada, content)
  const failed = await until('the failure', async () => {
    await sql`update outbox_lanes set due_at = now()`
    const row = await findMessage(sql, workspaceId, sent.id)
    return row?.status === 'failed' && messageResource(row)
  })
  t.match(failed.error, { code: 'MEDIA_UNREADABLE', message: /not what was stored/ })
  t.equal(worker.engine().arrived(keyIdOf(sent.id)), undefined)
})

/** The beginning of a stream, and then `end`. */
const breakingOff = (source: Readable, end: () => void) =>
  Readable.from(
    (async function* () {
      for await (const chunk of source as AsyncIterable<Buffer>) {
        yield chunk.subarray(0, 5)
        break
      }
      end()
    })(),
    { objectMode: false },
  )
