import t from 'tap'
import { ConfigError, readEnv } from '../../shared/config.ts'
import { apiSchema } from '../config.ts'
import type { ApiConfig } from '../config.ts'

const JWT_SECRET = 'x'.repeat(32)
const read = (env: Record<string, string> = {}) =>
  readEnv<ApiConfig>(apiSchema, { JWT_SECRET, ...env })

void t.test('the defaults are the owner’s', async (t) => {
  const defaults = read()
  t.match(defaults, {
    NODE_ENV: 'development',
    PORT: 3001,
    HOST: '127.0.0.1',
    TRUST_PROXY: 0,
    RATE_LIMIT_GENERAL: { max: 100, windowMs: 900_000 },
    RATE_LIMIT_AUTH: { max: 5, windowMs: 900_000 },
    RATE_LIMIT_MESSAGES: { max: 30, windowMs: 60_000 },
    RATE_LIMIT_UPLOADS: { max: 10, windowMs: 3_600_000 },
    ALLOW_REGISTRATION: true,
    WA_ENGINE: 'webjs',
    IDEMPOTENCY_TTL_HOURS: 24,
  })
  t.strictSame(defaults.CLIENT_ORIGIN, [])
  t.equal(read({ NODE_ENV: 'production' }).HOST, '0.0.0.0')
  t.equal(read({ NODE_ENV: 'production', HOST: '10.0.0.1' }).HOST, '10.0.0.1')
  t.equal(read({ PORT: '', HOST: '' }).PORT, 3001, 'an empty variable is none')
})

void t.test('settings are read in their forms', async (t) => {
  t.match(read({ RATE_LIMIT_AUTH: '7/90s' }).RATE_LIMIT_AUTH, { max: 7, windowMs: 90_000 })
  t.match(read({ RATE_LIMIT_AUTH: '1/d' }).RATE_LIMIT_AUTH, { max: 1, windowMs: 86_400_000 })
  t.equal(read({ RATE_LIMIT_AUTH: 'off' }).RATE_LIMIT_AUTH, 'off')
  t.strictSame(
    read({ CLIENT_ORIGIN: 'https://a.example.com, http://localhost:5173,' }).CLIENT_ORIGIN,
    ['https://a.example.com', 'http://localhost:5173'],
  )
  t.equal(read({ TRUST_PROXY: '2' }).TRUST_PROXY, 2)
  t.strictSame(read({ TRUST_PROXY: 'loopback, 10.0.0.0/8, fd00::/8, 1.2.3.4' }).TRUST_PROXY, [
    'loopback',
    '10.0.0.0/8',
    'fd00::/8',
    '1.2.3.4',
  ])
  t.equal(read({ ALLOW_REGISTRATION: 'off' }).ALLOW_REGISTRATION, false)
  t.equal(read({ HOST: '::' }).HOST, '::')
})

void t.test('wrong settings are named, all in one sentence, and never quoted', async (t) => {
  const wrong: Record<string, string[]> = {
    PORT: ['x', '-1', '65536'],
    HOST: ['a b', 'http://a'],
    JWT_SECRET: ['x'.repeat(31)],
    CLIENT_ORIGIN: [
      '*',
      'null',
      'app.example.com',
      'https://app.example.com/',
      'https://app.example.com/path',
      'https://*.example.com',
      'https://APP.example.com',
      'https://app.example.com:443',
      'ftp://a.example.com',
      'https://a.example.com https://b.example.com',
    ],
    TRUST_PROXY: [
      'true',
      'yes',
      '10',
      '-1',
      '0.0.0.0/0',
      '::/0',
      '::ffff:10.0.0.0/8',
      '1.2.3.4/33',
      'proxy.example.com',
      ',',
    ],
    RATE_LIMIT_GENERAL: ['100', '0/15m', '5/0m', '-1/m', '5/15', '5 per hour', 'on'],
    RATE_LIMIT_AUTH: ['x'],
    RATE_LIMIT_MESSAGES: ['x'],
    RATE_LIMIT_UPLOADS: ['x'],
    ALLOW_REGISTRATION: ['perhaps'],
    WA_ENGINE: ['baileys'],
    LOG_LEVEL: ['loud'],
    DATABASE_URL: ['mysql://x'],
  }
  for (const [name, values] of Object.entries(wrong)) {
    for (const value of values) {
      t.throws(
        () => read({ [name]: value }),
        { message: new RegExp(`Wrong settings: ${name} `) },
        `${name}=${value}`,
      )
    }
  }
  try {
    read({ JWT_SECRET: 'canary', PORT: 'canary', TRUST_PROXY: 'canary', CLIENT_ORIGIN: 'canary' })
    t.fail('must throw')
  } catch (error) {
    t.ok(error instanceof ConfigError)
    const { message } = error as Error
    t.match(message, /PORT.*JWT_SECRET.*CLIENT_ORIGIN.*TRUST_PROXY/)
    t.notMatch(message, /canary/)
    t.notMatch(message, /\n/)
  }
  t.throws(() => readEnv(apiSchema, {}), { message: /JWT_SECRET is missing/ })
})
