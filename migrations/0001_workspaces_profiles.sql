-- A workspace is a tenant: a company with its people, numbers and customers. Every other table names its workspace.
create table if not exists public.workspaces (
  id         uuid primary key default gen_random_uuid(),
  name       text not null check (length(name) between 1 and 120),
  created_at timestamptz not null default now()
);

-- A person of a workspace. Passwords are ours (bcrypt), not Supabase Auth's.
create table if not exists public.profiles (
  id            uuid primary key default gen_random_uuid(),
  workspace_id  uuid not null references public.workspaces on delete cascade,
  email         text not null check (length(email) <= 254),
  full_name     text not null check (length(full_name) between 1 and 120),
  role          text not null default 'agent' check (role in ('owner', 'admin', 'agent')),
  password_hash text not null,
  created_at    timestamptz not null default now()
);
-- One account an address, however it is capitalised.
create unique index if not exists profiles_email on public.profiles (lower(email));
create index if not exists profiles_workspace on public.profiles (workspace_id);

-- Refresh tokens, hashed. A token is used once; its successor belongs to the same family, and a second use of
-- any token ends the whole family.
create table if not exists public.refresh_tokens (
  id         uuid primary key default gen_random_uuid(),
  family     uuid not null,
  profile_id uuid not null references public.profiles on delete cascade,
  token_hash bytea not null unique,
  expires_at timestamptz not null,
  used_at    timestamptz,
  revoked_at timestamptz,
  created_at timestamptz not null default now()
);
create index if not exists refresh_tokens_family on public.refresh_tokens (family);
create index if not exists refresh_tokens_profile on public.refresh_tokens (profile_id);
create index if not exists refresh_tokens_expiry on public.refresh_tokens (expires_at);

-- Counters of the rate limits that must hold over all API processes. Unlogged: losing them in a crash costs nothing.
create unlogged table if not exists public.rate_limits (
  key       text primary key,
  hits      int not null,
  resets_at timestamptz not null
);
create index if not exists rate_limits_expiry on public.rate_limits (resets_at);

-- No policy for anon and authenticated: Supabase publishes this schema over REST, and without row level security anybody
-- who holds the public key could read it. The role of the API and the worker owns the tables and is not bound by it.
alter table public.workspaces enable row level security;
alter table public.profiles enable row level security;
alter table public.refresh_tokens enable row level security;
alter table public.rate_limits enable row level security;
