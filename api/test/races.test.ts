import { randomBytes } from 'node:crypto'
import t from 'tap'
import { KeyRing } from '../../shared/key-ring.ts'
import { invite, takeInvitation } from '../../shared/invitations.ts'
import { startReset, takeReset } from '../../shared/password-resets.ts'
import { countHit } from '../../shared/rate-limits.ts'
import { rotateToken, startFamily } from '../../shared/refresh-tokens.ts'
import {
  confirm,
  enroll,
  renewBackupCodes,
  useBackupCode,
  useStep,
} from '../../shared/two-factor.ts'
import { newSeed } from '../totp.ts'
import { signIn, testApp, testKey } from './app.ts'

const it = await testApp(t)
const { sql } = it
const { profile } = await signIn(it)
await enroll(sql, KeyRing.parse(testKey), profile, newSeed())
await confirm(sql, profile.id)

const ways = 50
const rounds = 100

/** Runs `attempt` fifty ways at once, a hundred times over; each time exactly so many must win. */
async function race<T>(
  prepare: (round: number) => Promise<T>,
  attempt: (prize: T) => Promise<boolean>,
  winners = 1,
): Promise<number> {
  let right = 0
  for (let round = 0; round < rounds; round++) {
    const prize = await prepare(round)
    const results = await Promise.all(Array.from({ length: ways }, () => attempt(prize)))
    if (results.filter(Boolean).length === winners) right += 1
  }
  return right
}

void t.test('a refresh token has one winner', async (t) => {
  const won = await race(
    async () => (await startFamily(sql, profile))!.token,
    async (token) => (await rotateToken(sql, token)).issued !== undefined,
  )
  t.equal(won, rounds)
})

void t.test('a TOTP step has one winner', async (t) => {
  const won = await race(
    async (round) => round + 1,
    (step) => useStep(sql, profile.id, step),
  )
  t.equal(won, rounds)
})

void t.test('a backup code has one winner', async (t) => {
  let codes: string[] = []
  const won = await race(
    async () => {
      if (codes.length === 0) codes = await sql.begin((tx) => renewBackupCodes(tx, profile))
      return codes.pop()!
    },
    (code) => useBackupCode(sql, profile.id, code),
  )
  t.equal(won, rounds)
})

void t.test('renewing backup codes at once leaves ten', async (t) => {
  for (let round = 0; round < 10; round++) {
    await Promise.all([1, 2, 3, 4].map(() => sql.begin((tx) => renewBackupCodes(tx, profile))))
    const codes = await sql`select code_hash from backup_codes where profile_id = ${profile.id}`
    t.equal(codes.length, 10)
  }
})

void t.test('an invitation has one winner', async (t) => {
  const won = await race(
    async () =>
      (await invite(sql, profile, {
        email: `${randomBytes(6).toString('hex')}@example.com`,
        role: 'agent',
      }))!.token,
    async (token) => (await takeInvitation(sql, token)) !== undefined,
  )
  t.equal(won, rounds)
})

void t.test('however many resets are asked for at once, three are open', async (t) => {
  const won = await race(
    async () => void (await sql`delete from password_resets where profile_id = ${profile.id}`),
    async () => (await startReset(sql, profile.email)) !== undefined,
    3,
  )
  t.equal(won, rounds)
  await sql`delete from password_resets where profile_id = ${profile.id}`
})

void t.test('a password reset has one winner', async (t) => {
  const won = await race(
    async () => (await startReset(sql, profile.email))!.token,
    async (token) => (await takeReset(sql, token)) !== undefined,
  )
  t.equal(won, rounds)
})

void t.test(
  'of fifty attempts at once the lockout admits as many as the limit, not one more',
  async (t) => {
    const won = await race(
      async (round) => `login:${round}`,
      async (key) => (await countHit(sql, key, 60_000)).hits <= 10,
      10,
    )
    t.equal(won, rounds)
  },
)
