import type { ContactContent } from '../../shared/message-content.ts'

/** A contact card as WhatsApp writes one; `waid` makes it offer a chat. */
export function vcardOf({ name, phone }: Pick<ContactContent, 'name' | 'phone'>): string {
  const text = name.replaceAll(/[\\,;]/g, String.raw`\$&`).replaceAll(/\r?\n/g, String.raw`\n`)
  return [
    'BEGIN:VCARD',
    'VERSION:3.0',
    `N:;${text};;;`,
    `FN:${text}`,
    `TEL;type=CELL;type=VOICE;waid=${phone.replace(/\D/g, '')}:${phone}`,
    'END:VCARD',
  ].join('\n')
}
