import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { Sql } from '../../shared/db.ts'
import { findMessage, listMessages } from '../../shared/messages.ts'
import { storeReceived } from '../../shared/inbox.ts'
import { claim } from '../../shared/claims.ts'
import { testDb } from '../../shared/test/db.ts'
import { keyIdOf } from '../../shared/wa-id.ts'
import { askToExpire } from '../../shared/jobs.ts'
import { listWorkers } from '../../shared/workers.ts'
import {
  askPairingCode,
  createSession,
  deleteSession,
  findSession,
  request,
  sessionHistory,
  takePairingCode,
  wantRunning,
  wantStopped,
} from '../../shared/wa-sessions.ts'
import { EngineError } from '../engine/engine.ts'
import type { OutgoingMessage } from '../engine/engine.ts'
import { until } from './waiting.ts'
import {
  accept,
  customer,
  givenSession,
  noPacing,
  startWorker,
  untilMessage,
  untilStatus,
} from './worker.ts'

void t.test('a session links, sends and receives', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir(), scanMs: 300 })

  const scanning = await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  t.equal(scanning.qrAttempt, 1)
  t.ok(scanning.qr?.startsWith('2@SIMULATED'))
  const session = await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  t.match(session, { qr: null, phone: /^\+999/, reason: null, pushName: 'Simulated Phone' })
  t.ok(session.connectedAt)

  const sent = await accept(sql, workspaceId, sessionId, 'Good morning')
  t.match(sent, { status: 'queued', waChatId: customer, waMessageId: null })
  worker.sender.nudge()
  const read = await untilMessage(sql, workspaceId, sent.id, ({ status }) => status === 'read')
  t.match(read, {
    ack: 3,
    attempts: 1,
    error: null,
    waMessageId: `true_${customer}_${keyIdOf(sent.id)}`,
  })
  t.ok(read.sentAt! <= read.deliveredAt! && read.deliveredAt! <= read.readAt!)
  t.same(await sql`select * from outbox`, [], 'nothing is left in the outbox')

  const { data } = await until('the answer is stored', async () => {
    const page = await listMessages(sql, workspaceId, sent.chatId, { limit: 10 })
    return page.data.length === 2 && page
  })
  t.match(data, [
    { direction: 'inbound', source: 'live', status: 'received', body: 'You wrote: Good morning' },
    { id: sent.id },
  ])
  t.match(await sql`select unread_count, last_message_id from chats`, [
    { unreadCount: 1, lastMessageId: data[0]!.id },
  ])

  const history = await sessionHistory(sql, workspaceId, sessionId, { limit: 10 })
  t.match(history.data, [
    { from: 'SCAN_QR_CODE', to: 'WORKING', worker: worker.id },
    { from: 'STARTING', to: 'SCAN_QR_CODE' },
    { from: 'STOPPED', to: 'STARTING' },
  ])
  const events = await sql<{ type: string }>`select distinct type from events order by type`
  t.same(
    events.map(({ type }) => type),
    ['chat.updated', 'message', 'message.ack', 'message.any', 'session.qr', 'session.status'],
  )
})

void t.test('a stopped session keeps its login and what waits to be sent', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')

  await wantStopped(sql, workspaceId, sessionId)
  await untilStatus(sql, workspaceId, sessionId, 'STOPPED')
  const waiting = await accept(sql, workspaceId, sessionId, 'later')
  t.match(waiting, { status: 'queued', heldBy: 'SESSION_STOPPED' })

  await wantRunning(sql, workspaceId, sessionId, 30)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await untilMessage(sql, workspaceId, waiting.id, ({ status }) => status === 'read')
  t.equal(worker.engines.length, 2)
  const codes = await sql`select 1 from wa_session_history where to_status = 'SCAN_QR_CODE'`
  t.equal(codes.length, 1, 'the second start asked for no code')
})

void t.test('a crashed engine is replaced, and messages leave afterwards', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')

  worker.engine().crash()
  const broken = await untilStatus(sql, workspaceId, sessionId, 'RECONNECTING')
  t.equal(broken.reason, 'BROWSER_CRASHED')
  const message = await accept(sql, workspaceId, sessionId, 'after the crash')
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await untilMessage(sql, workspaceId, message.id, ({ status }) => status === 'read')
})

void t.test('a lost link is told and waited out', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')

  worker.engine().dropLink()
  t.match(await untilStatus(sql, workspaceId, sessionId, 'RECONNECTING'), { reason: 'LINK_LOST' })
  worker.engine().restoreLink()
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  t.equal(worker.engines.length, 1, 'by the same engine')
})

void t.test('a link that stays lost is started afresh', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir(), startTimeoutMs: 300 })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  worker.engine().dropLink()
  await until('a second engine', () => worker.engines.length === 2)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
})

void t.test(
  'an engine that hangs is reloaded first, and replaced if that does not help',
  async (t) => {
    const { sql } = await testDb(t)
    const { workspaceId, sessionId } = await givenSession(sql)
    let reloads = 0
    const worker = startWorker(t, sql, {
      dataDir: t.testdir(),
      changeEngine: (engine) => {
        const [probe, reload] = [engine.probe.bind(engine), engine.reload.bind(engine)]
        let hung = worker.engines.length === 1
        engine.probe = async () => {
          if (hung) throw new EngineError('unknown', 'PAGE_UNRESPONSIVE', 'No answer.')
          return probe()
        }
        engine.reload = async () => {
          reloads += 1
          hung = false
          if (reloads > 1) throw new EngineError('unknown', 'PAGE_UNRESPONSIVE', 'No answer.')
          return reload()
        }
        return engine
      },
    })
    const reasons = async () => {
      const { data } = await sessionHistory(sql, workspaceId, sessionId, { limit: 50 })
      return data.filter(({ to }) => to === 'RECONNECTING').map(({ reason }) => reason)
    }
    await until('the first aid', async () => (await reasons()).length === 1)
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    t.same([reloads, worker.engines.length], [1, 1])

    worker.engine().emit('trouble', { reason: 'PAGE_CRASHED' })
    await until('a second engine', () => worker.engines.length === 2)
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    t.same(await reasons(), ['PAGE_CRASHED', 'PAGE_UNRESPONSIVE'])
    t.equal(reloads, 1, 'no first aid twice in a short time')
  },
)

void t.test('messages nobody confirms make the session suspect, once', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await accept(sql, workspaceId, sessionId, 'into the void', '12025550003@c.us')
  const { data } = await until('the suspicion', async () => {
    const page = await sessionHistory(sql, workspaceId, sessionId, { limit: 50 })
    return page.data.some(({ reason }) => reason === 'ACKS_STALLED') && page
  })
  t.match(data[0]?.detail ?? data[1]?.detail, /No server confirms/)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
})

void t.test('a start that goes nowhere ends as FAILED with its reason', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    startTimeoutMs: 50,
    changeEngine: (engine) => Object.assign(engine, { start: async () => {} }),
  })
  const failed = await untilStatus(sql, workspaceId, sessionId, 'FAILED')
  t.equal(failed.reason, 'START_TIMEOUT')
  t.equal(worker.engines.length, 3, 'after three attempts')
})

void t.test('without a browser the session says so, until somebody starts it again', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  let missing = true
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      if (!missing) return engine
      const start = async () => {
        throw new EngineError('transient', 'BROWSER_MISSING', 'No Chromium found.')
      }
      return Object.assign(engine, { start })
    },
  })
  const failed = await untilStatus(sql, workspaceId, sessionId, 'FAILED')
  t.equal(failed.reason, 'BROWSER_MISSING')
  t.equal(worker.engines.length, 1)
  const history = await sessionHistory(sql, workspaceId, sessionId, { limit: 1 })
  t.equal(history.data[0]?.detail, 'No Chromium found.')

  missing = false
  await wantRunning(sql, workspaceId, sessionId, 30)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
})

void t.test('codes nobody scans end with QR_TIMEOUT', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    maxQrCodes: 2,
    changeEngine: (engine) => Object.assign(engine, { scan: () => {} }),
  })
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  const later = (attempt: number) => ({
    value: 'ref,a,b,c,1',
    attempt,
    expiresAt: new Date(Date.now() + 9_000),
  })
  worker.engine().emit('qr', later(2))
  await until('the second code', async () => {
    const session = await findSession(sql, workspaceId, sessionId)
    return session?.qrAttempt === 2
  })
  worker.engine().emit('qr', later(3))
  const stopped = await untilStatus(sql, workspaceId, sessionId, 'STOPPED')
  t.match(stopped, { reason: 'QR_TIMEOUT', desiredState: 'stopped', qr: null })
})

void t.test('a device unlinked on the phone waits for a person', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir(), scanMs: 500 })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  worker.engine().logoutFromPhone()
  const out = await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
  t.match(out, { reason: 'LOGGED_OUT_ON_PHONE', desiredState: 'stopped' })
  await wantRunning(sql, workspaceId, sessionId, 30)
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
})

void t.test('a page that is unpaired and then asks for a scan was logged out', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await until(
    'there is a snapshot',
    async () => (await sql`select 1 from wa_snapshots where state = 'verified'`).length > 0,
  )
  worker.engine().logoutFromPhone('unpaired')
  const out = await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
  t.match(out, { reason: 'LOGGED_OUT_ON_PHONE', desiredState: 'stopped' })
  t.equal(worker.engines.length, 2, 'no older login is tried')
})

void t.test(
  'logout unlinks, also when the session is stopped; delete removes the login',
  async (t) => {
    const { sql } = await testDb(t)
    const { workspaceId, sessionId } = await givenSession(sql)
    const worker = startWorker(t, sql, { dataDir: t.testdir() })
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    await wantStopped(sql, workspaceId, sessionId)
    await untilStatus(sql, workspaceId, sessionId, 'STOPPED')
    await request(sql, workspaceId, sessionId, 'logout', 30)
    const out = await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
    t.equal(out.reason, 'LOGGED_OUT_BY_REQUEST')
    const done = await until('the wish is closed', async () => {
      const rows = await sql`select kind, error from wa_session_requests where done_at is not null`
      return rows.length > 0 && rows
    })
    t.match(done, [{ kind: 'logout', error: null }])

    await wantRunning(sql, workspaceId, sessionId, 30)
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    const waiting = await accept(sql, workspaceId, sessionId, 'too late')
    t.equal(await deleteSession(sql, workspaceId, sessionId), true)
    t.equal(await findSession(sql, workspaceId, sessionId), undefined)
    await until('the wish is fulfilled', async () => {
      const [row] =
        await sql`select 1 from wa_session_requests where kind = 'delete' and done_at is not null`
      return row
    })
    await until('the engine is gone', async () => {
      const [row] = await sql`select 1 from wa_sessions where owner is null`
      return row
    })
    const left = await findMessage(sql, workspaceId, waiting.id)
    t.ok(['cancelled', 'sending', 'sent', 'delivered', 'read'].includes(left!.status))
    t.ok(worker.engines.length >= 3)
  },
)

void t.test('what was accepted for one number never leaves from another', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const other = { waId: '9990000000001@c.us', lid: null, phone: '+9990000000001', pushName: null }
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      const scan = engine.scan.bind(engine)
      engine.scan = (account) => scan(worker.engines.length === 1 ? account : other)
      return engine
    },
  })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  worker.engine().logoutFromPhone()
  await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
  const doubtful = await accept(sql, workspaceId, sessionId, 'perhaps on its way')
  const waiting = await accept(sql, workspaceId, sessionId, 'from the old number')
  await sql`update outbox set state = 's', claimed_at = now() where message_id = ${doubtful.id}`
  await sql`update messages set status = 'sending' where id = ${doubtful.id}`

  await wantRunning(sql, workspaceId, sessionId, 30)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const refused = await untilMessage(
    sql,
    workspaceId,
    waiting.id,
    ({ status }) => status === 'failed',
  )
  t.equal(refused.error?.code, 'ACCOUNT_CHANGED')
  t.match(await findMessage(sql, workspaceId, doubtful.id), {
    status: 'unknown',
    errorCode: 'OUTCOME_UNKNOWN',
  })
  const fresh = await accept(sql, workspaceId, sessionId, 'from the new number')
  await untilMessage(sql, workspaceId, fresh.id, ({ status }) => status === 'read')
})

void t.test('a send that hangs holds up neither a stop nor a deletion', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  let hung = 0
  startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      const stop = engine.stop.bind(engine)
      engine.send = () => {
        hung += 1
        return new Promise((_, reject) => {
          engine.stop = async () => {
            reject(new EngineError('unknown', 'BROWSER_GONE', 'Closed.'))
            await stop()
          }
        })
      }
      engine.find = async () => null
      return engine
    },
  })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const { id } = await accept(sql, workspaceId, sessionId, 'hangs')
  await until('the send hangs', () => hung === 1)
  await deleteSession(sql, workspaceId, sessionId)
  const ended = await untilMessage(sql, workspaceId, id, ({ status }) => status !== 'sending')
  t.match(ended, { status: 'unknown', error: { code: 'OUTCOME_UNKNOWN' } })
  t.same(await sql`select 1 from outbox`, [])
})

void t.test('without a worker nothing is said to work', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`
    update wa_sessions set status = 'WORKING', owner = 'dead', lease_until = now() - interval '1 second'`
  t.match(await findSession(sql, workspaceId, sessionId), {
    status: 'RECONNECTING',
    reason: 'WORKER_LOST',
  })
  const message = await accept(sql, workspaceId, sessionId, 'hello')
  t.equal(message.heldBy, 'SESSION_RECONNECTING')
  await sql`update wa_sessions set status = 'SCAN_QR_CODE', qr = 'x'`
  t.match(await findSession(sql, workspaceId, sessionId), { status: 'STARTING' })
  for (const status of ['STARTING', 'RECONNECTING']) {
    await sql`update wa_sessions set status = ${status}, reason = 'BROWSER_CRASHED'`
    t.match(await findSession(sql, workspaceId, sessionId), { status, reason: 'WORKER_LOST' })
  }
})

void t.test('one wish to restart is one restart, however slow', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      const stop = engine.stop.bind(engine)
      engine.stop = async () => {
        await new Promise((resolve) => setTimeout(resolve, 300))
        await stop()
      }
      return engine
    },
  })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await request(sql, workspaceId, sessionId, 'restart', 30)
  await until('the wish is done', async () => {
    const [row] = await sql`select 1 from wa_session_requests where done_at is not null`
    return row
  })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  t.equal(worker.engines.length, 2)
})

void t.test('a restart asked for the moment it failed is heard', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  let missing = true
  startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      const { start, stop } = { start: engine.start.bind(engine), stop: engine.stop.bind(engine) }
      engine.start = async () => {
        if (missing) throw new EngineError('transient', 'BROWSER_MISSING', 'There is none.')
        await start()
      }
      // Its end takes longer than a person who sees that it failed.
      engine.stop = async () => {
        await new Promise((resolve) => setTimeout(resolve, 500))
        await stop()
      }
      return engine
    },
  })
  await untilStatus(sql, workspaceId, sessionId, 'FAILED')
  missing = false
  await request(sql, workspaceId, sessionId, 'restart', 30)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
})

void t.test('a fence that moved on stops every claim', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`update wa_sessions set status = 'WORKING', owner = 'w', fence = 7, lease_until = now() + interval '1 minute'`
  await accept(sql, workspaceId, sessionId, 'hello')
  t.same(await claim(sql, 'w', [{ id: sessionId, fence: 6 }], noPacing), [])
  t.same(await claim(sql, 'other', [{ id: sessionId, fence: 7 }], noPacing), [])

  await sql`update wa_sessions set owner = 'other', fence = 8`
  t.same(await claim(sql, 'w', [{ id: sessionId, fence: 7 }], noPacing), [])
  t.equal((await claim(sql, 'other', [{ id: sessionId, fence: 8 }], noPacing)).length, 1)
})

void t.test('a worker that slept through its lease sends nothing when it wakes', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  let awake = true
  const sends: string[] = []
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    ownsLease: () => awake,
    changeEngine: (engine) => {
      const send = engine.send.bind(engine)
      engine.send = (message) => {
        sends.push(textOf(message))
        return send(message)
      }
      return engine
    },
  })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  awake = false
  const { id } = await accept(sql, workspaceId, sessionId, 'claimed, then slept')
  worker.sender.nudge()
  await untilMessage(sql, workspaceId, id, ({ status }) => status === 'sending')
  t.same(sends, [])
  awake = true
  await untilMessage(sql, workspaceId, id, ({ status }) => status === 'read')
  t.same(sends, ['claimed, then slept'], 'looked up later, and sent once')
})

void t.test('a session given up for fear of losing it is taken again', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir(), leaseTtlMs: 3_000 })
  const before = await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  // As a renewal that came too late makes it: the engine is killed, and the lease held after all.
  await worker.abandonAll()
  await until('it works again, under a new fence', async () => {
    const session = await findSession(sql, workspaceId, sessionId)
    return session?.status === 'WORKING' && session.fence > before.fence
  })
})

void t.test('the same message reported at the same instant is stored once', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const session = { id: sessionId, workspaceId, fence: 0 }
  const message = {
    fromMe: false,
    waChatId: customer,
    keyId: '3AFF',
    participant: '',
    waMessageId: `false_${customer}_3AFF`,
    type: 'text' as const,
    body: 'once',
    timestamp: Math.floor(Date.now() / 1_000) + 86_400,
    ack: 1,
    senderName: null,
    chatName: null,
  }
  const stored = await Promise.all(
    Array.from({ length: 8 }, (_, n) =>
      storeReceived(sql, session, { ...message, waChatId: n % 2 ? customer : '77@lid' }),
    ),
  )
  t.equal(stored.filter((id) => id !== undefined).length, 1)
  t.match(await sql`select 1 from messages where created_at <= now()`, [{}], 'not in the future')
})

void t.test('a pairing code is answered, or the reason there is none', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  startWorker(t, sql, { dataDir: t.testdir(), scanMs: 1_000 })
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  const asked = await askPairingCode(sql, workspaceId, sessionId, '12025550100')
  const answer = await until('the code', () => takePairingCode(sql, asked))
  t.match(answer, { result: { code: 'SIMU1234' }, error: null })
  t.match(await takePairingCode(sql, asked), { result: null }, 'it is given once')

  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const late = await askPairingCode(sql, workspaceId, sessionId, '12025550100')
  t.match(await until('the refusal', () => takePairingCode(sql, late)), {
    result: null,
    error: 'No scan is waited for.',
  })
})

void t.test('a session nobody used for long expires, and can be started again', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  // Long enough to be seen before the scan.
  const worker = startWorker(t, sql, { dataDir: t.testdir(), scanMs: 500 })
  const working = await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  t.ok(working.expiresAt!.getTime() > Date.now() + 29 * 86_400_000)
  await sql`update wa_sessions set expires_at = now() - interval '1 day'`
  t.equal(await askToExpire(sql), 0, 'a connected one does not expire')
  await wantStopped(sql, workspaceId, sessionId)
  await untilStatus(sql, workspaceId, sessionId, 'STOPPED')
  await sql`update wa_sessions set expires_at = now() - interval '1 day'`

  t.equal(await askToExpire(sql), 1)
  t.equal(await askToExpire(sql), 0, 'the same wish twice is one wish')
  worker.supervisor.nudge()
  const expired = await untilStatus(sql, workspaceId, sessionId, 'EXPIRED')
  t.match(expired, { reason: 'UNUSED', desiredState: 'stopped' })
  t.equal(await askToExpire(sql), 0)

  await wantRunning(sql, workspaceId, sessionId, 30)
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  const again = await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  t.ok(again.expiresAt!.getTime() > Date.now(), 'with its time before it')
})

void t.test('a passkey that is asked for is said', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir(), scanMs: 500 })
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  worker.engine().emit('passkey')
  await untilStatus(sql, workspaceId, sessionId, 'PASSKEY_REQUIRED')
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
})

void t.test('an engine that grew too large is replaced', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    stableMs: 100,
    changeEngine: (engine) =>
      Object.assign(engine, { memory: async () => (worker.engines.length === 1 ? 2_000 : 500) }),
  })
  await until('a second engine', () => worker.engines.length === 2)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const history = await sessionHistory(sql, workspaceId, sessionId, { limit: 10 })
  t.ok(history.data.some(({ reason }) => reason === 'MEMORY_LIMIT'))
  await until('its weight', async () => {
    const [row] = await sql`select 1 from wa_sessions where memory_bytes = 500`
    return row
  })
})

void t.test('sessions are spread over the workers', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId } = await givenSession(sql, false)
  const dataDir = t.testdir()
  const workers = [1, 2, 3].map(() => startWorker(t, sql, { dataDir }))
  // A fair share is one among those that are there.
  const listed = async (workspace: string) =>
    (await listWorkers(sql, workspace, { limit: 50 })).data
  await until('all are there', async () => (await listed(workspaceId)).length === 3)
  for (const name of ['b', 'c', 'd', 'e', 'f', 'g']) {
    await createSession(sql, {
      workspaceId,
      name,
      engine: 'simulator',
      start: true,
      expiryDays: 30,
    })
  }
  await until('all are taken', async () => {
    const rows = await sql`select 1 from wa_sessions where status = 'WORKING'`
    return rows.length === 6
  })
  const report = await listed(workspaceId)
  t.same(
    report.map(({ owned, alive }) => ({ owned, alive })),
    workers.map(() => ({ owned: 2, alive: true })),
  )
  t.equal(report.flatMap(({ sessions }) => sessions).length, 6)
  t.same(
    (await listed(randomUUID())).flatMap(({ sessions }) => sessions),
    [],
  )
})

void t.test('what a dead worker left claimed is looked up before it is sent again', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const first = startWorker(t, sql, { dataDir })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const gone = await accept(sql, workspaceId, sessionId, 'went out')
  await untilMessage(sql, workspaceId, gone.id, ({ status }) => status === 'read')
  await first.stop()

  // As a SIGKILL between the send and its record leaves them: both claimed, one of them gone out. One at the most is on its way in a chat.
  const lost = await accept(sql, workspaceId, sessionId, 'never left', '12025550177@c.us')
  await sql`
    insert into outbox (message_id, workspace_id, session_id, chat_id)
    select id, workspace_id, session_id, chat_id from messages where id = ${gone.id}`
  await leaveClaimed(sql)
  await sql`update messages set status = 'queued', ack = null, attempts = 1, sent_at = null, delivered_at = null, read_at = null`

  const sends: string[] = []
  startWorker(t, sql, {
    dataDir,
    changeEngine: (engine) => {
      const send = engine.send.bind(engine)
      engine.send = (message) => {
        sends.push(message.keyId)
        return send(message)
      }
      return engine
    },
  })
  await untilMessage(sql, workspaceId, gone.id, ({ status }) => status === 'read')
  const resent = await untilMessage(sql, workspaceId, lost.id, ({ status }) => status === 'read')
  t.equal(resent.attempts, 2)
  t.same(sends, [keyIdOf(lost.id)], 'only the one that never left was sent, under its own id')
})

void t.test('how sure the engine is decides what becomes of a message', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const script = new Map<string, (() => EngineError)[]>([
    ['flaky', [() => new EngineError('transient', 'SEND_FAILED', 'not now')]],
    ['after all', [() => new EngineError('unknown', 'SEND_TIMEOUT', 'no answer')]],
  ])
  startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) => {
      const send = engine.send.bind(engine)
      engine.send = async (message) => {
        const failure = script.get(textOf(message))?.shift()?.()
        // A call that timed out went on in the page: the message is out.
        if (failure?.certainty === 'unknown') await send(message)
        if (failure) throw failure
        return send(message)
      }
      return engine
    },
  })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')

  const nowhere = await accept(sql, workspaceId, sessionId, 'hello?', '12025550001@c.us')
  const afterAll = await accept(sql, workspaceId, sessionId, 'after all')
  const flaky = await accept(sql, workspaceId, sessionId, 'flaky')
  const behind = await accept(sql, workspaceId, sessionId, 'behind')

  const failed = await untilMessage(
    sql,
    workspaceId,
    nowhere.id,
    ({ status }) => status === 'failed',
  )
  t.equal(failed.error?.code, 'NUMBER_NOT_ON_WHATSAPP')
  const known = await untilMessage(sql, workspaceId, afterAll.id, ({ status }) => status === 'read')
  t.equal(known.attempts, 1, 'found by its id, not sent twice')
  const held = await untilMessage(
    sql,
    workspaceId,
    flaky.id,
    ({ heldBy }) => heldBy === 'RETRY_BACKOFF',
  )
  t.ok(held.notBefore)
  const retried = await untilMessage(sql, workspaceId, flaky.id, ({ status }) => status === 'read')
  t.equal(retried.attempts, 2)
  const last = await untilMessage(sql, workspaceId, behind.id, ({ status }) => status === 'read')
  t.ok(retried.sentAt! <= last.sentAt!, 'nothing overtook it')
})

void t.test('acks only rise, and a refusal is a failure', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const sent = await accept(sql, workspaceId, sessionId, 'hi')
  await untilMessage(sql, workspaceId, sent.id, ({ status }) => status === 'read')
  for (const ack of [1, 2, -1, 0]) {
    worker.engine().emit('ack', { keyId: keyIdOf(sent.id), waMessageId: 'x', ack })
  }
  const refused = await accept(sql, workspaceId, sessionId, 'hi', '12025550002@c.us')
  const failed = await untilMessage(
    sql,
    workspaceId,
    refused.id,
    ({ status }) => status === 'failed',
  )
  t.equal(failed.error?.code, 'REFUSED_BY_WHATSAPP')
  t.match(await untilMessage(sql, workspaceId, sent.id, () => true), { status: 'read', ack: 3 })
})

void t.test('a message is stored once, however often it is reported', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const engine = worker.engine()
  engine.deliver(customer, 'once', '3AAA')
  engine.deliver(customer, 'once', '3AAA')
  engine.deliver('77712345678@lid', 'once', '3AAA')
  engine.deliver(customer, 'twice', '3AAB')
  await until('both are stored', async () => {
    const rows = await sql`select 1 from messages`
    return rows.length === 2
  })
  t.match(await sql`select unread_count from chats`, [{ unreadCount: 2 }], 'in one chat')
})

void t.test('a worker that stops hands its sessions over at once', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const first = startWorker(t, sql, { dataDir, leaseTtlMs: 60_000 })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await first.stop()
  const between = await findSession(sql, workspaceId, sessionId)
  t.match(between, { status: 'RECONNECTING', reason: 'WORKER_STOPPED', desiredState: 'running' })

  const second = startWorker(t, sql, { dataDir, leaseTtlMs: 60_000 })
  const taken = await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  t.ok(taken.fence > between!.fence)
  t.equal(second.engines.length, 1)
})

void t.test('an owner whose lease was taken kills its engine and writes nothing', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir(), leaseTtlMs: 60_000 })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const engine = worker.engine()
  let stopped = false
  const stop = engine.stop.bind(engine)
  engine.stop = async () => {
    await stop()
    stopped = true
  }
  const before = await sql`select count(*)::int as n from wa_session_history`

  await sql`update wa_sessions set owner = 'other', fence = fence + 1, lease_until = now() + interval '1 hour'`
  engine.deliver(customer, 'stale', '3AAC')
  engine.emit('link', 'lost')
  const queued = await accept(sql, workspaceId, sessionId, 'not by this one')

  await until('the engine is killed', () => stopped)
  t.same(await sql`select count(*)::int as n from wa_session_history`, before)
  t.same(await sql`select 1 from messages where direction = 'inbound'`, [])
  t.match(await findMessage(sql, workspaceId, queued.id), { status: 'queued', attempts: 0 })
  t.match(await findSession(sql, workspaceId, sessionId), { status: 'WORKING' })
})

const textOf = ({ content }: OutgoingMessage) => (content.type === 'text' ? content.body : '')

/** Messages as a worker leaves them that dies between the claim and the record. */
async function leaveClaimed(sql: Sql): Promise<void> {
  await sql`
    update outbox o set state = 's', claimed_by = 'dead', claimed_at = now(), attempts = 1, login_epoch = s.login_epoch
    from wa_sessions s where s.id = o.session_id`
  await sql`update outbox_lanes l set due_at = 'infinity', waiting = (select count(*) from outbox o where o.chat_id = l.chat_id)`
}
