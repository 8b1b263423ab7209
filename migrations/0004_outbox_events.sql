-- Messages the API accepted and WhatsApp has not yet confirmed. A confirmed or given-up message leaves: the table stays as small as
-- the work at hand. One lane a session, oldest first.
create table if not exists public.outbox (
  id           bigint generated always as identity primary key,
  message_id   uuid not null unique references public.messages on delete cascade,
  workspace_id uuid not null references public.workspaces on delete cascade,
  session_id   uuid not null references public.wa_sessions on delete cascade,
  chat_id      uuid not null references public.chats on delete cascade,
  -- q: waits to be claimed. s: claimed; what happened to it must be found out before it is sent again.
  state        "char" not null default 'q' check (state in ('q', 's')),
  attempts     smallint not null default 0,
  retry_at     timestamptz,
  claimed_by   text,
  claimed_at   timestamptz,
  created_at   timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
-- Serves the claim: the head of a lane is one index probe, however long the lane is.
create index if not exists outbox_lane on public.outbox (session_id, id) where state = 'q';
create index if not exists outbox_claimed on public.outbox (session_id) where state = 's';

-- What happened, in the form it is told to SSE clients and webhooks. Append-only.
create table if not exists public.events (
  id           bigint generated always as identity primary key,
  -- Ids are given out before commit, so a lower id may appear after a higher one. Readers order by (tx, id) and read only
  -- transactions older than every running one: nothing they passed can appear later.
  tx           xid8 not null default pg_current_xact_id(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  session_id   uuid references public.wa_sessions on delete cascade,
  type         text not null,
  payload      jsonb not null,
  created_at   timestamptz not null default now()
);
create index if not exists events_feed on public.events (workspace_id, tx, id);
create index if not exists events_age on public.events (created_at);

alter table public.outbox enable row level security;
alter table public.events enable row level security;
