import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { createLogger } from '../../shared/logger.ts'
import { vcardOf } from '../../wa-worker/engine/vcard.ts'
import { WebjsEngine } from '../../wa-worker/engine/webjs.ts'
import type { FarMessage, Rig } from '../../wa-worker/test/engine-contract.ts'
import { until } from '../../wa-worker/test/waiting.ts'
import { startEmulatedWhatsApp } from './emulated-page/server.ts'
import type { InboundMessage, Variation } from './emulated-page/server.ts'

const account = '12025550199'
const customer = '12025550100'
const refusing = '12025550102'
const locked = '12025550107'
const blocked = '12025550108'
const group = '120363000000000011@g.us'
/** What the page calls a kind by another name than we do. */
const types: Record<string, string> = {
  chat: 'text',
  ptt: 'voice',
  vcard: 'contact',
  poll_creation: 'poll',
}

/** A customer's message as the emulated page takes it. */
function delivery({ from, content, group, quoted, mentions, bytes }: FarMessage): InboundMessage {
  const message = {
    to: account,
    from,
    ...(group !== undefined && { group }),
    ...(quoted && { quoted: quoted.id }),
  }
  const extra = mentions && { mentionedJidList: mentions.map((id) => ({ $wid: id })) }
  switch (content.type) {
    case 'text':
      return { ...message, body: content.body, ...(extra && { extra }) }
    case 'location': {
      const { latitude: lat, longitude: lng, name, address } = content
      return {
        ...message,
        type: 'location',
        body: '/9j/4AAQ',
        extra: { lat, lng, loc: `${name}\n${address}` },
      }
    }
    case 'contact':
      return { ...message, type: 'vcard', body: vcardOf(content) }
    case 'poll': {
      const pollOptions = content.options.map((name, localId) => ({ name, localId }))
      const pollSelectableOptionsCount = content.multiple ? 0 : 1
      return {
        ...message,
        type: 'poll_creation',
        extra: { pollName: content.question, pollOptions, pollSelectableOptionsCount },
      }
    }
    default: {
      const { type, mimeType, filename, caption } = content
      return {
        ...message,
        type: type === 'voice' ? 'ptt' : type,
        ...(caption !== null && { body: caption }),
        media: { data: bytes!, mimetype: mimeType, filename },
      }
    }
  }
}

/** whatsapp-web.js on Chromium and the emulated page, which may do things otherwise, for the engine contract. */
export async function webjsRig(t: Test, variations: Variation[] = []): Promise<Rig> {
  const whatsapp = await startEmulatedWhatsApp({ variations })
  const folder = await mkdtemp(join(tmpdir(), 'awfar-webjs-'))
  t.teardown(async () => {
    await whatsapp.close()
    await rm(folder, { recursive: true, force: true, maxRetries: 5 })
  })
  const { lid } = whatsapp.register({ number: customer })
  whatsapp.register({ number: '554188887777', aliases: ['5541988887777'] })
  whatsapp.register({ number: refusing })
  whatsapp.register({ number: locked })
  whatsapp.setAcks({ recipient: refusing, mode: 'fail' })
  const lockedUntil = Math.floor(Date.now() / 1_000) + 3_600
  whatsapp.setAcks({ recipient: locked, mode: 'fail', errorCode: 463, lockedUntil })
  whatsapp.createGroup(group, 'Bakers', [`${account}@c.us`, `${customer}@c.us`])
  await whatsapp.failCall('addAndSendMsgToChat', 'out of order', undefined, 'POISON')
  await whatsapp.failCall('encrypt', 'no keys', undefined, 'GIVEN UP')
  whatsapp.register({ number: blocked })
  const done = (type: string, keyId: string) =>
    whatsapp.stanzas.findLast(
      ({ content, ...stanza }) =>
        stanza.type === type && String(content['target']).split('_')[2] === keyId,
    )
  return {
    createEngine: () =>
      new WebjsEngine({
        sessionId: 'contract',
        log: createLogger('test', { level: 'error', stdout: false }),
        profileDir: async () => join(folder, 'profile'),
        executablePath: process.env['PUPPETEER_EXECUTABLE_PATH'],
        browserArgs: whatsapp.browserArgs,
      }),
    scan: async (_, qr) => {
      await whatsapp.scan(qr, { number: account, pushName: 'Bakery' })
      await until('its page can be commanded', () => whatsapp.hasPage(account))
      await whatsapp.block(account, blocked)
    },
    deliver: async (_, from, body) => {
      whatsapp.deliver({ to: account, from: from.slice(0, -5), body, pushName: 'Ann' })
    },
    receive: async (_, message) => whatsapp.deliver(delivery(message)).id,
    receiveLate: async (_, from, body, placed) => {
      const { id } = whatsapp.deliver({ to: account, from, type: 'ciphertext' })
      await placed
      whatsapp.decrypt(account, id, body)
      return id
    },
    editByContact: async (_, { id }, body) => whatsapp.edit(account, id, body),
    revokeByContact: async (_, { id }) => whatsapp.revoke(account, id),
    reactByContact: async (_, { id }, text) =>
      whatsapp.react(account, { from: customer, id, text }),
    voteByContact: async (_, { id }) =>
      whatsapp.vote(account, { from: customer, id, options: [0] }),
    callByContact: async () => void whatsapp.call(account, { from: customer, video: true }),
    expireMedia: async (_, { id }) => whatsapp.expireMedia(account, id),
    dropLink: async () => whatsapp.dropLink(account),
    restoreLink: async () => whatsapp.restoreLink(account),
    logoutFromPhone: async () => {
      whatsapp.logoutFromPhone(account)
      await until('the device is off the list', () => whatsapp.onlineDevices(account) === 0)
    },
    transmissions: (_, keyId) => whatsapp.stanzas.filter(({ id }) => id === keyId).length,
    countsOn: true,
    state: (_, keyId) => {
      const sent = whatsapp.stanzas.find(({ id }) => id === keyId)
      return (
        sent && {
          type: types[sent.type] ?? sent.type,
          body: done('edit', keyId)?.body ?? sent.body,
          quoted: sent.content['quotedStanzaID'] as string | undefined,
          sha256: sent.mediaSha256,
          reaction: done('reaction', keyId)?.body,
          revoked: done('revoke', keyId) !== undefined,
        }
      )
    },
    signals: () => whatsapp.signals.map(({ kind }) => kind),
    customer: `${customer}@c.us`,
    customerLid: lid,
    group,
    unregistered: '12025550001@c.us',
    refusing: `${refusing}@c.us`,
    locked: `${locked}@c.us`,
    blocked: `${blocked}@c.us`,
    poisons: [
      { chatId: `${customer}@c.us`, body: 'a POISON one' },
      { chatId: `${customer}@c.us`, body: 'GIVEN UP at once' },
    ],
    alias: { phone: '5541988887777', waId: '554188887777@c.us' },
  }
}
