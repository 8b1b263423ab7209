alter table public.wa_sessions
  -- What came after this moment may be missing here: nobody listened for a while, and it is yet to be read again. Null: nothing is outstanding.
  add column if not exists backfill_from timestamptz;

-- What was read again of each chat after nobody had listened, and whether nothing of that time is missing.
create table if not exists public.wa_gaps (
  id           bigint generated always as identity primary key,
  workspace_id uuid not null references public.workspaces on delete cascade,
  session_id   uuid not null references public.wa_sessions on delete cascade,
  -- The chat as WhatsApp calls it; empty: the chats that were too many to be read.
  wa_chat_id   text not null,
  chat_id      uuid references public.chats on delete cascade,
  from_at      timestamptz not null,
  to_at        timestamptz not null,
  complete     boolean not null,
  at           timestamptz not null default now(),
  unique (session_id, from_at, wa_chat_id)
);
create index if not exists wa_gaps_list on public.wa_gaps (session_id, id desc);
alter table public.wa_gaps enable row level security;

-- What people chose in polls; 'me' for the session's own account, as with reactions.
create table if not exists public.poll_votes (
  message_id   uuid not null references public.messages on delete cascade,
  wa_id        text not null,
  workspace_id uuid not null references public.workspaces on delete cascade,
  options      text[] not null,
  at           timestamptz not null,
  primary key (message_id, wa_id)
);
alter table public.poll_votes enable row level security;
