import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import { isGroup } from './wa-id.ts'

/** Nothing new goes to recipient `k`, of whom there need be none, of message `m`: they have asked for that, and nobody has given a reason against it. */
export const optedOut = fragment`(coalesce(k.opted_out, false) and m.opt_out_override is null)`

/** The words of a text, whatever is written around them and in whatever capitals and accents: `¡Stop!` is `stop`. A text without words (an emoji) is compared as it is. */
const bare = (text: Fragment) => fragment`
  coalesce(nullif(btrim(regexp_replace(replace(public.search_text(${text}), 'ß', 'ss'), ' +', ' ', 'g')), ''), btrim(${text}))`

/** Longest opt-out word, punctuation included, in characters. */
const longest = 60

/** Whether a message may opt somebody out or in, by what is known of it at no cost. */
export const mayOptOut = (message: {
  fromMe: boolean
  waChatId: string
  body: string | null
}): boolean =>
  !message.fromMe &&
  !isGroup(message.waChatId) &&
  message.body !== null &&
  message.body.length <= longest

/**
 * Those of these messages that are nothing but one of the workspace's words for it opt their senders out, START opts in again: the latest wish counts, in whatever order
 * wishes are heard, and so does what staff has set meanwhile. Needs holdPeople().
 */
export async function heedOptOuts(tx: Sql, workspaceId: string, ids: string[]): Promise<void> {
  if (ids.length === 0) return
  await tx`
    update contacts k set opted_out = wish.out, opted_out_at = wish.at
    from (
      select distinct on (c.contact_id) c.contact_id, w.out, m.at
      from (select array(select ${bare(fragment`x`)} from unnest(opt_out_words) x) as words from workspaces where id = ${workspaceId}) o
      cross join (
        select m.chat_id, m.seq, coalesce(m.edited_at, m.created_at) as at, ${bare(fragment`m.body`)} as word from messages m
        -- What a card or a poll is called is not said.
        where m.id = any(${ids}::uuid[]) and m.direction = 'inbound' and m.type not in ('contact', 'poll')) m
      cross join lateral (select case when m.word in ('start', 'unstop') then false when m.word = any(o.words) then true end as out) w
      join chats c on c.id = m.chat_id and not c.is_group
      where w.out is not null
      order by c.contact_id, m.at desc, m.seq desc) wish
    where k.id = wish.contact_id and coalesce(k.opted_out_at, '-infinity') <= wish.at`
}
