import { baseSchema, exitOnConfigError, loadEnv, readEnv } from '../shared/config.ts'
import type { BaseConfig } from '../shared/config.ts'
import { openDatabase } from '../shared/embedded-postgres.ts'
import { createLogger } from '../shared/logger.ts'
import { migrate, migrationStatus } from '../shared/migrations.ts'

const usage = `npm run migrate -- [--status | --dry-run]
  (nothing)   applies what is missing
  --status    lists every migration and when it was applied
  --dry-run   says what would be applied, and applies nothing`

try {
  await main(process.argv.slice(2))
} catch (error) {
  exitOnConfigError(error)
}

async function main(args: string[]): Promise<void> {
  if (args.some((arg) => arg !== '--status' && arg !== '--dry-run') || args.length > 1) {
    console.error(usage)
    process.exitCode = 2
    return
  }
  loadEnv()
  const config = readEnv<BaseConfig>(baseSchema)
  const log = createLogger('migrate', { level: 'warn' })
  const database = await openDatabase(
    { databaseUrl: config.DATABASE_URL_DIRECT ?? config.DATABASE_URL, dataDir: config.DATA_DIR },
    log,
  )
  try {
    if (args[0] === '--status') await printStatus(database.url)
    else await run(database.url, args[0] === '--dry-run')
  } catch (error) {
    console.error((error as Error).message)
    process.exitCode = 1
  } finally {
    await database.release()
  }
}

async function printStatus(url: string): Promise<void> {
  for (const { version, name, appliedAt } of await migrationStatus(url)) {
    console.log(`${title(version, name)}  ${appliedAt?.toISOString() ?? 'not applied'}`)
  }
}

async function run(url: string, dryRun: boolean): Promise<void> {
  const done = await migrate(url, { dryRun })
  for (const { version, name } of done) {
    console.log(`${dryRun ? 'would apply' : 'applied'} ${title(version, name)}`)
  }
  if (done.length === 0) console.log('up to date')
}

function title(version: number, name: string): string {
  return `${String(version).padStart(4, '0')}_${name}`
}
