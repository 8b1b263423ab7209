/** Small helpers around text: links, phone numbers, contact cards. */
import { define } from './modules.js'

const LINK = /https?:\/\/[^\s<>"]+/g

function findLinks(text) {
  if (typeof text !== 'string') return []
  return [...text.matchAll(LINK)].map(([href]) => ({
    href,
    url: href,
    suspiciousCharacters: new Set(),
  }))
}

const vcardOf = (contact) => {
  const number = contact.phoneNumber?.user ?? contact.id.user
  const lines = [
    'BEGIN:VCARD',
    'VERSION:3.0',
    `FN:${contact.formattedName}`,
    `TEL;type=CELL;waid=${number}:+${number}`,
    'END:VCARD',
  ]
  return { displayName: contact.formattedName, vcard: lines.join('\n') }
}

define({
  WALinkify: { findLinks, findLink: (text) => findLinks(text)[0] },
  WAWebLinkPreviewChatAction: {
    getLinkPreview: async ({ href }) => ({
      data: { title: new URL(href).host, canonicalUrl: href, matchedText: href },
    }),
  },
  WAWebPhoneUtils: { formattedPhoneNumber: (id) => `+${id.split('@')[0]}` },
  WAPhoneFindCC: { findCC: (number) => /^(1|7|2[07]|\d{2})/.exec(number)?.[0] },
  WAWebFrontendVcardUtils: { vcardFromContactModel: vcardOf },
  WAWebVcardParsingUtils: { parseVcard: (vcard) => ({ name: /^FN:(.*)$/m.exec(vcard)?.[1] }) },
  WAWebVcardGetNameFromParsed: { vcardGetNameFromParsed: ({ name }) => name },
})
