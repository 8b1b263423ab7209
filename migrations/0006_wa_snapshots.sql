-- Snapshots of logins: encrypted objects in the object store. A row is written before its object and outlives it, so that whatever is
-- in the store is named here at any moment, however a worker ends. That is why there is no foreign key either: when a session
-- is gone, its rows lead to the objects that are to be removed.
create table if not exists public.wa_snapshots (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null,
  session_id   uuid not null,
  -- Rises with every attempt, also a failed one: no two snapshots of a session ever had the same.
  generation   bigint not null,
  object_key   text not null unique,
  -- The key of this one snapshot, encrypted with the key of SESSION_ENCRYPTION_KEY that has this name.
  key_id       text not null,
  wrapped_key  text not null,
  -- Of the object as it is stored.
  size         bigint,
  sha256       text,
  -- Of what is in it.
  files        int,
  bytes        bigint,
  reason       text not null,
  worker       text not null,
  fence        bigint not null,
  -- uploading: not proven, never restored. verified: was read back, decrypted and unpacked. archived: of a login that was given up; only a
  -- person brings it back. discarded: its object is to be removed, then the row.
  state        text not null default 'uploading' check (state in ('uploading', 'verified', 'archived', 'discarded')),
  created_at   timestamptz not null default now(),
  verified_at  timestamptz,
  archived_at  timestamptz,
  archived_for text,
  unique (session_id, generation),
  check (state not in ('verified', 'archived')
         or (verified_at is not null and size is not null and sha256 is not null and files is not null and bytes is not null))
);
-- What the cleanup looks for.
create index if not exists wa_snapshots_unfinished on public.wa_snapshots (created_at) where state in ('uploading', 'discarded');
alter table public.wa_snapshots enable row level security;

alter table public.wa_sessions
  -- The last generation that was begun.
  add column if not exists snapshot_counter bigint not null default 0,
  -- The generation a restore begins with; null: there is none.
  add column if not exists snapshot_generation bigint;
