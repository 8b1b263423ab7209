import type { ContactContent } from '../../shared/message-content.ts'
import type { ContactCard } from './engine.ts'

/** A contact card as WhatsApp writes one; `waid` makes it offer a chat. */
export function vcardOf({ name, phone }: Pick<ContactContent, 'name' | 'phone'>): string {
  const text = name.replaceAll(/[\\,;]/g, String.raw`\$&`).replaceAll(/\r\n?|\n/g, String.raw`\n`)
  return [
    'BEGIN:VCARD',
    'VERSION:3.0',
    `N:;${text};;;`,
    `FN:${text}`,
    `TEL;type=CELL;type=VOICE;waid=${phone.replace(/\D/g, '')}:${phone}`,
    'END:VCARD',
  ].join('\n')
}

/** Name and number of a card; undefined when it has no name. */
export function readVcard(vcard: string): ContactCard | undefined {
  const name = /^FN[^:\r\n]*:(.+)$/im.exec(vcard)?.[1]?.trim()
  if (!name) return undefined
  const phone = /^(?:item\d+\.)?TEL[^:\r\n]*\bwaid=(\d+)/im.exec(vcard)?.[1]
  return {
    name: name.replaceAll(/\\n/gi, ' ').replaceAll(/\\(.)/g, '$1'),
    phone: phone === undefined ? null : `+${phone}`,
  }
}
