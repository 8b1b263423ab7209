import { once, EventEmitter } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { connect as openSocket, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { join } from 'node:path'
import Joi from 'joi'
import pg from 'pg'
import t from 'tap'
import type { Test } from 'tap'
import { baseSchema, ConfigError, readEnv } from '../config.ts'
import type { BaseConfig } from '../config.ts'
import { connect, fragment } from '../db.ts'
import type { Tag } from '../db.ts'
import { isDatabaseAway, pgCode, violated } from '../db-errors.ts'
import { removeExpired, runOnce } from '../jobs.ts'
import { listen } from '../listener.ts'
import { createLogger } from '../logger.ts'
import { migrate, migrationStatus, readMigrations } from '../migrations.ts'
import { createNotifier } from '../notify.ts'
import { encodeCursor, highestFirst, newestFirst, newestPage, numberedPage } from '../pagination.ts'
import type { Page, PageWish } from '../pagination.ts'
import { testDb } from './db.ts'
import { until } from './until.ts'

const log = createLogger('test', { level: 'fatal', stdout: false })

void t.test('values are parameters, fragments are SQL, rows are camelCase', async (t) => {
  const { sql } = await testDb(t)
  const filter = fragment`where n > ${1} and n < ${4}`
  const hostile = `'; drop table workspaces; --`
  const rows = await sql`
    select n as my_number, ${hostile}::text as given_text, ${10}::bigint as big
    from generate_series(1, 5) n ${filter} ${fragment``} order by n`
  t.same(rows, [
    { myNumber: 2, givenText: hostile, big: 10 },
    { myNumber: 3, givenText: hostile, big: 10 },
  ])
})

void t.test('a transaction is whole or nothing, and nests', async (t) => {
  const { sql } = await testDb(t)
  await t.rejects(
    sql.begin(async (tx) => {
      await tx`insert into workspaces (name) values ('a')`
      await tx.begin((inner) => inner`insert into workspaces (name) values ('b')`)
      throw new Error('no')
    }),
    { message: 'no' },
  )
  t.same(await sql`select 1 from workspaces`, [])
  await sql.begin((tx) => tx`insert into workspaces (name) values ('a')`)
  t.equal((await sql`select 1 from workspaces`).length, 1)
})

for (const prepare of [true, false]) {
  void t.test(`what travels with other statements fails them, prepared: ${prepare}`, async (t) => {
    const { url } = await testDb(t)
    const sql = connect(url, { applicationName: 'test', max: 1, prepare })
    t.teardown(() => sql.close())
    const names = async () =>
      (await sql<{ name: string }>`select name from workspaces order by name`).map(
        ({ name }) => name,
      )

    await sql.begin(async (tx) => {
      await tx.ahead`set local application_name = 'ahead'`
      await tx.last`insert into workspaces (name) select 'last of ' || count(*) from workspaces`
      const [{ name }] = (await tx<{ name: string }>`
        insert into workspaces (name) values (current_setting('application_name')) returning name`) as [
        { name: string },
      ]
      t.equal(name, 'ahead')
    })
    t.strictSame(await names(), ['ahead', 'last of 1'])

    await t.rejects(
      sql.begin(async (tx) => {
        await tx`insert into workspaces (name) values ('half')`
        await tx.last`select 1 / 0`
      }),
      { code: '22012' },
      'the last statement',
    )
    await t.rejects(
      sql.begin(async (tx) => {
        await tx.ahead`set local work_mem = 'plenty'`
        await tx`insert into workspaces (name) values ('half')`
      }),
      { code: '22023' },
      'the one ahead, and not the one that found the transaction over',
    )
    await t.rejects(
      sql.begin(async (tx) => {
        await tx`insert into workspaces (name) values ('half')`
        await tx`select 1 / 0`.catch(() => {})
      }),
      { message: 'The transaction was rolled back: one of its statements had failed.' },
      'one whose failure nobody minded',
    )
    t.strictSame(await names(), ['ahead', 'last of 1'], 'nothing half-written')
  })
}

for (const prepare of [true, false]) {
  void t.test(`what cannot be sent fails its transaction, prepared: ${prepare}`, async (t) => {
    const { url } = await testDb(t)
    const sql = connect(url, { applicationName: 'test', max: 1, prepare })
    t.teardown(() => sql.close())
    const unwritable: { self?: object } = {}
    unwritable.self = unwritable
    for (const way of ['last', 'ahead'] as const) {
      const failing = sql.begin(async (tx) => {
        await tx`insert into workspaces (name) values ('half')`
        await tx[way]`select ${unwritable}::jsonb`
      })
      await t.rejects(failing, TypeError, way)
    }
    t.same(await sql`select from workspaces`, [], 'nothing half-written')
  })
}

for (const prepare of [true, false]) {
  void t.test(`what a transaction begins and ends with, prepared: ${prepare}`, async (t) => {
    const { sql, url } = await testDb(t)
    const one = connect(url, { applicationName: 'test', max: 1, prepare })
    t.teardown(() => one.close())
    const names = async () =>
      (await sql<{ name: string }>`select name from workspaces order by name`).map(
        ({ name }) => name,
      )
    await sql`create sequence order_of_statements`
    const insert = (tx: Tag, name: string) =>
      tx<{ name: string }>`insert into workspaces (name) values (${name}) returning name`

    await one.begin(async (tx) => {
      const order = Array.from(
        { length: 5 },
        (_, n) => tx<{ n: number }>`
        with s as (select nextval('order_of_statements') as n) select n, ${n}::int as asked from s`,
      )
      t.strictSame(
        (await Promise.all(order)).flat(),
        [1, 2, 3, 4, 5].map((n) => ({ n, asked: n - 1 })),
      )
    })
    await one.begin(async (tx) => {
      await tx.last`insert into workspaces (name) values ('late')`
      await insert(tx, 'first')
      t.strictSame(await insert(tx.final, 'final'), [{ name: 'final' }])
      t.strictSame(await names(), ['final', 'first', 'late'], 'it is committed')
      await t.rejects(insert(tx, 'more'), { message: 'The transaction is over.' })
      for (const way of [tx.ahead, tx.last, tx.final])
        await t.rejects(insert(way, 'more'), { message: 'The transaction is over.' })
      t.throws(() => tx.nudge('awfar_outbox'), { message: 'The transaction is over.' })
    })
    await t.rejects(
      one.begin(async (tx) => {
        await insert(tx, 'half')
        await tx.final`select 1 / 0`
      }),
      { code: '22012' },
      'its own failure',
    )
    const unwritable: { self?: object } = {}
    unwritable.self = unwritable
    await t.rejects(
      one.begin(async (tx) => {
        await insert(tx, 'half')
        await tx.final`select ${unwritable}::jsonb`
      }),
      TypeError,
      'it cannot be sent',
    )
    await t.rejects(
      one.begin(async (tx) => {
        await insert(tx, 'half')
        await tx.final`select 1 / 0`.catch(() => {})
      }),
      { code: '22012' },
      'a failure that nobody minded',
    )
    await t.rejects(
      one.begin(async (tx) => {
        await tx.begin((inner) => insert(inner.final, 'joined'))
        throw new Error('no')
      }),
      { message: 'no' },
      'who joins does not end it',
    )
    await t.rejects(
      one.begin(async (tx) => {
        await insert(tx.final, 'kept')
        throw new Error('too late')
      }),
      { message: 'too late' },
    )
    const left = one.begin(async (tx) => {
      void insert(tx.final, 'left behind')
      await Promise.resolve()
      throw new Error('in a hurry')
    })
    const next = one.begin(async (tx) => {
      await insert(tx, 'undone')
      throw new Error('no')
    })
    await t.rejects(left, { message: 'in a hurry' })
    await t.rejects(next, { message: 'no' }, 'the connection is given back once')
    t.strictSame(
      await names(),
      ['final', 'first', 'kept', 'late', 'left behind'],
      'nothing half-written',
    )
  })
}

void t.test('what took too long is not committed afterwards', async (t) => {
  const { sql, url } = await testDb(t)
  const hasty = connect(url, { applicationName: 'test', answerTimeoutMs: 1_000 })
  t.teardown(() => hasty.close())
  const [{ id }] = (await sql`insert into workspaces (name) values ('a') returning id`) as [
    { id: string },
  ]
  const name = async () => (await sql`select name from workspaces where id = ${id}`)[0]!['name']
  await sql.begin(async (tx) => {
    await tx`select from workspaces where id = ${id} for update`
    const change = hasty.begin(
      (late) => late.final`update workspaces set name = 'b' where id = ${id}`,
    )
    const error: unknown = await change.then(
      () => undefined,
      (failure: unknown) => failure,
    )
    t.equal(pgCode(error), '57014')
    t.ok(isDatabaseAway(error), 'later it can')
  })
  // Whatever still waited for the row has had it before this.
  await hasty.begin((tx) => tx`select from workspaces where id = ${id} for update`)
  t.equal(await name(), 'a')
})

void t.test('a transaction whose connection is dead does not wait for it once more', async (t) => {
  const { url } = await testDb(t)
  const sql = connect(url, { applicationName: 'test', max: 1 })
  t.teardown(() => sql.close())
  const pid = async () => (await sql<{ pid: number }>`select pg_backend_pid() as pid`)[0]!.pid
  const first = await pid()
  const failing = (message: string) =>
    sql.begin(async (tx) => {
      await tx`create table half_done ()`
      throw new Error(message)
    })
  await t.rejects(failing('boom'), { message: 'boom' })
  t.equal(await pid(), first, 'rolled back, and used again')
  await t.rejects(failing('Query read timeout'), { message: 'Query read timeout' })
  t.not(await pid(), first, 'given up')
  t.strictSame(await sql`select to_regclass('half_done') as found`, [{ found: null }])
})

void t.test(
  'a connection that breaks the moment a transaction gets it fails that one, and no process',
  async (t) => {
    const { url, sql: direct } = await testDb(t)
    const { port, hold, release } = await holdingProxy(t, Number(new URL(url).port))
    const proxied = new URL(url)
    proxied.port = String(port)
    const sql = connect(proxied.href, { applicationName: 'held', max: 1 })
    t.teardown(() => sql.close())
    await sql`select`
    hold()
    const before = sql`select 'the one before' as said`
    const held = () => direct<{ pid: number; state: string; query: string }>`
      select pid, state, query from pg_stat_activity where application_name = 'held'`
    const { pid } = await until('its answer is held', async () =>
      (await held()).find(
        ({ state, query }) => state === 'idle' && query.includes('the one before'),
      ),
    )
    const transaction = sql.begin((tx) => tx`select 1`)
    await direct`select pg_terminate_backend(${pid}, 10000)`
    await release()
    t.strictSame(await before, [{ said: 'the one before' }])
    const error: unknown = await transaction.catch((reason: unknown) => reason)
    t.ok(isDatabaseAway(error), String(error))
    t.strictSame(await sql`select 1 as one`, [{ one: 1 }])
  },
)

/** Stands before a server on this machine. What that says after hold() is passed on by release(), all at once. */
async function holdingProxy(t: Pick<Test, 'teardown'>, serverPort: number) {
  let held: Buffer[] | undefined
  let near: Socket | undefined
  let ended: Promise<unknown> | undefined
  const proxy = createServer((socket) => {
    const far = openSocket(serverPort, '127.0.0.1')
    near = socket
    ended = once(far, 'close')
    far.on('data', (data) => (held ? held.push(data) : socket.write(data)))
    far.on('end', () => held ?? socket.end())
    socket.on('data', (data) => far.write(data)).on('close', () => far.destroy())
    for (const one of [socket, far]) one.on('error', () => {})
  })
  await once(proxy.listen(0, '127.0.0.1'), 'listening')
  t.teardown(() => proxy.close())
  return {
    port: (proxy.address() as AddressInfo).port,
    hold: () => void (held = []),
    release: async () => {
      await ended
      near!.end(Buffer.concat(held!))
      held = undefined
    },
  }
}

void t.test('failures are told apart', async (t) => {
  const { sql, url } = await testDb(t)
  const duplicate =
    await sql`insert into workers (id, host, pid, capacity) values ('a', 'h', 1, 1), ('a', 'h', 1, 1)`.catch(
      (error: unknown) => error,
    )
  t.equal(pgCode(duplicate), '23505')
  t.equal(violated(duplicate), 'workers_pkey')
  t.equal(isDatabaseAway(duplicate), false)

  const deadlock = await sql`do $$ begin raise exception using errcode = '40P01'; end $$`.catch(
    (error: unknown) => error,
  )
  t.equal(isDatabaseAway(deadlock), true, 'a deadlock is nobody’s mistake, and over')

  const leftAlone = await sql`do $$ begin raise exception using errcode = '25P03'; end $$`.catch(
    (error: unknown) => error,
  )
  t.equal(isDatabaseAway(leftAlone), true, 'nor is a transaction that a stalled process left alone')

  const nobody = connect(url.replace(/:\d+\//, ':1/'), { applicationName: 'test' })
  t.teardown(() => nobody.close())
  const away = await nobody`select 1`.catch((error: unknown) => error)
  t.equal(isDatabaseAway(away), true)

  const cut = connect(url, { applicationName: 'cut-me', onError: () => {} })
  t.teardown(() => cut.close())
  const sleeping = cut`select pg_sleep(60)`.catch((error: unknown) => error)
  for (let tries = 0; tries < 200; tries += 1) {
    const [gone] = await sql`
      select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cut-me' and query like '%pg_sleep(60)%'`
    if (gone) break
  }
  t.equal(isDatabaseAway(await sleeping), true)
  t.same(await cut`select 1 as one`, [{ one: 1 }], 'the pool heals')
})

void t.test('a nudge arrives, on a listener that proved itself', async (t) => {
  const { sql, url } = await testDb(t)
  const nudges = new EventEmitter()
  const heard = () => once(nudges, 'awfar_outbox', { signal: AbortSignal.timeout(10_000) })
  const first = heard()
  const listener = listen(
    url,
    ['awfar_outbox'],
    (channel, sessions) => nudges.emit(channel, sessions),
    log,
  )
  t.teardown(() => listener.close())
  await first // once at the start, for what was missed

  const notifier = createNotifier(sql, (error) => t.fail(String(error)))
  const second = heard()
  notifier.nudge('awfar_outbox', 'a')
  t.strictSame(await second, [['a']], 'it names the session')

  await notifier.close()
  const heardAll: unknown[] = []
  nudges.on('awfar_outbox', (sessions) => heardAll.push(sessions))
  const last = heard()
  for (const session of ['b', 'c', 'd']) notifier.nudge('awfar_outbox', session)
  await last
  if (heardAll.length < 2) await heard()
  t.strictSame(heardAll, [['b'], ['c', 'd']], 'those that come while one is under way are one')
  // What was heard may not yet have been answered to the notifier: then all three would be one.
  await notifier.close()
  const sweep = heard()
  notifier.nudge('awfar_outbox', 'e')
  notifier.nudge('awfar_outbox', 'f')
  notifier.nudge('awfar_outbox')
  await sweep
  if (heardAll.length < 4) await heard()
  t.strictSame(heardAll.slice(2), [['e'], undefined], 'one of them is meant for all')

  const again = heard()
  await sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'awfar-listener' and datname = current_database()`
  await again
  t.pass('also after its connection was cut')
  await notifier.close()
})

void t.test('a nudge is heard when what it tells of is there', async (t) => {
  const { sql, url } = await testDb(t)
  // A transaction whose commit waits for a lock of its number.
  const gates = connect(url, { applicationName: 'test', max: 1 })
  t.teardown(() => gates.close())
  const shut = (n: string) => gates`select pg_advisory_lock(${Number(n)})`
  const open = (n: string) => gates`select pg_advisory_unlock(${Number(n)})`
  await sql`create table slow (n int)`
  await sql`
    create function wait_for_it() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock_shared(new.n); return null; end $$`
  await sql`
    create constraint trigger slow_commit after insert on slow deferrable initially deferred for each row execute function wait_for_it()`
  for (const prepare of [true, false]) {
    const writer = connect(url, { applicationName: 'test', prepare })
    const heard = new Map<string, Promise<boolean>>()
    const isThere = async (n: string) =>
      (await sql`select from slow where n::text = ${n}`).length > 0
    const listener = listen(
      url,
      ['awfar_outbox'],
      (_, sessions = ['start']) => {
        for (const session of sessions) heard.set(session, isThere(session))
      },
      log,
    )
    await until('it listens', () => heard.has('start'))
    const write = (n: string) =>
      writer.begin(async (tx) => {
        await tx`insert into slow values (${Number(n)})`
        tx.nudge('awfar_outbox', n)
      })
    const committing = (count: number) =>
      until(`${count} commit`, async () => {
        const waiting = await sql`
          select from pg_stat_activity where datname = current_database() and wait_event = 'advisory'`
        return waiting.length === count
      })
    // In another order than they were handed in.
    const numbers = ['11', '13', '12']
    for (const n of numbers) await shut(n)
    const writing: Promise<void>[] = []
    for (const [i, n] of numbers.entries()) {
      writing.push(write(n))
      await committing(i + 1)
    }
    for (const n of numbers.toSorted()) {
      t.notOk(heard.has(n), `${n} is not heard before its commit`)
      await open(n)
      await until(`${n} is heard`, () => heard.has(n))
    }
    await Promise.all(writing)
    for (const n of numbers) t.equal(await heard.get(n), true, `${n}, prepared: ${prepare}`)

    // One that takes long delays nobody's but its own.
    await shut('20')
    const slow = write('20')
    await committing(1)
    await write('1')
    await until('the quick one is heard', () => heard.has('1'))
    t.notOk(heard.has('20'))
    await open('20')
    await slow
    await t.rejects(
      writer.begin((tx) => {
        tx.nudge('awfar_outbox', 'undone')
        return Promise.reject(new Error('no'))
      }),
      { message: 'no' },
    )
    writer.nudge('awfar_outbox', '3')
    await until('the next one is heard', () => heard.has('3'))
    t.notOk(heard.has('undone'), 'what was not done is not told')
    await writer.close()
    await listener.close()
    await sql`truncate slow`
  }
})

void t.test(
  'a nudge that fails behind its commit is sent once more, by another connection',
  async (t) => {
    const { sql, url } = await testDb(t)
    const heard: string[] = []
    const listener = listen(
      url,
      ['awfar_outbox'],
      (_, sessions = ['start']) => heard.push(...sessions),
      log,
    )
    t.teardown(() => listener.close())
    await until('it listens', () => heard.length > 0)
    // Fails once.
    await sql`create table told (pid int)`
    await sql`create sequence tries`
    await sql`
    create function public.pg_notify(channel text, payload text) returns void language plpgsql as $$ begin
      if nextval('tries') = 1 then raise exception 'not now'; end if;
      perform pg_catalog.pg_notify(channel, payload);
    end $$`
    await sql`do $$ begin execute format('alter database %I set search_path = public, pg_catalog', current_database()); end $$`
    const writer = connect(url, { applicationName: 'test', max: 1 })
    t.teardown(() => writer.close())
    const write = () =>
      writer.begin(async (tx) => {
        tx.nudge('awfar_outbox', 'a')
        const [row] = await tx<{
          pid: number
        }>`insert into told values (pg_backend_pid()) returning pid`
        return row!.pid
      })
    const first = await write()
    await until('it is heard', () => heard.includes('a'))
    t.equal((await sql`select from told`).length, 1, 'what it told of is there')
    t.not(await write(), first, 'the connection it failed on is not used again')
  },
)

void t.test('migrations: applied once, in order, by however many ask', async (t) => {
  const { sql, url } = await testDb(t)
  const files = await readMigrations()
  t.same(await migrate(url), [], 'the template is up to date')
  await sql`drop schema public cascade`
  await sql`create schema public`
  const runs = await Promise.all([migrate(url), migrate(url), migrate(url)])
  t.same(runs.map((done) => done.length).sort(), [0, 0, files.length])
  const status = await migrationStatus(url)
  t.ok(status.every(({ appliedAt }) => appliedAt instanceof Date))

  for (const { sql: text } of files) {
    const client = new pg.Client({ connectionString: url })
    await client.connect()
    await client.query(text)
    await client.end()
  }
  t.pass('each file may be pasted again')
})

void t.test('migrations: what does not fit stops everything', async (t) => {
  const { sql, url } = await testDb(t)
  await sql`update schema_migrations set sha256 = 'other' where version = 2`
  await t.rejects(migrate(url), { message: /Migration 2 .* was changed after it had been applied/ })
  await t.rejects(migrationStatus(url), { message: /was changed/ })
  await sql`update schema_migrations set version = 9999 where version = 2`
  await t.rejects(migrate(url), { message: /Migration 9999 .* is applied but not in migrations/ })
  await sql`delete from schema_migrations where version = 9999`
  await t.rejects(migrate(url), { message: /Migration 2 .* comes before/ })
})

void t.test('migrations: names are checked, line ends do not matter', async (t) => {
  const folder = t.testdir()
  const put = (name: string, text: string) => writeFileSync(join(folder, name), text)
  put('0001_a.sql', 'select 1;\n')
  const [unix] = await readMigrations(folder)
  put('0001_a.sql', 'select 1;\r\n')
  const [dos] = await readMigrations(folder)
  t.equal(dos?.sha256, unix?.sha256)
  put('0001_b.sql', '')
  await t.rejects(readMigrations(folder), { message: /taken twice/ })
  const other = join(folder, 'other')
  mkdirSync(other)
  writeFileSync(join(other, '1_x.sql'), '')
  await t.rejects(readMigrations(other), { message: /named NNNN_name\.sql/ })
})

void t.test('a job is done by one process at a time', async (t) => {
  const { sql } = await testDb(t)
  let done = 0
  const run = (owner: string, everyMs = 60_000) =>
    runOnce(sql, { name: 'x', owner, everyMs }, async () => {
      done += 1
    })
  const turns = await Promise.all(['a', 'b', 'c'].map((owner) => run(owner)))
  t.equal(turns.filter((mine) => mine).length, 1)
  t.equal(done, 1)
  await sql`update jobs set lease_until = now() - interval '1 second'`
  t.equal(await run('d'), true, 'and again when its time has come')

  await sql`insert into rate_limits values ('old', 1, now() - interval '1 minute'), ('new', 1, now() + interval '1 minute')`
  t.match(await removeExpired(sql), { rateLimits: 1 })
})

void t.test('wrong settings are named, all of them, in one sentence', async (t) => {
  const schema = { ...baseSchema, PORT: Joi.number().port().required() }
  const read = (env: Record<string, string>) => readEnv<BaseConfig & { PORT: number }>(schema, env)
  const faultsOf = (env: Record<string, string>) => {
    try {
      return JSON.stringify(read(env))
    } catch (error) {
      if (error instanceof ConfigError) return error.message
      throw error
    }
  }
  t.match(
    faultsOf({ LOG_LEVEL: 'loud', DATABASE_URL: 'mysql://x' }),
    /LOG_LEVEL must be one of.*DATABASE_URL must be a URL.*PORT is missing/,
  )
  t.notMatch(faultsOf({ PORT: '1', DATABASE_URL: 'http://user:hunter2@x' }), /hunter2/)
  t.match(read({ PORT: '80', LOG_LEVEL: '', DATA_DIR: 'elsewhere' }), {
    PORT: 80,
    LOG_LEVEL: 'info',
    DATA_DIR: /^\/.*elsewhere$/,
    PG_PREPARE: true,
  })
})

void t.test(
  'a list is read page by page, also where times are equal to the microsecond',
  async (t) => {
    const { sql } = await testDb(t)
    await sql`create table things (id uuid primary key default gen_random_uuid(), seq bigint, created_at timestamptz)`
    await sql`
    insert into things (seq, created_at)
    select n, '2026-11-21 08:00:00.000001+00'::timestamptz + (n / 3) * interval '1 microsecond' from generate_series(1, 10) n`
    type Row = { id: string; seq: number; position: string }
    const readAll = async (read: (page: PageWish) => Promise<Page<Row>>) => {
      const found: Row[] = []
      for (let cursor: string | undefined; ;) {
        const page = await read({ limit: 3, cursor })
        found.push(...page.data)
        if (page.nextCursor === null) return found
        t.equal(page.data.length, 3)
        cursor = page.nextCursor
      }
    }
    const all = fragment`select x.*, x.created_at::text as position from things x`
    const byTime = await readAll(async (page) =>
      newestPage(
        await sql<Row>`${all} where true ${newestFirst(page, fragment`x.`)}`,
        page,
        (row) => row,
      ),
    )
    t.strictSame(byTime, await sql`${all} order by x.created_at desc, x.id desc`)
    const byNumber = await readAll(async (page) =>
      numberedPage(
        await sql<Row>`${all} where true ${highestFirst(page, fragment`x.seq`)}`,
        page,
        ({ seq }) => seq,
        (row) => row,
      ),
    )
    t.strictSame(
      byNumber.map(({ seq }) => seq),
      [10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
    )
    for (const cursor of ['x', encodeCursor({ at: '2026-11-21 08:00:00+00', key: 'x' })]) {
      t.throws(() => newestFirst({ limit: 1, cursor }), { code: 'VALIDATION_FAILED' })
      t.throws(() => highestFirst({ limit: 1, cursor }, fragment`x.seq`), {
        code: 'VALIDATION_FAILED',
      })
    }
  },
)
