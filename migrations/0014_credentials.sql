-- Credentials of other services that a workspace entrusts to us, each sealed with a data key of its own, which is sealed with a key of
-- SESSION_ENCRYPTION_KEY. Changing that key re-seals the data keys; the credentials themselves stay as they are.
create table if not exists public.credentials (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  name         text not null check (length(name) between 1 and 120),
  key_id       text not null,
  wrapped_key  text not null,
  box          text not null,
  created_at   timestamptz not null default now(),
  updated_at   timestamptz not null default now(),
  unique (workspace_id, name)
);
alter table public.credentials enable row level security;
