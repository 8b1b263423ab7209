import t from 'tap'
import { readVcard, vcardOf } from '../engine/vcard.ts'

void t.test('a card says of one person what it was given, whatever the name holds', (t) => {
  for (const line of ['\n', '\r\n', '\r']) {
    const card = vcardOf({ name: `Cleo; née, \\ ${line}TEL:+1900`, phone: '+493012345' })
    t.equal(card.split(/\r\n?|\n/).length, 6)
    t.same(readVcard(card), { name: 'Cleo; née, \\  TEL:+1900', phone: '+493012345' })
  }
  t.end()
})
