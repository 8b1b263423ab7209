-- People. Each address WhatsApp has for somebody (a phone number, a lid) has a row of its own, for good; the rows of one person point to one of
-- them, which is the contact that chats, messages and the API speak of. So two contacts that turn out to be one person are joined without
-- anything being lost, and taken apart again.
alter table public.contacts
  -- The contact this address belongs to; null: it is one itself. Never a row that points on.
  add column if not exists merged_into  uuid references public.contacts on delete set null,
  -- Through which it was first heard of: whose WhatsApp is asked who it is.
  add column if not exists session_id   uuid references public.wa_sessions on delete set null,
  -- When WhatsApp is asked (again) who it is.
  add column if not exists ask_at       timestamptz not null default now(),
  -- The latest word counts, in whatever order words come. Infinity: a person chose the name, nothing heard takes its place.
  add column if not exists name_at      timestamptz not null default '-infinity',
  add column if not exists push_name_at timestamptz not null default '-infinity',
  -- When WhatsApp was last known to have this address for the person: of several numbers the latest is shown.
  add column if not exists seen_at      timestamptz not null default '-infinity',
  -- A number people dial; WhatsApp has another one for it (Brazil, Mexico).
  add column if not exists alternate    boolean not null default false;
create index if not exists contacts_merged on public.contacts (merged_into) where merged_into is not null;
create index if not exists contacts_ask on public.contacts (session_id, ask_at) where merged_into is null;
update public.contacts k set session_id = c.session_id
  from (select distinct on (contact_id) contact_id, session_id from public.chats where contact_id is not null order by contact_id, created_at) c
  where k.id = c.contact_id and k.session_id is null;

-- The words of a text as contacts are searched by: one way for what is stored and for what is asked.
create or replace function public.words_of(text text) returns text[] language sql immutable parallel safe
  set search_path = '' as
  $$ select array_remove(pg_catalog.regexp_split_to_array(pg_catalog.lower(coalesce(text, '')), '[^[:alnum:]]+'), '') $$;
-- Every tail of a number that has at least four digits: its beginnings are all the pieces of the number.
create or replace function public.tails_of(digits text) returns text[] language sql immutable parallel safe
  set search_path = '' as
  $$ select coalesce(pg_catalog.array_agg(pg_catalog.substr(d, i)), '{}')
     from (select pg_catalog.regexp_replace(coalesce(digits, ''), '[^0-9]', '', 'g') as d) x, pg_catalog.generate_series(1, pg_catalog.length(d) - 3) i $$;
alter table public.contacts
  add column if not exists search tsvector generated always as (array_to_tsvector(
    public.words_of(name) || public.words_of(push_name) || public.tails_of(phone) || public.tails_of(lid))) stored;
create index if not exists contacts_search on public.contacts using gin (search) where merged_into is null;

-- Which contacts were found to be one person, by what, and what the one that stayed was before.
create table if not exists public.contact_merges (
  id           bigint generated always as identity primary key,
  workspace_id uuid not null references public.workspaces on delete cascade,
  survivor_id  uuid not null references public.contacts on delete cascade,
  merged_id    uuid not null references public.contacts on delete cascade,
  -- The rows that came with the merged one, itself included.
  members      uuid[] not null,
  -- What said so: {source, addresses}.
  evidence     jsonb not null,
  before       jsonb not null,
  after        jsonb not null,
  at           timestamptz not null default now(),
  undone_at    timestamptz
);
create index if not exists contact_merges_survivor on public.contact_merges (survivor_id, id desc) where undone_at is null;
alter table public.contact_merges enable row level security;

-- Addresses a person has said belong to different people: no evidence joins them again.
create table if not exists public.contacts_apart (
  workspace_id uuid not null references public.workspaces on delete cascade,
  -- The lesser of the two.
  wa_id        text not null,
  other_wa_id  text not null,
  at           timestamptz not null default now(),
  primary key (workspace_id, wa_id, other_wa_id)
);
alter table public.contacts_apart enable row level security;

-- Who is in a group, as far as WhatsApp Web told.
create table if not exists public.chat_participants (
  chat_id      uuid not null references public.chats on delete cascade,
  wa_id        text not null,
  workspace_id uuid not null references public.workspaces on delete cascade,
  is_admin     boolean not null,
  primary key (chat_id, wa_id)
);
alter table public.chat_participants enable row level security;
alter table public.chats
  -- When WhatsApp was last asked for the subject and the participants of a group.
  add column if not exists asked_at timestamptz;
create index if not exists chats_groups on public.chats (session_id) where is_group;
