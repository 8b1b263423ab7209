-- What a POST with an Idempotency-Key was answered: it stands in the same transaction as what the request did, and is told again word for word to
-- whoever repeats the request.
create table if not exists public.idempotency_keys (
  workspace_id uuid not null references public.workspaces on delete cascade,
  key          text not null check (length(key) between 1 and 255),
  -- SHA-256 of method, path and body: another request under the same key is a mistake of the caller's.
  fingerprint  bytea not null,
  -- Both null while work that does not fit into one transaction is under way; `claim` says whose.
  status_code  smallint,
  body         text,
  claim        uuid,
  created_at   timestamptz not null default now(),
  -- From then on the row counts as absent. That of work under way is short: a process that died frees its key.
  expires_at   timestamptz not null,
  primary key (workspace_id, key),
  check ((status_code is null) = (body is null)),
  check ((status_code is null) = (claim is not null))
);
create index if not exists idempotency_keys_expiry on public.idempotency_keys (expires_at);
alter table public.idempotency_keys enable row level security;
