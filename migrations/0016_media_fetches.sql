-- Media that came with messages and is yet to be fetched from WhatsApp: the message is there long before. A row leaves when the file is stored, or
-- when it is clear that it never will be.
create table if not exists public.media_fetches (
  media_id     uuid primary key references public.media on delete cascade,
  message_id   uuid not null references public.messages on delete cascade,
  workspace_id uuid not null references public.workspaces on delete cascade,
  session_id   uuid not null references public.wa_sessions on delete cascade,
  -- Tries that failed.
  attempts     smallint not null default 0,
  due_at       timestamptz not null default now(),
  created_at   timestamptz not null default now()
);
create index if not exists media_fetches_due on public.media_fetches (session_id, due_at);
alter table public.media_fetches enable row level security;
