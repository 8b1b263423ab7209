import t from 'tap'
import type { FoundMessage } from '../../shared/search.ts'
import { cutOut, wordsOf } from '../../shared/search-snippet.ts'
import { errorShape, signIn, testApp } from './app.ts'
import type { Person } from './app.ts'

const it = await testApp(t)

type Found = { data: FoundMessage[]; nextCursor: string | null }

/** A workspace with a session and these messages, the first of them the oldest. */
async function withMessages(texts: string[], minutes = 1) {
  const person = await signIn(it)
  const session = await person.call('POST', '/api/whatsapp/sessions', { name: 'Sales' })
  const sessionId = session.json<{ id: string }>().id
  const chatIds = await addMessages(person, sessionId, texts, minutes)
  return { ...person, sessionId, chatIds }
}

/** So many minutes apart, in two chats by turns. */
async function addMessages(
  { workspaceId }: Person,
  sessionId: string,
  texts: string[],
  minutes = 1,
): Promise<string[]> {
  const chats = await it.sql<{ id: string }>`
    insert into chats (workspace_id, session_id, wa_chat_id)
    select ${workspaceId}, ${sessionId}, n || '@c.us' from generate_series(1, 2) n
    on conflict (session_id, wa_chat_id) do update set name = chats.name returning id`
  await it.sql`
    insert into messages (workspace_id, session_id, chat_id, direction, source, type, body, status, created_at)
    select ${workspaceId}, ${sessionId}, (${chats.map(({ id }) => id)}::uuid[])[1 + ord % 2], 'inbound', 'live', 'text', body, 'received',
      now() - (${texts.length} - ord) * ${minutes}::int * interval '1 minute'
    from unnest(${texts}::text[]) with ordinality t(body, ord) order by ord`
  return chats.map(({ id }) => id)
}

const search = async ({ call }: Pick<Person, 'call'>, q: string, more = '') => {
  const answer = await call('GET', `/api/search?q=${encodeURIComponent(q)}${more}`)
  t.equal(answer.statusCode, 200, q.slice(0, 20))
  return answer.json<Found>()
}
const bodies = ({ data }: Found) => data.map(({ body }) => body)

void t.test('words, phrases, alternatives, exclusions and beginnings', async (t) => {
  const person = await withMessages([
    'Good morning, is my order ready?',
    'Order 1234-5678 is on its way',
    'The way to order is simple: write to order@example.com',
    'Thanks a lot',
  ])
  const all = await person.call('GET', '/api/search?q=thanks')
  const [thanks] = all.json<Found>().data
  t.match(thanks, {
    type: 'text',
    direction: 'inbound',
    snippet: [
      { text: 'Thanks', match: true },
      { text: ' a lot', match: false },
    ],
  })
  t.match((await person.call('GET', `/api/messages/${thanks!.id}`)).json(), {
    body: 'Thanks a lot',
  })
  for (const [q, starts] of [
    ['ORDER', ['The', 'Ord', 'Goo']],
    ['order ready', ['Goo']],
    ['"my order"', ['Goo']],
    ['“my order”', ['Goo']],
    ['"order my"', []],
    ['order -ready', ['The', 'Ord']],
    ['order -"on its way"', ['The', 'Goo']],
    ['ready or thanks', ['Tha', 'Goo']],
    ['5678', ['Ord']],
    ['1234-5678', ['Ord']],
    ['5678-1234', []],
    ['order@example.com', ['The']],
    ['example.com', ['The']],
    ['mor*', ['Goo']],
    ['mor', []],
    ['mo*', []],
    ['or order', ['The', 'Ord', 'Goo']],
    ['nothing', []],
    ['', null],
    ['-order', null],
    ['order or -way', null],
    ['?!', null],
    ['👋', null],
    ['x'.repeat(201), null],
  ] as const) {
    const answer = await person.call('GET', `/api/search?q=${encodeURIComponent(q)}`)
    if (starts === null) {
      t.match(
        answer.json(),
        { ...errorShape(400, 'VALIDATION_FAILED'), details: [{ path: 'query.q' }] },
        q,
      )
    } else {
      t.strictSame(
        bodies(answer.json<Found>()).map((body) => body!.slice(0, 3)),
        starts,
        q,
      )
    }
  }
})

void t.test('what a query is made of means nothing to the database', async (t) => {
  const person = await withMessages(["it's a <b>test</b> & more | less ! (all) :* \\ done"])
  for (const q of [
    "it's",
    "'",
    "test' | 'x",
    'a & b',
    '!',
    'test:*',
    'test)',
    '((',
    '\\',
    "\\'",
    'test <-> more',
    '*',
    '"',
    '--',
    '-"',
    'or',
    'or or',
    'a'.repeat(200),
    'ﷺ'.repeat(200),
  ]) {
    const answer = await person.call('GET', `/api/search?q=${encodeURIComponent(q)}`)
    t.ok([200, 400].includes(answer.statusCode), `${q} ${answer.body}`)
  }
  t.equal((await search(person, 'test')).data.length, 1)
  const [{ snippet }] = (await search(person, 'test')).data as [FoundMessage]
  t.strictSame(snippet, [
    { text: "it's a <b>", match: false },
    { text: 'test', match: true },
    { text: '</b> & more | less ! (all) :* \\ done', match: false },
  ])
})

void t.test('languages: capitals, accents, vowel signs, scripts without blanks', async (t) => {
  for (const [text, queries, others] of [
    ['Où est l’ÉCOLE ?', ['ecole', 'école', 'École', 'ECO*', 'l’école'], ['col']],
    ['Straße, GRÖSSE und naïve ﬁnanzen', ['straße', 'grosse', 'naive', 'finanzen'], ['strase']],
    ['ПРИВЕТ, Ёлка', ['привет', 'елка', 'Ёлка'], ['прив']],
    ['Ο ΔΡΟΜΟΣ είναι', ['δρόμος', 'ειναι'], ['δρο']],
    ['İSTANBUL’da', ['istanbul', 'İstanbul'], ['stanbul']],
    ['مرحبًا، أحمد إلى المدرسة', ['مرحبا', 'احمد', 'أحمد', 'الى'], ['حمد']],
    ['שָׁלוֹם־עולם', ['שלום', 'עולם'], ['לום']],
    ['你好，我想订两张票', ['你好', '订两张', '"我想"'], ['好你', '订票']],
    ['東京タワーへ行きたい', ['タワー', '東京', '行きたい'], ['京東']],
    ['สวัสดีครับ', ['สวัสดี', 'ครับ'], ['รับค']],
    ['안녕하세요 고객님', ['안녕하세요', '안녕*'], ['하세요']],
    ['नमस्ते दुनिया', ['नमस्ते', 'दुनिया'], ['नम']],
    ['hello👋world', ['hello', 'world'], ['hellow']],
  ] as const) {
    const person = await withMessages([text])
    for (const q of queries) {
      const { data } = await search(person, q)
      t.equal(data.length, 1, `${q} is in ${text}`)
      t.ok(
        data[0]?.snippet.some(({ match }) => match),
        `${q} is marked in ${text}`,
      )
      t.equal(data[0]?.snippet.map((piece) => piece.text).join(''), text)
    }
    for (const q of others)
      t.equal((await search(person, q)).data.length, 0, `${q} is not in ${text}`)
  }
})

void t.test('the words of a snippet are those of the database', async (t) => {
  const texts = [
    'Où est l’ÉCOLE?',
    'a-b_c.d',
    'ΣΑΣ ΌΣΟΣ',
    'x²ﬁ½',
    'ＡＢＣ 東京x',
    'مُحَمَّد',
    '12abc 1e5 0x1f 3.14',
    'e\u0301cole',
  ]
  for (const text of texts) {
    const [row] = await it.sql<{ words: string[] }>`
      select array(select lexeme from unnest(to_tsvector('simple', search_text(${text}))) order by positions[1]) as words`
    t.strictSame([...new Set(wordsOf(text).map(({ word }) => word))], row!.words, text)
  }
})

void t.test('a snippet is short, and cut around what was looked for', (t) => {
  const phrases = (text: string) => [{ words: wordsOf(text).map(({ word }) => word), open: false }]
  const long = `${'lorem ipsum '.repeat(50)}the needle ${'dolor sit '.repeat(50)}`
  const pieces = cutOut(long, phrases('needle'))
  t.equal(pieces[0]?.text, '…')
  t.equal(pieces.at(-1)?.text, '…')
  t.ok(pieces.map(({ text }) => text).join('').length <= 244)
  t.strictSame(
    pieces.filter(({ match }) => match),
    [{ text: 'needle', match: true }],
  )
  t.strictSame(cutOut('', phrases('x')), [])
  const emoji = cutOut('👋'.repeat(200), phrases('x'))
    .map(({ text }) => text)
    .join('')
  t.notMatch(emoji, /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/)
  t.end()
})

void t.test('pages go back through the latest, and then week by week, without a gap', async (t) => {
  // 2,400 messages over 40 weeks: the latest 2,000 are looked through, the rest is found by the index. A microsecond apart some of them.
  const person = await withMessages(
    Array.from({ length: 2_400 }, (_, i) => `${i % 7 === 0 ? 'lucky' : 'plain'} ${i}`),
    168,
  )
  await it.sql`
    update messages set created_at = date_trunc('day', created_at) + seq % 5 * interval '1 microsecond'
    where workspace_id = ${person.workspaceId}`
  const expected = await it.sql<{ body: string }>`
    select body from messages where workspace_id = ${person.workspaceId} and body like 'lucky%' order by created_at desc, seq desc`
  const read: (string | null)[] = []
  let cursor = ''
  let pages = 0
  do {
    const page = await search(person, 'lucky', `&limit=30${cursor && `&cursor=${cursor}`}`)
    read.push(...bodies(page))
    cursor = page.nextCursor ?? ''
    pages += 1
  } while (cursor !== '' && pages < 50)
  t.strictSame(
    read,
    expected.map(({ body }) => body),
  )
  t.equal(pages, Math.ceil(expected.length / 30))
  for (const [q, found] of [
    ['"lucky 0"', ['lucky 0']],
    ['"0 lucky"', []],
    ['7 lucky', ['lucky 7']],
    ['luck* 14', ['lucky 14']],
    ['14 or 7', ['lucky 14', 'lucky 7']],
    ['14 -lucky', []],
    ['8 -lucky', ['plain 8']],
  ] as const) {
    t.strictSame(bodies(await search(person, q)), found, `${q}, among the oldest`)
  }

  const [one] = person.chatIds as [string, string]
  const inOne = await it.sql<{ body: string }>`
    select body from messages where chat_id = ${one} and body like 'lucky%' order by created_at desc, seq desc limit 200`
  t.strictSame(
    bodies(await search(person, 'lucky', `&limit=200&chatId=${one}`)),
    inOne.map(({ body }) => body),
  )
  t.strictSame(bodies(await search(person, '"lucky 0"', `&sessionId=${person.sessionId}`)), [
    'lucky 0',
  ])
})

void t.test('filters, and what is of others, leave nothing through', async (t) => {
  const mine = await withMessages(['secret of mine', 'another secret'])
  const theirs = await withMessages(['secret of theirs'])
  t.equal((await search(mine, 'secret')).data.length, 2)
  t.strictSame(bodies(await search(theirs, 'secret')), ['secret of theirs'])
  for (const filter of [
    `chatId=${theirs.chatIds[1]}`,
    `chatId=${theirs.chatIds[0]}`,
    `sessionId=${theirs.sessionId}`,
  ]) {
    t.strictSame(await search(mine, 'secret', `&${filter}`), { data: [], nextCursor: null }, filter)
  }
  const other = await mine.call('POST', '/api/whatsapp/sessions', { name: 'Other' })
  await addMessages(mine, other.json<{ id: string }>().id, ['a third secret'])
  t.strictSame(
    bodies(await search(mine, 'secret', `&sessionId=${other.json<{ id: string }>().id}`)),
    ['a third secret'],
  )
  // Same first half of the id, so that both share the word of the week.
  const twin = mine.workspaceId.slice(0, 8) + theirs.workspaceId.slice(8)
  await it.sql`insert into workspaces (id, name) values (${twin}, 'Twin')`
  await it.sql`update profiles set workspace_id = ${twin} where id = ${theirs.profile.id}`
  t.strictSame(bodies(await search(theirs, 'secret')), [])
})

void t.test('a change of a text is found, captions too, and no text is too much', async (t) => {
  const person = await withMessages(['before'])
  await it.sql`update messages set body = 'after', type = 'image' where workspace_id = ${person.workspaceId}`
  t.equal((await search(person, 'before')).data.length, 0)
  t.equal((await search(person, 'after')).data.length, 1)
  const endless = [
    'a'.repeat(65_536),
    'ﷺ'.repeat(65_536),
    Array.from({ length: 65_536 }, (_, i) => String.fromCodePoint(0x4e00 + (i % 20_000))).join(''),
    Array.from({ length: 11_000 }, (_, i) => i.toString(36).padStart(5, 'z')).join(' '),
    '안'.repeat(65_536),
    'e\u0301'.repeat(32_768),
    Array.from({ length: 9_000 }, (_, i) => `\u{2f800}${i}`).join(' '),
    '<a href="http://x.y/z">&amp;</a>'.repeat(2_000),
  ]
  await addMessages(person, person.sessionId, endless)
  t.strictSame(bodies(await search(person, 'zz5xb')), [], 'beyond the beginning')
  t.equal((await search(person, 'zzz5x')).data.length, 1, 'before that')
})

void t.test('of a long text the beginning is searched, in every script', async (t) => {
  const many = (n: number, word: (i: number) => string) =>
    Array.from({ length: n }, (_, i) => word(i))
  // A character of its own each.
  const chinese = many(10_000, (i) => String.fromCodePoint(0x4e00 + i)).join('')
  for (const [body, within, beyond] of [
    [many(4_000, (i) => `w${i}`).join(' '), 'w700', 'w1000'],
    [many(4_000, (i) => `é${i}`).join(' '), 'é700', 'é1000'],
    [many(4_000, (i) => `ж${i}`).join(' '), 'ж700', 'ж1000'],
    [chinese, chinese[1_300], chinese[2_100]],
    [many(10_000, (i) => `${chinese[i]}a`).join(''), chinese[1_000], chinese[2_100]],
    ['ﷺ '.repeat(10_000) + 'end', 'ﷺ', 'end'],
    [many(10_000, (i) => String.fromCodePoint(0x3300 + (i % 88))).join(''), '㌀', 'end'],
    ['e\u0301 '.repeat(10_000) + 'end', 'é', 'end'],
    ['안녕 '.repeat(10_000) + 'end', '안녕', 'end'],
  ] as const) {
    const person = await withMessages([body])
    const start = body.slice(0, 10)
    t.equal((await search(person, within!)).data.length, 1, `${start}: ${within}`)
    t.equal((await search(person, beyond!)).data.length, 0, `${start}: ${beyond}`)
    // What a message costs grows with the words of it that the index lists, and with the text they are taken from.
    const [cost] = await it.sql<{ words: number; characters: number }>`
      select length(search) as words, length(search_text(left(body, 10000))) as characters
      from messages where workspace_id = ${person.workspaceId}`
    t.ok(cost!.words <= 2_100, `${start}: ${cost!.words} words`)
    t.ok(cost!.characters <= 12_300, `${start}: ${cost!.characters} characters`)
  }
})
