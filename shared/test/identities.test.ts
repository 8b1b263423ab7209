import { isDeepStrictEqual } from 'node:util'
import fc from 'fast-check'
import t from 'tap'
import type { Test } from 'tap'
import { changeContact, findContact, listContacts } from '../contacts.ts'
import type { Sql } from '../db.ts'
import { learnPerson, mergeContacts, unmerge } from '../identities.ts'
import type { PersonFacts } from '../identities.ts'
import { storeAllReceived, storeReceived } from '../inbox.ts'
import { learnGroup } from '../people.ts'
import type { Received } from '../received.ts'
import { accept } from '../outbound.ts'
import { createSession } from '../wa-sessions.ts'
import { testDb } from './db.ts'
import { matchWhole } from './match.ts'

interface Rig {
  sql: Sql
  workspaceId: string
  session: { id: string; workspaceId: string; fence: number }
}

/** A new workspace in a database: rigs of one test share it. */
async function workspaceIn(sql: Sql): Promise<Rig> {
  const [row] = await sql<{ id: string }>`
    insert into workspaces (name) values ('Bakery') returning id`
  const workspaceId = row!.id
  const { id } = await createSession(sql, {
    ...{ workspaceId, name: 'sales', engine: 'simulator', start: true, expiryDays: 30 },
  })
  return { sql, workspaceId, session: { id, workspaceId, fence: 0 } }
}

const rig = async (t: Test) => workspaceIn((await testDb(t)).sql)

/** Seconds since 1970. */
const early = 1_700_000_000
const pn = '12025550101@c.us'
const lid = '88001@lid'
let made = 0

const received = (waChatId: string, body: string, more: Partial<Received> = {}): Received => {
  const keyId = more.keyId ?? `3A${(made += 1)}`
  const { fromMe = false } = more
  return {
    ...{ fromMe, waChatId, keyId, participant: '', waMessageId: `${fromMe}_${waChatId}_${keyId}` },
    ...{ type: 'text', body, timestamp: early, ack: 1, senderName: null, chatName: null },
    ...more,
  }
}

const together = (addresses: string[], more: Partial<PersonFacts> = {}): PersonFacts => ({
  addresses,
  source: 'page',
  at: new Date(early * 1_000),
  ...more,
})

const all = async ({ sql, workspaceId }: Rig) =>
  (await listContacts(sql, workspaceId, { limit: 200 })).data

void t.test('two contacts that turn out to be one person', async (t) => {
  const it = await rig(t)
  const { sql, workspaceId, session } = it
  await storeReceived(sql, session, received(pn, 'from the number', { senderName: 'Ann' }))
  await storeReceived(
    sql,
    session,
    received(lid, 'from the lid', { senderName: 'Annie', timestamp: early + 9 }),
  )
  const [first, second] = (await all(it)).toReversed()
  t.match(
    [first, second],
    [
      { waId: pn, phone: '+12025550101', lid: null, pushName: 'Ann' },
      { waId: lid, phone: null, lid, pushName: 'Annie' },
    ],
  )
  await sql.begin((tx) => changeContact(tx, workspaceId, first!.id, { name: 'Mrs. Baker' }))
  await storeReceived(sql, session, received(lid, 'stop', { timestamp: early + 10 }))

  const id = await learnPerson(sql, session, together([lid, pn]))
  t.equal(id, first!.id, 'the older one stays')
  const joined = {
    ...{ id, name: 'Mrs. Baker', pushName: 'Annie', phone: '+12025550101', lid, waId: pn },
    ...{ isBusiness: false, optedOut: true, addresses: [pn, lid] },
  }
  t.strictSame(await all(it), [joined])
  t.strictSame(
    await findContact(sql, workspaceId, second!.id),
    joined,
    'found by its old id as well',
  )
  t.strictSame(
    await sql`select wa_chat_id, contact_id from chats order by wa_chat_id`,
    [pn, lid].map((waChatId) => ({ waChatId, contactId: id })),
    'chats keep the address they came from',
  )
  const told = await sql`select payload from events where type = 'chat.updated' order by tx, id`
  t.equal(told.length, 5, 'three messages, a name, and the chat that has another contact now')
  t.match(told.at(-1), { payload: { waChatId: lid, contactId: id } })
  const [refused] = await accept(sql, {
    ...{ workspaceId, sessionId: session.id, sentBy: null, requestId: 'test' },
    messages: [{ waChatId: pn, content: { type: 'text', body: 'x' } }],
  })
  t.strictSame(refused, { refusal: 'RECIPIENT_OPTED_OUT' }, 'at either address')

  await t.test('are taken apart again, and stay apart', async (t) => {
    let audited = 0
    const apart = await unmerge(sql, workspaceId, second!.id, async () => void (audited += 1))
    t.strictSame(apart, { contact: first!.id, separated: second!.id })
    t.equal(audited, 1)
    t.match(
      [
        await findContact(sql, workspaceId, first!.id),
        await findContact(sql, workspaceId, second!.id),
      ],
      [
        { name: 'Mrs. Baker', pushName: 'Ann', lid: null, waId: pn, optedOut: false },
        { name: null, pushName: 'Annie', phone: null, waId: lid, optedOut: true },
      ],
    )
    matchWhole(t, await sql`select wa_chat_id, contact_id from chats order by wa_chat_id`, [
      { waChatId: pn, contactId: first!.id },
      { waChatId: lid, contactId: second!.id },
    ])
    for (const source of ['page', 'echo', 'number_check'] as const) {
      await learnPerson(sql, session, together([pn, lid], { source, at: new Date() }))
    }
    t.equal((await all(it)).length, 2)
    await t.rejects(
      unmerge(sql, workspaceId, first!.id, async () => {}),
      { statusCode: 409, code: 'NOT_MERGED' },
    )
  })

  await t.test('until a person says otherwise', async (t) => {
    await mergeContacts(sql, workspaceId, first!.id, second!.id, async () => {})
    matchWhole(t, await all(it), [{ id: first!.id, addresses: [pn, lid] }])
    t.equal(await mergeContacts(sql, randomId, first!.id, second!.id, async () => {}), undefined)
    t.equal(await unmerge(sql, randomId, first!.id, async () => {}), undefined)
  })
})

void t.test('what was wished while they were one is the wish of both', async (t) => {
  const it = await rig(t)
  const { sql, workspaceId, session } = it
  await storeReceived(sql, session, received(pn, 'hello'))
  await storeReceived(sql, session, received(lid, 'hello'))
  const id = await learnPerson(sql, session, together([pn, lid]))
  await storeReceived(sql, session, received(pn, 'STOP', { timestamp: early + 1 }))
  await sql.begin((tx) => changeContact(tx, workspaceId, id, { name: 'New' }))
  await unmerge(sql, workspaceId, id, async () => {})
  matchWhole(t, await all(it), [
    { name: null, waId: lid, optedOut: true },
    { name: 'New', waId: pn, optedOut: true },
  ])
})

void t.test('joinings are taken back one after the other', async (t) => {
  const it = await rig(t)
  const { sql, workspaceId, session } = it
  const dialled = '5511987654321@c.us'
  const has = '551187654321@c.us'
  for (const address of [lid, has, dialled]) {
    await storeReceived(sql, session, received(address, 'hello', { senderName: address }))
  }
  await learnPerson(sql, session, together([dialled, has], { alternate: dialled }))
  const id = await learnPerson(sql, session, together([dialled, lid]))
  matchWhole(t, await all(it), [
    { id, phone: '+551187654321', lid, waId: has, addresses: [has, dialled, lid] },
  ])
  await unmerge(sql, workspaceId, id, async () => {})
  matchWhole(t, await all(it), [
    { phone: '+551187654321', lid: null, addresses: [has, dialled], pushName: dialled },
    { phone: null, lid, addresses: [lid], pushName: lid },
  ])
  const [pair] = await all(it)
  await unmerge(sql, workspaceId, pair!.id, async () => {})
  matchWhole(t, await all(it), [
    { waId: dialled, addresses: [dialled], pushName: dialled },
    { waId: has, addresses: [has], pushName: has },
    { waId: lid },
  ])
  matchWhole(
    t,
    await sql`select c.wa_chat_id = k.wa_id as own from chats c join contacts k on k.id = c.contact_id`,
    [{ own: true }, { own: true }, { own: true }],
  )
})

void t.test('what we sent to a number and see again under a lid', async (t) => {
  const it = await rig(t)
  const { sql, workspaceId, session } = it
  const [sent] = await accept(sql, {
    ...{ workspaceId, sessionId: session.id, sentBy: null, requestId: 'test' },
    messages: [{ waChatId: pn, content: { type: 'text', body: 'x' } }],
  })
  if (!sent || 'refusal' in sent) throw new Error('not accepted')
  const [{ waKeyId }] = (await sql`select wa_key_id from messages`) as [{ waKeyId: string }]
  await storeReceived(sql, session, received(lid, 'x', { fromMe: true, keyId: waKeyId }))
  matchWhole(t, await all(it), [{ phone: '+12025550101', lid, addresses: [pn, lid] }])
  t.equal((await sql`select from chats`).length, 1)

  const stranger = '88666@lid'
  await storeReceived(sql, session, received(pn, 'mine', { keyId: '3ATAKEN' }))
  await storeReceived(sql, session, received(stranger, 'mine too', { keyId: '3ATAKEN' }))
  matchWhole(
    t,
    await all(it),
    [{ addresses: [pn, lid] }],
    'an id that others choose proves nothing',
  )
})

void t.test('who is known goes on in the same chat, under either address', async (t) => {
  const it = await rig(t)
  const { sql, workspaceId, session } = it
  const bodies = () => sql`
    select c.wa_chat_id, array_agg(m.body order by m.seq) as bodies from messages m join chats c on c.id = m.chat_id
    group by 1 order by 1`
  await storeReceived(sql, session, received(pn, 'before'))
  await learnPerson(sql, session, together([pn, lid]))
  await storeReceived(sql, session, received(lid, 'after'))
  await storeReceived(sql, session, received(lid, 'typed', { fromMe: true, ack: 1 }))
  const both = [received('12025550199@c.us', '1'), received('88199@lid', '2')]
  await learnPerson(sql, session, together(['12025550199@c.us', '88199@lid']))
  await storeAllReceived(sql, session, both)
  t.strictSame(await bodies(), [
    { waChatId: pn, bodies: ['before', 'after', 'typed'] },
    { waChatId: '12025550199@c.us', bodies: ['1', '2'] },
  ])

  // Two telephones of one person: an answer goes to the one that wrote.
  const second = '12025550188@c.us'
  await storeReceived(sql, session, received('88299@lid', 'mine'))
  await learnPerson(sql, session, together(['88299@lid', second]))
  const third = '12025550177@c.us'
  await learnPerson(sql, session, together([third]))
  const idOf = async (waId: string) =>
    (await sql<{ id: string }>`select id from contacts where wa_id = ${waId}`)[0]!.id
  await mergeContacts(sql, workspaceId, await idOf(second), await idOf(third), async () => {})
  await storeReceived(sql, session, received(third, 'mine, too'))
  await storeReceived(sql, session, received(second, 'which?'))
  t.strictSame(
    (await bodies()).filter(({ waChatId }) =>
      [third, second, '88299@lid'].includes(String(waChatId)),
    ),
    [
      { waChatId: third, bodies: ['mine, too'] },
      { waChatId: second, bodies: ['which?'] },
      { waChatId: '88299@lid', bodies: ['mine'] },
    ],
  )
})

void t.test('names: the latest counts, and one that a person chose', async (t) => {
  const it = await rig(t)
  const { sql, workspaceId, session } = it
  const say = (name: string, second: number) =>
    storeReceived(sql, session, received(pn, name, { senderName: name, timestamp: early + second }))
  await say('second', 2)
  await say('first', 1)
  await say('third', 3)
  matchWhole(t, await all(it), [{ pushName: 'third' }])
  const id = (await all(it))[0]!.id
  const inBook = (name: string, second: number) =>
    learnPerson(sql, session, together([pn], { name, at: new Date((early + second) * 1_000) }))
  await inBook('Book 2', 2)
  await inBook('Book 1', 1)
  matchWhole(t, await all(it), [{ name: 'Book 2' }])
  await sql.begin((tx) => changeContact(tx, workspaceId, id, { name: 'Mine' }))
  await inBook('Book 3', 3)
  matchWhole(t, await all(it), [{ name: 'Mine' }])
  await sql.begin((tx) => changeContact(tx, workspaceId, id, { name: null }))
  await inBook('Book 4', 4)
  matchWhole(t, await all(it), [{ name: 'Book 4' }])
})

void t.test('a chat that is called something else is told of, and only then', async (t) => {
  const it = await rig(t)
  const { sql, workspaceId, session } = it
  const group = '120363000000000002@g.us'
  await storeReceived(sql, session, received(pn, 'hello'))
  await storeReceived(sql, session, received(group, 'hi', { participant: lid }))
  const [contact] = await sql<{ id: string }>`select id from contacts where wa_id = ${pn}`
  const [{ id: chatId }] = (await sql`select id from chats where is_group`) as [{ id: string }]
  let seen = 0
  const told = async () => {
    const rows = await sql<{ name: string }>`
      select payload->>'name' as name from events where type = 'chat.updated' order by id offset ${seen}`
    seen += rows.length
    return rows.map(({ name }) => name)
  }
  await told()
  const learn = (name: string) =>
    learnPerson(sql, session, together([pn, '88077@lid'], { name, at: new Date() }))
  const change = (name: string) =>
    sql.begin((tx) => changeContact(tx, workspaceId, contact!.id, { name }))
  const rename = (name: string | null) =>
    learnGroup(sql, { ...session, worker: 'test' }, chatId, { name, participants: [] })
  for (const [what, expected] of [
    [() => learn('Ann'), ['Ann']],
    [() => learn('Ann'), []],
    [() => change('Mrs. Baker'), ['Mrs. Baker']],
    [() => change('Mrs. Baker'), []],
    [() => learn('Annie'), []],
    [() => rename('Bakers'), ['Bakers']],
    [() => rename('Bakers'), []],
    [() => rename(null), []],
  ] as const) {
    await what()
    t.strictSame(await told(), expected, what.toString())
  }
})

void t.test('who writes in a group', async (t) => {
  const it = await rig(t)
  const { sql, session, workspaceId } = it
  const group = '120363000000000001@g.us'
  const write = (participant: string, keyId: string, more: Partial<Received> = {}) =>
    storeReceived(
      sql,
      session,
      received(group, 'hi all', { participant, keyId, senderName: 'Ann', ...more }),
    )
  t.ok(await write(pn, '3A1'))
  t.equal(await write(lid, '3A1'), undefined, 'the same words at the same moment under one id')
  t.ok(await write(lid, '3A1', { body: 'something else', timestamp: early + 5 }), 'somebody else')
  t.ok(await write(lid, '3A2'))
  t.equal(await write(lid, '3A2'), undefined)
  await learnPerson(sql, session, together([pn, lid]))
  t.equal(await write(pn, '3A2', { timestamp: early + 7 }), undefined, 'one person')

  const [contact] = await all(it)
  matchWhole(t, await all(it), [{ pushName: 'Ann', addresses: [pn, lid] }])
  const [told] = await sql<{ payload: object }>`
    select payload from events where type = 'message' order by id desc limit 1`
  t.match(told!.payload, { author: { waId: lid, name: 'Ann', contactId: String } })
  const { listMessages } = await import('../messages.ts')
  const [{ id: chatId }] = (await sql`select id from chats`) as [{ id: string }]
  const { data } = await listMessages(sql, workspaceId, chatId, { limit: 10 })
  t.strictSame(
    data.map(({ author }) => author?.contactId),
    data.map(() => contact!.id),
  )
  matchWhole(t, await sql`select is_group, contact_id from chats`, [
    { isGroup: true, contactId: null },
  ])
})

void t.test('what was said before is no news', async (t) => {
  const it = await rig(t)
  const { sql, session } = it
  await storeReceived(sql, session, received(pn, 'new', { timestamp: early + 100 }))
  await sql`update chats set archived = true`
  const told = await sql`select from events`
  await storeReceived(sql, session, received(pn, 'old', { source: 'history' }))
  await storeReceived(
    sql,
    session,
    received(pn, 'ours', { source: 'history', fromMe: true, ack: 3 }),
  )
  await storeReceived(sql, session, received(lid, 'STOP', { source: 'history' }))
  t.equal((await sql`select from events`).length, told.length)
  matchWhole(
    t,
    await sql`
      select c.unread_count, c.archived, m.body, c.last_message_at = m.created_at as exact, c.contacted_at is not null as warm
      from chats c join messages m on m.id = c.last_message_id order by c.wa_chat_id`,
    [
      { unreadCount: 1, archived: true, body: 'new', exact: true, warm: true },
      { unreadCount: 0, archived: false, body: 'STOP', exact: true, warm: false },
    ],
  )
  matchWhole(t, await sql`select source, status from messages where body = 'ours'`, [
    { source: 'history', status: 'read' },
  ])
  matchWhole(t, await all(it), [
    { waId: lid, optedOut: true },
    { waId: pn, optedOut: false },
  ])
})

/** Three people with two or three addresses each. */
const people = [
  ['12025550111@c.us', '88111@lid'],
  ['12025550122@c.us', '88122@lid', '12025550199@c.us'],
  ['5511987654321@c.us', '551187654321@c.us', '88133@lid'],
]

type Fact =
  | { kind: 'says'; address: string; name: string; second: number; stop: boolean; key: string }
  | { kind: 'same'; addresses: string[]; second: number; alternate?: string }
  | { kind: 'is called'; address: string; name: string; second: number; business: boolean }
  | { kind: 'is written to'; address: string }

const second = fc.integer({ min: 0, max: 9 })
const name = fc.constantFrom('Ann', 'Bob', 'Cleo')
const address = fc.constantFrom(...people.flat())
const fact: fc.Arbitrary<Fact> = fc.oneof(
  fc.record({
    kind: fc.constant('says' as const),
    ...{ address, name, second, stop: fc.boolean() },
    key: fc.uuid().map((id) => `3A${id.slice(0, 8).toUpperCase()}`),
  }),
  fc
    .record({ person: fc.constantFrom(...people), second, start: fc.nat(2) })
    .map(({ person, second, start }): Fact => {
      const [a, b] = [person[start % person.length]!, person[(start + 1) % person.length]!]
      const dialled = people[2]![0]!
      return {
        ...{ kind: 'same', addresses: [a, b], second },
        ...(a === dialled && { alternate: dialled }),
      }
    }),
  fc.record({
    kind: fc.constant('is called' as const),
    address,
    name,
    second,
    business: fc.boolean(),
  }),
  fc.record({ kind: fc.constant('is written to' as const), address }),
)

async function happens({ sql, workspaceId, session }: Rig, fact: Fact): Promise<void> {
  const at = 'second' in fact ? new Date((early + fact.second) * 1_000) : new Date()
  switch (fact.kind) {
    case 'says': {
      const { address, name, second, stop, key } = fact
      const more = { senderName: name, timestamp: early + second, keyId: key }
      await storeReceived(sql, session, received(address, stop ? 'stop' : 'hello', more))
      return
    }
    case 'same': {
      const { addresses, alternate } = fact
      await learnPerson(sql, session, together(addresses, { at, alternate }))
      return
    }
    case 'is called': {
      const { address, name, business } = fact
      await learnPerson(sql, session, together([address], { at, name, isBusiness: business }))
      return
    }
    case 'is written to':
      // An opt-out refuses it: then there is neither message nor chat of it, whatever the order of the rest.
      await accept(sql, {
        ...{ workspaceId, sessionId: session.id, sentBy: null, requestId: 'test' },
        by: { type: 'anonymous', id: null, name: null, ip: null, userAgent: null, requestId: null },
        messages: [
          {
            waChatId: fact.address,
            content: { type: 'text', body: 'x' },
            optOutOverride: 'a property test',
          },
        ],
      })
  }
}

/** Everything that may not depend on the order of events, without our own ids. */
async function outcome(it: Rig) {
  const contacts = (await all(it)).map(({ id: _, ...contact }) => contact)
  // In which of the chats of a person a message stands depends on what was known of him when it came.
  const chats = await it.sql<{ waChatId: string; addresses: string[] }>`
    select c.wa_chat_id, (select array_agg(a.wa_id order by a.wa_id) from contacts a where a.id = k.id or a.merged_into = k.id) as addresses
    from chats c join contacts k on k.id = c.contact_id and k.merged_into is null
    where c.workspace_id = ${it.workspaceId} order by c.wa_chat_id`
  const messages = await it.sql`
    select (select min(a.wa_id) from contacts a where c.contact_id in (a.id, a.merged_into)) as person, m.body, m.direction, m.wa_key_id is not null as keyed
    from messages m join chats c on c.id = m.chat_id
    where m.workspace_id = ${it.workspaceId} order by 1, 2, 3`
  return {
    contacts: contacts.sort((a, b) => a.waId.localeCompare(b.waId)),
    people: [...new Set(chats.map(({ addresses }) => addresses.join()))].sort(),
    messages,
    chats,
  }
}

void t.test('the same facts in any order make the same contacts and messages', async (t) => {
  const { sql } = await testDb(t)
  const orders = fc
    .uniqueArray(fact, {
      maxLength: 12,
      // Ids that are drawn near their bounds do meet, and one message has one author.
      selector: (one) => (one.kind === 'says' ? one.key : JSON.stringify(one)),
    })
    .chain((facts) =>
      fc.record({
        facts: fc.constant(facts),
        shuffled: fc.shuffledSubarray(facts, { minLength: facts.length }),
      }),
    )
  await fc.assert(
    fc.asyncProperty(orders, async ({ facts, shuffled }) => {
      const [one, other] = [await workspaceIn(sql), await workspaceIn(sql)]
      for (const fact of facts) await happens(one, fact)
      // These at once, as from several workers.
      await Promise.all(shuffled.map((fact) => happens(other, fact)))
      const [{ chats, ...a }, { chats: otherChats, ...b }] = [
        await outcome(one),
        await outcome(other),
      ]
      if (!isDeepStrictEqual(a, b))
        throw new Error(`the order made a difference: ${JSON.stringify([a, b])}`)
      const said = facts.filter(({ kind }) => kind === 'says' || kind === 'is written to')
      const keys = new Set(said.map((fact) => ('key' in fact ? fact.key : fact)))
      if (a.messages.length !== keys.size) throw new Error('a message was lost, or is there twice')
      // Who said so in any of their chats is opted out in all of them.
      for (const { addresses, optedOut } of a.contacts) {
        const stopped = facts.some(
          (fact) => fact.kind === 'says' && fact.stop && addresses.includes(fact.address),
        )
        if (optedOut !== stopped) throw new Error(`opted out: ${optedOut}`)
      }
      for (const { waChatId, addresses } of [...chats, ...otherChats]) {
        if (!addresses.includes(waChatId)) throw new Error('a chat of somebody else')
      }
    }),
    { numRuns: 25, endOnFailure: true },
  )
})

void t.test(
  'no joining lifts an opt-out, in whatever order and however often they are joined',
  async (t) => {
    const { sql } = await testDb(t)
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(3), fc.nat(3)), { maxLength: 6 }),
        fc.nat(3),
        async (pairs, out) => {
          const it = await workspaceIn(sql)
          const addresses = [0, 1, 2, 3].map((n) => `1202555020${n}@c.us`)
          for (const [n, one] of addresses.entries()) {
            await storeReceived(sql, it.session, received(one, n === out ? 'STOP' : 'hello'))
          }
          for (const [a, b] of pairs) {
            await learnPerson(sql, it.session, together([addresses[a]!, addresses[b]!]))
            const owner = (await all(it)).find((one) => one.addresses.includes(addresses[out]!))!
            if (!owner.optedOut) throw new Error('the opt-out is lost')
          }
          while (true) {
            const [last] = await sql<{ survivorId: string }>`
            select survivor_id from contact_merges where workspace_id = ${it.workspaceId} and undone_at is null order by id desc limit 1`
            if (!last) break
            await unmerge(sql, it.workspaceId, last.survivorId, async () => {})
          }
          const apart = await all(it)
          if (apart.length !== 4) throw new Error('not all are as they were')
          for (const { addresses: own, optedOut } of apart) {
            if (optedOut !== (own[0] === addresses[out])) throw new Error('not as it was')
          }
        },
      ),
      { numRuns: 25, endOnFailure: true },
    )
  },
)

void t.test(
  'workers that learn the same pairs at once, among them messages and sends',
  async (t) => {
    const it = await rig(t)
    const { sql, workspaceId, session } = it
    const pairs = Array.from({ length: 8 }, (_, n) => [`1202555030${n}@c.us`, `8830${n}@lid`])
    await Promise.all(
      Array.from({ length: 6 }, async (_, round) => {
        for (const [n, pair] of pairs.entries()) {
          const addresses = (n + round) % 2 === 0 ? pair : pair.toReversed()
          await Promise.all([
            learnPerson(sql, session, together(addresses)),
            // A chain: in the end all are one person.
            learnPerson(sql, session, together([pair[0]!, pairs[(n + 1) % pairs.length]![1]!])),
            storeReceived(
              sql,
              session,
              received(addresses[0]!, 'hello', { senderName: `${round}` }),
            ),
            accept(sql, {
              ...{ workspaceId, sessionId: session.id, sentBy: null, requestId: 'test' },
              messages: pairs
                .flat()
                .map((waChatId) => ({ waChatId, content: { type: 'text', body: 'x' } })),
            }),
          ])
        }
      }),
    )
    const contacts = await all(it)
    t.equal(contacts.length, 1)
    t.equal(contacts[0]!.addresses.length, 16)
    t.strictSame(await sql`select distinct contact_id from chats`, [{ contactId: contacts[0]!.id }])
    t.equal((await sql`select from messages`).length, 6 * 8 * 17)
  },
)

void t.test('a search', async (t) => {
  const it = await rig(t)
  const { sql, session, workspaceId } = it
  const other = await workspaceIn(sql)
  await storeReceived(sql, session, received(pn, 'x', { senderName: "Ann-Marie O'Neill" }))
  await storeReceived(sql, session, received(lid, 'x', { senderName: 'Ümit 100%' }))
  await storeReceived(sql, other.session, received(pn, 'x', { senderName: 'Ann of another' }))
  const found = async (search: string) => {
    const { data } = await listContacts(sql, workspaceId, { limit: 10, search })
    return data.map(({ waId }) => waId)
  }
  for (const search of [
    'ann',
    'MARIE',
    'neil ann',
    '2025550101',
    '0101',
    '+1 (202) 555-0101',
    '12025550101',
  ])
    t.strictSame(await found(search), [pn], search)
  for (const search of ['ümi', '100%', '8800']) t.strictSame(await found(search), [lid], search)
  for (const search of [
    '%',
    '_',
    "'",
    'ann | bob',
    'ann:*',
    '!ann',
    '\\',
    'nn',
    '',
    '👍',
    'ann bob',
  ])
    t.strictSame(await found(search), search === 'ann:*' || search === '!ann' ? [pn] : [], search)
})

const randomId = '00000000-0000-4000-8000-000000000000'
