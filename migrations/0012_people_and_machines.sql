-- An invitation to a workspace. The token is shown once, to the inviter, and sent by e-mail; only its hash is kept. It dies with its
-- inviter: who was removed must not come back by an invitation of their own.
create table if not exists public.invitations (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  email        text not null check (length(email) <= 254),
  role         text not null check (role in ('owner', 'admin', 'agent')),
  token_hash   bytea not null unique,
  invited_by   uuid not null references public.profiles on delete cascade,
  expires_at   timestamptz not null,
  created_at   timestamptz not null default now()
);
-- One open invitation an address: inviting again replaces it. Accepting removes it.
create unique index if not exists invitations_email on public.invitations (workspace_id, lower(email));
create index if not exists invitations_page on public.invitations (workspace_id, created_at desc, id desc);
create index if not exists invitations_inviter on public.invitations (invited_by);

-- Tokens to set a new password with, hashed. The first use removes all of a person.
create table if not exists public.password_resets (
  token_hash   bytea primary key,
  workspace_id uuid not null references public.workspaces on delete cascade,
  profile_id   uuid not null references public.profiles on delete cascade,
  expires_at   timestamptz not null,
  created_at   timestamptz not null default now()
);
create index if not exists password_resets_profile on public.password_resets (profile_id);

-- Addresses a person has signed in from. Strangers who guess passwords cannot lock these out.
create table if not exists public.login_addresses (
  profile_id   uuid not null references public.profiles on delete cascade,
  workspace_id uuid not null references public.workspaces on delete cascade,
  address      text not null,
  last_at      timestamptz not null default now(),
  primary key (profile_id, address)
);

-- The second factor of a person: the seed of their authenticator app, sealed with a key of SESSION_ENCRYPTION_KEY. It counts once
-- it is confirmed. `last_step` is the newest 30 second step whose code was used: a code works once.
create table if not exists public.two_factor (
  profile_id   uuid primary key references public.profiles on delete cascade,
  workspace_id uuid not null references public.workspaces on delete cascade,
  key_id       text not null,
  box          text not null,
  confirmed_at timestamptz,
  last_step    bigint,
  created_at   timestamptz not null default now()
);

-- What helps when the phone is lost: ten codes of 80 random bits, hashed, each good for one sign-in.
create table if not exists public.backup_codes (
  profile_id   uuid not null references public.profiles on delete cascade,
  workspace_id uuid not null references public.workspaces on delete cascade,
  code_hash    bytea not null,
  used_at      timestamptz,
  primary key (profile_id, code_hash)
);

-- Keys of machines, hashed. A key acts for the person who made it, within its scopes: it never may more than they, and ends with them.
create table if not exists public.api_keys (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  profile_id   uuid not null references public.profiles on delete cascade,
  name         text not null check (length(name) between 1 and 120),
  prefix       text not null,
  key_hash     bytea not null unique,
  scopes       text[] not null check (scopes <@ array['read', 'send', 'manage'] and cardinality(scopes) > 0),
  -- Addresses and subnets it may be used from; anywhere when empty.
  allowed_ips  text[] not null default '{}',
  expires_at   timestamptz,
  last_used_at timestamptz,
  created_at   timestamptz not null default now()
);
create index if not exists api_keys_page on public.api_keys (workspace_id, created_at desc, id desc);
create index if not exists api_keys_profile on public.api_keys (profile_id);

alter table public.invitations enable row level security;
alter table public.password_resets enable row level security;
alter table public.login_addresses enable row level security;
alter table public.two_factor enable row level security;
alter table public.backup_codes enable row level security;
alter table public.api_keys enable row level security;
