import type { Sql } from './db.ts'
import type { Received } from './received.ts'
import { isGroup } from './wa-id.ts'

/** A message that is nothing but one of the workspace's words for it opts its sender out, START opts in again: the latest such word counts. */
export async function heedOptOuts(
  tx: Sql,
  workspaceId: string,
  stored: Map<Received, string>,
): Promise<void> {
  const words = [...stored].flatMap(([{ fromMe, waChatId, body }, id]) => {
    const word = (body ?? '')
      .trim()
      .replace(/[.!]+$/, '')
      .toUpperCase()
    return fromMe || isGroup(waChatId) || word === '' || word.length > 40 ? [] : { id, word }
  })
  if (words.length === 0) return
  const wishes = await tx<{ out: boolean; contactId: string }>`
    select distinct on (c.contact_id) w.out, c.contact_id
    from (select array(select upper(x) from unnest(opt_out_words) x) as words from workspaces where id = ${workspaceId}) o
    cross join unnest(${words.map(({ id }) => id)}::uuid[], ${words.map(({ word }) => word)}::text[]) h(id, word)
    cross join lateral (select case when h.word in ('START', 'UNSTOP') then false when h.word = any(o.words) then true end as out) w
    join messages m on m.id = h.id
    join chats c on c.id = m.chat_id
    where c.contact_id is not null and w.out is not null
      -- Read again afterwards, it may be older than a word that was heard.
      and not exists (
        select from messages n
        where n.chat_id in (select o.id from chats o where o.contact_id = c.contact_id) and n.direction = 'inbound' and n.created_at > m.created_at and length(n.body) <= 60
          and upper(rtrim(btrim(n.body, E' \\t\\r\\n'), '.!')) = any(o.words || array['START', 'UNSTOP']))
    order by c.contact_id, m.created_at desc, m.seq desc`
  for (const { out, contactId } of wishes) {
    await tx`
      update contacts set opted_out = ${out}, opted_out_at = case when ${out}::boolean then now() end
      where id = ${contactId} and opted_out <> ${out}`
  }
}
