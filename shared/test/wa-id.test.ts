import t from 'tap'
import { AppError } from '../errors.ts'
import { decodeCursor, encodeCursor, numberKey, toPage, uuidKey } from '../pagination.ts'
import { keyIdOf, parseRecipient, phoneOf, recipientFault, serializeKey } from '../wa-id.ts'

void t.test('every form of a recipient leads to one address', async (t) => {
  const forms: Record<string, string> = {
    '1234567890@c.us': '1234567890@c.us',
    '1234567890@s.whatsapp.net': '1234567890@c.us',
    '+1 234 567-890': '1234567890@c.us',
    '+1 (234) 567.890': '1234567890@c.us',
    '1234567890': '1234567890@c.us',
    ' 1234567890@c.us ': '1234567890@c.us',
    ' +1 234 567-890 ': '1234567890@c.us',
    '\u202a+1\u00a0234\u00a0567\u2011890\u202c': '1234567890@c.us',
    '(+1) 234 567\u2013890': '1234567890@c.us',
    '+49 (0)30 123456': '4930123456@c.us',
    '(+49)(0) 30 123456': '4930123456@c.us',
    '+1 (023) 456 7890': '10234567890@c.us',
    '123456789012345@lid': '123456789012345@lid',
    '120363000000000000@g.us': '120363000000000000@g.us',
    '12345678901-1600000000@g.us': '12345678901-1600000000@g.us',
  }
  for (const [form, address] of Object.entries(forms)) t.equal(parseRecipient(form), address, form)
})

void t.test('what is no recipient is refused', async (t) => {
  const wrong = [
    '',
    'ann',
    '123',
    '0123456789',
    '+',
    '1234567890123456',
    '123@c.us',
    '1234567890@c.us.evil',
    '1234567890@newsletter',
    'status@broadcast',
    '1234-5678901@c.us',
    '1234567890@C.US',
    '١٢٣٤٥٦٧٨٩٠',
    '1234567890\n@c.us',
    '--------',
  ]
  for (const form of wrong) t.equal(parseRecipient(form), undefined, JSON.stringify(form))
})

void t.test('what is wrong with a recipient is named', async (t) => {
  const faults: Record<string, RegExp> = {
    ann: /characters/,
    '+1 234 567 890 ext 5': /characters/,
    '': /characters/,
    '+': /characters/,
    '123': /3 digits/,
    '123@c.us': /3 digits/,
    '1234567890123456': /16 digits/,
    '0049 30 123456': /country code/,
    '030 123456': /country code/,
    '0301234567@s.whatsapp.net': /country code/,
    '1234567890@newsletter': /address ends/,
    'status@broadcast': /address ends/,
    '1234567890@C.US': /address ends/,
    '1234-5678901@c.us': /characters/,
    'ann@g.us': /characters/,
  }
  for (const [form, fault] of Object.entries(faults)) {
    t.equal(parseRecipient(form), undefined, form)
    t.match(recipientFault(form), fault, form)
  }
})

void t.test('a message has one id on WhatsApp, whatever the attempt', async (t) => {
  const id = '0b0f6a8e-6a2a-4c58-8f0e-4d8c6f6f8a11'
  t.equal(keyIdOf(id), keyIdOf(id))
  t.match(keyIdOf(id), /^3EB0[0-9A-F]{18}$/)
  t.not(keyIdOf(id), keyIdOf(id.replace('0b', '0c')))
  t.equal(serializeKey(true, '1@c.us', 'X'), 'true_1@c.us_X')
  t.equal(serializeKey(false, '1@g.us', 'X', '2@c.us'), 'false_1@g.us_X_2@c.us')
  t.equal(phoneOf('1234567890@c.us'), '+1234567890')
  t.equal(phoneOf('1234567890@lid'), null)
})

void t.test('a cursor comes back as it went, to the microsecond', async (t) => {
  const position = { at: '2026-11-21 08:00:00.123456+00', key: '42' }
  t.same(decodeCursor(encodeCursor(position), numberKey), position)
})

void t.test('a cursor that is not ours is a fault of the request', async (t) => {
  const forged = [
    '',
    'abc',
    Buffer.from('{}').toString('base64url'),
    Buffer.from('["now()","1"]').toString('base64url'),
    encodeCursor({ at: '2026-11-21 08:00:00+00', key: "1'; drop table messages" }),
    encodeCursor({ at: '2026-11-21 08:00:00+00', key: '42' }),
    encodeCursor({ at: '2026-99-99 00:00:00+00', key: '0b0f6a8e-6a2a-4c58-8f0e-4d8c6f6f8a11' }),
    encodeCursor({ at: '2026-11-21 25:00:00+00', key: '0b0f6a8e-6a2a-4c58-8f0e-4d8c6f6f8a11' }),
  ]
  for (const cursor of forged) {
    t.throws(
      () => decodeCursor(cursor, uuidKey),
      { statusCode: 400, code: 'VALIDATION_FAILED' },
      cursor,
    )
  }
  t.throws(() => decodeCursor('x', uuidKey), AppError)
})

void t.test('the last page has no next cursor', async (t) => {
  const at = '2026-11-21 08:00:00+00'
  const page = (rows: number[]) =>
    toPage(
      rows,
      2,
      (row) => ({ at, key: String(row) }),
      (row) => row * 10,
    )
  t.same(page([1, 2]), { data: [10, 20], nextCursor: null })
  t.same(page([1, 2, 3]), { data: [10, 20], nextCursor: encodeCursor({ at, key: '2' }) })
})
