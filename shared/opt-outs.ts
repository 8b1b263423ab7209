import { fragment } from './db.ts'
import type { Fragment, Sql } from './db.ts'
import type { Received } from './received.ts'
import { isGroup } from './wa-id.ts'

/** The words of a text, whatever is written around them and in whatever capitals and accents: `¡Stop!` is `stop`. What holds no words is itself. */
const bare = (text: Fragment) => fragment`
  coalesce(nullif(btrim(regexp_replace(replace(public.search_text(${text}), 'ß', 'ss'), ' +', ' ', 'g')), ''), btrim(${text}))`

/** A word of opting out is no longer, with what may stand around it. */
const longest = 60

/** A message that is nothing but one of the workspace's words for it opts its sender out, START opts in again: the latest such word counts. */
export async function heedOptOuts(
  tx: Sql,
  workspaceId: string,
  stored: Map<Received, string>,
): Promise<void> {
  const ids = [...stored].flatMap(([{ fromMe, waChatId, body }, id]) =>
    fromMe || isGroup(waChatId) || !body || body.length > longest ? [] : id,
  )
  if (ids.length === 0) return
  const wishes = await tx<{ out: boolean; contactId: string }>`
    select distinct on (c.contact_id) w.out, c.contact_id
    from (select array(select ${bare(fragment`x`)} from unnest(opt_out_words) x) as words from workspaces where id = ${workspaceId}) o
    cross join (select m.*, ${bare(fragment`m.body`)} as word from messages m where m.id = any(${ids}::uuid[])) m
    cross join lateral (select case when m.word in ('start', 'unstop') then false when m.word = any(o.words) then true end as out) w
    join chats c on c.id = m.chat_id
    where c.contact_id is not null and w.out is not null
      -- Read again afterwards, it may be older than a word that was heard.
      and not exists (
        select from messages n
        where n.chat_id in (select o.id from chats o where o.contact_id = c.contact_id) and n.direction = 'inbound' and n.created_at > m.created_at
          and length(n.body) <= ${longest} and ${bare(fragment`n.body`)} = any(o.words || array['start', 'unstop']))
    order by c.contact_id, m.created_at desc, m.seq desc`
  for (const { out, contactId } of wishes) {
    await tx`
      update contacts set opted_out = ${out}, opted_out_at = case when ${out}::boolean then now() end
      where id = ${contactId} and opted_out <> ${out}`
  }
}
