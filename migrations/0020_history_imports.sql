-- What was said before a session was linked, read once after its first link where that is wished.
create table if not exists public.wa_history_imports (
  session_id   uuid primary key references public.wa_sessions on delete cascade,
  workspace_id uuid not null references public.workspaces on delete cascade,
  -- Whose history it is: another number that is linked later has one of its own.
  wa_id        text not null,
  from_at      timestamptz not null,
  to_at        timestamptz not null,
  -- Chats that are yet to be read; null: they are not known yet.
  waiting      text[],
  total        int not null default 0,
  messages     int not null default 0,
  -- Chats of which not everything of that time could be read.
  incomplete   int not null default 0,
  started_at   timestamptz not null default now(),
  finished_at  timestamptz
);
alter table public.wa_history_imports enable row level security;
alter table public.wa_sessions
  -- Days of history to be read at the first link; null: as the worker is set.
  add column if not exists import_history_days int check (import_history_days between 0 and 365);

-- Files of what is heard now go before those of history.
alter table public.media_fetches add column if not exists background boolean not null default false;
drop index if exists public.media_fetches_due;
create index if not exists media_fetches_due on public.media_fetches (session_id, background, due_at);
