-- Worker processes that are, or were, alive. A worker whose heartbeat is old is dead, whatever it believes.
create table if not exists public.workers (
  id           text primary key,
  host         text not null,
  pid          int not null,
  capacity     int not null,
  started_at   timestamptz not null default now(),
  heartbeat_at timestamptz not null default now()
);

-- A WhatsApp session: one linked number. The API writes what is wanted (desired_state), the worker that owns the session
-- writes what is (status and everything below it), always under its fence.
create table if not exists public.wa_sessions (
  id            uuid primary key default gen_random_uuid(),
  workspace_id  uuid not null references public.workspaces on delete cascade,
  name          text not null check (length(name) between 1 and 64),
  engine        text not null check (engine in ('webjs', 'simulator')),
  desired_state text not null default 'running' check (desired_state in ('running', 'stopped')),

  status        text not null default 'STOPPED' check (status in (
                  'STOPPED', 'STARTING', 'SCAN_QR_CODE', 'WORKING', 'RECONNECTING',
                  'LOGGED_OUT', 'PASSKEY_REQUIRED', 'EXPIRED', 'FAILED')),
  reason        text,
  since         timestamptz not null default now(),

  -- The linked account, known once the phone has scanned.
  wa_id         text,
  lid           text,
  phone         text,
  push_name     text,
  -- The code to scan, while one is waiting. It links a device to the account: never logged.
  qr            text,
  qr_attempt    int,
  qr_expires_at timestamptz,

  -- Ownership. The fence rises with every change of owner, and every write of a worker names the fence it holds:
  -- an owner that lost its lease writes nothing. Times are the database's.
  owner         text,
  fence         bigint not null default 0,
  lease_until   timestamptz,

  connected_at  timestamptz,
  last_seen_at  timestamptz,
  expires_at    timestamptz,
  created_at    timestamptz not null default now(),
  -- Deleting hides the session at once; the worker then unlinks the device and removes the login.
  deleted_at    timestamptz
);
create unique index if not exists wa_sessions_name on public.wa_sessions (workspace_id, name) where deleted_at is null;
create index if not exists wa_sessions_list on public.wa_sessions (workspace_id, created_at desc, id desc) where deleted_at is null;
-- What a supervisor looks for: sessions that should run or are owned.
create index if not exists wa_sessions_running on public.wa_sessions (lease_until) where desired_state = 'running';
create index if not exists wa_sessions_owner on public.wa_sessions (owner) where owner is not null;

-- Every change of a session's state, for the person who asks why.
create table if not exists public.wa_session_history (
  id           bigint generated always as identity primary key,
  workspace_id uuid not null references public.workspaces on delete cascade,
  session_id   uuid not null references public.wa_sessions on delete cascade,
  from_status  text not null,
  to_status    text not null,
  reason       text,
  detail       text,
  worker       text,
  at           timestamptz not null default now()
);
create index if not exists wa_session_history_list on public.wa_session_history (session_id, id desc);

-- One-shot wishes of the API that a state cannot express: unlink the device, start afresh, delete.
create table if not exists public.wa_session_requests (
  id           bigint generated always as identity primary key,
  workspace_id uuid not null references public.workspaces on delete cascade,
  session_id   uuid not null references public.wa_sessions on delete cascade,
  kind         text not null check (kind in ('restart', 'logout', 'delete')),
  created_at   timestamptz not null default now(),
  done_at      timestamptz,
  error        text
);
-- The same wish twice is one wish: the calls behind it are idempotent.
create unique index if not exists wa_session_requests_open on public.wa_session_requests (session_id, kind) where done_at is null;

alter table public.workers enable row level security;
alter table public.wa_sessions enable row level security;
alter table public.wa_session_history enable row level security;
alter table public.wa_session_requests enable row level security;
