-- Further one-shot wishes: a pairing code for a phone that cannot scan (asked for with its number, answered with the code), and the end of a
-- session nobody has used for long.
alter table public.wa_session_requests drop constraint if exists wa_session_requests_kind_check;
alter table public.wa_session_requests add constraint wa_session_requests_kind_check
  check (kind in ('restart', 'logout', 'delete', 'expire', 'pairing_code'));
alter table public.wa_session_requests
  add column if not exists payload jsonb,
  -- The pairing code is a credential for as long as it is valid: the answer is taken out when it has been given.
  add column if not exists result jsonb;

alter table public.wa_sessions
  -- What the engine's processes use, counted so that pages they share are divided among them (PSS).
  add column if not exists memory_bytes bigint;
create index if not exists wa_sessions_expiry on public.wa_sessions (expires_at) where deleted_at is null;
