import { createHmac, generateKeyPairSync, randomUUID } from 'node:crypto'
import t from 'tap'
import { errorShape, jwtSecret, signIn, testApp } from '../app.ts'

const it = await testApp(t)
const { profile, token } = await signIn(it)
const [head, body, signature] = token.split('.') as [string, string, string]
const claims = JSON.parse(Buffer.from(body, 'base64url').toString()) as Record<string, unknown>

const encode = (value: unknown) =>
  Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url')
const sign = (header: unknown, payload: unknown, secret: string = jwtSecret, hash = 'sha256') => {
  const text = `${encode(header)}.${encode(payload)}`
  return `${text}.${createHmac(hash, secret).update(text).digest('base64url')}`
}
const hs256 = { alg: 'HS256', typ: 'JWT' }
const now = Math.floor(Date.now() / 1_000)
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const pem = rsa.publicKey.export({ type: 'spki', format: 'pem' }).toString()
const ecPem = ec.publicKey.export({ type: 'spki', format: 'pem' }).toString()
const jwk = JSON.stringify(rsa.publicKey.export({ format: 'jwk' }))
const flip = (text: string, at: number) =>
  text.slice(0, at) + (text[at] === 'A' ? 'B' : 'A') + text.slice(at + 1)
const without = (name: string) => ({ ...claims, [name]: undefined })

/** Each is refused, whatever it tries. */
const attacks: [string, string][] = [
  // The algorithm is ours to choose.
  ...['none', 'None', 'NONE', 'nOnE', ''].flatMap((alg): [string, string][] => [
    [`alg "${alg}" without a signature`, `${encode({ alg, typ: 'JWT' })}.${body}.`],
    [`alg "${alg}" with the old signature`, `${encode({ alg, typ: 'JWT' })}.${body}.${signature}`],
    [`alg "${alg}" signed with our secret`, sign({ alg, typ: 'JWT' }, claims)],
  ]),
  ...['HS384', 'HS512', 'RS256', 'RS512', 'PS256', 'ES256', 'EdDSA', 'hs256', 'HS256 ', 'X'].map(
    (alg): [string, string] => [`alg ${alg} with our secret`, sign({ alg, typ: 'JWT' }, claims)],
  ),
  ['alg HS512, truly', sign({ alg: 'HS512', typ: 'JWT' }, claims, jwtSecret, 'sha512')],
  ['alg HS384, truly', sign({ alg: 'HS384', typ: 'JWT' }, claims, jwtSecret, 'sha384')],
  ['no alg', sign({ typ: 'JWT' }, claims)],
  ['alg as a list', sign({ alg: ['HS256'], typ: 'JWT' }, claims)],
  ['alg as a number', sign({ alg: 256, typ: 'JWT' }, claims)],
  // Other people's keys as secrets.
  ['an empty secret', sign(hs256, claims, '')],
  ['another secret', sign(hs256, claims, 'x'.repeat(40))],
  ['the secret with a blank', sign(hs256, claims, jwtSecret + ' ')],
  ['half the secret', sign(hs256, claims, jwtSecret.slice(0, 20))],
  ['the secret in base64', sign(hs256, claims, Buffer.from(jwtSecret).toString('base64'))],
  ['an RSA public key', sign(hs256, claims, pem)],
  ['an RSA public key behind a blank', sign(hs256, claims, ` ${pem}`)],
  ['an RSA public key behind a new line', sign(hs256, claims, `\n${pem}`)],
  ['an RSA public key behind other text', sign(hs256, claims, `x${pem}`)],
  ['an RSA public key without its end', sign(hs256, claims, pem.trim())],
  ['an EC public key', sign(hs256, claims, ecPem)],
  ['a JWK as text', sign(hs256, claims, jwk)],
  // The header must not bring its own key.
  ['jwk in the header', sign({ ...hs256, jwk: { kty: 'oct', k: 'eA' } }, claims, 'x')],
  ['jku in the header', sign({ ...hs256, jku: 'https://evil.example/keys' }, claims, 'x')],
  ['x5u in the header', sign({ ...hs256, x5u: 'https://evil.example/cert' }, claims, 'x')],
  ['x5c in the header', sign({ ...hs256, x5c: ['MIIB'] }, claims, 'x')],
  ['an unknown kid', sign({ ...hs256, kid: 'other' }, claims, 'x')],
  ['kid that walks', sign({ ...hs256, kid: '../../../dev/null' }, claims, '')],
  ['kid with SQL', sign({ ...hs256, kid: "' union select 'x" }, claims, 'x')],
  // Time.
  ['expired a second ago', sign(hs256, { ...claims, exp: now - 1 })],
  ['expired long ago', sign(hs256, { ...claims, exp: 1 })],
  ['exp 0', sign(hs256, { ...claims, exp: 0 })],
  ['negative exp', sign(hs256, { ...claims, exp: -1 })],
  ['exp as text', sign(hs256, { ...claims, exp: '9999999999' })],
  ['exp null', sign(hs256, { ...claims, exp: null })],
  ['exp as a list', sign(hs256, { ...claims, exp: [9999999999] })],
  ['no exp', sign(hs256, without('exp'))],
  ['not yet valid', sign(hs256, { ...claims, nbf: now + 600 })],
  ['no iat', sign(hs256, without('iat'))],
  // For whom, by whom, what for.
  ['another audience', sign(hs256, { ...claims, aud: 'elsewhere' })],
  ['the audience in capitals', sign(hs256, { ...claims, aud: 'AWFAR-API' })],
  ['an audience that begins like ours', sign(hs256, { ...claims, aud: 'awfar-api2' })],
  ['an empty list of audiences', sign(hs256, { ...claims, aud: [] })],
  ['no audience', sign(hs256, without('aud'))],
  ['another issuer', sign(hs256, { ...claims, iss: 'elsewhere' })],
  ['no issuer', sign(hs256, without('iss'))],
  ['a refresh token’s type', sign(hs256, { ...claims, typ: 'refresh' })],
  ['a challenge’s type', sign(hs256, { ...claims, typ: 'challenge', via: 'bearer' })],
  ['no type', sign(hs256, without('typ'))],
  ['no family', sign(hs256, without('sid'))],
  ['no subject', sign(hs256, without('sub'))],
  ['a subject that is nobody', sign(hs256, { ...claims, sub: randomUUID() })],
  // What is signed is what counts.
  ...[0, 5, 12].map((at): [string, string] => [
    `header changed at ${at}`,
    [flip(head, at), body, signature].join('.'),
  ]),
  ...[0, 20, 60, 100].map((at): [string, string] => [
    `body changed at ${at}`,
    [head, flip(body, at), signature].join('.'),
  ]),
  ...[0, 10, 30].map((at): [string, string] => [
    `signature changed at ${at}`,
    [head, body, flip(signature, at)].join('.'),
  ]),
  ['no signature', `${head}.${body}.`],
  ['a signature too short', `${head}.${body}.${signature.slice(0, -4)}`],
  ['a signature too long', `${head}.${body}.${signature}AAAA`],
  [
    'the signature of another token',
    `${head}.${body}.${sign(hs256, { ...claims, x: 1 }).split('.')[2]}`,
  ],
  ['two parts', `${head}.${body}`],
  ['four parts', `${token}.x`],
  ['empty parts', '..'],
  ['a body that is no JSON', sign(hs256, 'not json')],
  ['a body that is a list', sign(hs256, [])],
  ['a body that is null', sign(hs256, 'null')],
  ['a header that is no JSON', sign('not json', claims)],
  ['a header that is null', sign('null', claims)],
  [
    '__proto__ in the claims',
    sign(hs256, `{"__proto__":{"sub":"${profile.id}"},"exp":9999999999}`),
  ],
  [
    'doubled claims, the last one wrong',
    sign(hs256, JSON.stringify(claims).replace(/}$/, ',"typ":"x"}')),
  ],
  ['a megabyte', `${head}.${'A'.repeat(10_000)}.${signature}`],
  ['base64 with padding', `${head}.${body}==.${signature}`],
  ['the ordinary alphabet of base64', `${head}.${body}+/.${signature}`],
]

void t.test('the forger of this table knows how it is done', async (t) => {
  const headers = { authorization: `Bearer ${sign(hs256, claims)}` }
  t.equal((await it.app.inject({ url: '/api/auth/me', headers })).statusCode, 200)
})

for (const [what, forged] of attacks) {
  void t.test(`a token is refused: ${what}`, async (t) => {
    for (const headers of [
      { authorization: `Bearer ${forged}` },
      { cookie: `__Host-access=${forged}` },
    ]) {
      const answer = await it.app.inject({ url: '/api/auth/me', headers })
      t.match(answer.json(), errorShape(401, 'UNAUTHORIZED'))
    }
  })
}

const schemes: [string, string | undefined][] = [
  ['no header', undefined],
  ['an empty header', ''],
  ['the bare token', token],
  ['Basic', `Basic ${token}`],
  ['Bearer without a token', 'Bearer'],
  ['Bearer and a blank', 'Bearer '],
  ['two blanks', `Bearer  ${token}`],
  ['a tab', `Bearer\t${token}`],
  ['something behind', `Bearer ${token} x`],
  ['two tokens', `Bearer ${token}, Bearer ${token}`],
  ['quotes', `Bearer "${token}"`],
  ['a NUL', `Bearer ${token}\0`],
  ['the token in the query', undefined],
]
for (const [what, authorization] of schemes) {
  void t.test(`an Authorization header is refused: ${what}`, async (t) => {
    const url =
      what === 'the token in the query' ? `/api/chats?access_token=${token}` : '/api/chats'
    const headers = authorization === undefined ? {} : { authorization }
    const answer = await it.app.inject({ url, headers })
    t.match(answer.json(), errorShape(401, 'UNAUTHORIZED'))
    t.equal(answer.headers['www-authenticate'], 'Bearer')
  })
}
