/** `npm run demo`: the whole product over a simulated WhatsApp, with a short tour. No phone, no browser. */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { runProduct } from './product.ts'

// What is set here wins over .env: a demo has its own data and never touches a real database.
process.env['DATABASE_URL'] = ''
process.env['DATABASE_URL_DIRECT'] = ''
process.env['DATA_DIR'] ??= '.data/demo'
process.env['WA_ENGINE'] = 'simulator'
process.env['WA_SIMULATOR_SCAN_MS'] ??= '1500'
process.env['LOG_LEVEL'] ??= 'warn'
for (const limit of ['GENERAL', 'AUTH', 'MESSAGES']) process.env[`RATE_LIMIT_${limit}`] ??= 'off'

const customer = '+1 202 555-0100'

await runProduct(async (url, signal) => {
  try {
    await tour(url, signal)
  } catch (error) {
    if (signal.aborted) return
    say(`The tour ended early: ${(error as Error).message}`)
    say('The product is still running; Ctrl-C ends it.')
  }
})

async function tour(url: string, signal: AbortSignal): Promise<void> {
  let token = ''
  const call = async <T>(method: string, path: string, body?: object): Promise<T> => {
    const response = await fetch(url + path, {
      method,
      signal,
      headers: {
        ...(token && { authorization: `Bearer ${token}` }),
        ...(body && { 'content-type': 'application/json' }),
      },
      ...(body && { body: JSON.stringify(body) }),
    })
    const text = await response.text()
    if (!response.ok) throw new Error(`${method} ${path} answered ${response.status}: ${text}`)
    return JSON.parse(text) as T
  }
  /** Asks until the answer fits, or says after a minute that it never did. */
  const until = async <T>(path: string, what: string, fits: (answer: T) => boolean): Promise<T> => {
    const deadline = Date.now() + 60_000
    while (Date.now() < deadline) {
      const answer = await call<T>('GET', path)
      if (fits(answer)) return answer
      await sleep(100, null, { signal })
    }
    throw new Error(`${what} did not happen within a minute.`)
  }

  say('', 'Awfar, over a simulated WhatsApp: no phone, no browser.', '')
  const email = `demo-${randomBytes(3).toString('hex')}@example.com`
  const password = randomBytes(12).toString('base64url')
  const account = { email, password, fullName: 'Demo Agent' }
  token = (await call<{ accessToken: string }>('POST', '/api/auth/register', account)).accessToken
  say(`registered   ${email}, password ${password}`)

  const { id } = await call<Session>('POST', '/api/whatsapp/sessions', { name: 'demo' })
  const path = `/api/whatsapp/sessions/${id}`
  await until<Session>(path, 'The code', ({ status }) => status === 'SCAN_QR_CODE')
  say('code shown   the simulated phone is scanning it …')
  const linked = await until<Session>(path, 'Linking', ({ status }) => status === 'WORKING')
  say(`linked       ${linked.phone}`)

  const sent = await call<Message>('POST', '/api/whatsapp/send', {
    to: customer,
    message: 'Good morning! Shall we deliver at ten?',
  })
  say(`accepted     "${sent.body}" to ${customer}: ${sent.status}`)
  for (const step of ['sent', 'delivered', 'read'] as const) {
    const timeOf = (message: Message) => message[`${step}At`]
    const message = await until<Message>(
      `/api/messages/${sent.id}`,
      step,
      (now) => timeOf(now) !== null,
    )
    say(`${step.padEnd(13)}at ${timeOf(message)}`)
  }
  const messages = `/api/chats/${sent.chatId}/messages`
  const { data } = await until<{ data: Message[] }>(
    messages,
    'The answer',
    (page) => page.data.length > 1,
  )
  say(`answered     "${data[0]?.body}"`)

  say(
    '',
    `It stays up until Ctrl-C. Documentation: ${url}/documentation`,
    '',
    `TOKEN=${token}`,
    `curl -s ${url}/api/whatsapp/send -H "authorization: Bearer $TOKEN" \\`,
    `  -H 'content-type: application/json' -d '{"to":"${customer}","message":"Hello"}'`,
    `curl -s ${url}/api/chats -H "authorization: Bearer $TOKEN"`,
    `curl -s ${url}${messages} -H "authorization: Bearer $TOKEN"`,
    '',
    'The token lasts 15 minutes. A new one:',
    `curl -s ${url}/api/auth/login -H 'content-type: application/json' \\`,
    `  -d '{"email":"${email}","password":"${password}"}'`,
    '',
    'Numbers that end in 0001 to 0006 behave badly, each in its own way: see the README.',
    '',
  )
}

interface Session {
  id: string
  status: string
  phone: string | null
}

interface Message {
  id: string
  chatId: string
  body: string
  status: string
  sentAt: string | null
  deliveredAt: string | null
  readAt: string | null
}

function say(...lines: string[]): void {
  for (const line of lines) process.stdout.write(line === '' ? '\n' : `  ${line}\n`)
}
