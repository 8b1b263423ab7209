-- Where a workspace wants its events posted to. The address may be anybody's: it is looked at before every connection.
create table if not exists public.webhooks (
  id               uuid primary key default gen_random_uuid(),
  workspace_id     uuid not null references public.workspaces on delete cascade,
  url              text not null check (length(url) <= 2048),
  events           text[] not null check (cardinality(events) > 0),
  enabled          boolean not null default true,

  -- What its deliveries are signed with, sealed with a key of SESSION_ENCRYPTION_KEY; the secret before this one counts for a while.
  key_id           text not null,
  box              text not null,
  previous_key_id  text,
  previous_box     text,
  previous_until   timestamptz,

  -- Everything up to this place in the order of events has become deliveries.
  tx               xid8 not null,
  event_id         bigint not null default 0,

  -- The circuit: failures in a row; while it is open nothing is posted before retry_at, and then one delivery only, to see.
  failures         int not null default 0,
  retry_at         timestamptz,
  last_success_at  timestamptz,
  last_failure_at  timestamptz,
  last_error       text,
  created_at       timestamptz not null default now(),
  updated_at       timestamptz not null default now(),
  check ((previous_box is null) = (previous_key_id is null) and (previous_box is null) = (previous_until is null))
);
create index if not exists webhooks_list on public.webhooks (workspace_id, created_at desc, id desc);

-- An event on its way to a webhook. It goes with the event after a week.
create table if not exists public.webhook_deliveries (
  id              uuid primary key default gen_random_uuid(),
  -- The order of the events.
  seq             bigint generated always as identity,
  workspace_id    uuid not null references public.workspaces on delete cascade,
  webhook_id      uuid not null references public.webhooks on delete cascade,
  event_id        bigint not null references public.events on delete cascade,
  -- The chat (or session, or file) it tells of: one after the other within it.
  lane            text not null,
  status          text not null default 'pending' check (status in ('pending', 'delivered', 'dead')),
  -- It was refused so often that it holds up its lane no longer.
  aside           boolean not null default false,
  attempts        int not null default 0,
  -- When it is tried (again). Infinity: when what is before it in its lane is done.
  due_at          timestamptz not null,
  -- Until then somebody is posting it; after that he is taken for dead.
  claimed_until   timestamptz,
  expires_at      timestamptz not null default now() + interval '24 hours',
  response_status int,
  error           text,
  duration_ms     int,
  attempted_at    timestamptz,
  delivered_at    timestamptz,
  created_at      timestamptz not null default now(),
  unique (webhook_id, event_id)
);
create index if not exists webhook_deliveries_due on public.webhook_deliveries (webhook_id, due_at, seq) where status = 'pending';
create index if not exists webhook_deliveries_lane on public.webhook_deliveries (webhook_id, lane, seq) where status = 'pending';
create index if not exists webhook_deliveries_expiry on public.webhook_deliveries (expires_at) where status = 'pending';
create index if not exists webhook_deliveries_list on public.webhook_deliveries (webhook_id, seq desc);
create index if not exists webhook_deliveries_event on public.webhook_deliveries (event_id);

alter table public.webhooks enable row level security;
alter table public.webhook_deliveries enable row level security;
