import { connect } from '../../shared/db.ts'
import { startRedisStandIn } from '../../shared/test/redis-stand-in.ts'
import t from 'tap'
import { appOver, testApp } from './app.ts'

const { sql } = await testApp(t)
const limits = { RATE_LIMIT_GENERAL: '3/15m', RATE_LIMIT_AUTH: '4/15m' }

type App = Awaited<ReturnType<typeof appOver>>['app']
const login = async (app: App) =>
  (await app.inject({ method: 'POST', url: '/api/auth/login', body: {} })).statusCode
const nowhere = async (app: App) => (await app.inject('/api/nowhere')).statusCode

/** The first answers may come before the connection is there. */
async function whenCounted(app: App, values: Map<string, unknown>): Promise<void> {
  const deadline = performance.now() + 10_000
  while (values.size === 0) {
    if (performance.now() > deadline) throw new Error('Redis was not used.')
    await app.inject({ url: '/api/elsewhere', remoteAddress: '10.9.9.9' })
  }
}

void t.test(
  'with REDIS_URL all limits hold over all processes, and nothing is in Postgres',
  async (t) => {
    const redis = await startRedisStandIn()
    t.teardown(() => redis.close())
    const settings = { ...limits, REDIS_URL: redis.url }
    const [{ app: one }, { app: two }] = [
      await appOver(t, sql, settings),
      await appOver(t, sql, settings),
    ]
    await whenCounted(one, redis.values)
    redis.values.clear()
    await whenCounted(two, redis.values)
    redis.values.clear()
    t.strictSame(
      [await login(one), await login(two), await login(one), await login(two)],
      [400, 400, 400, 400],
    )
    t.strictSame([await login(one), await login(two)], [429, 429])
    t.strictSame(
      [await nowhere(one), await nowhere(two), await nowhere(one), await nowhere(two)],
      [404, 404, 404, 429],
    )
    t.strictSame(await sql`select key from rate_limits`, [])
    for (const [key, { endsAt }] of redis.values) {
      t.match(key, /^awfar:limit:ip:127\.0\.0\.1/)
      t.ok(endsAt < Date.now() + 15 * 60_000 + 1)
    }
    for (const entry of redis.values.values()) entry.endsAt = 0
    t.equal(await login(one), 400, 'the window ends')
  },
)

void t.test(
  'while Redis is away, silent or comes back, each process counts by itself',
  async (t) => {
    const redis = await startRedisStandIn()
    t.teardown(() => redis.close())
    const { app } = await appOver(t, sql, { ...limits, REDIS_URL: redis.url })
    await whenCounted(app, redis.values)
    redis.behave('silent')
    const started = performance.now()
    t.equal(await login(app), 400)
    t.ok(performance.now() - started < 5_000, 'it does not hang')
    await redis.close()
    for (let i = 0; i < 3; i++) t.equal(await login(app), 400)
    t.equal(await login(app), 429, 'guessing stays hard')
    t.equal((await app.inject('/health')).statusCode, 200)

    const { app: never } = await appOver(t, sql, { ...limits, REDIS_URL: 'redis://127.0.0.1:1' })
    for (let i = 0; i < 3; i++) t.equal(await nowhere(never), 404)
    t.equal(await nowhere(never), 429)
  },
)

void t.test('while Postgres is away, messages stay limited, too', async (t) => {
  const away = connect('postgres://nobody@127.0.0.1:1/none', { applicationName: 'test' })
  t.teardown(() => away.close())
  const { app } = await appOver(t, away, { RATE_LIMIT_MESSAGES: '2/1m' })
  const send = async () =>
    (await app.inject({ method: 'POST', url: '/api/whatsapp/send', body: {} })).statusCode
  t.strictSame([await send(), await send(), await send()], [401, 401, 429])
})
