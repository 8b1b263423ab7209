-- Bytes in the media store. A row is written before its object and outlives it, so that whatever is in the store is named here at any
-- moment. That is why there is no foreign key: when a workspace is gone, its rows lead to the objects that are to be removed.
create table if not exists public.media_objects (
  id             uuid primary key default gen_random_uuid(),
  workspace_id   uuid not null,
  size           bigint not null check (size > 0),
  sha256         text,
  -- Whether there is a small picture of it beside it.
  thumbnail      boolean not null default false,
  -- uploading: somebody is writing it. stored: it is there, as a whole. discarded: it is to be removed, then the row.
  state          text not null default 'uploading' check (state in ('uploading', 'stored', 'discarded')),
  -- Until then an upload of it may still arrive, whatever became of the row.
  writable_until timestamptz not null,
  -- Since when the store has not had what it should have.
  missing_since  timestamptz,
  created_at     timestamptz not null default now(),
  check (state <> 'stored' or sha256 is not null)
);
-- The same bytes are kept once in a workspace.
create unique index if not exists media_objects_bytes on public.media_objects (workspace_id, sha256) where state = 'stored';
-- What the cleanup looks for.
create index if not exists media_objects_unfinished on public.media_objects (writable_until) where state <> 'stored';

-- A file of a workspace: uploaded, or received. Several may have the same bytes; each has its own name and its own life.
create table if not exists public.media (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  -- Null while an inbound file was not yet fetched, and once the bytes are gone.
  object_id    uuid references public.media_objects,
  kind         text not null check (kind in ('image', 'video', 'document', 'audio')),
  mime_type    text not null,
  size         bigint check (size >= 0),
  sha256       text,
  filename     text,
  width        int,
  height       int,
  -- Seconds.
  duration     real,
  status       text not null default 'pending' check (status in ('pending', 'ready', 'failed', 'expired')),
  created_at   timestamptz not null default now(),
  check (status <> 'ready' or (object_id is not null and size is not null and sha256 is not null))
);
create index if not exists media_list on public.media (workspace_id, created_at desc, id desc);
create index if not exists media_object on public.media (object_id);
-- What MEDIA_RETENTION_DAYS and the cleanup of unconfirmed uploads look for.
create index if not exists media_age on public.media (status, created_at);

alter table public.media_objects enable row level security;
alter table public.media enable row level security;

alter table public.messages add column if not exists media_id uuid references public.media on delete set null;
create index if not exists messages_media on public.messages (media_id) where media_id is not null;
