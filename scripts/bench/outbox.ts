/**
 * npm run bench:outbox [-- --quick --markdown FILE]: what sending costs in the database, beside pg-boss, graphile-worker and pgbench on the same machine in
 * the same run. Ends with a table of targets; exit code 1 when one is missed, or the order was broken once.
 */
import { tmpdir } from 'node:os'
import { parseArgs } from 'node:util'
import { connect } from '../../shared/db.ts'
import { migrate } from '../../shared/migrations.ts'
import { writeFigures } from '../markdown.ts'
import { endWhenBrokenOff } from './broken-off.ts'
import { claimCosts } from './outbox/claim-cost.ts'
import { drain } from './outbox/drain.ts'
import { commitTimes, pickups } from './outbox/pickup.ts'
import { figuresOf, markdown, plain } from './outbox/report.ts'
import { closeServer, memoryFolder, openServer } from './outbox/server.ts'
import type { Server } from './outbox/server.ts'
import { Workers } from './outbox/workers.ts'

const { values: options } = parseArgs({
  options: { quick: { type: 'boolean', default: false }, markdown: { type: 'string' } },
})

const startedAt = performance.now()
const workers = new Workers()
const server = await openServer(tmpdir())
const inMemory = memoryFolder()
const memoryServer = inMemory === undefined ? undefined : await openServer(inMemory)
const servers = memoryServer ? [server, memoryServer] : [server]
endWhenBrokenOff(...servers)
const { url, sql, folder } = server
const rounds = options.quick ? 1 : 3
try {
  // First: the drains leave millions of rows behind, and vacuuming to be done.
  const waited = await waitedOn(server)
  say(`pickups measured, ${waited.violations} violations of the order`)
  const waitedInMemory = memoryServer && (await waitedOn(memoryServer))
  say(memoryServer ? 'pickups in memory measured' : 'no room in memory: no pickups there')
  const drained = await drain({ sql, url, folder, workers, rounds, say })
  say(`${drained.handled} messages of ours handled, ${drained.violations} violations of the order`)
  const costs = await inDatabaseOfItsOwn((claims) =>
    claimCosts(claims, options.quick ? 100_000 : 1_000_000),
  )
  say('claims measured')

  const report = figuresOf({
    ...{ drained, waited, waitedInMemory, costs },
    quick: options.quick,
    seconds: (performance.now() - startedAt) / 1_000,
  })
  console.log(plain(report))
  if (options.markdown !== undefined)
    await writeFigures(options.markdown, 'outbox', markdown(report))
  process.exitCode = report.figures.every(({ ok }) => ok !== false) ? 0 : 1
} finally {
  await workers.close()
  await Promise.all(servers.map(closeServer))
}

async function waitedOn({ sql, url }: Server) {
  const messages = options.quick ? 150 : 300
  const waited = await pickups({ sql, url, workers, rounds: options.quick ? 1 : 2, messages })
  return { ...waited, commit: await commitTimes(sql) }
}

async function inDatabaseOfItsOwn<T>(
  work: (sql: ReturnType<typeof connect>) => Promise<T>,
): Promise<T> {
  await sql`create database claims`
  const other = new URL(url)
  other.pathname = 'claims'
  await migrate(other.href)
  const own = connect(other.href, { applicationName: 'bench' })
  try {
    return await work(own)
  } finally {
    await own.close()
  }
}

function say(text: string): void {
  console.log(`${((performance.now() - startedAt) / 1_000).toFixed(0).padStart(4)} s  ${text}`)
}
