-- Full-text search over messages, for all languages alike: no stemming, no stop words, no extension.

-- What is to be compared of a text: capitals, accents and vowel signs evened out, everything between words a blank, and scripts that are written without
-- blanks cut into characters, which a phrase puts together again.
create or replace function public.search_text(body text) returns text language sql immutable parallel safe as $$
  select regexp_replace(
    case when octet_length(body) = length(body) then lower(body collate "C")
    else regexp_replace(regexp_replace(replace(lower(normalize(body, NFKD) collate "und-x-icu") collate "C", 'ς', 'σ'),
      '[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u065f\u0670]+', '', 'g'),
      '([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff])', ' \1 ', 'g') end,
    '[\u0001-/:-@[-`{-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u0589\u05be\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965\u2000-\u2bff\u3000-\u303f\ufe00-\ufe0f\U0001f000-\U0001faff]+', ' ', 'g')
$$;

-- A word that stands for a week of a workspace. No text has it: words of texts hold no blank. Others may share it, which the workspace's id tells apart.
create or replace function public.search_week(workspace_id uuid, at timestamptz) returns text language sql immutable parallel safe as $$
  select left(workspace_id::text, 8) || ' ' || div(extract(epoch from at at time zone 'UTC'), 604800)::text
$$;

-- With the week as one more word, the index leads to the messages of one workspace and one week that have the words: a search goes back week by week until its
-- page is full, and what other workspaces and other times have of a word costs it nothing.
-- Of a very long text the beginning only: what it costs, and what a tsvector may hold, is bounded.
alter table public.messages add column if not exists search tsvector generated always as (
  to_tsvector('simple', public.search_text(left(coalesce(body, ''), 10000))) || array_to_tsvector(array[public.search_week(workspace_id, created_at)])
) stored;
create index if not exists messages_search on public.messages using gin (search) with (fastupdate = off);

-- With seq, as lists are ordered.
create index if not exists messages_newest on public.messages (workspace_id, created_at desc, seq desc);
drop index if exists public.messages_workspace;
