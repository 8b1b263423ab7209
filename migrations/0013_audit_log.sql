-- Who did what to what, from where. Rows are only ever added: a trigger refuses every change, and every removal but that of the
-- retention, which says so and is let at what is older than a week only. No references: the log outlives what it speaks of.
create table if not exists public.audit_log (
  id           bigint generated always as identity primary key,
  workspace_id uuid not null,
  at           timestamptz not null default now(),
  actor_type   text not null check (actor_type in ('person', 'api_key', 'anonymous')),
  actor_id     uuid,
  actor_name   text,
  action       text not null,
  target_type  text,
  target_id    text,
  before       jsonb,
  after        jsonb,
  ip           text,
  user_agent   text,
  request_id   text
);
create index if not exists audit_log_page on public.audit_log (workspace_id, id desc);
create index if not exists audit_log_action on public.audit_log (workspace_id, action, id desc);
create index if not exists audit_log_actor on public.audit_log (workspace_id, actor_id, id desc);
create index if not exists audit_log_target on public.audit_log (workspace_id, target_id, id desc);
create index if not exists audit_log_age on public.audit_log (at);

create or replace function public.audit_log_is_append_only() returns trigger language plpgsql as $$
begin
  if tg_op = 'DELETE' and current_setting('awfar.audit_retention', true) = 'on'
    and old.at < now() - interval '7 days' then
    return old;
  end if;
  raise exception 'the audit log is append-only: % refused', tg_op;
end $$;
create or replace trigger audit_log_rows before update or delete on public.audit_log
  for each row execute function public.audit_log_is_append_only();
create or replace trigger audit_log_table before truncate on public.audit_log
  for each statement execute function public.audit_log_is_append_only();

alter table public.audit_log enable row level security;
