import { createServer } from 'node:http'
import type { IncomingMessage, Server } from 'node:http'
import { text } from 'node:stream/consumers'
import type { EmulatedWhatsApp } from './server.ts'

/** What may be called from outside: POST /control/<verb> with the arguments as a JSON array. */
const VERBS = [
  'ack',
  'addIframe',
  'block',
  'call',
  'createGroup',
  'decrypt',
  'deliver',
  'dropLink',
  'edit',
  'enterPairingCode',
  'expireMedia',
  'failCall',
  'hangCall',
  'linkedDevices',
  'logoutFromPhone',
  'navigate',
  'onlineDevices',
  'react',
  'received',
  'register',
  'releaseAcks',
  'reload',
  'removeModule',
  'restoreCall',
  'restoreLink',
  'restoreModule',
  'resync',
  'revoke',
  'scan',
  'setAcks',
  'setServing',
  'setState',
  'typeOnPhone',
  'unregister',
  'untilOnline',
  'vote',
] as const

type Verb = (...args: unknown[]) => unknown

/** A plain HTTP server through which other processes drive the emulated WhatsApp. */
export function createControl(whatsapp: EmulatedWhatsApp): Server {
  const verbs: Record<string, Verb> = {
    stanzas: () => whatsapp.stanzas,
    signals: () => whatsapp.signals,
    browserArgs: () => whatsapp.browserArgs,
  }
  for (const name of VERBS) verbs[name] = (whatsapp[name] as Verb).bind(whatsapp)

  return createServer((request, response) => {
    void run(verbs, request).then(({ status, body }) => {
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
    })
  })
}

async function run(verbs: Record<string, Verb>, request: IncomingMessage) {
  const name = /^\/control\/(\w+)$/.exec(request.url ?? '')?.[1] ?? ''
  const verb = Object.hasOwn(verbs, name) ? verbs[name] : undefined
  if (request.method !== 'POST' || !verb) return { status: 404, body: { error: `no verb ${name}` } }
  try {
    const sent = await text(request)
    const body: unknown = sent === '' ? [] : JSON.parse(sent)
    const args: unknown[] = Array.isArray(body) ? body : [body]
    return { status: 200, body: { result: (await verb(...args)) ?? null } }
  } catch (error) {
    return { status: 400, body: { error: (error as Error).message } }
  }
}
