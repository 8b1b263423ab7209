import {
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { KeyRing, UnknownKey } from '../../shared/key-ring.ts'
import { StoreRefused, StoreUnavailable } from '../../shared/object-store.ts'
import { LeaseLost } from '../../shared/wa-session-leases.ts'
import { listSnapshots } from '../../shared/wa-snapshots.ts'
import { NothingToSnapshot } from '../profile-copy.ts'
import {
  besideProfile,
  broughtBack,
  filesOf,
  flipBit,
  givenOwnedSession,
  givenProfile,
  key,
  vaultRig,
} from './vault-rig.ts'
import type { Rig } from './vault-rig.ts'

const reason = 'LOGIN_SETTLED'

/** Takes a snapshot of a new profile that bears the mark. */
async function given(rig: Rig, mark: string, bytes?: number): Promise<Map<string, string>> {
  const files = givenProfile(rig.profile, mark, bytes)
  await rig.vault.take(rig.session, rig.profile, { reason })
  return files
}

const pointer = async ({ sql, session }: Rig) => {
  const [row] = await sql<{ snapshotGeneration: number | null }>`
    select snapshot_generation from wa_sessions where id = ${session.id}`
  return row!.snapshotGeneration
}

const generations = async ({ sql, session }: Rig) =>
  (await listSnapshots(sql, session.id)).map(({ generation, state }) => `${generation} ${state}`)

await t.test('a login comes back as it was, and only the login', async (t) => {
  const rig = await vaultRig(t)
  const files = givenProfile(rig.profile, 'monday')
  const taken = await rig.vault.take(rig.session, rig.profile, { reason })
  t.match(taken, { generation: 1, files: files.size })
  t.equal(await pointer(rig), 1)

  rmSync(rig.profile, { recursive: true })
  t.strictSame(await broughtBack(rig.vault.restore(rig.session, rig.profile)), {
    generation: 1,
    refused: [],
  })
  t.same(filesOf(rig.profile), files)
  t.equal(statSync(rig.profile).mode & 0o777, 0o700)
  t.equal(statSync(join(rig.profile, 'Default/Local Storage/leveldb/CURRENT')).mode & 0o777, 0o600)
  t.same(besideProfile(rig.profile), [rig.session.id], 'nothing is left beside it')

  const stored = readFileSync(rig.objectFile(1))
  t.notOk(stored.includes('monday'))
  t.equal(stored.subarray(0, 8).toString(), 'AWFSNAP1')
  const [row] = await rig.sql`select row_to_json(n)::text as json from wa_snapshots n`
  t.notMatch(row, /monday/)
})

await t.test('a profile that is no browser’s is taken as a whole', async (t) => {
  const rig = await vaultRig(t)
  mkdirSync(join(rig.profile, 'empty'), { recursive: true })
  writeFileSync(join(rig.profile, 'simulated-phone.json'), '{"sent":{}}')
  await rig.vault.take(rig.session, rig.profile, { reason })
  rmSync(rig.profile, { recursive: true })
  await rig.vault.restore(rig.session, rig.profile)
  t.same([...filesOf(rig.profile)], [['simulated-phone.json', '{"sent":{}}']])
  t.ok(statSync(join(rig.profile, 'empty')).isDirectory())
})

await t.test('without a login there is no snapshot that could push a good one out', async (t) => {
  const rig = await vaultRig(t)
  await t.rejects(rig.vault.take(rig.session, rig.profile, { reason }), NothingToSnapshot)
  await given(rig, 'monday')
  const localStorage = join(rig.profile, 'Default/Local Storage')
  rmSync(localStorage, { recursive: true })
  await t.rejects(rig.vault.take(rig.session, rig.profile, { reason }), NothingToSnapshot)
  t.same(await generations(rig), ['1 verified'])
})

await t.test('nothing to restore leaves the profile as it is', async (t) => {
  const rig = await vaultRig(t)
  givenProfile(rig.profile, 'local')
  const before = filesOf(rig.profile)
  t.same(await rig.vault.restore(rig.session, rig.profile), {
    generation: null,
    takenAt: null,
    refused: [],
  })
  t.same(filesOf(rig.profile), before)
})

await t.test('the profile it replaces stays until a snapshot of the new one exists', async (t) => {
  const rig = await vaultRig(t)
  const monday = await given(rig, 'monday')
  givenProfile(rig.profile, 'foreign')
  await rig.vault.restore(rig.session, rig.profile)
  t.same(filesOf(rig.profile), monday)
  const [, replaced] = besideProfile(rig.profile)
  t.match(replaced, /\.replaced-/)
  t.match(filesOf(join(rig.profile, '..', replaced!)).get('Local State'), '{}')
  await rig.vault.take(rig.session, rig.profile, { reason })
  t.same(besideProfile(rig.profile), [rig.session.id])
})

await t.test('three generations are kept, and only while they are proven', async (t) => {
  const rig = await vaultRig(t)
  for (const mark of ['a', 'b', 'c', 'd', 'e']) await given(rig, mark)
  t.same(await generations(rig), ['5 verified', '4 verified', '3 verified'])
  t.equal(rig.objects().length, 3)
  const failing = () => {
    throw new StoreUnavailable('test')
  }
  for (const step of ['beforePut', 'afterPut', 'beforeGet'] as const) {
    rig.store[step] = failing
    await t.rejects(rig.vault.take(rig.session, rig.profile, { reason }), StoreUnavailable)
    rig.store.heal()
    t.same(await generations(rig), ['5 verified', '4 verified', '3 verified'], step)
    t.equal(rig.objects().length, 3, 'and nothing half-done stays in the store')
  }
  t.equal(await pointer(rig), 5)
})

await t.test('a store that is away for a moment is asked again', async (t) => {
  const rig = await vaultRig(t)
  let failures = 2
  const once = () => {
    if (failures-- > 0) throw new StoreUnavailable('test')
  }
  rig.store.beforePut = once
  const files = await given(rig, 'monday')
  failures = 2
  rig.store.beforeGet = once
  givenProfile(rig.profile, 'other')
  t.same((await rig.vault.restore(rig.session, rig.profile)).refused, [])
  t.same(filesOf(rig.profile), files)
})

await t.test('a store that is away is no reason to use an older login', async (t) => {
  const rig = await vaultRig(t)
  await given(rig, 'monday')
  await given(rig, 'tuesday')
  const before = filesOf(rig.profile)
  for (const failure of [new StoreUnavailable('test'), new StoreRefused(403, 'Invalid JWT')]) {
    rig.store.beforeGet = () => {
      throw failure
    }
    await t.rejects(rig.vault.restore(rig.session, rig.profile), failure)
  }
  t.same(filesOf(rig.profile), before)
  t.same(besideProfile(rig.profile), [rig.session.id])
})

await t.test('whatever bit of an object is wrong, the generation before is used', async (t) => {
  const rig = await vaultRig(t)
  const monday = await given(rig, 'monday', 60_000)
  await given(rig, 'tuesday', 60_000)
  const object = rig.objectFile(2)
  const { size } = statSync(object)
  const places = new Set([
    ...Array(28).keys(),
    ...Array.from({ length: 20 }, (_, n) => size - 1 - n),
  ])
  for (let at = 28; at < size; at += 1_000) places.add(at)
  let refused = 0
  for (const at of places) {
    const flipBack = flipBit(object, at)
    const restored = await rig.vault.restore(rig.session, rig.profile)
    flipBack()
    if (restored.generation === 1 && restored.refused[0]?.generation === 2) refused += 1
  }
  t.comment(`bit flips refused: ${refused} of ${places.size}, object of ${size} bytes`)
  t.equal(refused, places.size)
  t.same(filesOf(rig.profile), monday)
  t.strictSame(await broughtBack(rig.vault.restore(rig.session, rig.profile)), {
    generation: 2,
    refused: [],
  })
})

await t.test('an object cut short, grown, or gone is refused', async (t) => {
  const rig = await vaultRig(t)
  await given(rig, 'monday')
  await given(rig, 'tuesday')
  const object = rig.objectFile(2)
  const bytes = readFileSync(object)
  for (const size of [
    0,
    1,
    19,
    20,
    35,
    36,
    bytes.length >> 1,
    bytes.length - 16,
    bytes.length - 1,
  ]) {
    truncateSync(object, size)
    t.match(await rig.vault.restore(rig.session, rig.profile), { generation: 1 }, `${size} bytes`)
    writeFileSync(object, bytes)
  }
  writeFileSync(object, Buffer.concat([bytes, Buffer.alloc(1)]))
  t.match(await rig.vault.restore(rig.session, rig.profile), { generation: 1 }, 'a byte more')
  rmSync(object)
  t.match(await rig.vault.restore(rig.session, rig.profile), {
    generation: 1,
    refused: [{ generation: 2, why: /no object/ }],
  })
  rmSync(rig.objectFile(1))
  const nothing = await rig.vault.restore(rig.session, rig.profile)
  t.match(nothing, { generation: null, refused: [{ generation: 2 }, { generation: 1 }] })
})

await t.test('generations that were refused push none out that works', async (t) => {
  const rig = await vaultRig(t)
  const monday = await given(rig, 'monday')
  const states = async () =>
    (await listSnapshots(rig.sql, rig.session.id)).map(
      ({ generation, refusedAt }) => `${generation}${refusedAt ? ' refused' : ''}`,
    )
  for (const generation of [2, 3, 4]) {
    await given(rig, 'tuesday')
    flipBit(rig.objectFile(generation), 4_000)
    t.match(await rig.vault.restore(rig.session, rig.profile), { generation: 1 })
    t.same(filesOf(rig.profile), monday)
  }
  t.same(await states(), ['4 refused', '3 refused', '2 refused', '1'])
  for (let count = 0; count < 2; count++) await given(rig, 'wednesday')
  t.same(await states(), ['6', '5', '4 refused', '3 refused', '2 refused', '1'])
  await given(rig, 'thursday')
  t.same(await states(), ['7', '6', '5'])

  flipBit(rig.objectFile(7), 4_000)
  t.match(await rig.vault.restore(rig.session, rig.profile), { generation: 6 })
  t.same(await states(), ['7 refused', '6', '5'])
  flipBit(rig.objectFile(7), 4_000)
  t.match(await rig.vault.restore(rig.session, rig.profile), { generation: 7 }, 'badly read once')
  t.same(await states(), ['7', '6', '5'])
  t.match(await rig.vault.restore(rig.session, rig.profile, { before: 7 }), { generation: 6 })
})

await t.test('a snapshot opens for its own session and generation only', async (t) => {
  const rig = await vaultRig(t)
  const monday = await given(rig, 'monday')
  await given(rig, 'tuesday')
  const refusedSecond = async (what: string) => {
    const restored = await rig.vault.restore(rig.session, rig.profile)
    t.match(restored, { generation: 1, refused: [{ generation: 2 }] }, what)
    t.same(filesOf(rig.profile), monday)
  }

  const files = [rig.objectFile(1), rig.objectFile(2)] as const
  const swap = () => {
    renameSync(files[0], `${files[0]}-`)
    renameSync(files[1], files[0])
    renameSync(`${files[0]}-`, files[1])
  }
  swap()
  t.match(
    await rig.vault.restore(rig.session, rig.profile),
    { generation: null },
    'objects swapped',
  )
  swap()

  // Whoever can write rows as well: an object of another session, with its hash and its sealed key.
  const other = await givenOwnedSession(rig.sql)
  givenProfile(`${rig.profile}-other`, 'stranger')
  await rig.vault.take(other, `${rig.profile}-other`, { reason })
  const [theirs] = await listSnapshots(rig.sql, other.id)
  const [mine] = await listSnapshots(rig.sql, rig.session.id)
  await rig.sql`delete from wa_snapshots where id = ${theirs!.id}`
  const become = (objectKey: string, wrappedKey: string) => rig.sql`
    update wa_snapshots set object_key = ${objectKey}, wrapped_key = ${wrappedKey}, size = ${theirs!.size},
      sha256 = ${theirs!.sha256}, files = ${theirs!.files}, bytes = ${theirs!.bytes}
    where id = ${mine!.id}`
  await become(theirs!.objectKey, theirs!.wrappedKey)
  await refusedSecond('another session, key and all')
  await become(theirs!.objectKey, mine!.wrappedKey)
  await refusedSecond('another session’s object')

  await rig.sql`
    update wa_snapshots set object_key = ${mine!.objectKey}, size = ${mine!.size}, sha256 = ${mine!.sha256},
      files = ${mine!.files}, bytes = ${mine!.bytes} where id = ${mine!.id}`
  t.match(await rig.vault.restore(rig.session, rig.profile), { generation: 2 }, 'put right again')

  const [workspace] = await rig.sql<{
    id: string
  }>`insert into workspaces (name) values ('Thief') returning id`
  await rig.sql`update wa_sessions set workspace_id = ${workspace!.id} where id = ${rig.session.id}`
  await rig.sql`update wa_snapshots set workspace_id = ${workspace!.id} where session_id = ${rig.session.id}`
  t.match(
    await rig.vault.restore({ ...rig.session, workspaceId: workspace!.id }, rig.profile),
    { generation: null, refused: [{ generation: 2 }, { generation: 1 }] },
    'moved into another workspace',
  )
})

await t.test('keys are changed without a restore in between failing', async (t) => {
  const rig = await vaultRig(t)
  const monday = await given(rig, 'monday')
  const before = readFileSync(rig.objectFile(1))
  const restores = async (keys: KeyRing) =>
    (await rig.newVault({ keys }).restore(rig.session, rig.profile)).generation

  const stranger = KeyRing.parse(key('k2'))
  await t.rejects(restores(stranger), UnknownKey)
  await t.rejects(restores(stranger), {
    message:
      'Key "k1" is needed and SESSION_ENCRYPTION_KEY does not have it (it has: k2); add it behind the others.',
  })
  const both = KeyRing.parse(`${key('k2')},${key('k1')}`)
  t.equal(await restores(both), 1, 'the old key still opens')
  const vault = rig.newVault({ keys: both })
  await vault.take(rig.session, rig.profile, { reason })
  t.strictSame(await vault.rotate(), { rotated: 1, failed: [] })
  t.strictSame(await vault.rotate(), { rotated: 0, failed: [] })
  t.equal(await restores(stranger), 2, 'the old key is no longer needed')
  rmSync(rig.objectFile(2))
  t.equal(await restores(stranger), 1, 'for the older generation neither')
  t.same(filesOf(rig.profile), monday)
  t.ok(before.equals(readFileSync(rig.objectFile(1))), 'the object itself was not touched')
  t.match(await rig.newVault({ keys: KeyRing.parse(key('k3')) }).rotate(), {
    rotated: 0,
    failed: [{ why: /"k2" is needed/ }, { why: /"k2" is needed/ }],
  })
  const sameName = KeyRing.parse(`k2:${Buffer.alloc(32, 9).toString('base64')}`)
  const restored = await rig.newVault({ keys: sameName }).restore(rig.session, rig.profile)
  t.match(restored, { generation: null, refused: [{ why: /not the one of that name/ }, {}] })
})

await t.test('who lost the session writes nothing, whenever it was lost', async (t) => {
  const rig = await vaultRig(t)
  await given(rig, 'monday')
  const state = async () => ({
    rows: await rig.sql`select generation, state, fence from wa_snapshots order by generation`,
    pointer: await pointer(rig),
  })
  const stale = rig.session
  await rig.takeOver()
  const before = await state()
  await t.rejects(rig.vault.take(stale, rig.profile, { reason }), LeaseLost)
  await t.rejects(rig.vault.restore(stale, rig.profile), LeaseLost)
  await t.rejects(rig.vault.archive(stale, 'LOGGED_OUT'), LeaseLost)
  await t.rejects(rig.vault.destroy(stale), LeaseLost)
  t.same(await state(), before)
  t.equal(rig.objects().length, 1)

  for (const step of ['beforePut', 'afterPut', 'beforeGet'] as const) {
    const owner = await rig.takeOver('owner')
    rig.store[step] = async () => {
      rig.store.heal()
      await rig.takeOver('thief')
    }
    await t.rejects(rig.vault.take(owner, rig.profile, { reason }), LeaseLost, step)
    t.equal(await pointer(rig), 1)
  }
  const owner = await rig.takeOver('owner')
  t.strictSame(await broughtBack(rig.vault.restore(owner, rig.profile)), {
    generation: 1,
    refused: [],
  })
  rig.store.beforeGet = async () => {
    await rig.takeOver('thief')
  }
  const files = filesOf(rig.profile)
  await t.rejects(rig.vault.restore(owner, rig.profile), LeaseLost)
  t.same(filesOf(rig.profile), files, 'nor does it touch the profile')

  rig.store.heal()
  t.equal(await rig.vault.collectOrphans(), 0, 'too young')
  t.equal(await rig.vault.collectOrphans({ olderThanMs: 0 }), 3)
  t.equal(rig.objects().length, 1, 'what the lost attempts left is collected')
})

await t.test('two at once come one after the other, also with a restore between', async (t) => {
  const rig = await vaultRig(t)
  givenProfile(rig.profile, 'monday')
  const take = () => rig.vault.take(rig.session, rig.profile, { reason })
  const [first, second, restored, third] = await Promise.all([
    ...([take(), take()] as const),
    rig.vault.restore(rig.session, rig.profile),
    take(),
  ])
  t.same(
    [first, second, restored, third].map(({ generation }) => generation),
    [1, 2, 2, 3],
  )
  // Two processes of one owner cannot be, but two vaults show that the database alone keeps them apart.
  const [one, two] = [rig.newVault(), rig.newVault()]
  const profile = `${rig.profile}-2`
  givenProfile(profile, 'tuesday')
  await Promise.all([take(), one.take(rig.session, profile, { reason })])
  t.same((await two.restore(rig.session, rig.profile)).refused, [])
  t.equal((await generations(rig)).length, 3)
})

await t.test('a logout puts snapshots away; the newest three stay for a person', async (t) => {
  const rig = await vaultRig(t)
  for (const mark of ['a', 'b']) await given(rig, mark)
  await rig.vault.archive(rig.session, 'LOGGED_OUT')
  t.equal(await pointer(rig), null)
  t.strictSame(await broughtBack(rig.vault.restore(rig.session, rig.profile)), {
    generation: null,
    refused: [],
  })
  for (const mark of ['c', 'd']) await given(rig, mark)
  t.same(await generations(rig), ['4 verified', '3 verified', '2 archived', '1 archived'])
  await rig.vault.archive(rig.session, 'EXPIRED')
  t.same(await generations(rig), ['4 archived', '3 archived', '2 archived'])
  t.equal(rig.objects().length, 3)

  const [archived] = await rig.vault.list(rig.session.id)
  const contents = await rig.vault.open(rig.session, archived!)
  await rig.vault.add(rig.session, contents, 'RESTORED_BY_PERSON')
  t.match(await rig.vault.restore(rig.session, rig.profile), { generation: 5 })
  t.equal(filesOf(rig.profile).get('Default/Local Storage/leveldb/000003.log'), 'd keys ñ')

  await rig.vault.destroy(rig.session)
  t.same([await generations(rig), rig.objects()], [[], []])
})

await t.test('a logout during a snapshot wins', async (t) => {
  const rig = await vaultRig(t)
  await given(rig, 'monday')
  rig.store.afterPut = () => rig.vault.archive(rig.session, 'LOGGED_OUT')
  await t.rejects(rig.vault.take(rig.session, rig.profile, { reason }), {
    name: 'SnapshotDiscarded',
  })
  rig.store.heal()
  t.equal(await pointer(rig), null)
  t.same(await generations(rig), ['1 archived'])
  t.equal(rig.objects().length, 1)
})

await t.test('the objects of a session that is gone are collected', async (t) => {
  const rig = await vaultRig(t)
  await given(rig, 'monday')
  await rig.sql`delete from workspaces where id = ${rig.session.workspaceId}`
  t.equal(await rig.vault.collectOrphans(), 1)
  t.same(rig.objects(), [])
})

await t.test('what cannot be removed now is removed later', async (t) => {
  const rig = await vaultRig(t)
  rig.store.beforeRemove = () => {
    throw new StoreUnavailable('test')
  }
  for (const mark of ['a', 'b', 'c', 'd', 'e']) await given(rig, mark)
  t.same(await generations(rig), ['5 verified', '4 verified', '3 verified'])
  t.equal(rig.objects().length, 5)
  t.equal(await rig.vault.collectOrphans(), 0)
  rig.store.heal()
  t.equal(await rig.vault.collectOrphans(), 2)
  t.equal(rig.objects().length, 3)
})

await t.test('a snapshot can be called off, and has a limit', async (t) => {
  const rig = await vaultRig(t)
  const stop = new AbortController()
  rig.store.beforePut = () => stop.abort(new Error('no time left'))
  givenProfile(rig.profile, 'monday')
  const options = { reason, signal: stop.signal }
  await t.rejects(rig.vault.take(rig.session, rig.profile, options), { message: 'no time left' })
  const hung = rig.newVault({ limitMs: 50 })
  rig.store.heal()
  rig.store.changeSource = (source) => {
    source.pause()
    source.read = () => null
    return source
  }
  await t.rejects(hung.take(rig.session, rig.profile, { reason }), { name: 'TimeoutError' })
  rig.store.heal()
  t.same([rig.objects(), besideProfile(rig.profile)], [[], [rig.session.id]])
})
