import { createHash, randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import sharp from 'sharp'
import t from 'tap'
import type { Message } from '../../shared/messages.ts'
import { root } from '../../shared/root.ts'
import { testDb } from '../../shared/test/db.ts'
import type { Session } from '../../shared/wa-sessions.ts'
import { findBrowser } from '../../wa-worker/browser.ts'
import { until } from '../../wa-worker/test/waiting.ts'
import { AgentClient } from './client.ts'
import type { Json } from './client.ts'
import { startEmulatedWhatsApp } from './emulated-page/server.ts'
import { givenSettings, startProcess } from './processes.ts'

const browser = findBrowser(process.env['PUPPETEER_EXECUTABLE_PATH'])
const account = '12025550199'
const customer = '12025550100'

const fixture = (name: string) => readFile(join(root, 'shared/test/fixtures/media', name))
const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

/** The clip with a box at its end that players pass over: a file of real size, and no two alike. */
async function video(size: number): Promise<Buffer> {
  const clip = await fixture('clip.mp4')
  const head = Buffer.alloc(8)
  head.writeUInt32BE(size - clip.length)
  head.write('free', 4)
  return Buffer.concat([clip, head, randomBytes(size - clip.length - head.length)])
}

/** No two calls give the same bytes, so that none can be taken for another. */
const picture = () =>
  sharp(randomBytes(200 * 150 * 3), { raw: { width: 200, height: 150, channels: 3 } })
    .jpeg()
    .toBuffer()
const pdf = () => Buffer.concat([Buffer.from('%PDF-1.4\n'), randomBytes(300_000)])
const voice = () => fixture('tone.ogg')

interface File {
  /** As the page calls it. */
  waType: string
  type: Message['type']
  filename: string
  mimeType: string
  bytes: Buffer
  options: object
}

const files = async (): Promise<File[]> => [
  {
    waType: 'image',
    type: 'image',
    filename: 'Foto.jpg',
    mimeType: 'image/jpeg',
    bytes: await picture(),
    options: { caption: 'Guten Morgen ☀️' },
  },
  {
    waType: 'document',
    type: 'document',
    filename: 'Angebot.pdf',
    mimeType: 'application/pdf',
    bytes: pdf(),
    options: { caption: 'Our offer' },
  },
  {
    waType: 'ptt',
    type: 'voice',
    filename: 'note.ogg',
    mimeType: 'audio/ogg; codecs=opus',
    bytes: await voice(),
    options: { asVoice: true },
  },
  {
    waType: 'video',
    type: 'video',
    filename: 'clip.mp4',
    mimeType: 'video/mp4',
    bytes: await video(12_000_000),
    options: {},
  },
  {
    waType: 'document',
    type: 'document',
    filename: 'Foto.jpg',
    mimeType: 'image/jpeg',
    bytes: await picture(),
    options: { asDocument: true },
  },
]

void t.test(
  'files reach the customer as they were uploaded, and the agent as the customer sent them',
  { skip: 'missing' in browser && browser.missing },
  async (t) => {
    const whatsapp = await startEmulatedWhatsApp()
    t.teardown(() => whatsapp.close())
    whatsapp.register({ number: customer })
    const { url } = await testDb(t)
    const env = await givenSettings(t, {
      DATABASE_URL: url,
      WA_ENGINE: 'webjs',
      WA_BROWSER_ARGS: whatsapp.browserArgs.join(' '),
      PUPPETEER_EXECUTABLE_PATH: process.env['PUPPETEER_EXECUTABLE_PATH'] ?? '',
    })
    await startProcess(t, 'api/server.js', env)
    await startProcess(t, 'wa-worker/main.js', env)
    const agent = new AgentClient(`http://127.0.0.1:${env['PORT']}`)
    await agent.register()
    const { body: session } = await agent.call<Json<Session>>('POST', '/api/whatsapp/sessions', {
      name: 'sales',
    })
    await until('a code', async () => (await agent.session(session.id)).status === 'SCAN_QR_CODE')
    const path = `/api/whatsapp/sessions/${session.id}/qr`
    const { body: qr } = await agent.call<{ value: string }>('GET', path)
    await whatsapp.scan(qr.value, { number: account, pushName: 'Bakery' })
    await until('WORKING', async () => (await agent.session(session.id)).status === 'WORKING')

    await t.test('out', async (t) => {
      const outgoing = await files()
      const sent = []
      for (const { bytes, filename, options } of outgoing) {
        const { id: mediaId } = await agent.upload(bytes, filename)
        const { status, body } = await agent.call<Json<Message>>('POST', '/api/whatsapp/send', {
          to: customer,
          mediaId,
          ...options,
        })
        t.equal(status, 202)
        sent.push(body.id)
      }
      for (const [i, id] of sent.entries()) {
        const { type, filename } = outgoing[i]!
        const message = await until(`${type} is read`, async () => {
          const message = await agent.message(id)
          return ['read', 'played', 'failed'].includes(message.status) && message
        })
        const expected = { type, status: 'read', error: null, attempts: 1, media: { filename } }
        t.match(message, expected, type)
      }
      t.strictSame(
        whatsapp.received(customer).map(({ type, mediaSha256 }) => ({ type, mediaSha256 })),
        outgoing.map(({ waType: type, bytes }) => ({ type, mediaSha256: sha256(bytes) })),
        'each once, in order, the same bytes',
      )
      t.match(
        whatsapp.stanzas.map(({ content }) => content),
        outgoing.map(({ waType, mimeType, filename, bytes, options }) => ({
          mimetype: mimeType,
          size: bytes.length,
          ...('caption' in options && { caption: options.caption }),
          ...(waType === 'document' && { filename }),
        })),
      )
    })

    await t.test('in', async (t) => {
      const incoming = await files()
      for (const [i, { waType, mimeType, filename, bytes }] of incoming.entries()) {
        const media = { data: bytes, mimetype: mimeType, filename }
        whatsapp.deliver({ to: account, from: customer, type: waType, body: `${i}`, media })
      }
      const [chat] = await agent.chats()
      const received = await until('all files are here', async () => {
        const inbound = (await agent.messages(chat!.id)).filter(
          ({ direction }) => direction === 'inbound',
        )
        const settled = inbound.every(({ media }) => media?.status !== 'pending')
        return inbound.length === incoming.length && settled && inbound.reverse()
      })
      for (const [i, { type, filename, mimeType, bytes }] of incoming.entries()) {
        const { media, ...message } = received[i]!
        t.match(message, { type, body: `${i}` })
        t.match(media, {
          status: 'ready',
          size: bytes.length,
          mimeType: mimeType.split(';')[0],
          ...(type === 'document' && { filename }),
        })
        t.ok(bytes.equals(await agent.download(media!.id)), `${type}, byte for byte`)
      }
    })
  },
)
