-- Who runs which scheduled job. A row is a lease, not a lock of the database's session: those do not survive a pooler.
create table if not exists public.jobs (
  name        text primary key,
  owner       text not null,
  lease_until timestamptz not null,
  ran_at      timestamptz
);
alter table public.jobs enable row level security;
