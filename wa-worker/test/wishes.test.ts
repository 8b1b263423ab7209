import { rm, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import t from 'tap'
import type { Sql } from '../../shared/db.ts'
import { askToExpire } from '../../shared/jobs.ts'
import { LocalObjectStore } from '../../shared/object-store-local.ts'
import { testDb } from '../../shared/test/db.ts'
import {
  askPairingCode,
  deleteSession,
  findSession,
  request,
  sessionHistory,
  takePairingCode,
  wantRunning,
  wantStopped,
} from '../../shared/wa-sessions.ts'
import type { SessionStatus } from '../../shared/wa-sessions.ts'
import { failAlways, failOnce, script } from './failing-rows.ts'
import { until } from './waiting.ts'
import { givenSession, startWorker, untilStatus } from './worker.ts'

/** All that was wished is done, and nobody owns the session any more. */
const settled = (sql: Sql) =>
  until(
    'all wishes are done',
    async () => {
      const open = await sql`select 1 from wa_session_requests where done_at is null`
      const owned = await sql`select 1 from wa_sessions where owner is not null`
      return open.length + owned.length === 0
    },
    8_000,
  )

void t.test('a restart that something else overtook is not wished for ever', async (t) => {
  const { sql } = await testDb(t)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await until('a worker', async () => (await sql`select 1 from workers`).length === 1)
  for (const overtake of [
    wantStopped,
    deleteSession,
    (...[db, workspaceId, id]: Parameters<typeof wantStopped>) =>
      request(db, workspaceId, id, 'logout', 30),
  ]) {
    const { workspaceId, sessionId } = await givenSession(sql, false)
    await sql.begin(async (tx) => {
      await request(tx, workspaceId, sessionId, 'restart', 30)
      if (overtake === deleteSession) {
        await tx`update wa_sessions set deleted_at = now(), desired_state = 'stopped' where id = ${sessionId}`
        await tx`insert into wa_session_requests (workspace_id, session_id, kind) values (${workspaceId}, ${sessionId}, 'delete')`
      } else await overtake(tx, workspaceId, sessionId)
    })
    await settled(sql)
  }
  t.equal(worker.engines.length, 0, 'and nothing was started for it')
})

void t.test('a session that is started again does not expire', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const first = startWorker(t, sql, { dataDir })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await first.stop()
  // As it is when every worker is full: the wish to expire lies there, and a person wants the session back.
  for (const again of [wantRunning, restart]) {
    await wantStopped(sql, workspaceId, sessionId)
    await sql`update wa_sessions set expires_at = now() - interval '1 day', status = 'STOPPED'`
    t.equal(await askToExpire(sql), 1)
    const back = await again(sql, workspaceId, sessionId, 30)
    t.ok(back!.expiresAt! > new Date())
    const worker = startWorker(t, sql, { dataDir })
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    await worker.stop()
    t.same(await sql`select 1 from wa_session_requests where done_at is null`, [])
  }
  const { data } = await sessionHistory(sql, workspaceId, sessionId, { limit: 50 })
  t.notOk(data.some(({ to }) => to === 'EXPIRED'))
  t.equal(data.filter(({ to }) => to === 'SCAN_QR_CODE').length, 1, 'with the login it had')
})

const restart: typeof wantRunning = (sql, workspaceId, id, expiryDays) =>
  request(sql, workspaceId, id, 'restart', expiryDays)

void t.test('a login that nobody can open holds up neither logout nor deletion', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  startWorker(t, sql, { dataDir })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await wantStopped(sql, workspaceId, sessionId)
  await settled(sql)
  await sql`update wa_snapshots set key_id = 'lost'`
  await rm(join(dataDir, 'profiles', sessionId), { recursive: true })

  await request(sql, workspaceId, sessionId, 'logout', 30)
  await settled(sql)
  await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
  const [wish] = await sql<{ error: string }>`select error from wa_session_requests`
  t.match(wish?.error, /lost/, 'whoever wished it is told why WhatsApp was not')
  await deleteSession(sql, workspaceId, sessionId)
  await settled(sql)
  t.same(await sql`select 1 from wa_snapshots`, [])
})

void t.test('a step that fails half way leaves nothing that is not so', async (t) => {
  const { url, sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await failOnce(url, 'wa_session_history', `new.reason = 'BROWSER_CRASHED'`, '23514')
  worker.engine().crash()
  await until('a second engine', () => worker.engines.length === 2)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  const { data } = await sessionHistory(sql, workspaceId, sessionId, { limit: 50 })
  t.match(
    data.find(({ to }) => to === 'RECONNECTING'),
    { reason: 'STEP_FAILED' },
  )

  await failOnce(url, 'wa_session_history', `new.to_status = 'STOPPED'`, '23514')
  await wantStopped(sql, workspaceId, sessionId)
  await untilStatus(sql, workspaceId, sessionId, 'STOPPED')
})

void t.test('a worker whose last word fails still ends', async (t) => {
  const { url, sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await failOnce(url, 'wa_session_history', `new.reason = 'WORKER_STOPPED'`, '23514')
  await worker.stop()
  await t.rejects(worker.engine().probe(), 'its engine has ended')
})

void t.test(
  'a logout on the phone is told, also when the database is away just then',
  async (t) => {
    const { url, sql } = await testDb(t)
    const { workspaceId, sessionId } = await givenSession(sql)
    const worker = startWorker(t, sql, { dataDir: t.testdir() })
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    await until('a snapshot', async () => {
      return (await sql`select 1 from wa_snapshots where state = 'verified'`).length === 1
    })
    await failOnce(url, 'wa_snapshots', `new.state = 'archived'`, '57P01')
    worker.engine().logoutFromPhone()
    await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
    t.equal(worker.engines.length, 1)
    t.match(await sql`select distinct state from wa_snapshots`, [{ state: 'archived' }])
  },
)

void t.test('a worker that stops while it takes a session does not start it', async (t) => {
  const { url, sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql, false)
  const worker = startWorker(t, sql, { dataDir: t.testdir(), leaseTtlMs: 60_000 })
  await until('a worker', async () => (await sql`select 1 from workers`).length === 1)
  await script(
    url,
    `create function await_seven() returns trigger language plpgsql as
       $$ begin perform pg_advisory_xact_lock(7); return new; end $$;
     create trigger await_seven before update of owner on wa_sessions for each row
       when (old.owner is null and new.owner is not null) execute function await_seven()`,
  )
  await sql.begin(async (tx) => {
    await tx`select pg_advisory_xact_lock(7)`
    await wantRunning(sql, workspaceId, sessionId, 30)
    worker.supervisor.nudge()
    await until('it is taking the session', async () => {
      const waiting = await sql`select 1 from pg_locks where locktype = 'advisory' and not granted`
      return waiting.length > 0
    })
    void worker.stop()
  })
  await worker.stop()
  t.equal(worker.engines.length, 0)
  t.match(await sql`select owner, lease_until from wa_sessions`, [
    { owner: null, leaseUntil: null },
  ])
})

void t.test('an owner that gave its session up starts no engine for it', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const { dataDir, worker, hanging } = await withHangingStore(t, sql)
  await loseDisk(sql, workspaceId, join(dataDir, 'profiles', sessionId))
  hanging.on = true
  await request(sql, workspaceId, sessionId, 'logout', 30)
  await until('the login is being read', () => hanging.reads === 1)
  await worker.abandonAll()
  hanging.on = false
  hanging.release()
  await settled(sql)
  await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT')
  t.equal(worker.engines.length, 2, 'the first, and the one of the next owner')
})

for (const [what, end] of [
  ['stop', wantStopped],
  ['handover', undefined],
] as const) {
  void t.test(`a ${what} does not wait for a login that comes slowly`, async (t) => {
    const { sql } = await testDb(t)
    const { workspaceId, sessionId } = await givenSession(sql)
    const { dataDir, worker, hanging } = await withHangingStore(t, sql)
    await loseDisk(sql, workspaceId, join(dataDir, 'profiles', sessionId))
    hanging.on = true
    await wantRunning(sql, workspaceId, sessionId, 30)
    await until('the login is being read', () => hanging.reads === 1)
    t.match(await findSession(sql, workspaceId, sessionId), { status: 'STARTING' })
    if (end) {
      await end(sql, workspaceId, sessionId)
      await untilStatus(sql, workspaceId, sessionId, 'STOPPED')
    } else {
      await worker.stop()
      t.match(await findSession(sql, workspaceId, sessionId), { reason: 'WORKER_STOPPED' })
    }
    t.equal(worker.engines.length, 1)
  })
}

void t.test(
  'a login that comes too slowly is asked for again, for as long as it takes',
  async (t) => {
    const { sql } = await testDb(t)
    const { workspaceId, sessionId } = await givenSession(sql)
    const { dataDir, hanging } = await withHangingStore(t, sql, { startTimeoutMs: 1_500 })
    await loseDisk(sql, workspaceId, join(dataDir, 'profiles', sessionId))
    hanging.on = true
    await wantRunning(sql, workspaceId, sessionId, 30)
    // Each takes its time to fail, and there is a pause after it.
    await until('more tries than a session without a login has', () => hanging.reads > 4, 60_000)
    t.match(await findSession(sql, workspaceId, sessionId), {
      status: 'STARTING',
      reason: 'VAULT_UNAVAILABLE',
    })
    hanging.on = false
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  },
)

void t.test('a disk that fails is told as such, and not as the vault', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const { dataDir } = await withHangingStore(t, sql)
  await loseDisk(sql, workspaceId, join(dataDir, 'profiles', sessionId))
  await writeFile(join(dataDir, 'profiles', sessionId), 'no folder')
  await wantRunning(sql, workspaceId, sessionId, 30)
  await until('it is told', async () => {
    const { reason } = (await findSession(sql, workspaceId, sessionId))!
    return reason === 'DISK_FAILED'
  })
  await rm(join(dataDir, 'profiles', sessionId))
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
})

void t.test('two numbers asked for at once: no one gets the code of the other', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const calls: ((answer: { code: string; expiresAt: Date }) => void)[] = []
  startWorker(t, sql, {
    dataDir: t.testdir(),
    scanMs: 60_000,
    changeEngine: (engine) =>
      Object.assign(engine, {
        pairingCode: (phone: string) =>
          new Promise((resolve) => {
            calls.push(() => resolve({ code: `FOR-${phone}`, expiresAt: new Date() }))
          }),
      }),
  })
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  const first = await askPairingCode(sql, workspaceId, sessionId, '111')
  await until('the first is asked for', () => calls.length === 1)
  const second = await askPairingCode(sql, workspaceId, sessionId, '222')
  calls[0]!({ code: '', expiresAt: new Date() })
  await until('the second is asked for', () => calls.length === 2)
  calls[1]!({ code: '', expiresAt: new Date() })
  t.match(await until('the second answer', () => takePairingCode(sql, second)), {
    result: { code: 'FOR-222' },
    error: null,
  })
  t.match(await until('the first answer', () => takePairingCode(sql, first)), {
    result: null,
    error: /another number/,
  })
})

void t.test('a passkey asked for does not outlive whom it was asked of', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  await sql`
    update wa_sessions set status = 'PASSKEY_REQUIRED', reason = 'PASSKEY_ASKED', owner = 'dead', lease_until = now() - interval '1 second'`
  t.match(await findSession(sql, workspaceId, sessionId), {
    status: 'STARTING',
    reason: 'WORKER_LOST',
  })
  await wantStopped(sql, workspaceId, sessionId)
  const first = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'STOPPED')
  // It would scan the code at once.
  await first.stop()

  await sql`update wa_sessions set desired_state = 'running'`
  const worker = startWorker(t, sql, { dataDir: t.testdir(), maxQrCodes: 1, scanMs: 60_000 })
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  const engine = worker.engines.at(-1)
  if (!engine) return
  engine.emit('passkey')
  await untilStatus(sql, workspaceId, sessionId, 'PASSKEY_REQUIRED')
  engine.emit('qr', { value: '2@x', attempt: 2, expiresAt: new Date(Date.now() + 9_000) })
  t.match(await untilStatus(sql, workspaceId, sessionId, 'STOPPED'), { reason: 'QR_TIMEOUT' })
})

void t.test('first aid is there again after a stable while', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir(), stableMs: 300 })
  const troubles = async () => {
    const { data } = await sessionHistory(sql, workspaceId, sessionId, { limit: 50 })
    return data.filter(({ reason }) => reason === 'PAGE_CRASHED')
  }
  for (const nth of [1, 2, 3]) {
    const since = await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    await until('it is stable', () => Date.now() > since.since.getTime() + 600)
    worker.engine().emit('trouble', { reason: 'PAGE_CRASHED' })
    await until('the trouble is told', async () => (await troubles()).length === nth)
  }
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  t.equal(worker.engines.length, 1, 'the page was loaded anew each time')
})

void t.test('a wish that keeps failing is tried ever more rarely', async (t) => {
  const { url, sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql, false)
  const failures: number[] = []
  startWorker(t, sql, {
    dataDir: t.testdir(),
    backoff: (count) => {
      failures.push(count)
      return count < 3 ? 10 : 60_000
    },
  })
  await failAlways(url, 'wa_session_history', `new.to_status = 'LOGGED_OUT'`)
  await request(sql, workspaceId, sessionId, 'logout', 30)
  await until('three tries', () => failures.length >= 3)
  // Its worker looks at it at least once meanwhile.
  const beside = await givenSession(sql)
  await untilStatus(sql, beside.workspaceId, beside.sessionId, 'WORKING')
  t.same(failures, [1, 2, 3])

  await deleteSession(sql, workspaceId, sessionId)
  await until('another wish is tried at once', () => failures.length >= 4)
  t.equal(failures[3], 1)
})

void t.test('a stop that fails again and again leaves nothing that claims to work', async (t) => {
  const { url, sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const worker = startWorker(t, sql, { dataDir: t.testdir() })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await failAlways(url, 'wa_session_history', `new.to_status = 'STOPPED'`)
  await wantStopped(sql, workspaceId, sessionId)
  const ended = () =>
    worker
      .engine()
      .probe()
      .then(
        () => false,
        () => true,
      )
  await until('its engine has ended', ended)
  // Which would take it again at once.
  await worker.stop()
  t.match(await untilStatus(sql, workspaceId, sessionId, 'RECONNECTING'), { reason: 'WORKER_LOST' })
})

void t.test('what is asked for last is what comes', async (t) => {
  const { sql } = await testDb(t)
  const orders: [string[], SessionStatus][] = [
    [['logout', 'start'], 'WORKING'],
    [['logout', 'restart'], 'WORKING'],
    [['start', 'logout'], 'LOGGED_OUT'],
    [['restart', 'logout'], 'LOGGED_OUT'],
    [['logout', 'start', 'stop'], 'LOGGED_OUT'],
    [['stop', 'start'], 'WORKING'],
  ]
  const dataDir = t.testdir()
  for (const [commands, status] of orders) {
    const { workspaceId, sessionId } = await givenSession(sql)
    const before = startWorker(t, sql, { dataDir })
    await untilStatus(sql, workspaceId, sessionId, 'WORKING')
    await before.stop()
    for (const command of commands) {
      if (command === 'start') await wantRunning(sql, workspaceId, sessionId, 30)
      else if (command === 'stop') await wantStopped(sql, workspaceId, sessionId)
      else await request(sql, workspaceId, sessionId, command as 'logout' | 'restart', 30)
    }
    const worker = startWorker(t, sql, { dataDir })
    const what = `${commands.join(', ')}: ${status}`
    await until(what, async () => {
      const open = await sql`select 1 from wa_session_requests where done_at is null`
      const session = await findSession(sql, workspaceId, sessionId)
      return open.length === 0 && session?.status === status
    })
    const { data } = await sessionHistory(sql, workspaceId, sessionId, { limit: 50 })
    t.equal(
      data.some(({ to }) => to === 'LOGGED_OUT'),
      commands.includes('logout'),
      what,
    )
    await worker.stop()
    await sql`delete from wa_sessions`
  }
})

void t.test('a restart asked for while the codes run out is heard', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  let stopping = 0
  let release = () => {}
  const closing = new Promise<void>((resolve) => (release = resolve))
  t.teardown(() => release())
  const worker = startWorker(t, sql, {
    dataDir: t.testdir(),
    scanMs: 60_000,
    maxQrCodes: 1,
    changeEngine: (engine) => {
      const stop = engine.stop.bind(engine)
      return Object.assign(engine, {
        stop: async () => {
          stopping += 1
          await closing
          return stop()
        },
      })
    },
  })
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  worker.engine().emit('qr', { value: '2@x', attempt: 2, expiresAt: new Date() })
  await until('the browser is being closed', () => stopping === 1)
  await request(sql, workspaceId, sessionId, 'restart', 30)
  release()
  await until('a second engine', () => worker.engines.length === 2)
  await untilStatus(sql, workspaceId, sessionId, 'SCAN_QR_CODE')
  const { data } = await sessionHistory(sql, workspaceId, sessionId, { limit: 50 })
  t.match(
    data.map(({ reason }) => reason),
    [null, 'RESTART_REQUESTED', 'QR_TIMEOUT', null, null],
  )
})

void t.test('a logout that WhatsApp did not confirm is not told as one that it did', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  startWorker(t, sql, {
    dataDir: t.testdir(),
    changeEngine: (engine) =>
      Object.assign(engine, { logout: () => Promise.reject(new Error('no answer')) }),
  })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await request(sql, workspaceId, sessionId, 'logout', 30)
  t.match(await untilStatus(sql, workspaceId, sessionId, 'LOGGED_OUT'), {
    reason: 'LOGOUT_UNCONFIRMED',
  })
})

void t.test('a session does not work while its next owner unlinks the device', async (t) => {
  const { sql } = await testDb(t)
  const { workspaceId, sessionId } = await givenSession(sql)
  const dataDir = t.testdir()
  const first = startWorker(t, sql, { dataDir })
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await first.stop()
  await sql`
    update wa_sessions set status = 'WORKING', owner = 'dead', lease_until = now() - interval '1 second'`
  await request(sql, workspaceId, sessionId, 'logout', 30)
  const worker = startWorker(t, sql, {
    dataDir,
    changeEngine: (engine) => Object.assign(engine, { start: () => Promise.resolve() }),
  })
  await until('the login is being unlinked', () => worker.engines.length === 1)
  t.match(await findSession(sql, workspaceId, sessionId), {
    status: 'RECONNECTING',
    reason: 'WORKER_LOST',
  })
})

/** A worker whose store does not answer when it is asked for a login, while that is switched on. */
async function withHangingStore(
  t: Parameters<typeof startWorker>[0],
  sql: Sql,
  more: { startTimeoutMs?: number } = {},
) {
  const dataDir = t.testdir()
  const waiting: (() => void)[] = []
  const hanging = {
    on: false,
    reads: 0,
    release: () => {
      for (const go of waiting.splice(0)) go()
    },
  }
  const objects = new LocalObjectStore(join(dataDir, 'objects'))
  const get = objects.get.bind(objects)
  objects.get = async (...args) => {
    if (hanging.on) {
      hanging.reads += 1
      await new Promise<void>((resolve) => waiting.push(resolve))
    }
    return get(...args)
  }
  t.teardown(() => hanging.release())
  const worker = startWorker(t, sql, { dataDir, objects, ...more })
  return { dataDir, worker, hanging }
}

/** Stops a session that works, and loses its login's folder: the next start needs the vault. */
async function loseDisk(sql: Sql, workspaceId: string, profile: string): Promise<void> {
  const sessionId = basename(profile)
  await untilStatus(sql, workspaceId, sessionId, 'WORKING')
  await wantStopped(sql, workspaceId, sessionId)
  await settled(sql)
  await rm(profile, { recursive: true })
}
