/** HOOKS: a consumer that refuses, hangs, hangs up and redirects, workers that are killed while they post to it, and what it has in the end. */
import { createServer } from 'node:http'
import type { Server } from 'node:http'
import { mkdir } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Webhook as StandardWebhook } from 'standardwebhooks'
import { connect } from '../../shared/db.ts'
import { appendEvents } from '../../shared/events.ts'
import { KeyRing } from '../../shared/key-ring.ts'
import { createSession } from '../../shared/wa-sessions.ts'
import { createWebhook } from '../../shared/webhooks.ts'
import { createWorkspace } from '../../shared/workspaces.ts'
import type { Family, Lab } from './lab.ts'
import { childEnv, Program } from './program.ts'
import type { Random } from './random.ts'
import { Trials } from './trials.ts'
import type { Row } from './trials.ts'
import { eventually } from './waiting.ts'

export const webhookConsumers: Family = { id: 'HOOKS', run }

const workers = 2
const chats = 20
const perChat = 50
const key = `k1:${Buffer.alloc(32, 7).toString('base64')}`

async function run(lab: Lab): Promise<Row[]> {
  const folder = join(lab.folder, 'hooks')
  await mkdir(folder)
  const url = await lab.createDatabase()
  const sql = connect(url, { applicationName: 'faults', max: 4 })
  const programs: Program[] = []
  const open = async (index: number) => {
    programs[index] = await Program.start(lab.root, 'wa-worker/main.js', {
      ...childEnv(url, folder),
      DATA_DIR: join(folder, `data-${index}`),
      LOG_LEVEL: 'error',
      SESSION_ENCRYPTION_KEY: key,
      WEBHOOK_ALLOW_PRIVATE: 'true',
    })
  }
  const killAll = () => programs.forEach((program) => program.kill('SIGKILL'))
  process.once('exit', killAll)
  const consumer = await Consumer.open(lab.random('HOOKS consumer'))
  try {
    const workspaceId = await createWorkspace(sql, 'Faults')
    const session = { workspaceId, name: 'main', engine: 'simulator' as const, start: false }
    const { id: sessionId } = await createSession(sql, { ...session, expiryDays: 30 })
    const { secret } = await createWebhook(sql, KeyRing.parse(key), workspaceId, {
      url: consumer.url,
      events: ['*'],
    })
    consumer.verifier = new StandardWebhook(secret)
    for (let index = 0; index < workers; index++) await open(index)

    const random = lab.random('HOOKS')
    const each = lab.scaled(perChat)
    let killed = 0
    for (let n = 0; n < each; n++) {
      await appendEvents(
        sql,
        Array.from({ length: chats }, (_, chat) => ({
          ...{ workspaceId, sessionId, type: 'message' as const },
          payload: { n, chatId: `chat-${chat}` },
        })),
      )
      await sleep(random.between(0, 100)) // the instant is part of the fault
      if (n % 10 === 3) {
        await programs[killed % workers]!.end('SIGKILL')
        await open(killed % workers)
        killed += 1
      }
    }
    consumer.behaves()
    const all = chats * each
    await eventually(
      'everything is delivered',
      async () => {
        const [row] = await sql<{ n: number }>`
          select count(*)::int as n from webhook_deliveries where status = 'delivered'`
        return row!.n === all
      },
      300_000,
    ).catch((error: Error) => lab.say(error.message)) // what is missing is found below

    const lost = new Trials('HOOKS', 'a consumer that fails, hangs and redirects: lost 0')
    const order = new Trials('HOOKS', 'accepted in the order of the events, per chat')
    const signed = new Trials('HOOKS', 'every post verifies as Standard Webhooks, its id constant')
    for (let chat = 0; chat < chats; chat++) {
      const accepted = consumer.accepted.get(`chat-${chat}`) ?? []
      // A worker that was killed before it could say so had it accepted; the next one posts it again.
      const firsts = accepted.filter((n, index) => accepted.indexOf(n) === index)
      for (let n = 0; n < each; n++) lost.check(accepted.includes(n), `chat ${chat} lacks ${n}`)
      order.check(
        firsts.every((n, index) => index === 0 || n > firsts[index - 1]!),
        `chat ${chat}: ${firsts.join(' ')}`,
      )
    }
    for (let n = 0; n < consumer.verified; n++) signed.kept()
    for (const wrong of consumer.wrong) signed.failed(wrong)
    lost.note = `${consumer.posts} posts for ${all} events; ${killed} workers killed meanwhile; ${consumer.elsewhere} followed a redirect`
    lost.check(consumer.elsewhere === 0, 'a redirect was followed')
    return [lost.row(), order.row(), signed.row()]
  } finally {
    await Promise.all(programs.map(async (program) => program.ended ?? program.end('SIGTERM')))
    process.off('exit', killAll)
    consumer.close()
    await sql.close()
  }
}

/** Takes one post in three badly, until it is told to behave. */
class Consumer {
  url = ''
  verifier: StandardWebhook | undefined
  posts = 0
  verified = 0
  /** Posts to where redirects lead. */
  elsewhere = 0
  readonly wrong: string[] = []
  /** What was accepted, by chat, in order. */
  readonly accepted = new Map<string, number[]>()
  readonly #ids = new Map<string, string>()
  readonly #random: Random
  #server: Server | undefined
  #bad = true

  private constructor(random: Random) {
    this.#random = random
  }

  static async open(random: Random): Promise<Consumer> {
    const consumer = new Consumer(random)
    const server = createServer((request, response) => {
      if (request.url !== '/hook') {
        consumer.elsewhere += 1
        return void response.end()
      }
      let body = ''
      request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk))
      request.on('end', () => {
        const payload = consumer.#take(body, request.headers as Record<string, string>)
        if (!payload) return void response.writeHead(400).end()
        const mood = consumer.#bad ? consumer.#random.between(0, 14) : 14
        if (mood === 0) return // hangs
        if (mood === 1) return void response.socket?.destroy()
        if (mood === 2) return void response.writeHead(307, { location: '/elsewhere' }).end()
        if (mood < 5) return void response.writeHead(503).end()
        const { chatId, n } = payload
        consumer.accepted.set(chatId, [...(consumer.accepted.get(chatId) ?? []), n])
        setTimeout(() => response.writeHead(200).end(), mood === 5 ? 2_000 : 5)
      })
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    consumer.#server = server
    consumer.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`
    return consumer
  }

  behaves(): void {
    this.#bad = false
  }

  close(): void {
    this.#server?.closeAllConnections()
    this.#server?.close()
  }

  #take(body: string, headers: Record<string, string>): { chatId: string; n: number } | undefined {
    this.posts += 1
    try {
      const { id, payload } = this.verifier!.verify(body, headers) as {
        id: string
        payload: { chatId: string; n: number }
      }
      const what = `${payload.chatId} ${payload.n}`
      if (id !== headers['webhook-id'] || (this.#ids.get(what) ?? id) !== id) {
        this.wrong.push(`${what} came under ${headers['webhook-id']} and ${this.#ids.get(what)}`)
      }
      this.#ids.set(what, id)
      this.verified += 1
      return payload
    } catch (error) {
      this.wrong.push((error as Error).message)
      return undefined
    }
  }
}
