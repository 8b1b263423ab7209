-- Texts a workspace writes again and again, with variables: {{name}}, or {{name|there}} when there is something to say without it.
create table if not exists public.templates (
  id           uuid primary key default gen_random_uuid(),
  workspace_id uuid not null references public.workspaces on delete cascade,
  name         text not null check (length(name) between 1 and 120),
  body         text not null check (length(body) between 1 and 4096),
  created_at   timestamptz not null default now(),
  updated_at   timestamptz not null default now()
);
create unique index if not exists templates_name on public.templates (workspace_id, lower(name));
create index if not exists templates_list on public.templates (workspace_id, created_at desc, id desc);
alter table public.templates enable row level security;

alter table public.workspaces
  -- What is done about a message of which nobody can find out whether it was sent: looked up and, if that says nothing, sent again under the same id;
  -- or left to a person.
  add column if not exists unknown_policy text not null default 'reconcile_then_resend_same_id'
    check (unknown_policy in ('reconcile_then_resend_same_id', 'at_most_once')),
  -- A customer who writes one of these words, and nothing else, wants no more messages. In capitals.
  add column if not exists opt_out_words text[] not null default '{STOP,UNSUBSCRIBE,CANCEL,END,QUIT,STOPALL}';
