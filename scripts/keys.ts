import { resealCredentials } from '../shared/credentials.ts'
import { baseSchema, exitOnConfigError, loadEnv, readEnv } from '../shared/config.ts'
import type { BaseConfig } from '../shared/config.ts'
import { connect } from '../shared/db.ts'
import { openDatabase } from '../shared/embedded-postgres.ts'
import { errorText } from '../shared/errors.ts'
import { resealAnswers } from '../shared/idempotency.ts'
import { openKeyRing } from '../shared/key-ring.ts'
import { createLogger } from '../shared/logger.ts'
import { openObjectStore, sessionKeySchema, storageSchema } from '../shared/storage.ts'
import type { SessionKeyConfig, StorageConfig } from '../shared/storage.ts'
import { resealSeeds } from '../shared/two-factor.ts'
import { resealWebhooks } from '../shared/webhooks.ts'
import { Vault } from '../wa-worker/vault.ts'

const usage = `npm run keys -- <command>
  list     how much is sealed with which key of SESSION_ENCRYPTION_KEY
  rotate   seals everything with the first key: snapshots of logins, seeds of second factors, credentials, webhook secrets, answers that hold secrets
To change the key: put the new one in front, restart all processes, rotate, and take the old one out when list no longer shows it.
Exit codes: 0 done, 1 failed or something does not open, 2 wrong usage, 78 wrong settings`

type Config = BaseConfig & StorageConfig & SessionKeyConfig

await main(process.argv.slice(2)).catch(exitOnConfigError)

async function main([command, ...rest]: string[]): Promise<void> {
  if (rest.length > 0 || (command !== 'list' && command !== 'rotate')) {
    console.error(usage)
    process.exitCode = 2
    return
  }
  loadEnv()
  const config = readEnv<Config>({ ...baseSchema, ...storageSchema, ...sessionKeySchema })
  const { DATABASE_URL: databaseUrl, DATA_DIR: dataDir } = config
  const keys = await openKeyRing({
    value: config.SESSION_ENCRYPTION_KEY,
    dataDir,
    production: config.NODE_ENV === 'production',
  })
  const log = createLogger('keys', { level: 'error', stdout: false })
  const store = openObjectStore(config)
  const database = await openDatabase({ databaseUrl, dataDir }, log)
  const sql = connect(database.url, { applicationName: 'awfar-keys', prepare: config.PG_PREPARE })
  try {
    if (command === 'list') {
      console.table(
        await sql`
          select key_id as key, what, count(*) from (
            select key_id, 'snapshots' as what from wa_snapshots where state <> 'discarded'
            union all select key_id, 'second factors' from two_factor
            union all select key_id, 'credentials' from credentials
            union all select key_id, 'webhook secrets' from webhooks
            union all select previous_key_id, 'webhook secrets' from webhooks where previous_key_id is not null
            union all select sealed_with, 'answers' from idempotency_keys where sealed_with is not null and expires_at > now()) sealed
          group by 1, 2 order by 1, 2`,
      )
      return
    }
    const snapshots = await new Vault({ sql, store, keys, log }).rotate()
    const seeds = await resealSeeds(sql, keys)
    const credentials = await resealCredentials(sql, keys)
    const webhooks = await resealWebhooks(sql, keys)
    const answers = await resealAnswers(sql, keys)
    console.log(
      `Sealed with key ${keys.current}: ${snapshots.rotated} snapshots, ${seeds.resealed} second factors, ${credentials.resealed} credentials, ${webhooks.resealed} webhook secrets, ${answers.resealed} answers.`,
    )
    const stuck = [
      ...snapshots.failed.map(({ snapshot, why }) => `Snapshot ${snapshot.id}: ${why}`),
      ...seeds.failed.map((id) => `The second factor of user ${id} does not open.`),
      ...credentials.failed.map((id) => `Credential ${id} does not open.`),
      ...webhooks.failed.map((id) => `The secret of webhook ${id} does not open.`),
      ...answers.failed.map(
        (key) => `The answer to the request with the Idempotency-Key ${key} does not open.`,
      ),
    ]
    for (const line of stuck) console.error(line)
    if (stuck.length > 0) process.exitCode = 1
  } catch (error) {
    console.error(errorText(error))
    process.exitCode = 1
  } finally {
    await sql.close()
    await database.release()
  }
}
