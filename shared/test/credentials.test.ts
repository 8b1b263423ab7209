import t from 'tap'
import {
  deleteCredential,
  putCredential,
  readCredential,
  resealCredentials,
} from '../credentials.ts'
import { KeyRing } from '../key-ring.ts'
import { createWorkspace } from '../workspaces.ts'
import { testDb } from './db.ts'

const { sql } = await testDb(t)
const entry = (id: string, byte: number) => `${id}:${Buffer.alloc(32, byte).toString('base64')}`
const keys = KeyRing.parse(entry('a', 1))
const workspaceId = await createWorkspace(sql, 'Mine')
const stored = async () => {
  const [row] = await sql<{
    text: string
  }>`select string_agg(c::text, ' ') as text from credentials c`
  return row!.text
}

void t.test('a credential is kept, replaced and forgotten, and never in the clear', async (t) => {
  const { id } = await putCredential(sql, keys, workspaceId, 'openai', 'sk-secret-1')
  t.equal(await readCredential(sql, keys, workspaceId, 'openai'), 'sk-secret-1')
  t.match(await putCredential(sql, keys, workspaceId, 'openai', 'sk-secret-2'), { id })
  t.equal(await readCredential(sql, keys, workspaceId, 'openai'), 'sk-secret-2')
  t.notMatch(await stored(), /sk-secret/)
  const other = await createWorkspace(sql, 'Theirs')
  t.equal(await readCredential(sql, keys, other, 'openai'), undefined)
  t.equal(await deleteCredential(sql, other, 'openai'), false)
  t.equal(await deleteCredential(sql, workspaceId, 'openai'), true)
  t.equal(await readCredential(sql, keys, workspaceId, 'openai'), undefined)
})

void t.test('it opens in its own place only', async (t) => {
  const other = await createWorkspace(sql, 'Theirs')
  await putCredential(sql, keys, workspaceId, 'x', 'one')
  await sql`
    insert into credentials (workspace_id, name, key_id, wrapped_key, box)
    select ${other}::uuid, name, key_id, wrapped_key, box from credentials where name = 'x'
    union all select ${workspaceId}::uuid, 'y', key_id, wrapped_key, box from credentials where name = 'x'`
  await t.rejects(readCredential(sql, keys, other, 'x'), { name: 'SealBroken' })
  await t.rejects(readCredential(sql, keys, workspaceId, 'y'), { name: 'SealBroken' })
  await sql`delete from credentials where name = 'y' or workspace_id = ${other}`
})

void t.test(
  'a new key seals the data keys anew and leaves the credentials as they are',
  async (t) => {
    await putCredential(sql, keys, workspaceId, 'x', 'one')
    const [before] = await sql`select box, wrapped_key from credentials where name = 'x'`
    const both = KeyRing.parse(`${entry('b', 2)},${entry('a', 1)}`)
    t.strictSame(await resealCredentials(sql, both), { resealed: 1, failed: [] })
    const [after] = await sql`select box, wrapped_key from credentials where name = 'x'`
    t.equal(after!.box, before!.box)
    t.not(after!.wrappedKey, before!.wrappedKey)
    t.equal(await readCredential(sql, KeyRing.parse(entry('b', 2)), workspaceId, 'x'), 'one')
    t.strictSame(await resealCredentials(sql, both), { resealed: 0, failed: [] })
    const { failed } = await resealCredentials(sql, KeyRing.parse(entry('c', 3)))
    t.equal(failed.length, 1, 'what does not open is told, and kept')
    t.equal(await readCredential(sql, both, workspaceId, 'x'), 'one')
  },
)
