import { randomBytes, randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { FastifyInstance, InjectOptions, LightMyRequestResponse } from 'fastify'
import type { Test } from 'tap'
import { readEnv } from '../../shared/config.ts'
import type { Db, Tag, Transaction } from '../../shared/db.ts'
import { eventId } from '../../shared/events.ts'
import { KeyRing } from '../../shared/key-ring.ts'
import { createLogger } from '../../shared/logger.ts'
import type { Channel } from '../../shared/notify.ts'
import { createProfile } from '../../shared/profiles.ts'
import type { ProfileRow, Role } from '../../shared/profiles.ts'
import { testDb } from '../../shared/test/db.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import { buildApp } from '../app.ts'
import { apiSchema } from '../config.ts'
import type { ApiConfig } from '../config.ts'
import type { FeedOptions } from '../plugins/event-feed.ts'
import type { MediaOptions } from '../plugins/media.ts'
import type { Mail } from '../mail.ts'

export const jwtSecret = 'only-for-tests-0123456789abcdef-0123456789'

/** What test apps seal with. */
export const testKey = `test:${Buffer.alloc(32, 7).toString('base64')}`

/** For /api/events, which else would never end: the id of no event is answered at once. */
export const answeredAtOnce = `?lastEventId=${eventId({ tx: 2 ** 52, id: 0 })}`

/** bcrypt's cheapest hash of `password`: signing in must not take the tests' time. */
export const password = 'correct horse battery'
const passwordHash = '$2b$04$QEBfd5ZN5l2b/XXF3adGV.hq9RCTU4hgbA4RAVkvOvXOYR1/bkXLO'

export interface TestApp {
  app: FastifyInstance
  sql: Db
  url: string
  config: ApiConfig
  /** The channels that were nudged, in order. */
  nudges: Channel[]
  /** The e-mails that were sent, when SMTP_URL is set; none leaves. */
  mails: Mail[]
}

/** The API over a database of the test's own, without rate limits; both are closed when the test ends. */
export async function testApp(
  t: Pick<Test, 'teardown'>,
  settings: Record<string, string> = {},
): Promise<TestApp> {
  const { sql, url } = await testDb(t)
  return { sql, url, ...(await appOver(t, sql, settings)) }
}

/** The API over a database that is there already. */
export async function appOver(
  t: Pick<Test, 'teardown'>,
  sql: Db,
  settings: Record<string, string> = {},
  media: MediaOptions = {},
  events: FeedOptions = {},
): Promise<Pick<TestApp, 'app' | 'config' | 'nudges' | 'mails'>> {
  const dataDir = await mkdtemp(join(tmpdir(), 'awfar-api-'))
  t.teardown(() => rm(dataDir, { recursive: true, force: true }))
  const config = readEnv<ApiConfig>(apiSchema, {
    JWT_SECRET: jwtSecret,
    DATA_DIR: dataDir,
    RATE_LIMIT_GENERAL: 'off',
    RATE_LIMIT_AUTH: 'off',
    RATE_LIMIT_MESSAGES: 'off',
    RATE_LIMIT_UPLOADS: 'off',
    ...settings,
  })
  const nudges: Channel[] = []
  const mails: Mail[] = []
  const { LOG_DIR: dir } = settings
  const app = await buildApp({
    media,
    events,
    config,
    sql: watched(sql, nudges),
    log: createLogger('api', {
      level: config.LOG_LEVEL,
      stdout: false,
      ...(dir !== undefined && { dir }),
    }),
    keys: KeyRing.parse(settings.SESSION_ENCRYPTION_KEY ?? testKey),
    mailer: {
      enabled: config.SMTP_URL !== undefined,
      send: (mail) => mails.push(mail),
      close: async () => {},
    },
  })
  t.teardown(() => app.close())
  return { app, config, nudges, mails }
}

/** The same, with its nudges written down; those of events, which every change has, are left out where they come with it. */
function watched(sql: Db, nudges: Channel[]): Db {
  const run: Tag = (strings, ...values) => sql(strings, ...values)
  return Object.assign(run, {
    last: sql.last,
    close: () => sql.close(),
    nudge(channel: Channel, sessionId?: string) {
      nudges.push(channel)
      sql.nudge(channel, sessionId)
    },
    begin: <T>(work: (tx: Transaction) => Promise<T>) =>
      sql.begin((tx) => {
        const nudge = tx.nudge.bind(tx)
        tx.nudge = (channel, sessionId) => {
          if (channel !== 'awfar_events') nudges.push(channel)
          nudge(channel, sessionId)
        }
        return work(tx)
      }),
  })
}

export interface Person {
  profile: ProfileRow
  workspaceId: string
  token: string
  /** Sends a request as this person. */
  call: (method: Method, url: string, body?: object | string) => Promise<LightMyRequestResponse>
}

type Method = NonNullable<InjectOptions['method']>

/** A signed-in person: in a workspace of their own, or in the one of somebody else. */
export async function signIn(
  { app, sql }: Pick<TestApp, 'app' | 'sql'>,
  { role = 'owner', workspaceId }: { role?: Role; workspaceId?: string } = {},
): Promise<Person> {
  const workspace = workspaceId ?? (await createWorkspace(sql, 'Test'))
  const profile = await createProfile(sql, {
    workspaceId: workspace,
    email: `${randomBytes(6).toString('hex')}@example.com`,
    fullName: 'Ada Lovelace',
    role,
    passwordHash,
  })
  const token = app.signAccessToken(profile.id, randomUUID())
  return {
    profile,
    workspaceId: workspace,
    token,
    call: async (method, url, body) =>
      app.inject({
        method,
        url,
        headers: { authorization: `Bearer ${token}` },
        ...(body !== undefined && { body }),
      }),
  }
}

/** A signed-in person with a session, which nobody runs. */
export async function signInWithSession(
  it: Pick<TestApp, 'app' | 'sql'>,
  name = 'Sales',
): Promise<Person & { sessionId: string }> {
  const person = await signIn(it)
  const created = await person.call('POST', '/api/whatsapp/sessions', { name })
  return { ...person, sessionId: created.json<{ id: string }>().id }
}

/** What every error answers, on every path. */
export const errorShape = (statusCode: number, code: string) => ({
  statusCode,
  code,
  error: String,
  message: String,
  requestId: String,
})
