import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { AppError } from './errors.ts'
import { findMessages, messageResource } from './messages.ts'
import type { Message } from './messages.ts'
import { decodeCursor, numberKey, toPage } from './pagination.ts'
import type { Page } from './pagination.ts'
import { cutOut, wordsOf } from './search-snippet.ts'
import type { Piece } from './search-snippet.ts'

/** A message that was looked for, with the place where it says it. */
export type FoundMessage = Message & { snippet: Piece[] }

export interface Search {
  /** Words that a message must all have; "several in a row"; -word it must not have; or; and word* for its beginning. */
  q: string
  chatId?: string | undefined
  sessionId?: string | undefined
  limit: number
  cursor?: string | undefined
}

/** So many of the latest messages are looked through one by one: what is in every twentieth is found there, and no index has to list it. */
const walked = 2_000

/**
 * The messages of a workspace that say what is looked for, newest first: the latest ones one by one, those before them by the index, week by week, until the
 * page is full. So neither what is common nor what is rare takes long. Throws 400 VALIDATION_FAILED when there is nothing to look for.
 */
export async function searchMessages(
  sql: Sql,
  workspaceId: string,
  { q, chatId, sessionId, limit, cursor }: Search,
): Promise<Page<FoundMessage>> {
  const terms = await parseSearch(sql, q)
  const query = tsqueryOf(terms)
  const after = cursor === undefined ? undefined : decodeCursor(cursor, numberKey)
  // One index for each: a chat's messages in their order, or a workspace's.
  const scope =
    chatId === undefined
      ? fragment`m.workspace_id = ${workspaceId}`
      : fragment`m.chat_id = ${chatId}`
  const wanted = fragment`m.workspace_id = ${workspaceId}
    ${chatId === undefined ? fragment`` : fragment`and m.chat_id = ${chatId}`}
    ${sessionId === undefined ? fragment`` : fragment`and m.session_id = ${sessionId}`}`
  const latest = fragment`from messages m where ${scope}
    ${after ? fragment`and (m.created_at, m.seq) < (${after.at}::timestamptz, ${after.key}::bigint)` : fragment``}
    order by m.created_at desc, m.seq desc`
  // Each part comes in order, the parts too, and the limit ends the walk through them: nothing is sorted as a whole. `offset 0` keeps
  // conditions and order outside, so that only the index of words can serve what is inside.
  const hits = await sql<{ id: string }>`
    with recursive floor as (
      select m.created_at, m.seq ${latest} offset ${walked - 1} limit 1
    ), week(at) as (
      select created_at from floor
      union all
      select at - interval '7 days' from week where at > (select min(m.created_at) from messages m where ${scope})
    )
    select id from (
      select m.id from (select m.* ${latest} limit ${walked}) m where m.search @@ ${query}::tsquery and ${wanted}
      union all
      select hit.id from week cross join lateral (
        select m.id from (
          select * from messages where ${inIndex(terms, query, fragment`quote_literal(search_week(${workspaceId}, week.at))::tsquery`)}
          offset 0) m
        where m.search @@ ${query}::tsquery and ${wanted} and (m.created_at, m.seq) < (select created_at, seq from floor)
        order by m.created_at desc, m.seq desc limit ${limit + 1}) hit
    ) found limit ${limit + 1}`
  const rows = await findMessages(
    sql,
    workspaceId,
    hits.map(({ id }) => id),
  )
  const phrases = terms.filter(({ not }) => !not)
  return toPage(
    rows,
    limit,
    (row) => ({ at: row.position, key: String(row.seq) }),
    (row) => ({ ...messageResource(row), snippet: cutOut(row.body ?? '', phrases) }),
  )
}

/**
 * What the index is asked for. Words that must all be there are conditions of their own, behind that of the week: the index then skips from each to where the next
 * may be, and never leaves the week. As one condition it would look at every place of one of them.
 */
function inIndex(terms: Term[], query: string, week: Fragment): Fragment {
  if (terms.some(({ or }) => or)) return fragment`search @@ (${week} && ${query}::tsquery)`
  return terms
    .filter(({ not }) => !not)
    .flatMap(({ lexemes }) => lexemes)
    .reduce(
      (conditions, word) => fragment`${conditions} and search @@ ${word}::tsquery`,
      fragment`search @@ ${week}`,
    )
}

/** Words in a row that are looked for, or that are not to be there. */
interface Term {
  text: string
  words: string[]
  /** The same for Postgres; empty when it sees no word in it. */
  phrase: string
  /** The same word by word. */
  lexemes: string[]
  not: boolean
  /** It, and what follows, is looked for instead of what came before. */
  or: boolean
  /** The last word is the beginning of one. */
  open: boolean
}

/** Shorter ones begin too many words. */
const shortestBeginning = 3

/** What is looked for. Throws 400 VALIDATION_FAILED when that is nothing, or everything but something. */
async function parseSearch(sql: Sql, q: string): Promise<Term[]> {
  const asked: Omit<Term, 'phrase' | 'lexemes'>[] = []
  let or = false
  const written = q.replaceAll(/[“”„«»]/g, '"').matchAll(/(-?)(?:"([^"]*)"?|([^\s"]+))/g)
  for (const [, minus, quoted, bare = ''] of written) {
    if (bare.toLowerCase() === 'or') {
      or = asked.length > 0
      continue
    }
    const text = quoted ?? bare
    const words = wordsOf(text).map(({ word }) => word)
    const open = bare.endsWith('*') && (words.at(-1)?.length ?? 0) >= shortestBeginning
    asked.push({ text, words, not: minus === '-', or, open })
    or = false
  }
  const rows = await sql<Pick<Term, 'phrase' | 'lexemes'>>`
    select phraseto_tsquery('simple', words)::text as phrase,
      array(select quote_literal(lexeme) from unnest(to_tsvector('simple', words)) order by positions[1]) as lexemes
    from unnest(${asked.map(({ text }) => text)}::text[]) with ordinality t(text, ord)
    cross join lateral (select search_text(text) as words) w order by ord`
  const terms = asked
    .map((term, i) => {
      const { phrase, lexemes } = rows[i]!
      const beginning = term.open ? ':*' : ''
      const last = lexemes.length - 1
      return {
        ...term,
        phrase: phrase && phrase + beginning,
        lexemes: lexemes.map((word, n) => (n === last ? word + beginning : word)),
      }
    })
    .filter(({ phrase }) => phrase !== '')
  const alternatives = terms.reduce<Term[][]>((all, term) => {
    if (term.or || all.length === 0) all.push([])
    all.at(-1)!.push(term)
    return all
  }, [])
  if (alternatives.length === 0 || alternatives.some((one) => one.every(({ not }) => not))) {
    const message = '"q" must have a word to look for'
    throw new AppError(400, 'VALIDATION_FAILED', message, [{ path: 'query.q', message }])
  }
  return terms
}

const tsqueryOf = (terms: Term[]): string =>
  terms
    .map(
      ({ phrase, not, or }, i) =>
        `${i === 0 ? '' : or ? ' | ' : ' & '}${not ? `!(${phrase})` : phrase}`,
    )
    .join('')
