import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import pg from 'pg'
import type { Test } from 'tap'
import { connect } from '../db.ts'
import type { Db } from '../db.ts'
import { urlFile } from './cluster.ts'

/** A migrated database of the test's own: its address, and a connection to it. It is dropped when the test ends. */
export async function testDb(t: Pick<Test, 'teardown'>): Promise<{ url: string; sql: Db }> {
  if (!existsSync(urlFile)) {
    throw new Error('No test database: run tests through tap (npm test -- <file>, npx tap <file>).')
  }
  const server = readFileSync(urlFile, 'utf8')
  const name = `test_${randomBytes(8).toString('hex')}`
  await admin(server, `create database ${name} template awfar_template`)

  const url = new URL(server)
  url.pathname = name
  const sql = connect(url.href, { applicationName: 'test' })
  t.teardown(async () => {
    await sql.close()
    await admin(server, `drop database if exists ${name} with (force)`)
  })
  return { url: url.href, sql }
}

async function admin(url: string, text: string): Promise<void> {
  const client = new pg.Client({ connectionString: url, application_name: 'test-admin' })
  await client.connect()
  try {
    await client.query(text)
  } finally {
    await client.end()
  }
}
