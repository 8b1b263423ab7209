import { randomBytes } from 'node:crypto'
import t from 'tap'
import { decodeCursor, numberKey, uuidKey } from '../../../shared/pagination.ts'
import { cutOut } from '../../../shared/search-snippet.ts'
import { parseRecipient } from '../../../shared/wa-id.ts'
import { hashPassword, loadStrengthCheck, verifyPassword } from '../../passwords.ts'
import { signIn, testApp } from '../app.ts'

const it = await testApp(t)
const person = await signIn(it)

const injections = [
  "' or '1'='1",
  "'; drop table profiles; --",
  '" or ""="',
  "') union select password_hash from profiles --",
  "1'; select pg_sleep(5)--",
  '\\',
  '%',
  '_',
  '%%%',
  "\\' or 1=1 --",
  '$1',
  '${7*7}',
  '{{7*7}}',
  '<script>alert(1)</script>',
  '\u2028\u2029',
  '\u202egnp.exe',
  '../../etc/passwd',
  '\r\nSet-Cookie: a=b',
  '\x1b[31mred',
  '\ud83d',
  'NULL',
  'undefined',
  '[object Object]',
  '; ls',
  '`id`',
  '|| ls',
  "admin'--",
  '0x27',
]
for (const text of injections) {
  void t.test(
    `text stays text everywhere: ${encodeURI(text.replaceAll(/[\ud800-\udfff]/g, '?'))}`,
    async (t) => {
      const before = await tables()
      const made = await person.call('POST', '/api/whatsapp/sessions', {
        name: text + randomBytes(3).toString('hex'),
      })
      t.ok([201, 400].includes(made.statusCode), `${made.statusCode}`)
      for (const url of [
        '/api/chats?search=',
        '/api/search?q=',
        '/api/audit-log?action=',
        '/api/audit-log?targetId=',
        '/api/users?cursor=',
      ]) {
        const answer = await person.call(
          'GET',
          url + encodeURIComponent(text.replaceAll(/[\ud800-\udfff]/g, '')),
        )
        t.ok(answer.statusCode < 500, url)
        t.notMatch(answer.body, /syntax error|pg_|\$2b\$/)
      }
      const renamed = await person.call('PATCH', '/api/auth/me', { fullName: text })
      t.ok(renamed.statusCode < 500)
      const login = await it.app.inject({
        method: 'POST',
        url: '/api/auth/login',
        body: { email: text, password: text },
        headers: { 'user-agent': text.replaceAll(/[^\x20-\x7e]/g, '') },
      })
      t.ok([400, 401].includes(login.statusCode), `${login.statusCode}`)
      t.equal(await tables(), before)
    },
  )
}

async function tables(): Promise<number> {
  const [row] = await it.sql<{ count: number }>`
    select count(*) from pg_class where relnamespace = 'public'::regnamespace`
  return row!.count
}

/** Input that makes a careless regular expression try for ever. */
const long = 50_000
const slow: [string, string][] = [
  ['digits', '1'.repeat(long)],
  ['plus signs', '+'.repeat(long)],
  ['blanks', ' '.repeat(long)],
  ['tabs', '\t'.repeat(long)],
  ['dashes', '-'.repeat(long)],
  ['dots', '.'.repeat(long)],
  ['ats', '@'.repeat(long)],
  ['letters', 'a'.repeat(long)],
  ['letters and a bang', 'a'.repeat(long) + '!'],
  ['a and at', 'a@'.repeat(long / 2)],
  ['address-like', 'a@a.'.repeat(long / 4)],
  ['dotted', 'a.'.repeat(long / 2) + '@x'],
  ['many labels', 'x@' + 'a.'.repeat(long / 2)],
  ['digits and blanks', '1 '.repeat(long / 2)],
  ['digits and dashes', '1-'.repeat(long / 2)],
  ['brackets', '('.repeat(long)],
  ['brackets closed', '()'.repeat(long / 2)],
  ['hex', '0'.repeat(long) + 'g'],
  ['uuid-like', '0000-'.repeat(long / 5)],
  ['braces', '{'.repeat(long)],
  ['backslashes', '\\'.repeat(long)],
  ['quotes', '"'.repeat(long)],
  ['new lines', '\n'.repeat(long)],
  ['NULs', '\0'.repeat(long)],
  ['emoji', '😀'.repeat(long / 2)],
  ['combining marks', 'e\u0301'.repeat(long / 2)],
  ['percent', '%'.repeat(long)],
  ['slashes', '/'.repeat(long)],
  ['base64', 'QUFB'.repeat(long / 4)],
  ['equals', '='.repeat(long)],
  ['commas', ','.repeat(long)],
  ['a@c.us', '1@c.us'.repeat(long / 6)],
]
for (const [what, text] of slow) {
  void t.test(`no expression runs away: 50 KB of ${what}`, async (t) => {
    const started = process.cpuUsage()
    parseRecipient(text)
    cutOut(text, [{ words: ['needle'], open: true }])
    for (const key of [uuidKey, numberKey]) t.throws(() => decodeCursor(text, key))
    await it.app.inject({
      method: 'POST',
      url: '/api/auth/login',
      body: { email: text, password: text },
    })
    await person.call('POST', '/api/whatsapp/send', { to: text, message: 'x' })
    await it.app.inject({
      url: '/health',
      headers: {
        'x-request-id': text.slice(0, 8_000).replaceAll(/[^\x21-\x7e]/g, 'x'),
        authorization: `Bearer ${text.slice(0, 8_000).replaceAll(/[^\x21-\x7e]/g, 'x')}`,
      },
    })
    const { user } = process.cpuUsage(started)
    t.ok(user < 1_000_000, `${Math.round(user / 1_000)} ms of CPU`)
  })
}

const bcryptTraps: [string, string, string][] = [
  ['the 73rd byte', 'a'.repeat(72), 'a'.repeat(72) + 'b'],
  ['two tails behind 72 bytes', 'a'.repeat(72) + 'x', 'a'.repeat(72) + 'y'],
  ['the 73rd byte of emoji', '😀'.repeat(18), '😀'.repeat(18) + 'x'],
  ['a NUL', 'secret', 'secret\0other'],
  ['only a NUL', '\0', '\0a'],
]
for (const [what, one, other] of bcryptTraps) {
  void t.test(`bcrypt: ${what} does not make two passwords one`, async (t) => {
    for (const [set, given] of [
      [one, other],
      [other, one],
    ] as const) {
      const body = {
        email: `${randomBytes(5).toString('hex')}@example.com`,
        password: set,
        fullName: 'A',
      }
      const made = await it.app.inject({ method: 'POST', url: '/api/auth/register', body })
      if (made.statusCode === 400) continue
      const login = await it.app.inject({
        method: 'POST',
        url: '/api/auth/login',
        body: { email: body.email, password: given },
      })
      t.ok([400, 401].includes(login.statusCode))
    }
  })
}

void t.test(
  'bcrypt: nothing is joined to the password: long names and addresses do not matter',
  async (t) => {
    const email = `${'n'.repeat(60)}@${'d'.repeat(60)}.example.com`
    const body = { email, password: 'otter-pudding-violet-7', fullName: 'n'.repeat(120) }
    t.equal(
      (await it.app.inject({ method: 'POST', url: '/api/auth/register', body })).statusCode,
      201,
    )
    const login = { email, password: 'otter-pudding-violet-8' }
    t.equal(
      (await it.app.inject({ method: 'POST', url: '/api/auth/login', body: login })).statusCode,
      401,
    )
    t.equal(await verifyPassword('x', await hashPassword('x')), true)
  },
)

const weak = [
  'password',
  '12345678',
  'qwertyuiop',
  'password123',
  'letmein1',
  'iloveyou',
  'aaaaaaaa',
  'abcdefgh',
  '11111111',
  'qwerty123',
  'sunshine',
]
for (const password of weak) {
  void t.test(`a weak password is refused wherever one is set: ${password}`, async (t) => {
    const about = { email: `${randomBytes(5).toString('hex')}@example.com`, fullName: 'Ada' }
    const answer = await it.app.inject({
      method: 'POST',
      url: '/api/auth/register',
      body: { ...about, password },
    })
    t.match(answer.json(), {
      statusCode: 400,
      code: 'VALIDATION_FAILED',
      details: [{ path: 'body.password' }],
    })
    t.notMatch(answer.body, `"${password}"`, 'and is not quoted')
  })
}

const costly = [
  '4@8({[<369&#!1/|0$5+7%2/4',
  'aA4@',
  '1!|',
  '1',
  '20112011',
  'qazwsx',
  'password',
  '($%)',
  '0O0o',
  'abcABC',
]
for (const seed of costly) {
  void t.test(`the strength check takes no more than a moment: ${seed}`, async (t) => {
    const judge = await loadStrengthCheck()
    const started = process.cpuUsage()
    judge.check(seed.repeat(72).slice(0, 72))
    const { user } = process.cpuUsage(started)
    t.ok(user < 1_000_000, `${Math.round(user / 1_000)} ms of CPU`)
  })
}
